"""Cooperative Diffusion Recovery Likelihood: the density of grids, be they pixels, latents or points."""

from typing import TYPE_CHECKING

from cdrl.exports import on_demand

if TYPE_CHECKING:
    from cdrl.config import BottleneckConfig, Config, ConfigError, SamplerSettings
    from cdrl.config_files import load_config
    from cdrl.data import DataError, load_images
    from cdrl.model import CDRL
    from cdrl.runs.run import RunError
    from cdrl.sampling.annealing import Gaussian, log_normalizer
    from cdrl.sampling.noise import ImageNoise
    from cdrl.sampling.sampler import sample
    from cdrl.sampling.settings import ChainPlan, plan_chains
    from cdrl.schedule import NoiseSchedule
else:  # not for type checkers, to which any name would then be right
    __getattr__, __dir__ = on_demand(
        __name__,
        {
            "cdrl.config": ("BottleneckConfig", "Config", "ConfigError", "SamplerSettings"),
            "cdrl.config_files": ("load_config",),
            "cdrl.data": ("DataError", "load_images"),
            "cdrl.model": ("CDRL",),
            "cdrl.runs.run": ("RunError",),
            "cdrl.sampling.annealing": ("Gaussian", "log_normalizer"),
            "cdrl.sampling.noise": ("ImageNoise",),
            "cdrl.sampling.sampler": ("sample",),
            "cdrl.sampling.settings": ("ChainPlan", "plan_chains"),
            "cdrl.schedule": ("NoiseSchedule",),
        },
    )

__version__ = "0.1.0"

__all__ = [
    "CDRL",
    "BottleneckConfig",
    "ChainPlan",
    "Config",
    "ConfigError",
    "DataError",
    "Gaussian",
    "ImageNoise",
    "NoiseSchedule",
    "RunError",
    "SamplerSettings",
    "__version__",
    "load_config",
    "load_images",
    "log_normalizer",
    "plan_chains",
    "sample",
]

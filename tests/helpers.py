"""Small models, runs and the authors' reference, as several tests need them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from autoencoder.model import Autoencoder
from cdrl.config import BottleneckConfig, Config
from cdrl.config_files import parse_config
from cdrl.data import TrainingSet
from cdrl.model import CDRL
from cdrl.runs.model_folder import save_model
from cdrl.runs.run import Run
from cdrl.sampling.settings import ChainPlan
from cdrl.schedule import NoiseSchedule
from cdrl.training.engine import start
from cdrl.training.loop import Outputs, train
from pipelines.decoding import Decoder, LatentDecoder, PixelDecoder

Module = TypeVar("Module", bound=nn.Module)

ROOT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures"


def chain_plan(schedule: NoiseSchedule, steps: int | Sequence[int], **rest: Any) -> ChainPlan:
    """A plan of the sampler with the same number of steps at every level, or one for each."""
    return ChainPlan((steps,) * schedule.num_levels if isinstance(steps, int) else tuple(steps), **rest)


def tiny_values(**sections: Any) -> dict[str, Any]:
    """Plain values of a run on 8x8 digits with networks and training of the smallest size."""
    values: dict[str, Any] = {
        "space": "pixel",
        "data": {"name": "digits", "image_size": 8, "channels": 1, "labels": "class"},
        "schedule": {"num_levels": 2},
        "energy": {"channels": 4, "multipliers": [1, 2], "num_blocks": 1},
        "initializer": {"channels": 8, "multipliers": [1, 1], "num_blocks": 1, "dropout": 0.1},
        "training": {
            "num_steps": 6,
            "batch_size": 8,
            "langevin_steps": 2,
            "energy_lr": 1e-3,
            "initializer_lr": 1e-3,
            "warmup_steps": 4,
            "ema": 0.9,
            "log_every": 1,
            "sample_every": 100,
            "checkpoint_every": 3,
        },
        "sampling": {"steps": 1},
    }
    for name, changes in sections.items():
        values[name] = {**values.get(name, {}), **changes} if isinstance(changes, dict) else changes
    return values


def tiny_config(**sections: Any) -> Config:
    """`tiny_values`, checked."""
    return parse_config(tiny_values(**sections), source="test")


def write_config(path: Path, values: dict[str, Any]) -> Path:
    """A config file; YAML reads JSON."""
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def scrambled(module: Module, scale: float = 0.1, seed: int = 0) -> Module:
    """The module with noise on every parameter, so that nothing is left at zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return module


def tiny_model(config: Config | None = None, shape: tuple[int, ...] = (1, 8, 8), num_classes: int = 10) -> CDRL:
    """A model of random weights in evaluation mode."""
    torch.manual_seed(0)
    return scrambled(CDRL.from_config(config or tiny_config(), shape, num_classes)).eval()


def tiny_autoencoder() -> Autoencoder:
    """A first stage of random weights: 8x8 digits to latents of 3 x 4 x 4."""
    torch.manual_seed(0)
    config = BottleneckConfig(channels=32, multipliers=(1,), num_blocks=1, pixel_unshuffle=2)
    return Autoencoder(config, image_channels=1, image_size=8).eval()


def save_tiny_run(run: Path, *, latent: bool = False, config: Config | None = None) -> CDRL:
    """Write what training leaves in ``run``/model, for pixels or for latents; returns the model."""
    config = config or tiny_config(**({"space": "latent", "autoencoder": {}} if latent else {}))
    decoder: Decoder = PixelDecoder()
    if latent:
        decoder = LatentDecoder(tiny_autoencoder(), torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 0.5]))
    shape = (2,) if config.space == "point" else (3, 4, 4) if latent else (1, 8, 8)
    model = tiny_model(config, shape)
    description = {"config": config.model_dump(mode="json"), "class_names": [str(digit) for digit in range(10)]}
    save_model(run / "model", model, {**description, **decoder.description()})
    decoder.save(run / "model")
    return model


def train_on(data: TrainingSet, config: Config, folder: Path) -> None:
    """Train on data of ten classes in a run of its own, with neither decoder nor pictures."""
    run = Run(folder)
    run.open(config)
    outputs = Outputs(
        description={"config": config.model_dump(mode="json"), "class_names": []},
        add_files=lambda folder: None,
        render=lambda grids: torch.zeros(3, 8, 8, dtype=torch.uint8),
    )
    train(config, run, data, 10, outputs, start())


def start_command(*arguments: str | Path, processes: int = 1) -> subprocess.Popen[str]:
    """``python run.py`` with these arguments, over several processes if asked for."""
    return start_script(ROOT / "run.py", *arguments, processes=processes)


def start_script(*arguments: str | Path, processes: int = 1) -> subprocess.Popen[str]:
    """A script and its arguments, over several processes if asked for."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*launcher, *map(str, arguments)]
    # The new process belongs to no group of processes that this one has joined.
    joined = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in joined}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)


def metrics(run: Path) -> list[dict[str, Any]]:
    """The logged lines of a run without the times in them."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "images_per_second"} for line in lines]

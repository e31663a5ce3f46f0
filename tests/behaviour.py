"""What two small trained runs draw, and what ten updates make of fresh weights: stored once, compared bit for bit.

The stored answers were made before the sampler and the trainer were rewritten for readability. To store new ones, on
purpose: ``python -m tests.behaviour``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cpuinfo
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import run as door
from cdrl.data import load_images
from pipelines import CDRLPipeline
from pipelines.composition import compose
from pipelines.inpainting.fill import Averaged, Hidden, fill
from tests.helpers import FIXTURES, tiny_values, write_config

FOLDER = FIXTURES / "behaviour"
SEEDS = range(40, 48)
_SETTINGS = {"ema": 0.0, "log_every": 10, "checkpoint_every": 1000, "sample_every": 1000}
_TEN_UPDATES = tiny_values(
    seed=3,
    initializer={"dropout": 0.0, "attention_resolutions": [4]},
    training={**_SETTINGS, "num_steps": 10, "langevin_steps": 5},
)
_PIXEL = tiny_values(
    schedule={"num_levels": 3, "step_coefficient": 1.2e-3},
    energy={"channels": 8, "spectral_norm": False, "output_scale": 6.0},
    initializer={"dropout": 0.0, "channels": 8},
    training={**_SETTINGS, "num_steps": 150, "langevin_steps": 5, "batch_size": 16},
    sampling={"steps": 3, "temperature": 0.9},
)
_LATENT = tiny_values(
    space="latent",
    data={
        "name": "faces", "image_size": 32, "channels": 3, "zoom": 1.6, "num_train": 100, "num_test": 20,
        "labels": "attributes", "attributes": ["Smiling", "Eyeglasses"],
    },
    autoencoder={
        "latents": "mean",
        "architecture": {
            "pixel_unshuffle": 8, "channels": 32, "multipliers": [1], "num_blocks": 1, "latent_channels": 2,
        },
        "training": {"num_steps": 30, "batch_size": 8, "learning_rate": 1e-3},
    },
    schedule={"num_levels": 3, "logsnr_max": 3.0, "step_coefficient": 4.6e-2},
    energy={"channels": 8, "spectral_norm": False, "output_scale": 6.0, "reference": "gaussian"},
    initializer={"dropout": 0.0, "multipliers": [1], "conditional": False},
    training={**_SETTINGS, "num_steps": 100, "langevin_steps": 4, "batch_size": 16},
    sampling={"steps": 3, "denoise": 1.5},
)  # fmt: skip


def processor() -> str:
    """What decides how this machine rounds: the processor and torch's version."""
    known = cpuinfo.get_cpu_info()
    brand = ", ".join(f"{name} {known.get(name)}" for name in ("brand_raw", "family", "model"))
    return f"{brand}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__.partition('+')[0]}"


def samples(folder: Path = FOLDER) -> dict[str, Tensor]:
    """Eight seeds of the two stored runs under everything that samples, as float images [8, C, H, W]."""
    pixel, latent = (CDRLPipeline.from_pretrained(folder / name) for name in ("pixel", "latent"))
    digits = load_images(pixel.config.data, "test").images[:8] / 127.5 - 1
    faces = torch.nn.functional.interpolate(digits, size=(32, 32), mode="bilinear").expand(-1, 3, -1, -1)
    labels = list(range(8))
    half = torch.zeros(8, 8, dtype=torch.bool)
    half[:, 4:] = True
    large = torch.zeros(32, 32, dtype=torch.bool)
    large[8:24, 8:24] = True
    draws: dict[str, Callable[[], Tensor]] = {
        "pixel": lambda: pixel(8, seeds=SEEDS, label=labels).tensors,
        "pixel_null": lambda: pixel(8, seeds=SEEDS).tensors,
        "guided": lambda: pixel(8, seeds=SEEDS, label=labels, guidance=0.7).tensors,
        "auto": lambda: pixel(8, seeds=SEEDS, label=labels, steps="auto").tensors,
        "adjusted": lambda: pixel(8, seeds=SEEDS, label=2, steps=2, step_adjustment=True, temperature=1.0).tensors,
        "mala": lambda: pixel(8, seeds=SEEDS, label=labels, kernel="mala").tensors,
        "hmc": lambda: pixel(8, seeds=SEEDS, label=labels, kernel="hmc", leapfrog_steps=2).tensors,
        "initializer": lambda: pixel(8, seeds=SEEDS, label=labels, steps=0, denoise=0.0).tensors,
        "inpainted": lambda: fill(pixel, digits, Hidden(half), seeds=SEEDS, label=labels).tensors,
        "inpainted_mala": lambda: fill(pixel, digits, Hidden(half), seeds=SEEDS, kernel="mala").tensors,
        "enlarged": lambda: fill(pixel, digits, Averaged(2), seeds=SEEDS, guidance=0.5, label=labels).tensors,
        "latent": lambda: latent(8, seeds=SEEDS, label=1, batch_size=3).tensors,
        "composed": lambda: compose(latent, 8, [1, 2], seeds=SEEDS, guidance=1.0).tensors,
        "latent_inpainted": lambda: fill(latent, faces, Hidden(large), seeds=SEEDS).tensors,
        "latent_inpainted_reset": lambda: fill(latent, faces, Hidden(large), seeds=SEEDS, by="reset").tensors,
    }
    return {name: draw() for name, draw in draws.items()}


def ten_updates(folder: Path) -> dict[str, Tensor]:
    """Weights of both networks after ten updates from the seed on, trained in ``folder``."""
    _command("train", write_config(folder / "config.yaml", _TEN_UPDATES), "--run", folder / "run")
    model = folder / "run" / "model"
    return {
        f"{name}.{key}": value
        for name in ("energy", "initializer")
        for key, value in load_file(model / f"{name}.safetensors").items()
    }


def _command(*arguments: Any) -> None:
    result = CliRunner().invoke(door.app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output


def _store(work: Path) -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    for name, values in {"pixel": _PIXEL, "latent": _LATENT}.items():
        config = write_config(work / f"{name}.yaml", values)
        verbs = ["train-autoencoder", "encode", "train"] if name == "latent" else ["train"]
        for verb in verbs:
            _command(verb, config, "--run", work / name)
        shutil.copytree(work / name / "model", FOLDER / name)
    save_file(samples(), FOLDER / "samples.safetensors", {"processor": processor()})
    save_file(ten_updates(work), FOLDER / "ten_updates.safetensors", {"processor": processor()})


if __name__ == "__main__":
    import tests.conftest  # noqa: F401  one thread, no GPU, as in the tests

    with tempfile.TemporaryDirectory() as work:
        _store(Path(work))

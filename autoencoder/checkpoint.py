"""The result of a first-stage run: a folder with autoencoder.safetensors and autoencoder.json."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError

from autoencoder.model import Autoencoder
from cdrl.config import BottleneckConfig, ConfigError
from cdrl.runs.checksums import verify_checksums
from cdrl.runs.model_folder import load_weights
from cdrl.runs.records import Record, first_fault, read_record
from cdrl.runs.run import RunError, save_tensors, write_json

FORMAT = 1
WEIGHTS = "autoencoder.safetensors"
DESCRIPTION = "autoencoder.json"
_PLACES = (".", "model", "autoencoder/model", "model/autoencoder", "autoencoder")
"""Where a first stage lies in its own folder, its run, a second stage's run, and the model folder of the latter."""


class AutoencoderRecord(Record):
    """autoencoder.json; it also tells of the training."""

    format: Literal[1]
    architecture: dict[str, Any]
    image_channels: Literal[1, 3]
    image_size: Annotated[int, Field(ge=1, le=65_536)]


def save_autoencoder(folder: Path, autoencoder: Autoencoder, **facts: Any) -> None:
    """Write weights, what is needed to rebuild the network, and ``facts`` of its training into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS, autoencoder.state_dict())
    description = {
        "format": FORMAT,
        "architecture": autoencoder.config.model_dump(mode="json"),
        "image_channels": autoencoder.image_channels,
        "image_size": autoencoder.image_size,
        **facts,
    }
    write_json(folder / DESCRIPTION, description)


def find_autoencoder(folder: Path) -> Path:
    """The folder of the first stage that a run folder or a model folder holds. Raises RunError where there is none."""
    for place in _PLACES:
        if (folder / place / DESCRIPTION).exists():
            return folder / place
    raise RunError(f"{folder}: no first stage there; train one with: python run.py train-autoencoder CONFIG")


def load_autoencoder(folder: Path) -> Autoencoder:
    """The autoencoder in evaluation mode, its weights fixed.

    Raises:
        RunError: a file is missing, damaged or of another model.
    """
    verify_checksums(folder)
    path = folder / DESCRIPTION
    record = read_record(path, AutoencoderRecord)
    try:
        architecture = BottleneckConfig.model_validate(record.architecture)
        with torch.device("meta"):
            autoencoder = Autoencoder(architecture, record.image_channels, record.image_size)
    except ValidationError as error:
        raise RunError(f"{path}: architecture: {first_fault(error)}") from None
    except ConfigError as error:
        raise RunError(f"{path}: {error}") from None
    load_weights(autoencoder, folder / WEIGHTS)
    return autoencoder.eval().requires_grad_(False)

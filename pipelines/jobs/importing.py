"""Weights published elsewhere, made into run folders."""

from __future__ import annotations

from pathlib import Path

from autoencoder.checkpoint import save_autoencoder
from autoencoder.importing import load_published_autoencoder
from autoencoder.model import Autoencoder
from cdrl.config import BottleneckConfig, Section
from cdrl.runs.model_folder import save_model
from cdrl.runs.published import load_published
from cdrl.runs.run import Run, RunError, written_whole


def import_cdrl(checkpoint: Path, run: Path, *, average: bool, image_size: int | None) -> None:
    """Turn a checkpoint of the paper's authors into a run folder that samples at once.

    Raises:
        RunError: the checkpoint cannot be read, or the folder holds a run already.
    """
    target = Run(run)
    if target.model.exists():
        raise RunError(f"{run}: holds a trained model already; name another folder")
    published = load_published(checkpoint, average=average, image_size=image_size)
    target.open(published.config)
    description = {
        "config": published.config.model_dump(mode="json"),
        "class_names": [f"class {index}" for index in range(published.model.num_classes)],
        "source": checkpoint.name,
    }
    with written_whole(target.model) as folder:
        save_model(folder, published.model, description)


class ImportedFirstStage(Section):
    """What the folder of an imported first stage says of itself; a run that trains one says something else."""

    source: str
    image_channels: int
    image_size: int
    architecture: BottleneckConfig


def import_autoencoder(source: Path, run: Path, *, average: bool, image_size: int | None) -> Autoencoder:
    """Turn a published first stage into a run folder that ``autoencoder.run`` may name; returns the first stage.

    Raises:
        RunError: the weights cannot be read or are of another model, or the folder exists.
    """
    if run.exists():
        raise RunError(f"{run}: exists already; name another folder")
    autoencoder = load_published_autoencoder(source, average=average, image_size=image_size)
    with written_whole(run) as folder:
        target = Run(folder)
        target.open(
            ImportedFirstStage(
                source=source.name,
                image_channels=autoencoder.image_channels,
                image_size=autoencoder.image_size,
                architecture=autoencoder.config,
            )
        )
        save_autoencoder(target.model, autoencoder)
    return autoencoder

"""Weights published elsewhere, made into run folders."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from autoencoder.importing import load_published_autoencoder
from autoencoder.model import Autoencoder, load_autoencoder, save_autoencoder
from cdrl.config import BottleneckConfig, Section
from cdrl.runs.checksums import folder_with_checksums
from cdrl.runs.lock import locked
from cdrl.runs.model_folder import load_model, save_model
from cdrl.runs.published import load_published
from cdrl.runs.run import Run, RunError


def import_cdrl(checkpoint: Path, run: Path, *, average: bool, image_size: int | None) -> None:
    """Turn a checkpoint of the paper's authors into a run folder that samples at once.

    A folder that holds these very weights already is left as it is.

    Raises:
        RunError: the checkpoint cannot be read, or the folder holds another run.
    """
    published = load_published(checkpoint, average=average, image_size=image_size)
    with locked(run):
        target = _target(run, published.config)
        if target.model.exists():
            _expect_same(run, load_model(target.model)[0], published.model)
            return
        description = {
            "config": published.config.model_dump(mode="json"),
            "class_names": [f"class {index}" for index in range(published.model.num_classes)],
            "source": checkpoint.name,
        }
        with folder_with_checksums(target.model) as folder:
            save_model(folder, published.model, description)


class ImportedFirstStage(Section):
    """Settings stored for an imported first stage, in place of those of a trained one."""

    source: str
    image_channels: int
    image_size: int
    architecture: BottleneckConfig


def import_autoencoder(source: Path, run: Path, *, average: bool, image_size: int | None) -> Autoencoder:
    """Turn a published first stage into a run folder that ``autoencoder.run`` may name; returns the first stage.

    A folder that holds these very weights already is left as it is.

    Raises:
        RunError: the weights cannot be read or are of another model, or the folder holds something else.
    """
    autoencoder = load_published_autoencoder(source, average=average, image_size=image_size)
    with locked(run):
        settings = ImportedFirstStage(
            source=source.name,
            image_channels=autoencoder.image_channels,
            image_size=autoencoder.image_size,
            architecture=autoencoder.config,
        )
        target = _target(run, settings)
        if target.model.exists():
            _expect_same(run, load_autoencoder(target.model), autoencoder)
            return autoencoder
        with folder_with_checksums(target.model) as folder:
            save_autoencoder(folder, autoencoder)
    return autoencoder


def _target(run: Path, settings: Section) -> Run:
    """The run folder, made if it is new.

    Raises:
        RunError: it holds anything but an import of the same kind, whole or interrupted.
    """
    target = Run(run)
    names = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    if names and "config.yaml" not in names:
        raise RunError(f"{run}: exists already; name another folder")
    target.open(settings)
    return target


def _expect_same(run: Path, there: nn.Module, imported: nn.Module) -> None:
    ours, theirs = imported.state_dict(), there.state_dict()
    if ours.keys() != theirs.keys() or not all(_equal(ours[name], theirs[name]) for name in ours):
        raise RunError(f"{run}: holds a trained model already; name another folder")


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)

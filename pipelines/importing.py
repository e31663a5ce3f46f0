"""Weights published elsewhere, made into run folders."""

from __future__ import annotations

from pathlib import Path

from cdrl.checkpoint import save_model
from cdrl.published import load_published
from cdrl.runs import Run, RunError, written_whole


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

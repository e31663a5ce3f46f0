"""Samples as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cdrl.loop import save_picture
from cdrl.runs import written_whole
from pipelines.base import CDRLPipeline, Generated

GRID_IMAGES = 64


def write_samples(pipeline: CDRLPipeline, generated: Generated, folder: Path) -> None:
    """Write 000000.png, 000001.png, … and grid.png with the first 64; points go to points.npy."""
    folder.mkdir(parents=True, exist_ok=True)
    if pipeline.config.space == "point":
        with written_whole(folder / "points.npy") as partial, partial.open("wb") as file:
            np.save(file, generated.grids.cpu().numpy(), allow_pickle=False)
        save_picture(folder / "grid.png", pipeline.decoder.picture(generated.grids))
        return
    for index, image in enumerate(generated.images):
        with written_whole(folder / f"{index:06d}.png") as partial:
            image.save(partial, format="png")
    save_picture(folder / "grid.png", pipeline.decoder.picture(generated.grids[:GRID_IMAGES]))


def default_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def labels_in_turn(pipeline: CDRLPipeline, seeds: Sequence[int]) -> list[int] | None:
    """A class for each seed, all classes in turn; None for a model without classes."""
    classes = pipeline.model.num_classes
    return [seed % classes for seed in seeds] if classes else None

"""Images as likelihoods are measured on: grids with the noise of the model's smallest noise level upon them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from cdrl.data import DataError, Split, possible_labels, sample_checkerboard, training_images
from cdrl.sampling.noise import ImageNoise, derive_seed
from cdrl.schedule import NoiseSchedule
from pipelines.base import CDRLPipeline

EIGHT_BIT_STEP = 2 / 255
"""Between two neighbouring values of 8 bits where pixels are in [-1, 1]."""


class Clean(NamedTuple):
    """Clean grids [N, *shape] of a split, and the class id of each, int64 [N]: -1 where there are no classes."""

    grids: Tensor
    labels: Tensor


def only_class(classes: Sequence[int]) -> int | None:
    """The class whose images a density of these classes is of: the one; None, which is all, of several."""
    return classes[0] if len(classes) == 1 else None


def clean_grids(pipeline: CDRLPipeline, split: Split, count: int, seed: int, label: int | None = None) -> Clean:
    """Up to ``count`` clean grids of a split, chosen at random where there are more; points are drawn anew.

    Args:
        label: of this class alone.

    Raises:
        DataError: the images cannot be read, or there is none of the class.
    """
    if pipeline.config.space == "point":
        generator = torch.Generator().manual_seed(derive_seed("likelihood", "images", split, seed))
        points = sample_checkerboard(count, generator)
        return Clean(points.to(pipeline.device), torch.full((count,), -1))
    images, labels = chosen_images(pipeline, split, count, seed, label)
    return Clean(pipeline.grids_of(images), labels)


def chosen_images(
    pipeline: CDRLPipeline, split: Split, count: int, seed: int, label: int | None = None
) -> tuple[Tensor, Tensor]:
    """The images whose grids `clean_grids` returns, uint8 [N, C, H, W], and their class ids, int64 [N].

    Raises:
        DataError: the images cannot be read, or there is none of the class.
    """
    generator = torch.Generator().manual_seed(derive_seed("likelihood", "images", split, seed))
    found = training_images(pipeline.config.data, split)
    possible = possible_labels(pipeline.config.data, found)
    rows = torch.arange(len(found.grids))
    if label is not None and label >= 0:
        assert possible is not None
        rows = rows[(possible == label).any(dim=1)]
        if not len(rows):
            raise DataError(f"{split}: no image of class {pipeline.class_names[label]}")
    if len(rows) > count:
        rows = rows[torch.randperm(len(rows), generator=generator)[:count].sort().values]
    single = pipeline.config.data.labels == "class"
    labels = possible[rows, 0] if single and possible is not None else torch.full((len(rows),), -1)
    return found.grids[rows], labels


def noised(schedule: NoiseSchedule, clean: Tensor, level: int, seed: int, purpose: str) -> Tensor:
    """x_t of clean grids [N, *shape]: alpha_bar x + sigma_bar eps, each with noise of a seed of its own."""
    seeds = [derive_seed("likelihood", "noise", purpose, seed, row) for row in range(len(clean))]
    epsilon = ImageNoise(seeds, clean.device).normal(clean.shape[1:])
    return float(schedule.alpha_bar[level]) * clean + float(schedule.sigma_bar[level]) * epsilon

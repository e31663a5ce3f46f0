"""Composition of concepts (eq. 14): several conditions in, one density out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cdrl.model import CDRL
from cdrl.sampler import LevelLogDensity, Propose


def composed(model: CDRL, concepts: Sequence[int], weight: float, count: int) -> tuple[Propose, LevelLogDensity]:
    """The density of images that show all of M independent concepts: sum_i (w+1) f(.|c_i) - (Mw + M - 1) f(.|null).

    All evaluations pass the energy as one batch. The proposal is that of the null class. One concept is guidance of
    the density, and w = 0 composes without guidance.

    Args:
        concepts: class ids, at least one.
        count: images a batch.
    """
    if not concepts:
        raise ValueError("concepts: expected at least one class id")
    device = next(model.parameters()).device
    num = len(concepts)
    null_weight = num * weight + num - 1
    # The null class costs no evaluation where it does not count.
    labels, weights = [*concepts], [weight + 1.0] * num
    if null_weight:
        labels, weights = [*labels, -1], [*weights, -null_weight]
    null = model.conditioned(None)
    together = model.conditioned(model.labels(labels, len(labels), device).repeat_interleave(count))
    factors = torch.tensor(weights, device=device)

    def log_density(y: Tensor, level: int) -> Tensor:
        values = together.log_density(y.repeat(len(labels), *[1] * (y.ndim - 1)), level)
        return factors @ values.reshape(len(labels), count)

    return null.propose, log_density

"""Classifier-free guidance (eq. 11, 12): two conditions in, one density and one proposal out."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl.model import CDRL, Label
from cdrl.sampling.sampler import LevelLogDensity, Propose


def guided(model: CDRL, label: Label, weight: float, count: int) -> tuple[Propose, LevelLogDensity]:
    """(1 + w) times the conditional less w times the unconditional, for the density and the proposal's mean.

    Conditional and null evaluations pass the networks as one batch. The quadratic term of the recovery likelihood
    is no part of the density and stays as it is. w = 0 is the plain conditional model, at its cost.

    Args:
        count: images a batch.
    """
    device = next(model.parameters()).device
    labels = model.labels(label, count, device)
    if not weight:
        plain = model.conditioned(labels)
        return plain.propose, plain.log_density
    both = model.conditioned(torch.cat([labels, torch.full_like(labels, -1)]))

    def combine(values: Tensor) -> Tensor:
        conditional, null = values.chunk(2)
        return (1 + weight) * conditional - weight * null

    def propose(x_next: Tensor, level: int) -> Tensor:
        return combine(both.propose(torch.cat([x_next, x_next]), level))

    def log_density(y: Tensor, level: int) -> Tensor:
        return combine(both.log_density(torch.cat([y, y]), level))

    return propose, log_density

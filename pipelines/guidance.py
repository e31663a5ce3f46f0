"""Guidance: a condition and a weight in, one density and one proposal out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl.model import CDRL
from cdrl.registry import registered
from cdrl.sampling.sampler import LevelLogDensity, Propose

Guidance = Callable[[CDRL, Tensor], tuple[Propose, LevelLogDensity]]
"""(model, class ids [N]) -> the proposal and the density from which Algorithm 2 draws N images."""


def guided(model: CDRL, labels: Tensor, guidance: float | Guidance) -> tuple[Propose, LevelLogDensity]:
    """The proposal and the density under a guidance, or under classifier-free guidance of that weight.

    Args:
        labels: class ids [N], -1 for no class.
    """
    return ClassifierFree(guidance)(model, labels) if isinstance(guidance, int | float) else guidance(model, labels)


@dataclass(frozen=True)
class ClassifierFree:
    """(1 + w) times the conditional less w times the unconditional (eq. 11, 12), density and proposal mean alike.

    Conditional and null evaluations pass the networks as one batch. The quadratic term of the recovery likelihood
    is no part of the density and stays as it is. w = 0 is the plain conditional model, at its cost.
    """

    weight: float

    def __post_init__(self) -> None:
        if not 0 <= self.weight < float("inf"):
            raise ValueError(f"guidance: expected a weight of 0 or more, found {self.weight}")

    def __call__(self, model: CDRL, labels: Tensor) -> tuple[Propose, LevelLogDensity]:
        if not self.weight:
            plain = model.conditioned(labels)
            return plain.propose, plain.log_density
        both = model.conditioned(torch.cat([labels, torch.full_like(labels, -1)]))

        def propose(x_next: Tensor, level: int) -> Tensor:
            return self._extrapolated(both.propose(torch.cat([x_next, x_next]), level))

        def log_density(y: Tensor, level: int) -> Tensor:
            return self._extrapolated(both.log_density(torch.cat([y, y]), level))

        return propose, log_density

    def _extrapolated(self, values: Tensor) -> Tensor:
        conditional, null = values.chunk(2)
        return (1 + self.weight) * conditional - self.weight * null


GUIDANCE = {"classifier_free": "pipelines.guidance:ClassifierFree"}
"""``--guidance NAME:WEIGHT``: weight -> Guidance, as in `cdrl.registry`."""


def parse_guidance(text: str) -> float | Guidance:
    """A weight of classifier-free guidance from ``0.7``, or any guidance from ``NAME:WEIGHT``.

    Raises:
        ValueError: there is no such guidance, or the weight is no number of 0 or more.
    """
    name, found, weight = text.rpartition(":")
    try:
        value = float(weight)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"guidance: expected a weight of 0 or more, or NAME:WEIGHT, found '{text}'")
    return registered("guidance", name, GUIDANCE)(value) if found else value

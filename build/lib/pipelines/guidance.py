"""Guidance: a condition and a weight in, one density and one proposal out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cdrl.arguments import check_function, check_kind, finite_number
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
    chosen = weight_or_guidance(guidance)
    return ClassifierFree(chosen)(model, labels) if isinstance(chosen, float) else chosen(model, labels)


def weight_or_guidance(guidance: float | Guidance) -> float | Guidance:
    """The guidance itself, or the weight of classifier-free guidance as a float.

    Raises:
        TypeError: it is neither.
        ValueError: it is a weight below 0, infinite or NaN.
    """
    expected = "a weight of 0 or more, or a Guidance"
    if callable(guidance):
        check_function("guidance", guidance, expected, None, None)
        return guidance
    return finite_number("guidance", guidance, least=0, expected=expected)


@dataclass(frozen=True)
class ClassifierFree:
    """(1 + w) times the conditional less w times the unconditional (eq. 11, 12), density and proposal mean alike.

    Conditional and null evaluations pass the networks as one batch. The quadratic term of the recovery likelihood
    is no part of the density and stays as it is. w = 0 is the plain conditional model, at its cost.
    """

    weight: float

    def __post_init__(self) -> None:
        finite_number("guidance", self.weight, least=0, expected="a weight of 0 or more")

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
        TypeError: there is no text.
        ValueError: there is no such guidance, or the weight is no number of 0 or more.
    """
    check_kind("guidance", text, str, "a text, such as '0.7' or 'classifier_free:0.7'")
    name, found, weight = text.rpartition(":")
    try:
        value = float(weight)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ValueError(f"guidance: expected a weight of 0 or more, or NAME:WEIGHT, found '{text}'")
    return registered("guidance", name, GUIDANCE)(value) if found else value

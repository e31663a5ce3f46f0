"""Both networks and the sampler against the authors' code, on their checkpoints' weights."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from cdrl.noise import ImageNoise
from cdrl.sampler import sample
from tests.cdrl.reference import NUM_CLASSES, SHAPE, reference_answers, reference_model

TOLERANCE = 1e-4


class NoNoise(ImageNoise):
    """Starts a trajectory at a given place and adds nothing to it."""

    def __init__(self, start: Tensor) -> None:
        super().__init__(range(len(start)))
        self._start: Tensor | None = start

    def normal(self, shape: Sequence[int]) -> Tensor:
        draw = torch.zeros(len(self), *shape) if self._start is None else self._start
        self._start = None
        return draw


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Equal up to a share of the largest value."""
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("condition", NUM_CLASSES)
def test_energy_and_its_gradient_equal_the_authors_at_every_level(condition: str, weights: str) -> None:
    model, answers = reference_model(condition, weights), reference_answers(condition, weights)
    for level in range(6):
        y = answers["input"].clone().requires_grad_()
        value = model.log_density(y, level, answers.get(f"label_level{level}")) * model.schedule.step_size[level] ** 2
        (gradient,) = torch.autograd.grad(value.sum(), y)
        assert_close(value, answers[f"energy_out_level{level}"])
        assert_close(gradient, answers[f"energy_grad_level{level}"])


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("condition", NUM_CLASSES)
def test_proposals_equal_the_authors_at_every_level(condition: str, weights: str) -> None:
    model, answers = reference_model(condition, weights), reference_answers(condition, weights)
    with torch.no_grad():
        for level in range(6):
            ours = model.propose(answers["input"], level, answers.get(f"label_level{level}"))
            assert_close(ours, answers[f"proposal_level{level}"])


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("condition", NUM_CLASSES)
def test_a_trajectory_without_noise_passes_where_the_authors_passes(condition: str, weights: str) -> None:
    """Algorithm 2 with every draw zero; the conditional one is guided (eq. 11, 12)."""
    model, answers = reference_model(condition, weights), reference_answers(condition, weights)
    null = model.conditioned(None)
    chosen = model.conditioned(answers["sample_label"]) if "sample_label" in answers else null
    w = answers["sample_guidance"].item() if "sample_guidance" in answers else 0.0

    def log_density(y: Tensor, level: int) -> Tensor:
        return (1 + w) * chosen.log_density(y, level) - w * null.log_density(y, level)

    def propose(x_next: Tensor, level: int) -> Tensor:
        return (1 + w) * chosen.propose(x_next, level) - w * null.propose(x_next, level)

    visited: dict[int, Tensor] = {}

    def remember(*, level: int, step: int, y: Tensor) -> None:
        visited[level] = y / model.schedule.alpha_y[level]

    noise = NoNoise(answers["x6"])
    final = sample(model.schedule, propose, log_density, noise, SHAPE, steps=15, denoise=2.0, callback=remember)
    for level in range(6):
        assert_close(visited[level], answers[f"x{level}"])
    assert_close(final, answers["final"])

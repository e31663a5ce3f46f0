"""The initializers: identity at first, conditions that reach the output, shapes that are refused.

Their arithmetic is checked against the authors' code in test_reference.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cdrl.config import InitializerConfig
from cdrl.networks import PointInitializer, UNetInitializer
from cdrl.networks.initializer import ImageDropout, dropout_noise
from cdrl.sampling.noise import ImageNoise
from tests.helpers import scrambled

LOGSNR = torch.tensor([9.0, 1.0, -4.0])
NULL = torch.full((3,), -1)
SHAPES = [(1, 8, 8), (3, 8, 8), (4, 16, 16), (2,)]


def network(shape: tuple[int, ...], num_classes: int = 0, **changes: Any) -> UNetInitializer | PointInitializer:
    torch.manual_seed(0)
    config = InitializerConfig(**{"channels": 8, "multipliers": (1, 1), "num_blocks": 1, "dropout": 0.0, **changes})
    return (UNetInitializer if len(shape) == 3 else PointInitializer)(config, shape, num_classes).eval()


def grids(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_initializer_is_the_identity(shape: tuple[int, ...]) -> None:
    torch.testing.assert_close(network(shape)(grids(shape), LOGSNR, NULL), grids(shape), rtol=0, atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_level_and_class_reach_the_output(shape: tuple[int, ...]) -> None:
    initializer = scrambled(network(shape, num_classes=5))
    base = initializer(grids(shape), LOGSNR, NULL)
    assert base.shape == grids(shape).shape
    assert not torch.allclose(base, grids(shape), atol=1e-3)
    assert not torch.allclose(initializer(grids(shape), LOGSNR - 1, NULL), base, atol=1e-4)
    assert not torch.allclose(initializer(grids(shape), LOGSNR, NULL + 3), base, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_images_do_not_see_each_other(shape: tuple[int, ...]) -> None:
    initializer, x, label = scrambled(network(shape, num_classes=5)), grids(shape), torch.tensor([-1, 0, 4])
    together = initializer(x, LOGSNR, label)
    alone = torch.cat([initializer(x[i : i + 1], LOGSNR[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_points_that_share_conditions_are_answered_as_if_alone() -> None:
    """So is their gradient: what a condition is told by every point that has it adds up."""
    initializer, x = scrambled(network((2,), num_classes=5)), grids((2,))[[0, 1, 2, 0, 1]]
    logsnr, label = LOGSNR[[0, 1, 0, 0, 1]], torch.tensor([2, 2, -1, 2, 2])
    together = initializer(x, logsnr, label)
    alone = torch.cat([initializer(x[i : i + 1], logsnr[i : i + 1], label[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    gradients = [torch.autograd.grad(out.square().sum(), list(initializer.parameters())) for out in (together, alone)]
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_fourier_features_reach_the_output_of_points() -> None:
    initializer, x = scrambled(network((2,), fourier_features=5)), grids((2,))
    before = initializer(x, LOGSNR, NULL)
    assert initializer.frequencies is not None
    initializer.frequencies.zero_()
    assert not torch.allclose(initializer(x, LOGSNR, NULL), before, atol=1e-4)


def test_dropout_acts_in_training_only_and_needs_its_noise() -> None:
    initializer, x = scrambled(network((3, 8, 8), dropout=0.5)), grids((3, 8, 8))
    still = initializer(x, LOGSNR, NULL)
    assert torch.equal(initializer(x, LOGSNR, NULL), still)
    initializer.train()
    with pytest.raises(RuntimeError, match=r"dropout_noise"):
        initializer(x, LOGSNR, NULL)
    with dropout_noise(ImageNoise(range(len(x)))):
        assert not torch.equal(initializer(x, LOGSNR, NULL), still)


def test_dropout_of_an_image_depends_on_its_own_stream_alone() -> None:
    dropout, h = ImageDropout(0.3), torch.ones(4, 3, 9, 7)

    def dropped(rows: list[int]) -> torch.Tensor:
        with dropout_noise(ImageNoise(rows)):
            return dropout(h[: len(rows)])

    together = dropped([0, 1, 2, 3])
    assert torch.equal(torch.cat([dropped([0, 1]), dropped([2]), dropped([3])]), together)
    assert not torch.equal(together[0], together[1])


def test_dropout_leaves_the_mean_as_it_is() -> None:
    dropout, h = ImageDropout(0.1), torch.ones(2, 100, 1000)
    with dropout_noise(ImageNoise([5, 6])):
        first, second = dropout(h), dropout(h)
    assert first.unique().tolist() == pytest.approx([0, 1 / 0.9])
    for result in (first, second):
        assert result.mean(dim=(1, 2)).tolist() == pytest.approx([1, 1], abs=0.005)
    # Neighbours, which share a draw, are dropped independently of each other.
    gone = (first == 0).float()
    assert (gone[..., 1:] * gone[..., :-1]).mean().item() == pytest.approx(0.01, abs=0.001)
    assert (gone * (second == 0)).mean().item() == pytest.approx(0.01, abs=0.001)


def test_attention_stands_at_the_resolutions_asked_for_and_in_the_middle() -> None:
    def attentions(resolutions: tuple[int, ...]) -> int:
        initializer = network((3, 16, 16), attention_resolutions=resolutions)
        return sum(name.endswith("qkv.weight") for name in initializer.state_dict())

    # One block on the way down and two on the way up at a resolution; one in the middle in any case.
    assert attentions(()) == 1
    assert attentions((8,)) == 1 + 3
    assert attentions((16, 8)) == 1 + 6


def test_a_grid_that_cannot_be_halved_as_often_is_refused_with_the_key_named() -> None:
    with pytest.raises(ValueError, match=r"initializer\.multipliers: 3 resolutions need a grid divisible by 4"):
        network((3, 6, 6), multipliers=(1, 1, 1))


def test_points_have_no_resolutions_to_multiply() -> None:
    with pytest.raises(ValueError, match=r"initializer\.multipliers must all be 1"):
        network((2,), multipliers=(1, 2))

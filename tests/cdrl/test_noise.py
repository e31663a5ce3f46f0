"""A stream of random numbers for each image, whatever lies beside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cdrl.noise import ImageNoise, derive_seed


def test_different_parts_give_different_seeds() -> None:
    parts: list[tuple[int | str, ...]] = [
        (),
        (0,),
        ("0",),
        (0, 1),
        (1, 0),
        ("0,1",),
        (0, "1"),
        ("a", "b"),
        ("ab",),
        ("a", "b", ""),
        (-1,),
        (2**70,),
    ]
    parts += [("train", step, row) for step in range(100) for row in range(100)]
    assert len({derive_seed(*part) for part in parts}) == len(parts)


def test_seeds_stay_what_they_were() -> None:
    """Stored runs resume with the same draws only while these numbers stand."""
    assert derive_seed("sample", 17) == 7689329670665981879
    assert derive_seed(0, "train", 3, 5) == 6468699842433255193


def test_seeds_fit_a_generator() -> None:
    seeds = [derive_seed("x", i) for i in range(1000)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62, "the upper half is used too"


def calls(noise: ImageNoise) -> list[Tensor]:
    """Draws of every kind, in turn, more than one block of them."""
    drawn = [noise.integers(6).float(), noise.uniform()]
    drawn += [noise.normal((1, 8, 8)) for _ in range(70)]
    drawn += [noise.uniform(), noise.normal((3,)), noise.normal((1, 8, 8))]
    return [draw.flatten(1) if draw.ndim > 1 else draw[:, None] for draw in drawn]


@pytest.mark.parametrize("batch", [[5], [5, 6], [1, 2, 3, 5], list(range(40))])
def test_a_streams_draws_do_not_depend_on_the_batch(batch: list[int]) -> None:
    alone = torch.cat(calls(ImageNoise([5])), dim=1)[0]
    among = torch.cat(calls(ImageNoise(batch)), dim=1)[batch.index(5)]
    assert torch.equal(among, alone)


def test_streams_of_different_seeds_and_draws_of_one_stream_differ() -> None:
    noise = ImageNoise([1, 2])
    first, second = noise.normal((4, 4)), noise.normal((4, 4))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, second)


def test_the_same_seed_gives_the_same_stream_again() -> None:
    assert all(torch.equal(*pair) for pair in zip(calls(ImageNoise([3, 9])), calls(ImageNoise([3, 9])), strict=True))


@pytest.mark.parametrize(
    ("draw", "mean", "variance"),
    [
        (lambda noise: noise.normal((64, 64)), 0.0, 1.0),
        (lambda noise: torch.stack([noise.uniform() for _ in range(2000)]), 0.5, 1 / 12),
        (lambda noise: torch.stack([noise.integers(6) for _ in range(2000)]).double(), 2.5, 35 / 12),
    ],
)
def test_moments(draw: Callable[[ImageNoise], Tensor], mean: float, variance: float) -> None:
    values = draw(ImageNoise(range(20)))
    assert values.mean().item() == pytest.approx(mean, abs=5 * (variance / values.numel()) ** 0.5)
    assert values.var().item() == pytest.approx(variance, rel=0.05)


def test_integers_and_uniform_stay_in_their_ranges() -> None:
    noise = ImageNoise(range(200))
    integers = torch.stack([noise.integers(6) for _ in range(20)])
    assert integers.dtype == torch.int64
    assert integers.unique().tolist() == [0, 1, 2, 3, 4, 5]
    uniform = torch.stack([noise.uniform() for _ in range(20)])
    assert 0 <= uniform.min() < 0.01
    assert 0.99 < uniform.max() < 1


def test_consecutive_draws_are_uncorrelated() -> None:
    noise = ImageNoise(range(8))
    draws = torch.stack([noise.normal((256,)) for _ in range(40)]).flatten(1)
    correlation = (draws[1:] * draws[:-1]).mean().item()
    assert abs(correlation) < 5 / draws[1:].numel() ** 0.5


def test_length_is_the_number_of_images() -> None:
    assert len(ImageNoise([3, 1, 4])) == 3
    assert ImageNoise([3, 1, 4]).normal((2,)).shape == (3, 2)

"""A stream of random numbers for each image, whatever lies beside it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from cdrl.sampling import noise as noise_module
from cdrl.sampling.noise import Draw, ImageNoise, InterpolatedNoise, derive_seed


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


def way(share: list[float], first: int = 3, second: int = 4) -> InterpolatedNoise:
    """Images on the way from one seed to another."""
    return InterpolatedNoise([first] * len(share), [second] * len(share), torch.tensor(share))


def test_noise_begins_and_ends_as_that_of_its_seeds() -> None:
    between, first, second = way([0.0, 0.4, 1.0]), ImageNoise([3]), ImageNoise([4])
    for draw in (lambda noise: noise.normal((2, 5)), lambda noise: noise.uniform(), lambda noise: noise.normal((3,))):
        drawn = draw(between)
        torch.testing.assert_close(drawn[0], draw(first)[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(drawn[2], draw(second)[0], rtol=0, atol=1e-6)
        assert len(drawn.unique(dim=0)) == 3


def test_noise_on_the_way_is_spherical_interpolation_at_the_right_angle() -> None:
    """sin((1 - u) w) / sin(w) a + sin(u w) / sin(w) b with w = pi / 2 (Shoemake, 1985)."""
    angle, share = math.pi / 2, 0.3
    drawn = way([share]).normal((7,))
    a, b = ImageNoise([3]).normal((7,)), ImageNoise([4]).normal((7,))
    expected = (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)
    torch.testing.assert_close(drawn, expected)


def test_every_draw_on_the_way_has_the_distribution_of_an_independent_one() -> None:
    """Kolmogorov and Smirnov would see a middle that is too short, or uniform draws that crowd in the middle."""
    for share in (0.1, 0.5, 0.8):
        normal = torch.cat([way([share], seed, -1 - seed).normal((64,)) for seed in range(100)]).flatten()
        noise = InterpolatedNoise(range(4000), range(5000, 9000), torch.full((4000,), share))
        uniform = torch.cat([noise.uniform() for _ in range(2)])
        assert kstest(normal.numpy(), "norm").pvalue > 1e-3
        assert kstest(uniform.numpy(), "uniform").pvalue > 1e-3


def test_interpolated_noise_does_not_depend_on_the_batch() -> None:
    among, alone = way([0.0, 0.25, 0.5]), way([0.25])
    for _ in range(40):
        assert torch.equal(among.normal((4, 4))[1], alone.normal((4, 4))[0])
        assert torch.equal(among.uniform()[1:2], alone.uniform())


def mixed_calls(noise: ImageNoise) -> list[Tensor]:
    """Small and large normal draws, in one call of a generator each or several, among draws of all other kinds."""
    drawn = [noise.integers(6), noise.uniform(), *(noise.normal((3, 32, 32)) for _ in range(5)), noise.uniform()]
    drawn += [noise.kept(0.25, (8, 6)), noise.kept(0.25, (8, 6)), noise.kept(0.5, (8, 6)), noise.normal((3, 33, 33))]
    return drawn + [noise.normal((2,)) for _ in range(70)] + [noise.normal((3, 32, 32)), noise.normal((2,))]


@pytest.mark.parametrize("most", [2**28, 2**14, 1])
def test_draws_made_ahead_are_those_made_when_asked_for(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Also where few bytes may wait: then they are made in smaller groups."""
    monkeypatch.setattr(noise_module, "BYTES_AHEAD", most)
    usual, ahead = ImageNoise([3, 4, 5]), ImageNoise([3, 4, 5])
    expected = mixed_calls(usual)
    ahead.expect(usual.draws)
    for value, one in zip(mixed_calls(ahead), expected, strict=True):
        assert torch.equal(value, one)


def test_draws_made_ahead_wait_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_module, "BYTES_AHEAD", 10 * 2 * 4 * 256)
    noise = ImageNoise([1, 2])
    noise.expect([Draw("normal", (256,))] * 1000)
    assert noise._ahead is not None
    for _ in range(1000):
        noise.normal((256,))
        waiting = sum(group.number for group, _ in noise._ahead._made) + len(noise._ahead._unused)
        assert waiting <= 2 * 10


def test_another_draw_than_was_expected_is_refused() -> None:
    noise = ImageNoise([1])
    noise.expect([Draw("normal", (4,)), Draw("uniform")])
    with pytest.raises(RuntimeError, match=r"expected .*normal.*found .*uniform"):
        noise.uniform()
    noise = ImageNoise([1])
    noise.expect([Draw("uniform")])
    noise.uniform()
    with pytest.raises(RuntimeError, match="expected no more"):
        noise.uniform()


def test_interpolated_noise_can_be_made_ahead() -> None:
    def made(*, ahead: bool) -> Tensor:
        noise = way([0.25, 0.75])
        if ahead:
            noise.expect([Draw("normal", (64, 64))] * 3)
        return torch.stack([noise.normal((64, 64)) for _ in range(3)])

    assert torch.equal(made(ahead=True), made(ahead=False))

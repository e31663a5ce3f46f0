"""Annealed importance sampling between two densities, in both directions, along a path that a pilot run lays out.

A `Segment` leads from exp(start) to exp(end), unnormalized densities of the same grids y, along the geometric path
pi_b = exp((1 - b) start + b end). Chains that start in samples of exp(start) get weights whose mean is Z_end / Z_start
(Neal, 2001), those that go back from samples of exp(end) weights with the mean Z_start / Z_end. All moves are
Metropolis-adjusted with step sizes that are fixed beforehand: both means are exact on paths of any length, and their
logs are bounds in expectation (Jensen), from below and from above (Grosse et al., 2015).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from cdrl.sampling.kernels import Kernel, Position, Target
from cdrl.sampling.noise import ImageNoise
from cdrl.schedule import per_image
from pipelines.likelihood.bridge import resampled

TargetOf = Callable[[slice], Target]
"""Which of the chains -> the density that they sample: each may have a condition of its own."""

_ACCEPTANCE = 0.65
"""Share of moves that are to be accepted: near the best of MALA and of short HMC (0.574, 0.651)."""
PILOT_MOVES = 3
_PILOT_EFFECTIVE = 0.95
"""Effective share of the pilot's chains after one change of temperature."""
_MOST_KNOTS = 2000


@dataclass(frozen=True)
class Spread:
    """Covariance of a density as far as it is known: V diag(variances) V' + rest (1 - V V').

    V has orthonormal columns. It sets the moves' size in each direction, and need not be right: every move is accepted
    or rejected as is due.

    Attributes:
        directions: V, [D, r] with r = 0 … D.
        variances: [r].
        rest: variance in all directions beyond V.
    """

    directions: Tensor
    variances: Tensor
    rest: float

    @classmethod
    def even(cls, dimension: int, variance: float) -> Spread:
        """The same in all directions."""
        return cls(torch.zeros(dimension, 0), torch.zeros(0), variance)

    def between(self, other: Spread, share: float) -> Spread:
        """Spread of the geometric path from a Gaussian with this one to one with the other: precisions are linear."""
        mixed = 1 / ((1 - share) / self.variances + share / other.variances)
        return Spread(self.directions, mixed, 1 / ((1 - share) / self.rest + share / other.rest))

    def scaled(self, z: Tensor) -> Tensor:
        """Multiply grids [N, *shape] by the symmetric square root of the covariance."""
        return self._by_root(z, 0.5)

    def unscaled(self, y: Tensor) -> Tensor:
        """The inverse of `scaled`."""
        return self._by_root(y, -0.5)

    def _by_root(self, grids: Tensor, power: float) -> Tensor:
        flat, common = grids.flatten(1), self.rest**power
        if not self.directions.shape[1]:
            return common * grids
        along = (flat @ self.directions) * (self.variances**power - common)
        return (common * flat).addmm(along, self.directions.T).view_as(grids)

    def to(self, device: torch.device) -> Spread:
        """The same on another device."""
        return Spread(self.directions.to(device), self.variances.to(device), self.rest)


@dataclass(frozen=True)
class Segment:
    """Two unnormalized log densities and what is known of their widths; the `Spread`s share their directions."""

    start: TargetOf
    end: TargetOf
    start_spread: Spread
    end_spread: Spread


@dataclass(frozen=True)
class Ladder:
    """Temperatures 0 = b_0 < … < b_K = 1, and the step size of the moves at each inner one, [K - 1]."""

    betas: tuple[float, ...]
    step_sizes: tuple[float, ...]


@dataclass(frozen=True)
class Pilot:
    """What a pilot run found out about a segment: at each of its knots b, how far it is from the start, and step sizes.

    Attributes:
        betas: 0 … 1.
        lengths: distance from 0 along the path in standard deviations of the log weights (thermodynamic length).
        step_sizes: at each knot, in units of the `Spread`.
    """

    betas: tuple[float, ...]
    lengths: tuple[float, ...]
    step_sizes: tuple[float, ...]

    def halved(self) -> Pilot:
        """The same with a knot between every two."""
        return Pilot(*(_with_middles(each) for each in (self.betas, self.lengths, self.step_sizes)))

    def ladder(self, temperatures: int) -> Ladder:
        """``temperatures`` changes of temperature at equal distances, which waste the least (Gelman & Meng, 1998)."""
        places = torch.linspace(0, 1, temperatures + 1, dtype=torch.float64) * self.lengths[-1]
        betas = _interpolated(places, self.lengths, self.betas)
        betas[0], betas[-1] = 0.0, 1.0
        sizes = _interpolated(places[1:-1], self.lengths, [math.log(size) for size in self.step_sizes]).exp()
        return Ladder(tuple(betas.tolist()), tuple(sizes.tolist()))


def _with_middles(values: tuple[float, ...]) -> tuple[float, ...]:
    middles = ((a + b) / 2 for a, b in itertools.pairwise(values))
    return (values[0], *itertools.chain.from_iterable(zip(middles, values[1:], strict=True)))


def _interpolated(at: Tensor, known_at: Sequence[float], values: Sequence[float]) -> Tensor:
    """Piecewise linear interpolation, float64."""
    x, y = (torch.tensor(each, dtype=torch.float64) for each in (known_at, values))
    right = torch.searchsorted(x, at).clamp(1, len(x) - 1)
    share = (at - x[right - 1]) / (x[right] - x[right - 1])
    return y[right - 1] + share * (y[right] - y[right - 1])


@dataclass(frozen=True)
class _Temperature:
    """One density of the path: both ends, and the share of the second one."""

    beta: float
    spread: Spread
    start: Target
    end: Target

    @classmethod
    def of(cls, segment: Segment, beta: float, chains: slice) -> _Temperature:
        spread = segment.start_spread.between(segment.end_spread, beta)
        return cls(beta, spread, segment.start(chains), segment.end(chains))

    def changed(self, segment: Segment, beta: float) -> _Temperature:
        spread = segment.start_spread.between(segment.end_spread, beta)
        return _Temperature(beta, spread, self.start, self.end)


_Parts = tuple[Tensor, Tensor, Tensor, Tensor]


class _Place(Position):
    """Chains at a temperature: a kernel moves them in coordinates in which the density is about as wide everywhere.

    The log densities and gradients of both ends are evaluated once a place, and serve at every temperature.
    """

    def __init__(self, y: Tensor, grids: Tensor, at: _Temperature) -> None:
        self.y, self.grids, self.at = y, grids, at

    @classmethod
    def of(cls, grids: Tensor, at: _Temperature) -> _Place:
        return cls(at.spread.unscaled(grids), grids, at)

    def at_temperature(self, at: _Temperature) -> _Place:
        place = _Place.of(self.grids, at)
        place._parts = self._parts
        return place

    @cached_property
    def _parts(self) -> _Parts:
        return (*self.at.start(self.grids), *self.at.end(self.grids))

    @cached_property
    def _answer(self) -> tuple[Tensor, Tensor]:
        start, start_gradient, end, end_gradient = self._parts
        share = self.at.beta
        gradient = (1 - share) * start_gradient + share * end_gradient
        return (1 - share) * start + share * end, self.at.spread.scaled(gradient)

    def difference(self) -> Tensor:
        """Log density of the end minus that of the start, float64 [N]."""
        start, _, end, _ = self._parts
        return end.double() - start.double()

    def moved(self, y: Tensor) -> Position:
        return self if y is self.y else _Place(y, self.at.spread.scaled(y), self.at)

    def where(self, chosen: Tensor, other: Position) -> Position:
        assert isinstance(other, _Place)

        def picked(mine: Tensor, theirs: Tensor) -> Tensor:
            return torch.where(per_image(chosen, mine) if mine.ndim > 1 else chosen, mine, theirs)

        place = _Place(picked(self.y, other.y), picked(self.grids, other.grids), self.at)
        start, start_gradient, end, end_gradient = (
            picked(*pair) for pair in zip(self._parts, other._parts, strict=True)
        )
        place._parts = start, start_gradient, end, end_gradient
        return place


@dataclass(frozen=True)
class Annealed:
    """Chains at the end of a segment.

    Attributes:
        grids: [N, *shape].
        log_weights: float64 [N].
        accepted: share of moves that were accepted.
    """

    grids: Tensor
    log_weights: Tensor
    accepted: float


def anneal(
    segment: Segment,
    ladder: Ladder,
    grids: Tensor,
    noise: ImageNoise,
    kernel: Kernel,
    *,
    chains: slice = slice(None),
    back: bool = False,
    after_move: Callable[[], object] = lambda: None,
) -> Annealed:
    """Run chains along a segment, from its start to its end or, with ``back``, from its end to its start.

    Args:
        grids: samples of the density that they come from, [N, *shape].
        noise: of each of them.
        chains: which of all the chains they are.
        after_move: called after each.
    """
    betas = ladder.betas[::-1] if back else ladder.betas
    step_sizes = ladder.step_sizes[::-1] if back else ladder.step_sizes
    first = _Temperature.of(segment, betas[0], chains)
    place: Position = _Place.of(grids, first)
    total = torch.zeros(len(grids), dtype=torch.float64, device=grids.device)
    accepted, moves = 0.0, 0
    for k in range(1, len(betas)):
        assert isinstance(place, _Place)
        total += _increment(place, betas[k] - betas[k - 1])
        if k < len(betas) - 1:
            before = place.at_temperature(first.changed(segment, betas[k]))
            place = kernel(before, torch.tensor(step_sizes[k - 1], device=grids.device), noise)
            accepted += _share_moved(before, place)
            moves += 1
            after_move()
    assert isinstance(place, _Place)
    return Annealed(place.grids, total, accepted / moves if moves else 1.0)


def equilibrate(
    segment: Segment,
    step_size: float,
    grids: Tensor,
    noise: ImageNoise,
    kernel: Kernel,
    *,
    steps: int,
    chains: slice = slice(None),
    after_move: Callable[[], object] = lambda: None,
) -> Annealed:
    """Run chains [N, *shape] on the density at the segment's end; their log weights are 0."""
    place: Position = _Place.of(grids, _Temperature.of(segment, 1.0, chains))
    accepted = 0.0
    for _ in range(steps):
        before, place = place, kernel(place, torch.tensor(step_size, device=grids.device), noise)
        accepted += _share_moved(before, place)
        after_move()
    assert isinstance(place, _Place)
    zero = torch.zeros(len(grids), dtype=torch.float64, device=grids.device)
    return Annealed(place.grids, zero, accepted / steps if steps else 1.0)


def integrate(
    segment: Segment,
    pilot: Pilot,
    grids: Tensor,
    noise: ImageNoise,
    kernel: Kernel,
    *,
    moves: int,
    chains: slice = slice(None),
    after_move: Callable[[], object] = lambda: None,
) -> Annealed:
    """Thermodynamic integration: log(Z_end / Z_start) as the integral over b of the mean of end - start under pi_b.

    Chains stay for some moves at every knot of the pilot run; the means over the latter half of these are summed by the
    trapezoidal rule (Kirkwood, 1935; Gelman & Meng, 1998). Nothing is weighted and nothing resampled, so that what is
    wrong with weights is not wrong here; it is biased where chains lag behind the density that they should sample, and
    by what the rule misses: on Gaussians up to 0.1 nats a segment at the knots of a pilot run, a quarter of that with
    knots between them.

    Args:
        grids: samples of the start, [N, *shape].
        moves: at each knot.

    Returns:
        Chains at the end; in the place of log weights, each chain's own estimate of the integral.
    """
    first = _Temperature.of(segment, pilot.betas[0], chains)
    place: Position = _Place.of(grids, first)
    total = torch.zeros(len(grids), dtype=torch.float64, device=grids.device)
    accepted, before_mean, before_beta = 0.0, total, 0.0
    for beta, step_size in zip(pilot.betas, pilot.step_sizes, strict=True):
        assert isinstance(place, _Place)
        place, mean = place.at_temperature(first.changed(segment, beta)), torch.zeros_like(total)
        for move in range(moves):
            before, place = place, kernel(place, torch.tensor(step_size, device=grids.device), noise)
            assert isinstance(place, _Place)
            accepted += _share_moved(before, place)
            if move >= moves // 2:
                mean += place.difference() / (moves - moves // 2)
            after_move()
        total += (beta - before_beta) * (before_mean + mean) / 2
        before_mean, before_beta = mean, beta
    assert isinstance(place, _Place)
    return Annealed(place.grids, total, accepted / (moves * len(pilot.betas)))


def _increment(place: _Place, change: float) -> Tensor:
    """Log weights of a change of temperature; a density that is not finite has none of the weight."""
    return torch.nan_to_num(change * place.difference(), nan=-math.inf, posinf=-math.inf, neginf=-math.inf)


def _share_moved(before: Position, after: Position) -> float:
    return float((before.y != after.y).flatten(1).any(dim=1).double().mean())


def pilot_run(
    segment: Segment,
    grids: Tensor,
    noise: ImageNoise,
    kernel: Kernel,
    *,
    groups: Tensor,
    longest_step: float = math.inf,
    after_move: Callable[[], object] = lambda: None,
) -> tuple[Pilot, Tensor]:
    """Go along a segment with few chains, which choose the temperatures and step sizes on their way.

    Each change of temperature leaves 95 % of the chains effective; then they are resampled and moved
    (sequential Monte Carlo; Del Moral et al., 2006).

    Args:
        grids: samples of the start, [N, *shape].
        groups: int64 [N]; chains of one group sample the same density, and are resampled among each other.
        longest_step: of the step sizes, which otherwise are such that two moves in three are accepted.

    Returns:
        What was found out, and the chains at the end, [N, *shape].

    Raises:
        ValueError: the end is nowhere near the start.
    """
    everywhere = _Temperature.of(segment, 0.0, slice(None))
    place: Position = _Place.of(grids, everywhere)
    # The best of MALA on a standard normal density in many dimensions (Roberts & Rosenthal, 1998).
    step_size = min(longest_step, 1.65 * grids[0].numel() ** (-1 / 6))
    betas, lengths = [0.0], [0.0]
    step_sizes: list[float] = []
    while betas[-1] < 1:
        assert isinstance(place, _Place)
        if len(betas) > _MOST_KNOTS:
            raise ValueError(f"no path to the density after {_MOST_KNOTS} temperatures (b = {betas[-1]:.3g})")
        beta, effective = _next_beta(place.difference(), groups, betas[-1])
        log_weights = _increment(place, beta - betas[-1])
        betas.append(beta)
        lengths.append(lengths[-1] + max(1e-6, math.sqrt(-math.log(effective))))
        rows = _resampled_in_groups(log_weights, groups, noise)
        place = _Place.of(place.grids[rows], everywhere.changed(segment, beta))
        for _ in range(PILOT_MOVES):
            before, place = place, kernel(place, torch.tensor(step_size, device=grids.device), noise)
            step_size = min(longest_step, step_size * math.exp(0.3 * (_share_moved(before, place) - _ACCEPTANCE)))
            after_move()
        step_sizes.append(step_size)
    assert isinstance(place, _Place)
    return Pilot(tuple(betas), tuple(lengths), (step_sizes[0], *step_sizes)), place.grids


def _next_beta(difference: Tensor, groups: Tensor, beta: float) -> tuple[float, float]:
    """The largest next b that leaves enough chains effective, by bisection, and the share that it leaves."""

    def share(next_beta: float) -> float:
        return _effective_share((next_beta - beta) * difference, groups)

    if (all_of_it := share(1.0)) >= _PILOT_EFFECTIVE:
        return 1.0, all_of_it
    low, high = 0.0, 1 - beta
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if share(beta + middle) >= _PILOT_EFFECTIVE else (low, middle)
    # Where some chains lie outside, even the smallest change loses them.
    chosen = beta + (low if low > 1e-12 * (1 - beta) else high)
    return chosen, share(chosen)


def _effective_share(log_weights: Tensor, groups: Tensor) -> float:
    """Effective samples over samples, each group's weights divided by their mean."""
    log_weights = torch.nan_to_num(log_weights, nan=-math.inf, posinf=-math.inf, neginf=-math.inf)
    squares = []
    for group in groups.unique():
        own = log_weights[groups == group]
        if float(own.max()) == -math.inf:
            return 1e-12
        squares.append((2 * (own - own.logsumexp(0) + math.log(len(own)))).exp())
    return float(1 / torch.cat(squares).mean())


def _resampled_in_groups(log_weights: Tensor, groups: Tensor, noise: ImageNoise) -> Tensor:
    """Which chain each copies, int64 [N], within its group; the uniform number is that of the group's first chain."""
    rows, uniform = torch.arange(len(groups), device=groups.device), noise.uniform()
    for group in groups.unique():
        own = (groups == group).nonzero()[:, 0]
        rows[own] = own[resampled(log_weights[own], float(uniform[own[0]]))]
    return rows

"""Estimates from importance weights: means, effective samples, resampling, and Bennett's acceptance ratio.

Weights come as logarithms, float64. Forward weights have the mean r = Z_end / Z_start over chains that started in exact
samples of the start; weights of the way back have the mean 1 / r over chains that started in exact samples of the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from torch import Tensor

from cdrl.sampling.annealing import Estimate


@dataclass(frozen=True)
class Bridge:
    """Estimate of log r from weights of both directions.

    Attributes:
        log_ratio: in nats.
        standard_error: of independent chains (Bennett, 1976; Shirts et al., 2003).
        overlap: how much the two directions have in common, 0 to 1: 1 where weights do not vary.
    """

    log_ratio: float
    standard_error: float
    overlap: float


def log_mean(log_weights: Tensor) -> float:
    """Log of the mean of weights, given their logs [N]."""
    return float(log_weights.logsumexp(0)) - math.log(len(log_weights))


def effective_samples(log_weights: Tensor) -> float:
    """(sum w)^2 / sum w^2, from the logs of the weights [N]: 1 … N, or 0 if all vanish."""
    if float(log_weights.max()) == -math.inf:
        return 0.0
    return float((2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp())


def estimate(log_weights: Tensor) -> Estimate:
    """Log of the weights' mean with its standard error to first order: the relative one of that mean."""
    effective = effective_samples(log_weights)
    error = math.sqrt(max(0.0, 1 / effective - 1 / len(log_weights))) if effective else math.inf
    return Estimate(log_mean(log_weights), error, effective)


def resampled(log_weights: Tensor, uniform: float) -> Tensor:
    """Systematic resampling: which of N chains each of N copies, int64 [N], in proportion to the weights.

    Chain i is copied floor or ceil of N w_i / sum w times, and N w_i / sum w times on average over ``uniform``, which
    is in [0, 1).
    """
    count = len(log_weights)
    below = log_weights.softmax(dim=0).cumsum(dim=0)
    places = (torch.arange(count, dtype=torch.float64) + uniform) / count
    return torch.searchsorted(below / below[-1], places.to(below.device), right=True).clamp(max=count - 1)


def acceptance_ratio(forward: Tensor, back: Tensor) -> Bridge:
    """Bennett's acceptance ratio: the optimal bridge between two sets of weights [N] and [M] (Meng & Wong, 1996).

    log r solves sum_forward 1 / (1 + exp(m + log r - w)) = sum_back 1 / (1 + exp(-m - log r - w)) with m = log(N / M).
    By Crooks' relation it holds for annealed weights as for plain ones.
    """
    forward, back = forward[forward > -math.inf], back[back > -math.inf]
    if not len(forward) or not len(back):
        return Bridge(math.nan, math.inf, 0.0)
    offset = math.log(len(forward) / len(back))

    def parts(log_ratio: float) -> tuple[Tensor, Tensor]:
        return (forward - log_ratio - offset).sigmoid(), (back + log_ratio + offset).sigmoid()

    def excess(log_ratio: float) -> float:
        mine, other = parts(log_ratio)
        return float(mine.sum() - other.sum())

    ends = torch.cat([forward, -back])
    low, high = float(ends.min()) - abs(offset) - 1, float(ends.max()) + abs(offset) + 1
    # Sums of sigmoids that all vanish in double precision have no crossing to be found between such ends.
    if not excess(low) > 0 > excess(high):
        return Bridge(math.nan, math.inf, 0.0)
    log_ratio = brentq(excess, low, high, xtol=1e-10)
    mine, other = parts(log_ratio)
    variance = 0.0
    for part in (mine, other):
        variance += float(part.square().mean() / part.mean().square() - 1) / len(part)
    # The mean of both fractions is at most 1/2 each where N = M; as in Bennett's paper, they are equal without noise.
    overlap = float(mine.sum() + other.sum()) * (1 / len(forward) + 1 / len(back)) / 2
    return Bridge(log_ratio, math.sqrt(max(variance, 0.0)), min(1.0, overlap))

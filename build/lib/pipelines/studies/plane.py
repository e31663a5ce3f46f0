"""Densities in the plane: grids, histograms, divergences between them, and pictures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from cdrl.data import expect_finite

# White for no density; lightness falls evenly to the last, so that darker is always more.
_RAMP = ((255, 255, 255), (186, 219, 226), (103, 171, 192), (42, 110, 150), (20, 42, 84))


@dataclass(frozen=True)
class Grid:
    """Grid of cells x cells equal cells on [-half, half]^2, numbered row by row from below, left to right."""

    half: float
    cells: int

    @property
    def side(self) -> float:
        """Side of a cell."""
        return 2 * self.half / self.cells

    def points(self) -> Tensor:
        """Midpoints of the cells: float64 [cells^2, 2]."""
        axis = (torch.arange(self.cells, dtype=torch.float64) + 0.5) * self.side - self.half
        up, across = torch.meshgrid(axis, axis, indexing="ij")
        return torch.stack([across, up], dim=-1).flatten(0, 1)

    def histogram(self, points: Tensor) -> Tensor:
        """Share of points [N, 2] in each cell and, last, outside the grid: float64 [cells^2 + 1]."""
        across, up = ((points.double() + self.half) / self.side).floor().long().unbind(dim=1)
        on_grid = (across >= 0) & (across < self.cells) & (up >= 0) & (up < self.cells)
        cell = torch.where(on_grid, up * self.cells + across, self.cells**2)
        return torch.bincount(cell, minlength=self.cells**2 + 1).double() / len(points)

    def draw(self, log_density: Tensor, count: int, generator: torch.Generator) -> Tensor:
        """Draw points [count, 2] from the density that is constant in each cell, given its log [cells^2]."""
        below = log_density.softmax(dim=0).cumsum(dim=0)
        cell = torch.searchsorted(below, torch.rand(count, dtype=torch.float64, generator=generator) * below[-1])
        offset = torch.rand(count, 2, dtype=torch.float64, generator=generator) - 0.5
        return (self.points()[cell] + offset * self.side).float()

    def log_normalizer(self, log_density: Tensor) -> float:
        """Log of the integral of exp(log_density [cells^2]) over the grid, by the midpoint rule."""
        return float(log_density.logsumexp(dim=0)) + 2 * math.log(self.side)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> float:
    """KL(p || q) in nats of two log densities on the same grid, each normalized there."""
    log_p, log_q = (values.double().log_softmax(dim=0) for values in (log_p, log_q))
    # Where p vanishes its term is 0, not 0 times infinity.
    return float(torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0.0).sum())


def total_variation(p: Tensor, q: Tensor) -> float:
    """Total variation distance of two lists of probabilities: half the sum of absolute differences."""
    return float((p - q).abs().sum() / 2)


def coloured(values: Tensor, pixels: int) -> Image.Image:
    """Colour values [side^2] of a grid, 0 to 1; the picture's sides are ``pixels``, a multiple of the grid's.

    Raises:
        ValueError: values are NaN or infinite.
    """
    expect_finite(values)
    side = math.isqrt(len(values))
    rows = values.view(side, side).flip(0).clamp(0, 1).repeat_interleave(pixels // side, dim=0)
    position = rows.repeat_interleave(pixels // side, dim=1) * (len(_RAMP) - 1)
    ramp = torch.tensor(_RAMP, dtype=torch.float64)
    below = position.long().clamp(max=len(_RAMP) - 2)
    share = (position - below)[..., None]
    return Image.fromarray(((1 - share) * ramp[below] + share * ramp[below + 1]).round().to(torch.uint8).numpy())

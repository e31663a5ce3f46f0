"""Points in the plane whose density is known: the checkerboard."""

from __future__ import annotations

import torch
from torch import Tensor

NUM_SQUARES = 8
_CELLS = 4  # cells a side; every other one is a square of the data
_SIDE = 2.0 / _CELLS


def sample_checkerboard(num: int, generator: torch.Generator) -> Tensor:
    """``num`` points, uniform in the 8 dark squares of a 4 by 4 board on [-1, 1]^2: float32 [num, 2].

    A square has side 0.5, so the density is 1/2 inside the squares and 0 outside.
    """
    square = torch.randint(NUM_SQUARES, (num,), generator=generator)
    row = square // 2
    column = 2 * (square % 2) + row % 2
    corner = torch.stack([column, row], dim=1) * _SIDE - 1
    # Shrunk by a hair, so that rounding cannot carry a point over its square's open edge.
    offset = torch.rand(num, 2, generator=generator) * (1 - 2**-20)
    return corner + offset * _SIDE


def checkerboard_density(points: Tensor, scale: float = 1.0, noise: float = 0.0) -> Tensor:
    """Exact density of scale x_0 + noise eps at each of [N, 2] points, x_0 from the checkerboard: float64 [N].

    A square's indicator convolved with a Gaussian is a product over the two axes of differences of the normal
    distribution function; the board is the mean of its eight squares.
    """
    edges = (torch.arange(_CELLS + 1, dtype=torch.float64, device=points.device) * _SIDE - 1) * scale
    # Without noise the distribution function is a step; a hair of noise is the same and divides.
    below = torch.special.ndtr((points.double()[:, :, None] - edges) / max(noise, 1e-12))
    profiles = (below[..., :-1] - below[..., 1:]) / (_SIDE * scale)
    across, up = profiles.unbind(dim=1)
    cells = torch.arange(_CELLS, device=points.device)
    dark = (cells[:, None] - cells) % 2 == 0
    return ((up @ dark.double()) * across).sum(dim=1) / NUM_SQUARES


def square_index(points: Tensor) -> Tensor:
    """Which dark square holds each of [N, 2] points: int64 [N], 0 … 7 row by row from below, -1 for none."""
    cell = ((points + 1) / _SIDE).floor().long()
    column, row = cell.unbind(dim=1)
    on_board = ((cell >= 0) & (cell < _CELLS)).all(dim=1)
    dark = (column - row) % 2 == 0
    return torch.where(on_board & dark, 2 * row + column // 2, -1)


def inside_squares(points: Tensor) -> Tensor:
    """Whether each of [N, 2] points lies in a dark square: bool [N]."""
    return square_index(points) >= 0

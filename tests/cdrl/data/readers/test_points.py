"""The checkerboard: its squares, and that points are uniform in them."""

import torch

from cdrl.data import NUM_SQUARES, inside_squares, sample_checkerboard, square_index


def test_samples_are_uniform_over_the_eight_squares() -> None:
    points = sample_checkerboard(80_000, torch.Generator().manual_seed(0))
    assert points.dtype == torch.float32
    assert inside_squares(points).all()
    counts = torch.bincount(square_index(points), minlength=NUM_SQUARES)
    # 10,000 expected in each; the standard deviation is 94.
    assert counts.sub(10_000).abs().max() < 5 * 94
    # Each coordinate is uniform on [-1, 1]: mean 0, variance 1/3; inside a square the two are independent.
    assert points.mean(dim=0).abs().max() < 0.01
    assert points.var(dim=0).sub(1 / 3).abs().max() < 0.005
    inner = (points + 1) % 0.5 * 2
    assert torch.cov(inner.T)[0, 1].abs() < 0.002


def test_half_of_the_board_is_dark() -> None:
    cells = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    centers = cells * 0.5 - 0.75
    dark = inside_squares(centers)
    assert torch.equal(dark, cells.sum(dim=1) % 2 == 0)
    assert sorted(square_index(centers[dark]).tolist()) == list(range(NUM_SQUARES))
    assert (square_index(centers[~dark]) == -1).all()


def test_nothing_beyond_the_edge_is_inside() -> None:
    outside = torch.tensor([[-1.25, -1.25], [1.25, 1.25], [1.0, 1.0], [-0.75, -1.25], [0.75, 1.75]])
    assert not inside_squares(outside).any()


def test_the_generator_alone_decides() -> None:
    first, again = (sample_checkerboard(10, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again)

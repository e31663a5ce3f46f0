"""Flow matching on data whose velocity is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from benchmarks.peers.flow import euler, midpoint, on_the_way

STD = 0.3


def slope(t: float) -> float:
    """v(x, t) / x for images of N(0, STD^2): E[x_1 - x_0 | x_t] = cov(x_1 - x_0, x_t) / var(x_t) x_t."""
    return (t * STD**2 - (1 - t)) / (t**2 * STD**2 + (1 - t) ** 2)


@pytest.mark.parametrize("t", [0.0, 0.2, 0.7, 1.0])
def test_the_target_has_the_velocity_for_its_mean(t: float) -> None:
    torch.manual_seed(0)
    noise, images = torch.randn(50_000, 1, 2, 2), STD * torch.randn(50_000, 1, 2, 2)
    x, target = on_the_way(noise, images, torch.full((50_000,), t))
    fitted = (x * target).mean() / x.square().mean()
    assert float(fitted) == pytest.approx(slope(t), abs=0.02)


def test_each_image_has_a_time_of_its_own() -> None:
    noise, images = torch.randn(2, 3, 1, 2, 2)
    x, target = on_the_way(noise, images, torch.tensor([0.0, 0.25, 1.0]))
    torch.testing.assert_close(x, torch.stack([noise[0], 0.75 * noise[1] + 0.25 * images[1], images[2]]))
    torch.testing.assert_close(target, images - noise)


def error(solver: object, steps: int) -> float:
    def velocity(x: Tensor, t: float) -> Tensor:
        return slope(t) * x

    x = torch.tensor([1.0, -2.0], dtype=torch.float64)
    return float((solver(velocity, x, steps) - STD * x).abs().max())  # type: ignore[operator]


def test_solvers_end_where_the_flow_does_at_their_orders() -> None:
    # The flow of Gaussians is x_1 = STD x_0. Half of the step, half of the error, and a quarter or less.
    assert error(euler, 80) < 0.03
    assert error(euler, 40) / error(euler, 80) == pytest.approx(2, rel=0.1)
    assert error(midpoint, 40) / error(midpoint, 80) > 3.5
    assert error(midpoint, 40) < error(euler, 80) / 10

"""Muon against singular value decompositions, and its Adam part against Adam."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cdrl.training.optimizer.muon import Muon, orthogonalized


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(3, 32, 288), (2, 64, 16), (1, 20, 20)])
def test_singular_vectors_stay_and_singular_values_become_about_one(shape: tuple[int, ...]) -> None:
    matrices = draws(*shape) * torch.logspace(-3, 3, shape[0])[:, None, None]
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    rotated = left.mT @ orthogonalized(matrices) @ right.mT
    values = rotated.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(rotated, torch.diag_embed(values), atol=2e-3, rtol=0)
    conditioned = values[..., : shape[-1] // 2]  # a square matrix may have a singular value near 0, which stays small
    assert conditioned.min() > 0.65
    assert values.max() < 1.25


@pytest.mark.parametrize("columns", [30, 40])
def test_it_equals_the_iteration_written_out(columns: int) -> None:
    """x <- a x + b (x x^T) x + c (x x^T)^2 x, five times, in double precision."""
    matrix = draws(24, columns).double()
    x = matrix / matrix.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    torch.testing.assert_close(orthogonalized(matrix[None])[0], x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(32, 288), (64, 64), (64, 16)])
def test_bfloat16_orthogonalizes_matrices_of_nearly_low_rank(shape: tuple[int, int]) -> None:
    left, _, right = torch.linalg.svd(draws(2, *shape), full_matrices=False)
    for spread in (0, 4):  # decades between the largest singular value and the smallest
        values = torch.logspace(0, -spread, min(shape))
        result = orthogonalized(left * values @ right, bfloat16=True)
        assert result.dtype == torch.float32
        assert torch.linalg.svdvals(result).max() < 1.25
        along = (left.mT @ result @ right.mT).diagonal(dim1=-2, dim2=-1)
        assert along[..., : min(shape) // 2].min() > 0.6


def test_a_convolution_moves_by_its_orthogonalized_gradient_and_a_vector_as_under_adam() -> None:
    layer = nn.Conv2d(16, 32, 3)
    alone = copy.deepcopy(layer)
    muon = Muon(layer.parameters(), lr=0.01, betas=(0.9, 0.99))
    adam = torch.optim.Adam([alone.bias], lr=0.01, betas=(0.9, 0.99))
    gradient = draws(32, 16, 3, 3)
    before = layer.weight.detach().clone()
    for step in range(3):
        layer.weight.grad, layer.bias.grad = gradient.clone(), draws(32, seed=step)
        alone.bias.grad = draws(32, seed=step)
        muon.step()
        adam.step()
    torch.testing.assert_close(layer.bias, alone.bias)
    # The same gradient thrice: momentum scales it, which orthogonalizing undoes.
    expected = 3 * 0.01 * 0.2 * 144**0.5 * orthogonalized(gradient.flatten(1)[None])[0]
    torch.testing.assert_close((before - layer.weight).flatten(1), expected, atol=2e-5, rtol=1e-4)


def test_the_update_has_adams_size() -> None:
    """Root mean square 0.2 x lr, which is what Adam's updates have in practice (Liu et al. 2025, section 2.2)."""
    layer = nn.Linear(200, 50, bias=False)
    before = layer.weight.detach().clone()
    layer.weight.grad = draws(50, 200)
    Muon(layer.parameters(), lr=1.0, betas=(0.9, 0.99)).step()
    assert (before - layer.weight).square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_a_restored_optimizer_goes_on_as_if_never_stopped() -> None:
    def step(layer: nn.Linear, optimizer: Muon, seed: int) -> None:
        for parameter in layer.parameters():
            parameter.grad = draws(*parameter.shape, seed=seed)
        optimizer.step()

    layer = nn.Linear(16, 16)
    optimizer = Muon(layer.parameters(), 0.1, (0.9, 0.99))
    step(layer, optimizer, 1)
    restored = copy.deepcopy(layer)
    other = Muon(restored.parameters(), 0.1, (0.9, 0.99))
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(layer, optimizer, 2)
    step(restored, other, 2)
    assert torch.equal(layer.weight, restored.weight)
    assert torch.equal(layer.bias, restored.bias)

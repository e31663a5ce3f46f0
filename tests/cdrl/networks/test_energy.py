"""The energy network against a plain double-precision forward pass, finite differences and singular values."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cdrl.config import EnergyConfig
from cdrl.networks import EnergyNetwork
from tests.helpers import scrambled

LOGSNR = torch.tensor([9.0, 1.0, -4.0])


def network(shape: tuple[int, ...] = (3, 8, 8), num_classes: int = 0, **changes: Any) -> EnergyNetwork:
    torch.manual_seed(0)
    values = {"channels": 8, "multipliers": (1, 2), "num_blocks": 2, **changes}
    return scrambled(EnergyNetwork(EnergyConfig.model_validate(values), shape, num_classes), 0.05)


def grids(shape: tuple[int, ...] = (3, 8, 8), count: int = 3) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def tensors(energy: EnergyNetwork) -> dict[str, Tensor]:
    return {name: tensor.detach().double() for name, tensor in energy.state_dict().items()}


def plain_forward(weights: dict[str, Tensor], config: EnergyConfig, y: Tensor, logsnr: Tensor, label: Tensor) -> Tensor:
    """Tables 5 and 6 read aloud, in double precision, layer after layer, every weight over u^T W v."""

    def layer(name: str, x: Tensor) -> Tensor:
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        if f"{name}.left" in weights:
            weight = weight / (weights[f"{name}.left"] @ weight.flatten(1) @ weights[f"{name}.right"])
        return F.linear(x, weight, bias) if weight.ndim == 2 else F.conv2d(x, weight, bias, padding=1)

    def active(x: Tensor) -> Tensor:
        return torch.where(x > 0, x, 0.2 * x) if config.activation == "leaky_relu" else x / (1 + torch.exp(-x))

    y, logsnr, on_grid = y.double(), logsnr.double(), y.ndim == 4
    position = 1000 * torch.atan(torch.exp(-logsnr / 2)) / (math.pi / 2)
    half = config.channels // 2
    angles = torch.stack([position * 10_000 ** (-i / (half - 1)) for i in range(half)], dim=1)
    condition = layer("embed2", active(layer("embed1", torch.cat([angles.sin(), angles.cos()], dim=1))))
    if "classes.weight" in weights:
        one_hot = torch.zeros(len(y), weights["classes.weight"].shape[1], dtype=torch.float64)
        one_hot[torch.arange(len(y)), label + 1] = 1
        condition = condition + layer("classes", one_hot)
    condition = active(condition)

    if "frequencies" in weights:
        angles = y @ weights["frequencies"]
        squares = weights["frequencies"].square().sum(dim=0)
        damping = torch.exp(-squares / (2 * (1 + torch.exp(logsnr[:, None]))))
        y = torch.cat([y, damping * angles.sin(), damping * angles.cos()], dim=1)
    h = layer("stem", y)
    for stage in range(len(config.multipliers)):
        if stage and on_grid:
            h = F.avg_pool2d(h, 2)
        for block in range(config.num_blocks):
            name = f"stages.{stage}.{block}"
            added, gain = active(layer(f"{name}.condition", condition)), weights[f"{name}.gain"]
            if on_grid:
                added, gain = added[:, :, None, None], gain[:, None, None]
            residual = gain * layer(f"{name}.layer2", active(layer(f"{name}.layer1", active(h)) + added))
            h = residual + (layer(f"{name}.shortcut", h) if f"{name}.shortcut.weight" in weights else h)
    h = h.clamp(min=0)
    features = h.sum(dim=(2, 3)) if on_grid else h
    return config.output_scale * (features * F.linear(condition, weights["head.weight"])).sum(dim=1)


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize("spectral_norm", [True, False])
@pytest.mark.parametrize("num_classes", [0, 5])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (4, 4, 4), (2,)])
def test_the_folded_network_equals_the_plain_forward_pass(
    shape: tuple[int, ...], num_classes: int, spectral_norm: bool, activation: str
) -> None:
    values = {"channels": 8, "multipliers": (1, 2), "num_blocks": 2, "output_scale": 3.0, "activation": activation}
    energy = network(shape, num_classes, **{**values, "spectral_norm": spectral_norm})
    config = EnergyConfig.model_validate(values)
    label = torch.tensor([-1, 0, 4]) if num_classes else torch.full((3,), -1)
    expected = plain_forward(tensors(energy), config, grids(shape), LOGSNR, label)
    assert expected.std() > 0
    torch.testing.assert_close(energy(grids(shape), LOGSNR, label).double(), expected, rtol=1e-4, atol=1e-4)


def test_fourier_features_join_the_coordinates_of_points() -> None:
    """Values and input gradients are those of the plain forward pass, which damps and joins the waves by itself."""
    values = {"channels": 8, "multipliers": (1, 1), "num_blocks": 1, "fourier_features": 5, "spectral_norm": False}
    energy, label = network((2,), **values), torch.full((3,), -1)
    config, weights = EnergyConfig.model_validate(values), tensors(energy)
    y = grids((2,)).requires_grad_()
    value, expected = energy(y, LOGSNR, label), plain_forward(weights, config, y, LOGSNR, label)
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-4)
    gradients = [torch.autograd.grad(f.sum(), y)[0] for f in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-4)
    weights["frequencies"] = torch.zeros(2, 5, dtype=torch.float64)
    assert (plain_forward(weights, config, y, LOGSNR, label) - expected).std() > 0


@pytest.mark.parametrize("shape", [(3, 8, 8), (2,)])
def test_images_that_share_conditions_are_answered_as_if_alone(shape: tuple[int, ...]) -> None:
    """So is their gradient: what a condition is told by every image that has it adds up."""
    energy, y = network(shape, num_classes=5), grids(shape, count=5)
    logsnr, label = LOGSNR[[0, 1, 0, 0, 1]], torch.tensor([2, 2, -1, 2, 2])
    together = energy(y, logsnr, label)
    alone = torch.cat([energy(y[i : i + 1], logsnr[i : i + 1], label[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    weight = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0])
    gradients = [torch.autograd.grad(weight @ f, list(energy.parameters())) for f in (together, alone)]
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (2,)])
def test_a_detached_fold_equals_the_fold(shape: tuple[int, ...]) -> None:
    energy = network(shape, num_classes=5)
    y, label = grids(shape).requires_grad_(), torch.tensor([0, -1, 3])
    expected = energy(y, LOGSNR, label)
    chain = energy.fold().detach()
    value = chain(y, chain.condition(LOGSNR, label))
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(f.sum(), y)[0] for f in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_a_detached_fold_keeps_its_values_when_the_network_moves_on() -> None:
    energy = network()
    chain = energy.fold().detach()
    before = chain(grids(), chain.condition(LOGSNR, torch.full((3,), -1)))
    scrambled(energy, 0.3)
    energy.power_iteration()
    after = chain(grids(), chain.condition(LOGSNR, torch.full((3,), -1)))
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_a_detached_fold_gives_no_gradient_to_parameters() -> None:
    energy = network()
    chain = energy.fold().detach()
    y = grids().requires_grad_()
    chain(y, chain.condition(LOGSNR, torch.full((3,), -1))).sum().backward()
    assert y.grad is not None
    assert all(parameter.grad is None for parameter in energy.parameters())


def test_a_bfloat16_fold_is_close_and_answers_in_float32() -> None:
    energy = network(num_classes=5)
    y, label = grids().requires_grad_(), torch.tensor([0, -1, 3])
    exact, rounded = energy.fold().detach(), energy.fold().detach(torch.bfloat16)
    expected, value = (fold(y, fold.condition(LOGSNR, label)) for fold in (exact, rounded))
    assert value.dtype == torch.float32
    assert (value - expected).abs().max() < 0.03 * expected.abs().max()
    gradient, expected_gradient = (torch.autograd.grad(f.sum(), y)[0] for f in (value, expected))
    assert (gradient - expected_gradient).norm() < 0.1 * expected_gradient.norm()


def test_in_bfloat16_it_learns_from_nearly_the_same_gradients_and_computes_as_its_chains_do() -> None:
    energy, label = network(num_classes=5), torch.tensor([0, -1, 3])
    y = torch.cat([grids(), grids() + 0.3])

    def values_and_gradient(bfloat16: bool) -> tuple[torch.Tensor, torch.Tensor]:
        energy.in_bfloat16 = bfloat16
        values = energy(y, LOGSNR.repeat(2), label.repeat(2))
        one, other = values.chunk(2)
        parts = torch.autograd.grad((one - other).mean(), list(energy.parameters()))
        return values, torch.cat([part.flatten() for part in parts])

    (_, exact), (values, rounded) = values_and_gradient(False), values_and_gradient(True)
    chain = energy.fold().detach(torch.bfloat16)
    assert torch.equal(values, chain(y, chain.condition(LOGSNR.repeat(2), label.repeat(2))))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 0.1 * exact.norm()


def test_in_bfloat16_gradients_of_all_who_share_a_condition_are_summed_in_single_precision() -> None:
    torch.manual_seed(0)
    energy = EnergyNetwork(EnergyConfig(channels=8, multipliers=(1, 2), num_blocks=1, spectral_norm=False), (2,))
    points, logsnr = torch.randn(4096, 2), torch.arange(4096) % 2 * 2.0 - 1
    weights = [weight for name, weight in energy.named_parameters() if "condition.weight" in name]
    gradients = []
    for bfloat16 in (False, True):
        energy.in_bfloat16 = bfloat16
        value = energy(points, logsnr, torch.full((4096,), -1)).mean()
        gradients.append(torch.cat([part.flatten() for part in torch.autograd.grad(value, weights)]))
    exact, rounded = gradients
    assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_images_do_not_see_each_other() -> None:
    energy, y, label = network(num_classes=5), grids(), torch.tensor([0, -1, 3])
    together = energy(y, LOGSNR, label)
    alone = torch.cat([energy(y[i : i + 1], LOGSNR[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_the_input_gradient_equals_finite_differences() -> None:
    energy = network()
    config, weights = EnergyConfig(channels=8, multipliers=(1, 2), num_blocks=2), tensors(energy)
    y, label = grids().requires_grad_(), torch.full((3,), -1)
    (gradient,) = torch.autograd.grad(energy(y, LOGSNR, label).sum(), y)
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        step = 1e-6 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
        above, below = (plain_forward(weights, config, y.detach() + s * step, LOGSNR, label).sum() for s in (1, -1))
        along = (gradient.double() * step).sum()
        torch.testing.assert_close((above - below) / 2, along, rtol=1e-3, atol=1e-10)


@pytest.mark.parametrize("name", ["embed1", "stem", "stages.0.0.layer1", "stages.1.0.layer2", "stages.1.0.shortcut"])
def test_the_weight_gradient_passes_through_the_spectral_norm(name: str) -> None:
    """Against finite differences of W / (u^T W v) with u and v held: the norm is part of the loss."""
    energy = network()
    config, weights = EnergyConfig(channels=8, multipliers=(1, 2), num_blocks=2), tensors(energy)
    y, label, key = grids(), torch.full((3,), -1), f"{name}.weight"
    parameter = energy.get_parameter(key)
    (gradient,) = torch.autograd.grad(energy(y, LOGSNR, label).sum(), parameter)
    # Along the weight itself only the norm acts: W / |W| does not change with W's length.
    scale = gradient.norm() * parameter.norm()
    assert (gradient * parameter).sum().abs() < 1e-4 * scale
    step = 1e-6 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    above, below = (
        plain_forward({**weights, key: weights[key] + s * step}, config, y, LOGSNR, label).sum() for s in (1, -1)
    )
    torch.testing.assert_close((above - below) / 2, (gradient.double() * step).sum(), rtol=1e-3, atol=1e-10)


def test_power_iteration_finds_the_largest_singular_value() -> None:
    energy = network()
    for _ in range(200):
        energy.power_iteration()
    weights = tensors(energy)
    layers = [name.removesuffix(".left") for name in weights if name.endswith(".left")]
    assert len(layers) == 3 + 3 * 4 + 1
    for name in layers:
        matrix = weights[f"{name}.weight"].flatten(1)
        estimate = weights[f"{name}.left"] @ matrix @ weights[f"{name}.right"]
        assert estimate.item() == pytest.approx(torch.linalg.svdvals(matrix)[0].item(), rel=1e-3), name


def test_every_layer_but_the_last_dense_is_normalized_from_the_start() -> None:
    energy = network()
    folded = energy.fold()
    blocks = [block for stage in folded.stages for block in stage]
    layers = [folded.embed1, folded.embed2, folded.stem, *(block.layer1 for block in blocks)]
    layers += [block.condition for block in blocks]
    for _ in range(50):
        energy.power_iteration()
    for layer in layers:
        # A new network's vectors have had some iterations; the bound is loose, an unnormalized layer is far outside.
        assert torch.linalg.svdvals(layer.weight.detach().flatten(1))[0].item() == pytest.approx(1, abs=0.35)
    assert folded.head.weight is energy.head.weight


def test_one_power_iteration_moves_the_vectors_of_every_normalized_layer_and_nothing_else() -> None:
    energy = network(num_classes=5)
    before = tensors(energy)
    energy.power_iteration()
    changed = {name for name, tensor in tensors(energy).items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.endswith((".left", ".right"))}


def test_evaluation_does_not_move_the_singular_vectors() -> None:
    energy = network().train()
    before = tensors(energy)
    energy(grids(), LOGSNR, torch.full((3,), -1)).sum().backward()
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(energy).items())


def test_without_spectral_norm_there_are_no_vectors_and_power_iteration_changes_nothing() -> None:
    energy = network(spectral_norm=False)
    before = tensors(energy)
    energy.power_iteration()
    assert not [name for name in before if name.endswith((".left", ".right"))]
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(energy).items())

"""The model: levels, labels and conditions become what the networks are told."""

from __future__ import annotations

import functools
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from cdrl.config import Config, ScheduleConfig
from cdrl.model import CDRL, Label, proposal_mean
from cdrl.sampling.kernels import Position, recovery, with_gradient
from cdrl.sampling.noise import ImageNoise
from cdrl.sampling.sampler import refine
from cdrl.schedule import NoiseSchedule
from tests.cdrl.exact import covariance_of
from tests.helpers import tiny_config, tiny_model

SHAPES = [(1, 8, 8), (3, 8, 8), (2,)]


def model_of(shape: tuple[int, ...], num_classes: int = 10) -> CDRL:
    return tiny_model(tiny_config(schedule={"num_levels": 6}, initializer={"multipliers": [1, 1]}), shape, num_classes)


def point_config(temperature: str = "step_size", output_scale: float = 1.0) -> Config:
    return tiny_config(
        space="point",
        data={"name": "checkerboard", "labels": "none"},
        schedule={"num_levels": 3, "logsnr_max": 5.0, "temperature": temperature},
        energy={"multipliers": [1], "spectral_norm": False, "output_scale": output_scale},
    )


def grids(shape: tuple[int, ...], count: int = 6) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", SHAPES)
def test_one_number_an_image_and_one_proposal_an_image(shape: tuple[int, ...]) -> None:
    model = model_of(shape)
    assert model.log_density(grids(shape), 2).shape == (6,)
    assert model.propose(grids(shape), 2).shape == (6, *shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_level_an_image_equals_a_call_a_level(shape: tuple[int, ...]) -> None:
    model, y, levels = model_of(shape), grids(shape), [3, 0, 5, 5, 1, 2]
    label = torch.tensor([1, -1, 0, 9, 4, 4])
    together = model.log_density(y, torch.tensor(levels), label)
    proposals = model.propose(y, torch.tensor(levels), label)
    for i, level in enumerate(levels):
        one = slice(i, i + 1)
        torch.testing.assert_close(together[one], model.log_density(y[one], level, label[one]), rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(proposals[one], model.propose(y[one], level, label[one]), rtol=1e-4, atol=1e-5)


def test_f_is_f_hat_over_the_squared_step_size() -> None:
    model, y = model_of((1, 8, 8)), grids((1, 8, 8))
    for level in range(6):
        f_hat = model.energy(y, model.schedule.logsnr[level].expand(6), torch.full((6,), 3))
        expected = f_hat / model.schedule.step_size[level] ** 2
        torch.testing.assert_close(model.log_density(y, level, 3), expected, rtol=1e-4, atol=1e-3)


def test_a_temperature_of_one_is_f_hat_itself() -> None:
    """With f-hat / s_t^2 for its own answer, a network of temperature one has the same density, slope and chain."""
    y = grids((2,))
    usual = tiny_model(point_config(), (2,), num_classes=0)
    for level in range(3):
        squared = float(usual.schedule.step_size[level] ** 2)
        one = tiny_model(point_config(temperature="one", output_scale=1 / squared), (2,), num_classes=0)
        answers = [with_gradient(functools.partial(model.log_density, level=level))(y) for model in (usual, one)]
        for ours, expected in zip(*answers, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)
        chains = []
        for model in (usual, one):
            log_density = functools.partial(model.conditioned().log_density, level=level)
            target = recovery(with_gradient(log_density), y + 0.1, model.schedule.precision[level])
            start, noise = Position(y, target), ImageNoise(range(6))
            chains.append(refine(start, model.schedule.step_size[level], noise, steps=5).y)
        assert (chains[0] - y).abs().mean() > float(usual.schedule.step_size[level])
        torch.testing.assert_close(chains[0], chains[1], rtol=1e-4, atol=1e-4)


def test_a_gaussian_reference_adds_the_log_density_of_standard_normal_data_at_every_level() -> None:
    config = tiny_config(schedule={"num_levels": 6}, energy={"reference": "gaussian"})
    model, y = tiny_model(config), grids((1, 8, 8))
    for level in range(6):
        f_hat = model.energy(y, model.schedule.logsnr[level].expand(6), torch.full((6,), 3))
        normal = torch.distributions.Normal(torch.tensor(0.0), model.schedule.alpha_y[level])
        relative = normal.log_prob(y).flatten(1).sum(dim=1) - 64 * normal.log_prob(torch.tensor(0.0))
        expected = f_hat / model.schedule.step_size[level] ** 2 + relative
        torch.testing.assert_close(model.log_density(y, level, 3), expected, rtol=1e-4, atol=1e-3)


def test_the_initializer_is_told_the_level_it_comes_from() -> None:
    model, x = model_of((1, 8, 8)), grids((1, 8, 8))
    for level in range(6):
        expected = model.initializer(x, model.schedule.logsnr[level + 1].expand(6), torch.full((6,), 3))
        torch.testing.assert_close(model.propose(x, level, 3), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("predicts", ["x0", "epsilon"])
@pytest.mark.parametrize("kind", ["cosine", "drl"])
def test_the_expected_image_or_noise_becomes_the_expected_y(kind: Literal["cosine", "drl"], predicts: str) -> None:
    """For Gaussian data both expectations given x_{t+1} are known, and so is that of y_t under the true joint."""
    schedule = NoiseSchedule.from_config(ScheduleConfig(kind=kind))
    mean, covariance = torch.tensor([0.4, -0.7, 0.2]), covariance_of(0.9, 0.5, 0.3)
    x_next = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))

    def posterior(signal: Tensor, noise: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        """E[x | signal x + noise eps] for x ~ N(mean, covariance)."""
        gain = signal * covariance @ (signal**2 * covariance + noise**2 * torch.eye(3)).inverse()
        return mean + (x_next - signal * mean) @ gain.T

    for level in range(6):
        signal, noise = schedule.alpha_bar[level + 1], schedule.sigma_bar[level + 1]
        x0 = posterior(signal, noise, mean, covariance)
        output = x0 if predicts == "x0" else (x_next - signal * x0) / noise
        share, spread = schedule.alpha_bar[level], schedule.sigma_bar[level]
        marginal = share**2 * covariance + spread**2 * torch.eye(3)
        x = posterior(schedule.alpha_step[level], schedule.sigma_step[level], share * mean, marginal)
        expected = schedule.alpha_y[level] * x
        ours = proposal_mean(output, x_next, schedule, level, predicts)
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)
        levels = torch.full((6,), level)
        torch.testing.assert_close(proposal_mean(output, x_next, schedule, levels, predicts), ours)


def test_what_the_initializer_predicts_is_turned_into_a_proposal() -> None:
    x = grids((1, 8, 8))
    for predicts in ("y", "x0", "epsilon"):
        config = tiny_config(schedule={"num_levels": 6}, initializer={"predicts": predicts})
        model = tiny_model(config)
        assert model.initializer is not None
        for level in range(6):
            output = model.initializer(x, model.schedule.logsnr[level + 1].expand(6), torch.full((6,), 3))
            expected = proposal_mean(output, x, model.schedule, level, predicts)
            torch.testing.assert_close(model.propose(x, level, 3), expected, rtol=1e-4, atol=1e-5)


def test_without_an_initializer_the_proposal_is_x_next_without_noise() -> None:
    model, x = tiny_model(tiny_config(initializer=None)), grids((1, 8, 8))
    assert model.initializer is None
    assert torch.equal(model.propose(x, 1, 3), x)
    assert (model.schedule.proposal_std == 0).all()


@pytest.mark.parametrize("null", [-1, None, torch.full((6,), -1), [-1] * 6])
def test_minus_one_and_none_are_the_null_class(null: Label) -> None:
    model, y = model_of((1, 8, 8)), grids((1, 8, 8))
    torch.testing.assert_close(model.log_density(y, 2, null), model.log_density(y, 2))
    torch.testing.assert_close(model.propose(y, 2, null), model.propose(y, 2))
    assert not torch.allclose(model.log_density(y, 2, 4), model.log_density(y, 2), rtol=1e-3)


def test_one_class_for_all_equals_a_class_an_image() -> None:
    model, y = model_of((1, 8, 8)), grids((1, 8, 8))
    torch.testing.assert_close(
        model.log_density(y, 1, 7), model.log_density(y, 1, torch.full((6,), 7)), rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize("label", [None, 4, [0, 1, 2, 3, -1, 9]])
def test_a_condition_folded_once_answers_as_the_model_does(label: Label) -> None:
    model, y = model_of((1, 8, 8)), grids((1, 8, 8))
    conditioned = model.conditioned(label)
    for level in (0, 5, 0):
        torch.testing.assert_close(
            conditioned.log_density(y, level), model.log_density(y, level, label), rtol=1e-4, atol=1e-3
        )
        torch.testing.assert_close(conditioned.propose(y, level), model.propose(y, level, label))


def test_parameters_get_gradients_through_the_model_but_not_through_a_condition_for_chains() -> None:
    model, y = model_of((1, 8, 8)), grids((1, 8, 8)).requires_grad_()
    model.conditioned(3).log_density(y, 0).sum().backward()
    assert y.grad is not None
    assert all(parameter.grad is None for parameter in model.energy.parameters())
    model.log_density(y, 0, 3).sum().backward()
    assert all(parameter.grad is not None for parameter in model.energy.parameters())


def test_an_unconditional_initializer_beside_a_conditional_energy_does_not_see_the_class() -> None:
    model = tiny_model(tiny_config(initializer={"conditional": False}))
    y = grids((1, 8, 8))
    torch.testing.assert_close(model.propose(y, 1, 3), model.propose(y, 1, 5), rtol=0, atol=0)
    assert not torch.allclose(model.log_density(y, 1, 3), model.log_density(y, 1, 5), rtol=1e-3)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (10, r"class ids are -1 … 9, found \[10\]"),
        (-2, r"found \[-2\]"),
        ([0, 1, 2], r"expected one class id or 6 of them, found shape \[3\]"),
        ([[0], [1], [2], [3], [4], [5]], r"found shape \[6, 1\]"),
    ],
)
def test_labels_that_do_not_fit_are_refused(label: Label, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_of((1, 8, 8)).log_density(grids((1, 8, 8)), 0, label)


def test_a_model_without_classes_refuses_any() -> None:
    with pytest.raises(ValueError, match=r"only -1 \(the model is unconditional\), found \[0\]"):
        model_of((1, 8, 8), num_classes=0).propose(grids((1, 8, 8)), 0, 0)


def test_grids_of_another_shape_are_refused() -> None:
    model = model_of((1, 8, 8))
    for call in (model.log_density, model.propose):
        with pytest.raises(ValueError, match=r"expected \[N, 1, 8, 8\], found \[6, 3, 8, 8\]"):
            call(grids((3, 8, 8)), 0)


AN_IMAGE = r"level: expected one for each image, int64 \[6\], found "


@pytest.mark.parametrize(
    ("level", "fault", "message"),
    [
        *((each, TypeError, "level: expected a whole number, found ") for each in (True, "1", None, [0] * 6)),
        (1.0, ValueError, "level: expected a whole number, found 1.0"),
        (-1, ValueError, "level: this model has 6 levels, 0 … 5; found -1"),
        (torch.full((6,), -1), ValueError, "level: this model has 6 levels, 0 … 5; found -1"),
        (torch.full((6,), 6), ValueError, "level: this model has 6 levels, 0 … 5; found 6"),
        (torch.zeros(6), ValueError, f"{AN_IMAGE}a tensor of float32, "),
        (torch.zeros(5).long(), ValueError, f"{AN_IMAGE}a tensor of int64, "),
    ],
)
def test_levels_that_cannot_be_are_refused(level: Any, fault: type[Exception], message: str) -> None:
    model = model_of((2,))
    for call in (model.log_density, model.propose):
        with pytest.raises(fault, match=f"^{message}"):
            call(grids((2,)), level)


@pytest.mark.parametrize("label", [True, "3", [True] * 6, [1, 2, 3, 4, 5, "6"], {1, 2}, b"123456", torch.ones(6) > 0])
def test_what_is_no_class_id_is_refused(label: Any) -> None:
    with pytest.raises(TypeError, match=r"^label: class ids are whole numbers, found "):
        model_of((2,)).log_density(grids((2,)), 0, label)


def test_labels_of_numpy_and_none_are_taken() -> None:
    model, y = model_of((2,)), grids((2,))
    level: Any = np.int64(1)
    expected = model.log_density(y, 1, [1, -1, 0, 9, 4, 4])
    label: Any
    for label in (np.array([1, -1, 0, 9, 4, 4]), [np.int64(1), None, 0, 9, 4, 4]):
        assert torch.equal(model.log_density(y, level, label), expected)
    assert torch.equal(model.propose(y.double(), 1), model.propose(y, 1))


@pytest.mark.parametrize(
    "given", [None, torch.zeros(6, 2).numpy(), torch.zeros(6, 2, dtype=torch.uint8), torch.zeros(0, 2), torch.zeros(2)]
)
def test_what_is_no_batch_of_grids_is_refused(given: Any) -> None:
    for call, name in ((model_of((2,)).log_density, "y"), (model_of((2,)).propose, "x_next")):
        with pytest.raises((TypeError, ValueError), match=rf"^{name}: expected .*\[N, 2\].*, found "):
            call(given, 0)


SHAPE = r"shape: expected \(channels, height, width\), or \(dimensions,\) of points, found "


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (({}, (2,)), r"config: expected a cdrl.Config, found \{\}"),
        ((tiny_config(), (8, 8)), SHAPE),
        ((tiny_config(), (1, 0, 8)), SHAPE),
        ((tiny_config(), (1, 8.0, 8)), "shape: expected whole numbers, found "),
        ((tiny_config(), "188"), "shape: expected a list, such as "),
        ((tiny_config(), (1, 8, 8), True), "num_classes: expected a whole number of at least 0, found True"),
        ((tiny_config(), (1, 8, 8), -1), "num_classes: expected a whole number of at least 0, found -1"),
    ],
)
def test_what_a_model_cannot_be_made_of_is_refused(values: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        CDRL.from_config(*values)

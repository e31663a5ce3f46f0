"""The tables against those of the authors' code, and against the equations."""

from __future__ import annotations

import json
import math

import pytest
import torch

from cdrl.config import ScheduleConfig
from cdrl.schedule import NoiseSchedule, per_image
from tests.helpers import FIXTURES

REFERENCE = json.loads((FIXTURES / "schedule.json").read_text(encoding="utf-8"))
TABLES = (
    "logsnr",
    "alpha_bar",
    "sigma_bar",
    "alpha_step",
    "sigma_step",
    "alpha_y",
    "step_size",
    "proposal_std",
    "loss_weight",
)


def expected(name: str, table: str) -> torch.Tensor:
    values = REFERENCE[name]["step_size_squared" if table == "step_size" else table]
    return torch.tensor(values, dtype=torch.float64).sqrt() if table == "step_size" else torch.tensor(values).double()


def assert_close(table: torch.Tensor, reference: torch.Tensor) -> None:
    torch.testing.assert_close(table.double(), reference, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("levels", [4, 5, 6])
def test_every_table_equals_the_authors(levels: int, table: str) -> None:
    schedule = NoiseSchedule.from_config(ScheduleConfig(num_levels=levels))
    assert_close(getattr(schedule, table), expected(f"cdrl_T{levels}", table))


@pytest.mark.parametrize("table", [table for table in TABLES if table != "proposal_std"])
def test_every_table_of_the_predecessors_schedule_equals_its_authors(table: str) -> None:
    schedule = NoiseSchedule.from_config(ScheduleConfig(kind="drl"), initializer=False)
    assert_close(getattr(schedule, table), expected("drl_T6", table))


@pytest.mark.parametrize(
    ("levels", "cut"),
    [
        (2, [0, 500, 999]),
        (4, [0, 166, 332, 498, 999]),
        (6, REFERENCE["drl_T6"]["beta_index"]),
        (8, [0, 100, 200, 300, 400, 500, 666, 833, 999]),
    ],
)
def test_the_predecessors_levels_are_cut_out_of_a_linear_beta(levels: int, cut: list[int]) -> None:
    """The signal's variance left after step k is the product of 1 - beta up to k."""
    schedule = NoiseSchedule.from_config(ScheduleConfig(kind="drl", num_levels=levels))
    left = [math.prod(1 - (1e-4 + (0.02 - 1e-4) * i / 999) for i in range(k + 1)) for k in cut]
    torch.testing.assert_close(schedule.alpha_bar.double() ** 2, torch.tensor(left).double(), rtol=2e-5, atol=0)
    assert (schedule.logsnr.diff() < 0).all()


def test_the_step_coefficient_begins_at_each_methods_own() -> None:
    assert ScheduleConfig().step_coefficient == 4e-4
    assert ScheduleConfig(kind="drl").step_coefficient == 2e-4
    assert ScheduleConfig(kind="drl", step_coefficient=3e-4).step_coefficient == 3e-4


def test_without_an_initializer_only_the_proposals_noise_is_gone() -> None:
    full, bare = (NoiseSchedule.from_config(ScheduleConfig(), initializer=given) for given in (True, False))
    assert (bare.proposal_std == 0).all()
    assert all(torch.equal(getattr(full, table), getattr(bare, table)) for table in TABLES if table != "proposal_std")


@pytest.mark.parametrize("levels", [2, 4, 6, 8])
def test_levels_run_from_the_highest_to_the_lowest_logsnr_and_keep_the_variance(levels: int) -> None:
    schedule = NoiseSchedule.from_config(ScheduleConfig(num_levels=levels, logsnr_max=9.8, logsnr_min=-5.1))
    assert schedule.num_levels == levels
    assert schedule.logsnr[[0, -1]].tolist() == pytest.approx([9.8, -5.1], rel=1e-6)
    assert (schedule.logsnr.diff() < 0).all()
    torch.testing.assert_close(schedule.alpha_bar**2 + schedule.sigma_bar**2, torch.ones(levels + 1))
    torch.testing.assert_close(schedule.alpha_step**2 + schedule.sigma_step**2, torch.ones(levels))


def test_one_more_step_of_noise_leads_from_each_marginal_to_the_next() -> None:
    schedule = NoiseSchedule.from_config(ScheduleConfig())
    variance = schedule.alpha_step**2 * schedule.sigma_bar[:-1] ** 2 + schedule.sigma_step**2
    torch.testing.assert_close(schedule.alpha_step * schedule.alpha_bar[:-1], schedule.alpha_bar[1:])
    torch.testing.assert_close(variance, schedule.sigma_bar[1:] ** 2)


def test_the_highest_level_is_a_marginal() -> None:
    schedule = NoiseSchedule.from_config(ScheduleConfig())
    assert schedule.alpha_y[-1] == 1
    assert schedule.precision[-1] == 0
    torch.testing.assert_close(schedule.alpha_y[:-1], schedule.alpha_step[:-1])
    torch.testing.assert_close(schedule.precision[:-1], schedule.sigma_step[:-1] ** -2)
    # The noise of that level keeps its true value where the step size and the loss weight need it.
    assert schedule.sigma_step[-1] == pytest.approx(math.sqrt(1 - schedule.alpha_step[-1].item() ** 2), rel=1e-6)
    assert schedule.loss_weight[-1] == pytest.approx((schedule.sigma_step[0] / schedule.sigma_step[-1]).item())


def test_loss_weights_are_the_inverse_noise_relative_to_the_first_level() -> None:
    schedule = NoiseSchedule.from_config(ScheduleConfig())
    assert schedule.loss_weight[0] == 1
    torch.testing.assert_close(schedule.loss_weight * schedule.sigma_step, schedule.sigma_step[:1].expand(6))


def test_the_step_coefficient_is_the_papers_0_054() -> None:
    schedule = NoiseSchedule.from_config(ScheduleConfig())
    ratio = schedule.step_size**2 / (schedule.sigma_bar[:-1] * schedule.sigma_step**2)
    torch.testing.assert_close(ratio, torch.full((6,), 0.054), rtol=0.01, atol=0)


def test_a_constant_scaling_leaves_the_level_out_of_the_step_size() -> None:
    schedule = NoiseSchedule.from_config(ScheduleConfig(step_coefficient=0.25, step_scaling="constant"))
    torch.testing.assert_close(schedule.step_size, 0.5 * schedule.sigma_step)


def test_the_temperature_is_the_squared_step_size_unless_it_is_one() -> None:
    schedule = NoiseSchedule.from_config(ScheduleConfig())
    torch.testing.assert_close(schedule.temperature, schedule.step_size**2)
    flat = NoiseSchedule.from_config(ScheduleConfig(temperature="one"))
    assert flat.temperature.tolist() == [1] * 6
    torch.testing.assert_close(flat.step_size, schedule.step_size, rtol=0, atol=0)


def test_tables_move_to_a_device_together() -> None:
    moved = NoiseSchedule.from_config(ScheduleConfig()).to("meta")
    assert {getattr(moved, table).device.type for table in TABLES} == {"meta"}


def test_per_image_values_broadcast_over_images() -> None:
    assert per_image(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4, 4)).shape == (2, 1, 1, 1)
    assert per_image(torch.tensor([1.0, 2.0]), torch.zeros(2, 5)).shape == (2, 1)
    assert per_image(torch.tensor(1.0), torch.zeros(2, 5)).shape == ()

"""Learning-rate schedules and the division of a batch among processes."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cdrl.config import ConfigError
from cdrl.training.engine import MovingAverage, World, ema_decay, linear_schedule, start


def world(rank: int, size: int) -> World:
    return World(rank, size, torch.device("cpu"))


def test_the_energys_warm_up_starts_at_0_and_the_initializers_at_its_head_start() -> None:
    """Eq. 15: both reach the full rate in 10,000 steps, the initializer 500 steps earlier."""
    energy = linear_schedule(400_000, 10_000, 0, 0.0, 0.02)
    initializer = linear_schedule(400_000, 10_000, 500, 0.0, 0.02)
    assert [energy(step) for step in (0, 1, 5000, 10_000, 399_999)] == [0, 1e-4, 0.5, 1, 1]
    assert [initializer(step) for step in (0, 9499, 9500, 9501)] == [0.05, 0.9999, 1, 1]
    assert all(initializer(step) == energy(step + 500) for step in range(0, 20_000, 100))


def test_no_warm_up_begins_at_the_full_rate() -> None:
    assert linear_schedule(100, 0, 0, 0.0, 0.02)(0) == 1


def test_decay_covers_the_last_share_of_the_steps_and_ends_at_its_floor() -> None:
    factor = linear_schedule(1000, 0, 0, 0.25, 0.1)
    assert factor(0) == factor(750) == 1
    assert factor(875) == pytest.approx(0.55)
    assert factor(1000) == pytest.approx(0.1)
    assert factor(1500) == pytest.approx(0.1)
    rates = [factor(step) for step in range(1001)]
    assert rates == sorted(rates, reverse=True)


def test_warm_up_and_decay_multiply() -> None:
    factor = linear_schedule(100, 50, 0, 1.0, 0.0)
    assert factor(25) == pytest.approx(0.5 * 0.75)


def test_the_averages_decay_is_that_of_the_authors() -> None:
    """torch_ema counts its updates from 1: min(decay, (1 + n) / (10 + n))."""
    assert [ema_decay(0.9999, n) for n in (1, 2, 90)] == [2 / 11, 3 / 12, 0.91]
    assert ema_decay(0.9999, 100_000) == 0.9999
    assert {ema_decay(0.0, n) for n in (1, 2, 1000)} == {0.0}


def test_an_average_made_without_the_warm_up_is_taken_up_at_its_count() -> None:
    layer = nn.Linear(1, 1, bias=False)
    old = AveragedModel(layer, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for value in (1.0, 2.0):
        nn.init.constant_(layer.weight, value)
        old.update_parameters(layer)
    new = MovingAverage(layer, 0.9)
    new.load_state_dict(old.state_dict())
    nn.init.constant_(layer.weight, 3.0)
    new.update_parameters(layer)
    assert new.module.weight.item() == pytest.approx(4 / 13 * 1.1 + 9 / 13 * 3.0)


@pytest.mark.parametrize(("size", "accumulation"), [(1, 1), (2, 1), (1, 4), (3, 2), (4, 3)])
def test_rows_of_all_processes_and_micro_batches_partition_the_batch(size: int, accumulation: int) -> None:
    parts = [world(rank, size).rows(24, accumulation) for rank in range(size)]
    assert {len(ranges) for ranges in parts} == {accumulation}
    assert {len(rows) for ranges in parts for rows in ranges} == {24 // size // accumulation}
    assert [row for ranges in parts for rows in ranges for row in rows] == list(range(24))


@pytest.mark.parametrize(("size", "accumulation"), [(3, 1), (1, 7), (3, 3)])
def test_a_batch_that_cannot_be_divided_is_refused(size: int, accumulation: int) -> None:
    with pytest.raises(ConfigError, match=rf"training\.batch_size=20 cannot be divided among {size} processes"):
        world(0, size).rows(20, accumulation)


def test_alone_the_process_is_a_world_of_one() -> None:
    alone = start()
    assert (alone.rank, alone.size, alone.is_main, alone.device.type) == (0, 1, True, "cpu")
    assert os.environ["MASTER_ADDR"] == "127.0.0.1"
    assert start() == alone

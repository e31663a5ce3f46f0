"""Monitors: means a level between two log lines."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from cdrl.training.monitor import MONITORS, LevelMonitor
from cdrl.training.objective import Diagnostics


def diagnostics(level: list[int], gap: list[float]) -> Diagnostics:
    """Each monitor is another multiple of the gap."""
    values = {name: factor * torch.tensor(gap) for factor, name in enumerate(MONITORS, start=1)}
    return Diagnostics(torch.tensor(level), **values)


def test_means_are_a_level_over_all_batches_and_begin_anew() -> None:
    monitor = LevelMonitor(3, torch.device("cpu"))
    monitor.add(diagnostics([0, 0, 2], [1.0, 3.0, 5.0]))
    monitor.add(diagnostics([2, 2], [1.0, 0.0]))
    means = monitor.means()
    assert tuple(means) == MONITORS
    for factor, name in enumerate(MONITORS, start=1):
        assert means[name][0] == pytest.approx(2.0 * factor)
        assert math.isnan(means[name][1])
        assert means[name][2] == pytest.approx(2.0 * factor)
    monitor.add(diagnostics([1], [7.0]))
    assert monitor.means()["energy_gap"][1] == 7.0


def test_what_was_not_measured_does_not_count() -> None:
    monitor = LevelMonitor(2, torch.device("cpu"))
    first, second = diagnostics([0, 1], [1.0, 2.0]), diagnostics([0, 0], [3.0, 5.0])
    monitor.add(dataclasses.replace(first, acceptance=torch.tensor([0.5, math.nan])))
    monitor.add(dataclasses.replace(second, acceptance=torch.tensor([math.nan, 0.7])))
    means = monitor.means()
    assert means["acceptance"][0] == pytest.approx(0.6)
    assert math.isnan(means["acceptance"][1])
    assert means["energy_gap"] == pytest.approx([3.0, 2.0])

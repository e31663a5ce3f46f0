"""Monitors: means a level between two log lines."""

from __future__ import annotations

import math

import pytest
import torch

from cdrl.monitor import MONITORS, LevelMonitor
from cdrl.objective import Diagnostics


def diagnostics(level: list[int], gap: list[float]) -> Diagnostics:
    values = torch.tensor(gap)
    return Diagnostics(torch.tensor(level), values, 2 * values, 3 * values, 4 * values)


def test_means_are_a_level_over_all_batches_and_begin_anew() -> None:
    monitor = LevelMonitor(3, torch.device("cpu"))
    monitor.add(diagnostics([0, 0, 2], [1.0, 3.0, 5.0]))
    monitor.add(diagnostics([2, 2], [1.0, 0.0]))
    means = monitor.means()
    assert tuple(means) == MONITORS
    for factor, name in enumerate(("energy_gap", "gradient_norm", "displacement", "magnitude"), start=1):
        assert means[name][0] == pytest.approx(2.0 * factor)
        assert math.isnan(means[name][1])
        assert means[name][2] == pytest.approx(2.0 * factor)
    monitor.add(diagnostics([1], [7.0]))
    assert monitor.means()["energy_gap"][1] == 7.0

"""Monitors: means a level between two log lines."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from cdrl.runs.run import save_tensors
from cdrl.training.engine import World
from cdrl.training.monitor import MONITORS, SUMS_FILE, LevelMonitor, RunningMeans, load_sums, save_sums
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


def test_running_means_are_over_all_values_since_they_were_forgotten() -> None:
    running = RunningMeans(torch.device("cpu"))
    running.add({"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(5.0)})
    running.add({"b": torch.tensor([6.0])})
    assert list(running.means().items()) == [("a", 5.0), ("b", 3.0)]
    running.forget()
    running.add({"b": torch.tensor(7.0)})
    assert running.means() == {"b": 7.0}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_running_sums_of_all_processes_are_taken_up_by_whichever_number(tmp_path: Path, size: int) -> None:
    rows = torch.tensor([[1.0, 2.0], [10.0, 20.0]])
    save_tensors(tmp_path / SUMS_FILE, {"losses.energy_loss": rows})
    worlds = [World(rank, size, torch.device("cpu")) for rank in range(size)]
    shares = torch.stack([load_sums(tmp_path, world)["losses"]["energy_loss"] for world in worlds])
    assert torch.equal(shares.sum(dim=0), torch.tensor([11.0, 22.0]))
    assert (size == 2) == torch.equal(shares, rows)


def test_running_sums_come_back_as_they_were(tmp_path: Path) -> None:
    world = World(0, 1, torch.device("cpu"))
    running = RunningMeans(world.device)
    running.add({"x": torch.tensor([0.1, 0.7])})
    save_sums(tmp_path, {"losses": running.sums}, world)
    again = RunningMeans(world.device)
    again.sums |= load_sums(tmp_path, world)["losses"]
    assert again.means() == running.means()

"""The plain step and the engine's step make the same of the same weights; trainings are timed beside a neighbour."""

from __future__ import annotations

import copy
import multiprocessing

import pytest
import torch
from torch import nn

from benchmarks import engine_step, threads
from benchmarks.timing import Size
from tests.helpers import tiny_config


def test_plain_and_engine_step_make_the_same_updates() -> None:
    torch.manual_seed(0)
    plain = engine_step.Weights(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Linear(4, 5)))
    ours = copy.deepcopy(plain)
    begun = [weight.detach().clone() for weight in plain.parameters()]
    plain_update, our_update = engine_step.plain_step(plain), engine_step.engine_step(ours)
    for _ in range(3):
        plain_update()
        our_update()
    for theirs, weight, before in zip(plain.parameters(), ours.parameters(), begun, strict=True):
        torch.testing.assert_close(weight, theirs, rtol=0, atol=1e-7)
        assert (weight - before).abs().min() > 2e-4


def test_the_table_of_the_engines_step_names_both() -> None:
    lines = engine_step.measure(nn.Linear(2, 2), rounds=1).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == ["plain", "this package"]


def test_a_number_of_threads_is_timed_over_whole_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "CORES", 1)
    size = Size(tiny_config(data={"labels": "none"}), (1, 8, 8), 8)
    images, number = threads.rate(size, 1, seconds=0.01)
    assert images > 0
    assert (number, torch.get_num_threads()) == (1, 1)


def test_the_quickstarts_second_stage_is_what_is_timed() -> None:
    size = threads.quickstart()
    assert size.shape == (4, 16, 16)
    assert size.config.training.batch_size == size.batch


def test_a_neighbour_is_there_until_it_is_let_go() -> None:
    before = set(multiprocessing.active_children())
    with threads.neighbour(True):
        (process,) = set(multiprocessing.active_children()) - before
        assert process.is_alive()
    assert not process.is_alive()

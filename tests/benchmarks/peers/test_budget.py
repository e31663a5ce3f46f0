"""Budgets of CPU seconds are kept, and memory is seen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from benchmarks.peers.budget import PeakMemory, Spent, train_for


class Burning:
    """A learner whose every update takes the same CPU time."""

    def __init__(self, updates: int, milliseconds: float) -> None:
        self.updates, self.seconds, self.made = updates, milliseconds / 1000, [0.0] * 0

    def update(self, step: int) -> None:
        started = time.process_time()
        while time.process_time() - started < self.seconds:
            pass
        self.made.append(step)


@pytest.mark.parametrize("milliseconds", [1.0, 7.0])
def test_a_budget_is_kept_within_a_tenth(milliseconds: float) -> None:
    made, released = list[Burning](), list[Burning]()

    @contextmanager
    def learning(updates: int) -> Iterator[Burning]:
        made.append(Burning(updates, milliseconds))
        yield made[-1]
        released.append(made[-1])

    started = time.process_time()
    learner, spent = train_for(0.8, learning)
    elapsed = time.process_time() - started
    assert not spent.misses(0.8)
    assert spent.updates == pytest.approx(800 / milliseconds, rel=0.1)
    assert elapsed > spent.cpu_seconds + 0.9  # the rehearsal, which is not counted
    # What learns over its updates was told their number beforehand, and made them all, in their order.
    assert learner.updates == spent.updates
    assert learner.made == list(range(spent.updates))
    assert [len(made), made[1] is learner, released == made] == [2, True, True]


def test_a_budget_that_is_missed_is_told() -> None:
    assert Spent(10, 111.0).misses(100.0)
    assert Spent(10, 89.0).misses(100.0)
    assert not Spent(10, 109.0).misses(100.0)


def test_memory_that_is_taken_and_given_back_is_seen() -> None:
    with PeakMemory() as memory:
        numbers = torch.ones(2**24)
        time.sleep(0.2)
        del numbers
    assert 60 < memory.mebibytes < 120

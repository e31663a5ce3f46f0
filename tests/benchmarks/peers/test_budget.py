"""Budgets of CPU seconds are kept, and memory is seen."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.peers.budget import MOST_ERROR, PeakMemory, train_for


class Burning:
    """A learner whose updates take the same CPU time, or more and more of it; its rate decays over its updates."""

    def __init__(self, updates: int, milliseconds: float, grows: float = 0.0) -> None:
        self.updates, self.seconds, self.grows = updates, milliseconds / 1000, grows
        self.made, self.rates = list[int](), list[float]()
        self.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        self.schedule = LambdaLR(self.optimizer, lambda step: max(0.0, 1 - step / updates))

    def update(self, step: int) -> None:
        started = time.process_time()
        while time.process_time() - started < self.seconds * (1 + self.grows * step):
            pass
        self.made.append(step)
        self.rates.append(self.optimizer.param_groups[0]["lr"])
        self.optimizer.step()
        self.schedule.step()

    def schedules(self) -> list[LambdaLR]:
        return [self.schedule]


@pytest.mark.parametrize(("milliseconds", "grows"), [(2.0, 0.0), (30.0, 0.0), (2.0, 0.02)])
def test_a_budget_is_kept_within_a_tenth(milliseconds: float, grows: float) -> None:
    made, released = list[Burning](), list[Burning]()

    @contextmanager
    def learning(updates: int) -> Iterator[Burning]:
        made.append(Burning(updates, milliseconds, grows if made else 0.0))  # it gets slower after the rehearsal
        yield made[-1]
        released.append(made[-1])

    started = time.process_time()
    learner, spent = train_for(0.8, learning)
    assert time.process_time() - started > spent.cpu_seconds + 0.9  # the rehearsal, which is not counted
    assert spent.cpu_seconds == pytest.approx(0.8, rel=MOST_ERROR)
    assert learner.made == list(range(spent.updates))
    assert [len(made), made[1] is learner, released == made] == [2, True, True]
    # Whatever the updates have cost, the learning rate has fallen from 1 to 0 over them.
    assert learner.updates == pytest.approx(800 / milliseconds, rel=0.2)
    assert (spent.updates < learner.updates / 1.5) == (grows > 0)
    assert learner.rates[0] == 1
    assert learner.rates[-1] < 0.1
    assert learner.rates == sorted(learner.rates, reverse=True)


def test_an_update_that_is_longer_than_the_budget_is_made() -> None:
    learner, spent = train_for(0.01, lambda updates: nullcontext(Burning(updates, 50)))
    assert (learner.updates, spent.updates) == (1, 1)


def test_memory_that_is_taken_and_given_back_is_seen() -> None:
    with PeakMemory() as memory:
        numbers = torch.ones(2**24)
        time.sleep(0.2)
        del numbers
    assert 60 < memory.mebibytes < 120

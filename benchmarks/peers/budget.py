"""CPU seconds and memory of training: a budget that is kept, with learning rates that decay over just this budget.

A rehearsal measures what an update costs, from which follows how many a budget holds; schedules are made for these. The
cost of an update changes with what else the machine does: the clock tells how far a schedule has come, and when to end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeVar

import psutil
from torch.optim.lr_scheduler import LambdaLR

_REHEARSED_SHARE, _REHEARSED_SECONDS = 0.02, 1.0
"""What a rehearsal takes: this share of the budget, and these CPU seconds at least."""
_LEAST_REHEARSED = 3
_REHEARSED_OF = 1000
"""Updates of the training that is rehearsed the beginning of."""
_LOOKS_EVERY = 0.02
"""Seconds between two looks at the memory."""
MOST_ERROR = 0.1
"""Share of a budget by which training may miss it."""


class Learner(Protocol):
    """Something that is trained."""

    def update(self, step: int) -> object:
        """Make update ``step``, from 0."""
        ...

    def schedules(self) -> Sequence[LambdaLR]:
        """Its learning rates as functions of the updates behind it."""
        ...


LearnerKind = TypeVar("LearnerKind", bound=Learner)


@dataclass(frozen=True)
class Spent:
    """What training has taken.

    Attributes:
        updates: made.
        cpu_seconds: of the process.
    """

    updates: int
    cpu_seconds: float


def train_for(
    seconds: float, learning: Callable[[int], AbstractContextManager[LearnerKind]]
) -> tuple[LearnerKind, Spent]:
    """Train for ``seconds`` of CPU time, as nearly as whole updates can; one is made in any case.

    Args:
        learning: number of updates -> a new learner that is to make about so many, released at the end of the context.

    Returns:
        The learner, and what its training took; the rehearsal, by a learner of its own, is not counted.
    """
    with learning(_REHEARSED_OF) as rehearsed:
        cost = seconds_an_update(rehearsed, max(_REHEARSED_SECONDS, _REHEARSED_SHARE * seconds))
    planned = max(1, round(seconds / cost))
    with learning(planned) as learner:
        started, used, made = time.process_time(), 0.0, 0
        # The next update begins if more than half of it fits.
        while not made or used + used / made / 2 < seconds:
            for schedule in learner.schedules():
                schedule.last_epoch = round(planned * used / seconds)  # it counts on by itself at the update's end
            learner.update(made)
            used, made = time.process_time() - started, made + 1
    return learner, Spent(made, used)


def seconds_an_update(learner: Learner, seconds: float) -> float:
    """Mean CPU seconds of an update, measured for ``seconds`` and some updates at least; the first is left out."""
    learner.update(0)
    started, step = time.process_time(), 0
    while step < _LEAST_REHEARSED or time.process_time() - started < seconds:
        step += 1
        learner.update(step)
    return (time.process_time() - started) / step


class PeakMemory:
    """Memory that the process takes within the context beyond what it has at the beginning, in MiB.

    The resident set is looked at all the time: the system's own peak would count what was loaded before.
    """

    def __init__(self) -> None:
        self.mebibytes = 0.0

    def __enter__(self) -> Self:
        self._process, self._done = psutil.Process(), threading.Event()
        self._before = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(_LOOKS_EVERY):
            taken = (self._process.memory_info().rss - self._before) / 2**20
            self.mebibytes = max(self.mebibytes, taken)

"""The machine that something is trained on: in words that name nobody, and how many threads of it training takes."""

from __future__ import annotations

import math
import os
import platform
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch

from cdrl.training.engine import World

ROUNDS = 4
"""Updates that are timed with each number of threads. The first of each, which finds caches empty, is not compared."""
GAIN = 0.9
"""Another number is taken where an update takes less than this share of the time."""
GIVEN_UP = 10.0
"""A number with which work takes so many times as long as with another is not tried again."""
HOPELESS = 2.0
"""A number with which an update takes so many times as long as with another is not timed further, nor are fewer threads
where it is more threads that are faster."""
SLOWER = 1.3
WINDOW = 5
"""Numbers are timed again once the median of so many updates is so many times that of the first after the choice."""
AGAIN_AFTER = 300.0, 100
"""And, where fewer threads are in use than there are, after so many seconds and updates, as others may have left; after
twice as many seconds each time that they have not."""


PROBES = 12
"""Times that a convolution is timed with each number of threads, to see whether others keep the cores busy."""
BUSY = 0.75
"""Fewer threads are taken for work that is no training where the convolution takes less than this share of the time."""


def machine_in_words(processes: int = 1) -> str:
    """Processor and its cores, or GPUs, and the versions that numbers depend on; of several processes, how many."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        device = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    else:
        device = f"{_processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    together = f", {processes} processes" if processes > 1 else ""
    return f"{device}{together}; Python {platform.python_version()}, torch {torch.__version__.partition('+')[0]}"


def computes_in_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether matrix work is done in bfloat16: as a setting says, or for ``auto`` where the device has it built in.

    Processors without such instructions emulate them: the quickstart's first stage then takes 13 times as long.

    Args:
        precision: ``float32``, ``bfloat16`` or ``auto``.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return torch.cuda.is_bf16_supported(including_emulation=False)


def tell_precision(who: str, setting: str, precision: str, device: torch.device) -> None:
    """Say in one line what ``auto`` has come to; nothing where the configuration says it itself."""
    if precision == "auto":
        chosen = "bfloat16" if computes_in_bfloat16(precision, device) else "float32"
        print(f"{who} in {chosen} ({setting}: auto)", file=sys.stderr, flush=True)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()  # not Linux


def thread_numbers(setting: int | Literal["auto"], world: World) -> list[int]:
    """The numbers of threads that there are to choose among, the largest first: one where it is given.

    That is ``setting``, if it is a number; on a GPU, among several processes, or where OMP_NUM_THREADS says how many,
    ``auto`` leaves the number as it is.
    """
    if setting != "auto":
        return [setting]
    most, alone = torch.get_num_threads(), world.device.type == "cpu" and world.size == 1
    if not alone or "OMP_NUM_THREADS" in os.environ:
        return [most]
    return [most >> halvings for halvings in range(most.bit_length())]


def seconds_with_each(
    work: Callable[[], object], numbers: Sequence[int], rounds: int, clock: Callable[[], float] = time.monotonic
) -> dict[int, float]:
    """Median seconds of some work with each number of threads, all of them in turn, but for those that are given up.

    A round before, which finds caches empty and sets up, is not counted. The number in use is put back.
    """
    before = torch.get_num_threads()
    times: dict[int, list[float]] = {number: [] for number in numbers}
    try:
        for _ in range(1 + rounds):
            for number, own in times.items():
                torch.set_num_threads(number)
                started = clock()
                work()
                own.append(clock() - started)
            least = min(own[-1] for own in times.values())
            times = {number: own for number, own in times.items() if own[-1] <= GIVEN_UP * least}
    finally:
        torch.set_num_threads(before)
    return {number: statistics.median(own[1:]) for number, own in times.items()}


@contextmanager
def idle_cores(clock: Callable[[], float] = time.monotonic) -> Iterator[int]:
    """Compute meanwhile with as many threads as there are idle cores for, as a convolution that is timed tells.

    Beside other work a second thread can make everything many times as slow, since threads wait for one another. Where
    nothing else runs nothing changes; where something does, results can differ in their last bits, and a line says so.
    Training looks for itself, see `Threads`.
    """
    before = torch.get_num_threads()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    numbers = thread_numbers("auto", World(0, int(os.environ.get("WORLD_SIZE", "1")), device))
    try:
        if len(numbers) > 1:
            chosen = _fast_on_this_machine(numbers, clock)
            torch.set_num_threads(chosen)
            if chosen != before:
                print(f"threads: {chosen} of {before}: other work keeps cores busy", file=sys.stderr, flush=True)
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _fast_on_this_machine(numbers: Sequence[int], clock: Callable[[], float]) -> int:
    layer, images = torch.nn.Conv2d(64, 64, 3, padding=1), torch.zeros(16, 64, 16, 16)
    with torch.no_grad():
        seconds = seconds_with_each(lambda: layer(images), numbers, PROBES, clock)
    best = min(seconds, key=lambda number: seconds[number])
    return best if seconds[best] < BUSY * seconds.get(numbers[0], math.inf) else numbers[0]


class Threads:
    """The number of threads that updates are made with; with ``auto`` the fastest, found by timing a few with each.

    Those that work on one update wait for one another, so that beside other work a second thread can cost more than it
    brings. What an update computes can differ in its last bits with their number.

    Args:
        setting: ``auto`` or a number, see `thread_numbers`.
        chosen_before: the number that a checkpoint was written with: ``auto`` goes on with it.

    Attributes:
        number: how many are in use.
    """

    def __init__(
        self,
        setting: int | Literal["auto"],
        world: World,
        chosen_before: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._numbers = thread_numbers(setting, world)
        self.number, self._clock = self._numbers[0], clock
        self._chooses = len(self._numbers) > 1
        self._to_time: list[int] = []
        self._told: int | None = None
        self._is_first, self._patience = True, 1
        self._watch_anew()
        if chosen_before in self._numbers:
            self.number = self._told = chosen_before
        else:
            self._time_all()

    @contextmanager
    def in_use(self) -> Iterator[Threads]:
        """Compute with them meanwhile."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.number)
        try:
            yield self
        finally:
            torch.set_num_threads(before)

    @contextmanager
    def update(self) -> Iterator[None]:
        """To be entered for each update."""
        if not self._chooses:
            yield
            return
        torch.set_num_threads(self._to_time[0] if self._to_time else self.number)
        started = self._clock()
        yield
        seconds = self._clock() - started
        if not self._to_time:
            self._watch(seconds)
            return
        if self._is_first:
            self._is_first = False  # and no measure of any number
            return
        self._times[self._to_time.pop(0)].append(seconds)
        self._to_time = [number for number in self._to_time if not self._is_hopeless(number)]
        if not self._to_time:
            self._choose()

    def _is_hopeless(self, number: int) -> bool:
        """Whether it is much slower than another, or fewer than a number that is much slower than more threads."""
        timed = {timed: min(times) for timed, times in self._times.items() if times}
        fastest = min(timed, key=lambda timed_number: timed[timed_number])
        too_slow = [slow for slow, seconds in timed.items() if seconds > HOPELESS * timed[fastest]]
        return number in too_slow or any(number < slow < fastest for slow in too_slow)

    def _time_all(self) -> None:
        self._times: dict[int, list[float]] = {number: [] for number in self._numbers}
        self._to_time = self._numbers * ROUNDS

    def _choose(self) -> None:
        medians = {number: statistics.median(times[1:] or times) for number, times in self._times.items() if times}
        fastest = min(medians, key=lambda number: medians[number])
        changed = medians[fastest] < GAIN * medians[self.number]
        self._patience = 1 if changed else 2 * self._patience
        if changed:
            self.number = fastest
        torch.set_num_threads(self.number)
        if self.number != self._told:
            timed = ", ".join(f"{seconds:.3g} s with {number}" for number, seconds in medians.items())
            print(f"threads: {self.number} (auto: an update takes {timed})", file=sys.stderr, flush=True)
            self._told = self.number
        self._watch_anew()

    def _watch_anew(self) -> None:
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._updates, self._chosen_at = 0, self._clock()

    def _watch(self, seconds: float) -> None:
        """Have all numbers timed again where it may be worth it."""
        self._updates += 1
        self._last.append(seconds)
        if self._updates <= WINDOW:
            self._first.append(seconds)
            return
        slower = statistics.median(self._last) > SLOWER * statistics.median(self._first)
        after_seconds, after_updates = AGAIN_AFTER
        late = self._clock() - self._chosen_at > self._patience * after_seconds and self._updates > after_updates
        if slower or (late and self.number < max(self._numbers)):
            self._time_all()

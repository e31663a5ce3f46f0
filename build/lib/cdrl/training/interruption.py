"""What every training loop needs beside its mathematics: stopping in order, pictures, a watch."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from cdrl.runs.run import Run
from cdrl.runs.whole import written_whole
from cdrl.training.engine import World
from cdrl.training.monitor import summed_over_processes


class Interrupted(Exception):  # noqa: N818 - no error: the run goes on later
    """The run was asked to stop and has written a checkpoint; the same command goes on from there."""

    @classmethod
    def at(cls, step: int, num_steps: int) -> Interrupted:
        """The exception for a training that stopped after ``step`` of ``num_steps`` updates and will resume."""
        return cls(f"stopped at step {step} of {num_steps}; the same command goes on from there")


def save_picture(path: Path, picture: Tensor) -> None:
    """Write a uint8 picture [C, H, W] as PNG."""
    with written_whole(path) as partial:
        Image.fromarray(picture.movedim(0, -1).cpu().numpy()).save(partial, format="png")


@contextmanager
def pictures_of(run: Run, step: int) -> Iterator[None]:
    """Name the run and the step where images that are to be shown hold NaN or infinity.

    Raises:
        ValueError: they do; the message says which checkpoint is there.
    """
    try:
        yield
    except ValueError as error:
        kept = run.last_checkpoint_in_words()
        raise ValueError(f"{run.folder}: the pictures of step {step}: {error}; {kept}") from None


def any_process(flag: bool, world: World) -> bool:
    """Whether the flag is set in any process; every process gets the same answer."""
    if world.size == 1:
        return flag
    flags = torch.tensor(float(flag), device=world.device)
    dist.all_reduce(flags)
    return bool(flags > 0)


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C, SIGTERM and SIGHUP instead of stopping in the middle of a step; a second Ctrl-C stops at once.

    A SIGHUP that is ignored, as under nohup, stays so.
    """
    requested = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        if requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        requested = True

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield lambda: requested
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Stopwatch:
    """Seconds that training has taken since it was begun, through all of its interruptions.

    What a crash has lost counts once it has been done again, not before: the seconds are those behind a checkpoint.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state``, that of a checkpoint, tells."""
        self._wall_before, self._cpu_before = (float(state.get(name, 0)) for name in ("wall_seconds", "cpu_seconds"))
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def seconds(self, world: World) -> dict[str, float]:
        """``wall_seconds``, and ``cpu_seconds`` of all processes, each of which must ask at the same time."""
        cpu = torch.tensor(time.process_time() - self._cpu, dtype=torch.float64, device=world.device)
        return {
            "wall_seconds": round(self._wall_before + time.monotonic() - self._wall, 2),
            "cpu_seconds": round(self._cpu_before + summed_over_processes(cpu).item(), 2),
        }

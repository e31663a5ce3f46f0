"""Images a second that the quickstart's second stage trains on two cores: alone, and beside one busy neighbour.

With two threads, with one, and with the number that training chooses by the clock, whose timing counts as well.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from benchmarks.timing import Size
from cdrl.config_files import load_config
from cdrl.data import TrainingSet
from cdrl.training.engine import start
from cdrl.training.machine import Threads
from cdrl.training.trainer import CooperativeTrainer

CORES = 2
CHOICES: tuple[int | Literal["auto"], ...] = (2, 1, "auto")


def quickstart() -> Size:
    """The quickstart's second stage, with a batch of its latents."""
    config = load_config(Path(__file__).parents[1] / "configs" / "quickstart.yaml")
    assert config.autoencoder is not None
    architecture = config.autoencoder.architecture
    side = config.data.image_size // architecture.shrinks_by
    return Size(config, (architecture.latent_channels, side, side), config.training.batch_size)


def be_busy() -> None:
    """What a neighbour does."""
    torch.set_num_threads(1)
    matrix = torch.randn(256, 256)
    while True:
        matrix @ matrix


@contextmanager
def neighbour(busy: bool) -> Iterator[None]:
    """A busy process beside this one meanwhile, or none."""
    process = multiprocessing.get_context("spawn").Process(target=be_busy, daemon=True)
    if busy:
        process.start()
        time.sleep(5)  # until it has imported what it needs
    try:
        yield
    finally:
        if busy:
            process.kill()
            process.join()


def rate(size: Size, setting: int | Literal["auto"], seconds: float) -> tuple[float, int]:
    """Images a second over so many seconds of training, and the number of threads at their end."""
    torch.manual_seed(0)
    world = start()
    trainer = CooperativeTrainer(size.config, TrainingSet(torch.randn(256, *size.shape), size.batch, seed=0), 0, world)
    torch.set_num_threads(CORES)
    try:
        trainer.update(0)
        threads, updates, started = Threads(setting, world), 0, time.monotonic()
        with threads.in_use():
            while time.monotonic() - started < seconds:
                with threads.update():
                    trainer.update(1 + updates)
                updates += 1
        return updates * size.batch / (time.monotonic() - started), threads.number
    finally:
        trainer.close()


def measure(size: Size, seconds: float) -> str:
    """The table: a line for alone and for beside a neighbour, a column for each choice."""
    lines = [f"{'':<20}" + "".join(f"{f'threads: {choice}':>22}" for choice in CHOICES)]
    for busy in (False, True):
        with neighbour(busy):
            found = [rate(size, choice, seconds) for choice in CHOICES]
        cells = "".join(f"{f'{images:.1f} ({number} at the end)':>22}" for images, number in found)
        lines.append(f"{'beside a neighbour' if busy else 'alone':<20}{cells}")
    return "\n".join(lines)


def main(
    seconds: Annotated[float, typer.Option(help="Seconds of each of the six trainings.", min=1)] = 60,
) -> None:
    """Train in each way for a while, and print images a second."""
    os.environ.pop("OMP_NUM_THREADS", None)  # otherwise nothing is chosen
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    print(measure(quickstart(), seconds), flush=True)


if __name__ == "__main__":
    typer.run(main)

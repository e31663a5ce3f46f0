"""Images a second of shards over HTTP against those of the same shards on this machine's disk."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import torch
import typer

from benchmarks.reading import textured
from cdrl.data import Elsewhere, GridSet, Sample, ShardCache, TrainingSet, stream_shards, write_shards

_DIFFERENT = 500  # pictures; the others are these, shifted
_BATCH, _SLICE = 256, 64


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a folder that Python's own web server gives away, in a process of its own."""
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(folder), "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            # "Serving HTTP on 127.0.0.1 port 43211 (http://127.0.0.1:43211/) ..."
            address = process.stdout.readline().partition("(")[2].partition("/)")[0]
            urllib.request.urlopen(f"{address}/index.json").close()
            yield address
        finally:
            process.terminate()


def write_set(folder: Path, count: int, size: int) -> None:
    """Shards of so many images of ``size`` x ``size`` pixels, which compress about as photographs do."""
    different = min(_DIFFERENT, count, 2**23 // size**2)
    pictures = [torch.from_numpy(textured((size, size), seed)).permute(2, 0, 1) for seed in range(different)]

    def samples() -> Iterator[Sample]:
        for row in range(count):
            yield Sample(pictures[row % different].roll(row // different, dims=2).contiguous(), row % 10)

    write_shards(folder, samples(), {}, label_names=tuple("0123456789"))


def read_in_random_order(images: GridSet) -> int:
    """Read an epoch as training does; returns the number of images."""
    data = TrainingSet(images.grids, _BATCH, 0)
    steps = len(images) // _BATCH
    for step in range(steps):
        data.batch(step)
    return steps * _BATCH


def read_in_order(images: GridSet) -> int:
    """Read everything as evaluation and encoding do; returns the number of images."""
    for start in range(0, len(images), _SLICE):
        images.grids[start : start + _SLICE]
    return len(images)


class Rate(NamedTuple):
    """Images a second of the clock, and of the CPU time of this process, which its busy neighbours do not change."""

    wall: float
    cpu: float

    @classmethod
    def of(cls, read: Callable[[GridSet], int], images: GridSet) -> Rate:
        """That of one way of reading."""
        wall, cpu = time.perf_counter(), time.process_time()
        count = read(images)
        return cls(count / (time.perf_counter() - wall), count / (time.process_time() - cpu))


def compared(folder: Path, repeats: int) -> Iterator[str]:
    """A line for each way of reading: from disk, over HTTP with an empty cache, and again; medians, taken in turn."""
    with served(folder) as address:
        for name, read in {"random order": read_in_random_order, "in order": read_in_order}.items():
            rates: dict[str, list[Rate]] = {"disk": [], "first": [], "again": []}
            for _ in range(repeats):
                with tempfile.TemporaryDirectory() as cache:
                    rates["disk"].append(Rate.of(read, stream_shards(folder)))
                    there = stream_shards(Elsewhere(address, ShardCache(Path(cache), 2**40)))
                    rates["first"].append(Rate.of(read, there))
                    rates["again"].append(Rate.of(read, there))
            wall, cpu = ({way: median(rate[i] for rate in found) for way, found in rates.items()} for i in (0, 1))
            yield (
                f"{name}: {wall['disk']:.0f} images/s from disk, {wall['first']:.0f} over HTTP, {wall['again']:.0f} "
                f"from the cache: {wall['first'] / wall['disk']:.2f} and {wall['again'] / wall['disk']:.2f} of disk; "
                f"in CPU seconds {cpu['first'] / cpu['disk']:.2f} and {cpu['again'] / cpu['disk']:.2f}"
            )


def main(
    size: Annotated[int, typer.Option(help="side of the images in pixels")] = 32,
    count: Annotated[int, typer.Option(help="images")] = 20_000,
    repeats: Annotated[int, typer.Option(help="times that each rate is measured")] = 3,
) -> None:
    """Measure how fast training and evaluation read shards over HTTP, as a share of their rate from disk."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_set(folder, count, size)
        bytes_each = sum(path.stat().st_size for path in folder.glob("*.tar")) / count
        print(f"{count} images of {size} x {size}, {bytes_each:.0f} bytes each in shards, one thread")
        for line in compared(folder, repeats):
            print(line, flush=True)


if __name__ == "__main__":
    typer.run(main)

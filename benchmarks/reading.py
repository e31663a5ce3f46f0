"""Rates and memory of the data: shards read at random, and published pictures prepared."""

from __future__ import annotations

import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cdrl.config import DataConfig
from cdrl.data import Sample, TrainingSet, open_source, read_shards, stream_shards, write_prepared, write_shards
from cdrl.runs.progress import progress_bar

app = typer.Typer(add_completion=False, help="Rates and memory of reading shards and of preparing pictures.")

_ATTRIBUTES = 40


class Steps(Dataset[tuple[Tensor, Tensor]]):
    """The batches of a training set by their step: what workers share out among themselves."""

    def __init__(self, data: TrainingSet, steps: int) -> None:
        self._data, self._steps = data, steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        return self._data.batch(step)


def textured(size: tuple[int, int], seed: int) -> np.ndarray:
    """A picture that compresses about as photographs do: smooth shapes with a little noise, uint8 [H, W, 3]."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (max(size[1] // 8, 2), max(size[0] // 8, 2), 3), dtype=np.uint8)
    smooth = np.array(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
    return np.clip(smooth + generator.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)


def megabytes() -> tuple[float, float]:
    """Memory of this process that is its own, and that of all its workers on top, each in MiB."""
    own = _private(os.getpid())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return own, sum(map(_private, map(int, children)))


def _private(process: int) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def cpu_seconds() -> float:
    """CPU time of this process and of its workers that have ended."""
    return sum(usage.ru_utime + usage.ru_stime for usage in map(resource.getrusage, (resource.RUSAGE_SELF, -1)))


@app.command()
def shards(
    folder: Annotated[Path | None, typer.Option(help="shards to be read; by default some are written")] = None,
    written: Annotated[int, typer.Option(help="images to be written")] = 100_000,
    read: Annotated[int, typer.Option(help="images to be read")] = 1_000_000,
    size: Annotated[int, typer.Option(help="side of the images that are written")] = 32,
    workers: Annotated[int, typer.Option(help="processes that read; 0: this one")] = 2,
    batch_size: Annotated[int, typer.Option(help="images a batch")] = 256,
) -> None:
    """Images a second that shards on disk feed to training, in random order, and the memory that it takes."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        if folder is None:
            folder = Path(temporary)
            # Some hundred different pictures, turned and shifted, so that writing does not take longest.
            pictures = [torch.from_numpy(textured((size, size), seed)).permute(2, 0, 1) for seed in range(500)]
            samples = (
                Sample(pictures[row % 500].roll(row // 500, dims=2).contiguous(), row % 10) for row in range(written)
            )
            write_shards(folder, samples, {}, label_names=tuple("0123456789"))
        grids = stream_shards(folder)
        assert grids.labels is not None
        data = TrainingSet(grids.grids, batch_size, 0, grids.labels[:, None], flip=True)
        steps = -(-read // batch_size)
        # As a consumer does it, every batch is looked at.
        loader = DataLoader(Steps(data, steps), batch_size=None, num_workers=workers)
        marks, seen, total, started, cpu = [], 0, 0.0, 0.0, cpu_seconds()
        bar = progress_bar(steps, "read")
        for step, (images, _) in enumerate(loader):
            total += float(images[0, 0, 0, 0])
            if not step:
                started = time.perf_counter()  # workers have started
            else:
                seen += len(images)
            if step % max(1, steps // 10) == 0 or step == steps - 1:
                marks.append((step * batch_size, *megabytes()))
            bar.update()
        bar.close()
        wall = time.perf_counter() - started
    print(f"{len(grids)} images {list(grids.grids.shape[1:])} in shards, {workers} workers, batches of {batch_size}")
    print(f"{seen} images in {wall:.1f} s: {seen / wall:.0f} images/s; {seen / (cpu_seconds() - cpu):.0f} a CPU second")
    for images_seen, own, children in marks:
        print(f"  after {images_seen:>9} images: {own:.0f} MiB in this process, {children:.0f} MiB in workers")


@app.command()
def prepare(
    num: Annotated[int, typer.Option(help="pictures of 178 x 218 to be prepared")] = 20_000,
    target: Annotated[int, typer.Option(help="pictures for which the time is extrapolated")] = 200_000,
) -> None:
    """Rate and peak memory of turning JPEG files in CelebA's layout into shards of 64 x 64."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        data = write_celeba(root, num)
        before, cpu, started = peak_megabytes(), cpu_seconds(), time.perf_counter()
        folder = write_prepared(data, "train", open_source(data, "train"))
        wall, used = time.perf_counter() - started, cpu_seconds() - cpu
        peak = peak_megabytes()
        assert len(stream_shards(folder)) == num
        preparation = json.loads((folder / "index.json").read_text())["metadata"]["preparation"]
        print(f"{num} pictures, {preparation}")
        print(f"{wall:.1f} s, {num / wall:.0f} pictures/s; {used:.1f} CPU seconds, {num / used:.0f} a CPU second")
        print(f"at that rate {target} pictures take {target / num * wall / 60:.1f} minutes")
        print(f"peak memory {peak:.0f} MiB, {before:.0f} MiB before")
        size = sum(file.stat().st_size for file in folder.iterdir()) / num
        print(f"{size:.0f} bytes of shards a picture; read whole: {len(read_shards(folder))}")


def write_celeba(root: Path, num: int) -> DataConfig:
    """Pictures and text files in CelebA's layout, all of the training split."""
    folder = root / "img_align_celeba"
    folder.mkdir()
    # Some hundred different files, each with many names.
    names = [f"{number + 1:06d}.jpg" for number in range(num)]
    for number, name in enumerate(names):
        if number < 300:
            Image.fromarray(textured((178, 218), number)).save(folder / name, quality=90)
        else:
            os.link(folder / names[number % 300], folder / name)
    (root / "list_attr_celeba.txt").write_text("\n".join(_attribute_lines(names)) + "\n")
    (root / "list_eval_partition.txt").write_text("".join(f"{name} 0\n" for name in names))
    return DataConfig(
        name="celeba", path=root, image_size=64, check_sums=False, prepared=root / "prepared", labels="none"
    )


def _attribute_lines(names: list[str]) -> Iterator[str]:
    yield str(len(names))
    yield " ".join(f"Attribute_{number}" for number in range(_ATTRIBUTES))
    for number, name in enumerate(names):
        yield f"{name} " + " ".join("1" if (number >> bit) & 1 else "-1" for bit in range(_ATTRIBUTES))


def peak_megabytes() -> float:
    """The most memory that this process has ever had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    app()

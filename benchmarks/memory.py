"""Peak memory of what passes over a whole data set, at growing numbers of made images: how much each image adds."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor

from autoencoder.latents import encode_images
from autoencoder.model import Autoencoder, save_autoencoder
from benchmarks.reading import textured
from cdrl.config import BottleneckConfig, DataConfig
from cdrl.data import (
    GridSet,
    Sample,
    StreamedTrainingSet,
    image_training_set,
    open_source,
    stream_shards,
    write_prepared,
    write_shards,
)

app = typer.Typer(add_completion=False, help="Peak memory of passes over a whole data set.")

_DIFFERENT = 200  # pictures; the others are these again
_BATCH = 256
_WIDTHS = (2048, 1008)  # of Inception's features and logits
_KEPT = 5000  # features that are kept of a reference: a tenth, as the images are


class MadeImages:
    """Images uint8 [N, 3, S, S] that are made when they are asked for: `cdrl.data.Grids`."""

    dtype = torch.uint8

    def __init__(self, count: int, size: int) -> None:
        self.shape = (count, 3, size, size)
        self._pictures = torch.stack([_picture(size, seed) for seed in range(16)])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Tensor:
        """The images of a slice, or of numbers int64 [n]."""
        return self._pictures[torch.arange(len(self))[rows] % len(self._pictures)]


class MadeFeatures(torch.nn.Module):
    """A network with answers of Inception's widths, which costs nothing."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self._weights = [torch.randn(16, width, generator=generator) for width in _WIDTHS]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features [N, 2048] and logits [N, 1008] of images uint8 [N, 3, H, W]."""
        seen = images.flatten(1)[:, :16].float() + torch.rand(len(images), 16)
        return tuple((seen @ weights).relu() for weights in self._weights)


def prepare_imagenet32(folder: Path, count: int) -> None:
    """Ten files in ImageNet32's layout into shards."""
    data = np.stack([_picture(32, seed).numpy().ravel() for seed in range(_DIFFERENT)])
    rows = np.arange(-(-count // 10)) % _DIFFERENT
    np.savez(folder / "train_data_batch_1.npz", data=data[rows], labels=rows + 1)
    for number in range(2, 11):
        os.link(folder / "train_data_batch_1.npz", folder / f"train_data_batch_{number}.npz")
    del data
    config = DataConfig(name="imagenet32", path=folder, prepared=folder / "prepared")
    write_prepared(config, "train", open_source(config, "train"))


def prepare_256(folder: Path, count: int) -> None:
    """A folder of JPEG files of 300 x 260 pixels into shards of 256 x 256."""
    pictures = folder / "pictures" / "train"
    pictures.mkdir(parents=True)
    for number in range(count):
        path = pictures / f"{number:06d}.jpg"
        if number < _DIFFERENT:
            Image.fromarray(textured((300, 260), number)).save(path, quality=90)
        else:
            os.link(pictures / f"{number % _DIFFERENT:06d}.jpg", path)
    config = DataConfig(name="folder", path=folder / "pictures", image_size=256, prepared=folder / "prepared")
    write_prepared(config, "train", open_source(config, "train"))


def stream(folder: Path, count: int) -> None:
    """An epoch of 32 x 32 pixels from shards, as training reads it."""
    pictures = [_picture(32, seed) for seed in range(_DIFFERENT)]
    samples = (Sample(pictures[row % _DIFFERENT], row % 10) for row in range(count))
    write_shards(folder / "shards", samples, {}, label_names=tuple("0123456789"))
    config = DataConfig(name="shards", path=folder, labels="class", stream=True, prepared=folder)
    data = image_training_set(stream_shards(folder / "shards"), config, _BATCH, 0)
    assert isinstance(data, StreamedTrainingSet)
    for step in range(count // _BATCH):
        data.batch(step)


def statistics(folder: Path, count: int) -> None:
    """Features of Inception's width of 32 x 32 pixels into the statistics of a reference."""
    # Imported here, as they bring half a gigabyte of libraries that the others do without.
    from pipelines.evaluation import evaluate
    from pipelines.evaluation.features import Extractor

    evaluate.MOST_KEPT = _KEPT
    extractor = Extractor(MadeFeatures(), None, "made", torch.device("cpu"))  # type: ignore[arg-type]
    config = DataConfig(name="digits", cache=folder)
    evaluate.read_reference(config, "train", GridSet(MadeImages(count, 32)), extractor)


def latents(folder: Path, count: int) -> None:
    """Images of 32 x 32 pixels into shards of latents."""
    config = BottleneckConfig(channels=32, multipliers=(1,), num_blocks=1, pixel_unshuffle=8)
    autoencoder = Autoencoder(config, image_channels=3, image_size=32).eval()
    save_autoencoder(folder / "model", autoencoder)
    images = GridSet(MadeImages(count, 32))
    cpu = torch.device("cpu")
    encode_images(autoencoder, folder / "model", images, folder / "latents", kind="sample", mirrors=True, device=cpu)


WORK: dict[str, Callable[[Path, int], None]] = {
    "prepare-imagenet32": prepare_imagenet32,
    "prepare-256": prepare_256,
    "stream": stream,
    "statistics": statistics,
    "latents": latents,
}


class Peak(NamedTuple):
    """What a work took: its most memory, and the time."""

    images: int
    mebibytes: float
    seconds: float


def peak_of(work: str, count: int) -> Peak:
    """Do a work in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "one", work, str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    mebibytes, seconds = map(float, done.stdout.splitlines()[-1].split())
    return Peak(count, mebibytes, seconds)


def bytes_an_image(peaks: Sequence[Peak]) -> float:
    """How much memory each image adds, between the smallest number of images and the largest."""
    first, last = peaks[0], peaks[-1]
    return (last.mebibytes - first.mebibytes) * 2**20 / (last.images - first.images)


@app.command()
def one(work: str, count: int) -> None:
    """Do one work in this process; prints its peak in MiB and its seconds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        WORK[work](Path(folder), count)
        print(_peak_mebibytes(), time.perf_counter() - started)


@app.command()
def growth(
    works: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(WORK)}; all by default")] = None,
    count: Annotated[int, typer.Option(help="of images of 32 x 32, of which 1/10, 2/10 and 4/10 are taken")] = 128_000,
    count_256: Annotated[int, typer.Option(help="the same, of images of 256 x 256")] = 10_000,
) -> None:
    """Peak memory of each work at three numbers of images, and what an image adds."""
    for work in works or WORK:
        total = count_256 if work.endswith("256") else count
        peaks = [peak_of(work, total * tenths // 10) for tenths in (1, 2, 4)]
        told = ", ".join(f"{peak.images}: {peak.mebibytes:.0f} MiB ({peak.seconds:.0f} s)" for peak in peaks)
        print(f"{work}: {told}; {bytes_an_image(peaks):.0f} bytes an image", flush=True)


def _picture(size: int, seed: int) -> Tensor:
    return torch.from_numpy(textured((size, size), seed)).permute(2, 0, 1).contiguous()


def _peak_mebibytes() -> float:
    # Not of getrusage, whose peak is at least that of the process from which this one was started.
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    app()

"""Samples by the thousand: drawn by all processes, kept batch by batch, taken up again where they were left."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdrl.data import to_bytes
from cdrl.runs.progress import progress_bar
from cdrl.runs.run import RunError, load_tensors, save_tensors, write_json
from cdrl.sampling.noise import derive_seed
from cdrl.sampling.settings import settings_that_change_images
from cdrl.training.engine import World, barrier
from cdrl.training.interruption import Interrupted, stop_requests
from pipelines.base import CDRLPipeline
from pipelines.generation import label_asked, labels_of


class SampleStore:
    """Samples of one model under one setting of the sampler, in a folder: images by seed, uint8 [C, H, W].

    Any command that asks for a seed which is there gets the image that is there, whichever command drew it.
    ``settings`` are all that the images depend on beside their seeds, and nothing else; the folder's name tells them.

    Args:
        run: the samples go below it, into evaluation/samples_….
        model: folder of the model that ``pipeline`` has opened.
        label: class id or name of all images; -1 for no class; None for all classes in turn.
        guidance: weight w of classifier-free guidance (eq. 11, 12).
        options: as in calling the pipeline.
    """

    def __init__(
        self,
        run: Path,
        model: Path,
        pipeline: CDRLPipeline,
        *,
        label: int | str | None = None,
        guidance: float = 0.0,
        **options: Any,
    ) -> None:
        how = pipeline.drawing(**options)
        self._pipeline, self._label, self._guidance, self._options = pipeline, label, guidance, options
        self._batch_size, self._shows_progress = how.batch_size, how.progress
        self.settings: dict[str, Any] = {
            **settings_that_change_images(how.settings, pipeline.config.training.langevin_steps),
            "guidance": guidance,
            "label": label_asked(pipeline, label),
            "weights": _fingerprint(model),
        }
        key = derive_seed(*(f"{name}={value}" for name, value in self.settings.items()))
        self.folder = run / "evaluation" / f"samples_{key:016x}"

    def draw(self, seeds: range, world: World) -> None:
        """Draw the images of ``seeds`` that are not there; every process calls it.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM, with all finished batches kept.
        """
        size = self._batch_size
        there = self._seeds()
        # All look before any draws: the batches are then divided alike everywhere.
        barrier()
        batches = (seeds[start : start + size] for start in range(0, len(seeds), size))
        waiting = [left for batch in batches if (left := [seed for seed in batch if seed not in there])]
        if world.is_main and waiting:
            write_json(self.folder / "settings.json", self.settings)
        shown = world.is_main and self._shows_progress
        bar = progress_bar(len(waiting), "draw", unit="batch", shown=shown)
        with stop_requests() as stop_requested:
            for batch in waiting[world.rank :: world.size]:
                if stop_requested():
                    raise Interrupted(f"stopped; what is drawn is kept in {self.folder}: the same command goes on")
                self._draw_batch(batch, world)
                bar.update(world.size)
        bar.close()
        barrier()

    def read(self, seeds: range) -> tuple[StoredImages, float]:
        """Images uint8 [N, C, H, W] of ``seeds``, all drawn, and how many a second were drawn by all processes.

        The images stay on disk until they are asked for.
        """
        places: dict[int, tuple[Path, int]] = {}
        seconds = 0.0
        for path in self._files():
            stored = self._load(path)
            places.update({seed: (path, row) for row, seed in enumerate(stored["seeds"].tolist())})
            seconds += stored["seconds"].item() / stored["processes"].item()
        missing = [seed for seed in seeds if seed not in places]
        if missing:
            raise RunError(f"{self.folder}: the sample of seed {missing[0]} is gone; the same command draws it anew")
        return StoredImages([places[seed] for seed in seeds], self._load), len(places) / seconds

    def _draw_batch(self, batch: Sequence[int], world: World) -> None:
        started = time.monotonic()
        label = labels_of(self._pipeline, self._label, batch)
        own = {**self._options, "progress": False}
        generated = self._pipeline(seeds=batch, label=label, guidance=self._guidance, **own)
        images = to_bytes(generated.tensors).cpu()
        save_tensors(
            self.folder / f"from_{batch[0]:08d}.safetensors",
            {
                "seeds": torch.tensor(batch),
                "images": images,
                "seconds": torch.tensor(time.monotonic() - started, dtype=torch.float64),
                "processes": torch.tensor(world.size),
            },
        )

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("from_*.safetensors"))

    def _seeds(self) -> set[int]:
        return {seed for path in self._files() for seed in self._load(path)["seeds"].tolist()}

    def _load(self, path: Path) -> dict[str, Tensor]:
        """What `_draw_batch` has written. Raises RunError for a damaged file, which says how to have it drawn anew."""
        anew = f"remove {path.name} to have its samples drawn anew"
        try:
            stored = load_tensors(path, ("seeds", "images", "seconds", "processes"))
        except RunError as error:
            raise RunError(f"{error}; {anew}") from None
        seeds, images, data = stored["seeds"], stored["images"], self._pipeline.config.data
        whole = (
            seeds.dtype == torch.int64
            and seeds.ndim == 1
            and images.dtype == torch.uint8
            and images.shape == (len(seeds), data.channels, data.image_size, data.image_size)
        )
        times = [stored[name] for name in ("seconds", "processes")]
        if not whole or any(time.numel() != 1 or not 0 < time.item() < math.inf for time in times):
            raise RunError(f"{path}: damaged: expected images with their seeds, and how long they took; {anew}")
        return stored


class StoredImages:
    """Images uint8 [N, C, H, W] in files of some each: `cdrl.data.Grids`."""

    dtype = torch.uint8

    def __init__(self, places: Sequence[tuple[Path, int]], load: Callable[[Path], dict[str, Tensor]]) -> None:
        """
        Args:
            places: the file of each image, and its row there.
            load: reads a file, see `SampleStore`.
        """
        self._places, self._load = places, load
        self._open: tuple[Path, Tensor] | None = None
        self.shape = (len(places), *self[:1].shape[1:])

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, rows: Any) -> Tensor:
        """The images of a slice, or of numbers int64 [n]."""
        return torch.stack([self._read(*self._places[row]) for row in torch.arange(len(self))[rows].tolist()])

    def _read(self, path: Path, row: int) -> Tensor:
        # Images that follow one another lie in one file.
        if self._open is None or self._open[0] != path:
            self._open = (path, self._load(path)["images"])
        return self._open[1][row]


def _fingerprint(model: Path) -> str:
    """A hash of a model folder's weights."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(model.rglob("*.safetensors")):
        digest.update(path.relative_to(model).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()

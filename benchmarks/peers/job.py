"""One job: train one method on one data set for so many CPU seconds, draw samples, measure them, write a folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.budget import PeakMemory
from benchmarks.peers.measures import Ruler
from benchmarks.peers.task import RECIPES, Sampler, Task, Trained
from cdrl.arguments import shown
from cdrl.config import ConfigError
from cdrl.data import as_floats, to_bytes
from cdrl.runs.run import read_json, write_json
from cdrl.runs.whole import written_whole
from cdrl.training.interruption import save_picture
from cdrl.training.machine import machine_in_words
from pipelines.decoding import captioned_picture

RECORD, SHEET, JUDGES = "result.json", "samples.png", "judges"
SHEET_ROWS = 4
PEER_PACKAGE = "diffusers"
"""What methods need beside the project."""
_BATCH = 100
"""Images that are drawn together."""
_SEEDS_APART = 10**6
"""Images of a job have seeds of their own, as long as there are fewer than these."""
METHODS = {
    "ddpm": ("DDPM", "benchmarks.peers.diffusion:train"),
    "flow_matching": ("flow matching", "benchmarks.peers.flow:train"),
    "energy_matching": ("Energy Matching", "benchmarks.peers.energy_matching:train"),
    "drl": ("DRL", "benchmarks.peers.cooperative:train_drl"),
    "cdrl_paper": ("CDRL, the paper's settings", "benchmarks.peers.cooperative:train_paper"),
    "cdrl": ("CDRL, our recipe", "benchmarks.peers.cooperative:train_ours"),
}
"""The methods by name: what tables call them, and the function that trains them."""

Train = Callable[[Task, float], Trained]
"""(what is to be learned, CPU seconds) -> the trained model."""


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        data: name of the data set, of `RECIPES`.
        method: name of the method, of `METHODS`.
        seconds: CPU seconds of training.
        images: samples that are measured.
        recipe: our configuration for the data; that of `RECIPES` by default.
        overrides: settings of the recipe to be changed, such as ``data.path=DIR``.
    """

    data: str
    method: str
    seed: int
    seconds: float
    images: int
    recipe: Path | None = None
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the job's folder."""
        return f"{self.data}_{self.method}_seed{self.seed}_{self.seconds:g}s"

    @property
    def recipe_file(self) -> Path:
        """File or name of the configuration."""
        return self.recipe or Path(RECIPES[self.data])

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the job, beside what its name tells."""
        return {"recipe": self.recipe_file.stem, "overrides": sorted(self.overrides), "images": self.images}

    def is_done(self, out: Path) -> bool:
        """Whether ``out`` holds this job already.

        Raises:
            ConfigError: it holds one of the same name with another recipe, overrides or number of images.
        """
        folder = out / self.name
        if not folder.exists():
            return False
        record = read_json(folder / RECORD)
        for name, value in self.settings.items():
            if record.get(name) != value:
                raise ConfigError(
                    f"{folder}: made with {name} {shown(record.get(name))}, now {shown(value)}; name another folder"
                )
        return True

    def task(self) -> Task:
        """What is to be learned. Raises as `Task.of`, and ConfigError where the recipe is of other data."""
        task = Task.of(self.recipe_file, self.overrides, self.seed)
        if task.recipe.data.name != self.data:
            other = task.recipe.data.name
            raise ConfigError(f"{self.recipe_file}: a configuration for {other}, but the job is for {self.data}")
        return task


def run_job(job: Job, out: Path) -> Path:
    """Do a job on one thread; returns its folder, ``out``/NAME, which is there whole or not at all.

    It holds result.json and samples.png. The judge of the data is kept in ``out``/judges, for all jobs.

    Raises:
        ConfigError: a package is missing, or the recipe cannot be used.
        DataError: the data cannot be read.
        ValueError: samples hold NaN or infinity: training has run away.
    """
    folder, train = out / job.name, trainer_of(job.method)
    torch.set_num_threads(1)
    task = job.task()
    ruler = Ruler.of(task, out / JUDGES)
    with PeakMemory() as memory:
        trained = train(task, job.seconds)
    label = torch.arange(job.images) % task.num_classes
    record: dict[str, Any] = {
        "data": job.data,
        "method": job.method,
        "seed": job.seed,
        "budget_seconds": job.seconds,
        "class_conditional": True,
        **job.settings,
        "training": {
            "cpu_seconds": sum(each.cpu_seconds for each in trained.spent),
            "updates": [each.updates for each in trained.spent],
            "memory_mebibytes": memory.mebibytes,
            "parameters": trained.parameters,
            "settings": trained.settings,
        },
        "samples": {},
        "judge_accuracy_test": ruler.judge_accuracy,
        "train_images": ruler.real_figures(task, job.images),
        "machine": f"{machine_in_words()}, 1 thread",
    }
    rows = []
    for name, sampler in trained.samplers.items():
        images, seconds = drawn(sampler, label, job.seed)
        record["samples"][name] = {
            "forwards": sampler.forwards,
            "gradients": sampler.gradients,
            "cpu_milliseconds_an_image": 1000 * seconds / len(images),
            **ruler.figures(images, label),
        }
        shown = as_floats(images[: SHEET_ROWS * task.num_classes])
        rows.append((shown, [f"{METHODS[job.method][0]}: {name}, {job.seconds:g} s"]))
    with written_whole(folder) as partial:
        write_json(partial / RECORD, record)
        save_picture(partial / SHEET, captioned_picture(rows, columns=task.num_classes))
    return folder


def trainer_of(method: str) -> Train:
    """The function that trains a method. Raises ConfigError where a package of the extra is missing."""
    module, _, function = METHODS[method][1].partition(":")
    try:
        return getattr(import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name != PEER_PACKAGE:
            raise
        raise ConfigError(f"{PEER_PACKAGE} is not installed; install it, or this project's extra 'peers'") from None


def drawn(sampler: Sampler, label: Tensor, seed: int) -> tuple[Tensor, float]:
    """Samples of classes, uint8 [N, C, H, W], and the CPU seconds that they took."""
    started = time.process_time()
    parts, first = [], seed * _SEEDS_APART
    for part in label.split(_BATCH):
        parts.append(sampler.draw(part, first))
        first += len(part)
    return to_bytes(torch.cat(parts)), time.process_time() - started

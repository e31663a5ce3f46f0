"""What a training will take, before anything is spent: parameters, memory, disk, and time by a few updates."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autoencoder.model import Autoencoder, find_autoencoder, load_autoencoder
from autoencoder.training import StageOneConfig, StageOneTrainer, bytes_for_stage_one
from cdrl.config import Config, StageOneTrainingConfig, ThreadCount, TrainingConfig
from cdrl.data import TrainingSet
from cdrl.model import CDRL
from cdrl.training.engine import World, start
from cdrl.training.machine import seconds_with_each, thread_numbers
from cdrl.training.memory import bytes_for_training
from cdrl.training.trainer import CooperativeTrainer
from pipelines.jobs.training import stage_one_settings

_ENOUGH = 5.0
"""Seconds of an update from which on it is not measured with more images."""
_ROUNDS = 2
_CLASSES = {"imagenet32": 1000, "cifar100": 100, "dtd": 47}
"""Classes of data sets that have others than ten."""
_GIB, _MB = 2**30, 1e6


@dataclass(frozen=True)
class StagePlan:
    """What one stage of a training takes.

    Attributes:
        name: of the stage.
        parameters: number of them.
        memory: bytes that a process needs for networks and optimizers, and for a batch.
        checkpoint: bytes of one.
        images: of the update that was measured, over all processes.
        seconds: that this update took.
        batch_size, num_steps: of the configuration.
        processes: that train together.
    """

    name: str
    parameters: int
    memory: int
    checkpoint: int
    images: int
    seconds: float
    batch_size: int
    num_steps: int
    processes: int

    @property
    def total_seconds(self) -> float:
        """Of all updates, where an update takes as long as it has images."""
        return self.seconds * self.batch_size / self.images * self.num_steps

    def lines(self) -> Iterator[str]:
        """The plan in words."""
        measured = f"{self.seconds:.3g} s an update of {self.images} images"
        if self.images < self.batch_size:
            measured += f", so {self.seconds * self.batch_size / self.images:.3g} s for {self.batch_size}"
        together = f", {self.processes} processes together" if self.processes > 1 else ""
        yield f"{self.name}: {self.parameters / 1e6:.3g} million parameters"
        yield f"  memory: about {self.memory / _GIB:.2g} GiB a process, beside Python and the data"
        yield f"  measured{together}: {measured}"
        yield f"  {self.num_steps:,} updates: {duration(self.total_seconds)}, pictures and evaluations not counted"
        yield f"  disk: {self.checkpoint / _MB:.3g} MB a checkpoint, of which two are kept, and the model"


def duration(seconds: float) -> str:
    """Seconds in the two units that say most."""
    for unit, length, smaller, part in (("d", 86_400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} {int(seconds % length // part)} {smaller}"
    return f"{seconds:.0f} s"


def plans(config: Config) -> list[StagePlan]:
    """What each stage of a configuration takes; every process calls it. Nothing is read or written.

    The updates that are measured learn from random numbers, in the networks and engines of training.

    Raises:
        ConfigError: a batch cannot be divided among the processes.
        RunError: ``autoencoder.run`` is not there.
    """
    world, stages = start(), []
    if world.is_main:
        print(
            "timing some updates on this machine: a minute, or some for large networks or beside other work",
            file=sys.stderr,
            flush=True,
        )
    if config.space == "latent" and not _first_stage_is_there(config):
        stages.append(_stage_one(stage_one_settings(config), world))
    return [*stages, _stage_two(config, world)]


def _first_stage_is_there(config: Config) -> bool:
    return config.autoencoder is not None and config.autoencoder.run is not None


def _stage_one(settings: StageOneConfig, world: World) -> StagePlan:
    training = settings.autoencoder.training
    assert training is not None

    def trainer(batch_size: int) -> StageOneTrainer:
        smaller = training.model_copy(update={"batch_size": batch_size, "init": None})
        stage = settings.autoencoder.model_copy(update={"training": smaller})
        data = _random_data((settings.data.channels, *2 * (settings.data.image_size,)), batch_size, 0)
        return StageOneTrainer(settings.model_copy(update={"autoencoder": stage}), data, world)

    # An adversarial term that comes late makes the updates after it dearer.
    step = settings.autoencoder.objective.adversarial_start
    images, seconds = _measured(trainer, training.batch_size, world, threads=settings.threads, first_step=0)
    if settings.autoencoder.objective.adversarial_weight and 0 < step < training.num_steps:
        _, late = _measured(trainer, images, world, threads=settings.threads, first_step=step)
        seconds += (late - seconds) * (1 - step / training.num_steps)
    with torch.device("meta"):
        architecture = settings.autoencoder.architecture.model_copy(update={"bottleneck": "kl"})
        network = Autoencoder(architecture, settings.data.channels, settings.data.image_size)
    memory = sum(bytes_for_stage_one(settings, world))
    return _planned("first stage", network, memory, training, images, seconds, world)


def _stage_two(config: Config, world: World) -> StagePlan:
    training, shape, classes = config.training, _grid_shape(config), _num_classes(config)

    def trainer(batch_size: int) -> CooperativeTrainer:
        smaller = training.model_copy(update={"batch_size": batch_size, "accumulation": 1, "init": None})
        data = _random_data(shape, batch_size, classes)
        return CooperativeTrainer(config.model_copy(update={"training": smaller}), data, classes, world)

    together = training.batch_size // training.accumulation
    images, seconds = _measured(trainer, together, world, threads=config.threads, first_step=0)
    model, memory = CDRL.without_weights(config, shape, classes), sum(bytes_for_training(config, shape, classes, world))
    return _planned("energies and initializers", model, memory, training, images, seconds, world)


def _planned(
    name: str,
    networks: nn.Module,
    memory: int,
    training: TrainingConfig | StageOneTrainingConfig,
    images: int,
    seconds: float,
    world: World,
) -> StagePlan:
    count = sum(parameter.numel() for parameter in networks.parameters())
    return StagePlan(
        name=name,
        parameters=count,
        memory=memory,
        checkpoint=_checkpoint_bytes(count, training.optimizer),
        images=images,
        seconds=seconds,
        batch_size=training.batch_size,
        num_steps=training.num_steps,
        processes=world.size,
    )


def _measured(
    trainer_of: Callable[[int], Any], batch_size: int, world: World, *, threads: ThreadCount, first_step: int
) -> tuple[int, float]:
    """Images and seconds of an update: of ``batch_size`` images, or of as many as take no more than some seconds.

    With ``threads: auto`` the seconds are those with the fastest number of threads, which training would take.
    """
    images, numbers = world.size, thread_numbers(threads, world)
    while True:
        with closing(trainer_of(images)) as trainer:
            steps = itertools.count(first_step)
            update = functools.partial(_next_update, trainer, steps)
            seconds = seconds_with_each(update, numbers, _ROUNDS)
        numbers = list(seconds)
        slowest = torch.tensor(min(seconds.values()), device=world.device)
        if world.size > 1:
            torch.distributed.all_reduce(slowest, torch.distributed.ReduceOp.MAX)
        if images == batch_size or slowest.item() > _ENOUGH:
            return images, slowest.item()
        images = min(batch_size, images * (8 if slowest.item() < _ENOUGH / 16 else 2))


def _next_update(trainer: Any, steps: Iterator[int]) -> None:
    trainer.update(next(steps))


def _random_data(shape: tuple[int, ...], count: int, classes: int) -> TrainingSet:
    generator = torch.Generator().manual_seed(0)
    grids = torch.rand(count, *shape, generator=generator) * 2 - 1
    labels: Tensor | None = torch.arange(count)[:, None] % classes if classes else None
    return TrainingSet(grids, count, 0, labels=labels)


def _grid_shape(config: Config) -> tuple[int, ...]:
    if config.space == "point":
        return (2,)
    if config.space == "pixel" or config.autoencoder is None:
        return (config.data.channels, config.data.image_size, config.data.image_size)
    if config.autoencoder.run is not None:
        return load_autoencoder(find_autoencoder(config.autoencoder.run)).latent_shape
    with torch.device("meta"):
        architecture = config.autoencoder.architecture.model_copy(update={"bottleneck": "kl"})
        return Autoencoder(architecture, config.data.channels, config.data.image_size).latent_shape


def _num_classes(config: Config) -> int:
    data = config.data
    return {"none": 0, "class": _CLASSES.get(data.name, 10), "attributes": 2 * len(data.attributes)}[data.labels]


def _checkpoint_bytes(count: int, optimizer: str) -> int:
    """Weights, their average and the optimizer's moments, in single precision."""
    return 4 * count * (2 + (2 if optimizer == "adam" else 1))

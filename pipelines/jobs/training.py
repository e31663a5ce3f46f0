"""The jobs of the two stages: data, networks and decoder brought together from one configuration."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from autoencoder.latents import encode_images, read_latents
from autoencoder.model import find_autoencoder, load_autoencoder
from autoencoder.training import StageOneConfig, train_autoencoder
from cdrl.config import Config, ConfigError
from cdrl.data import (
    GridSet,
    StreamedTrainingSet,
    TrainingSet,
    class_names,
    data_facts,
    data_in_words,
    image_training_set,
    latent_training_set,
    sample_checkerboard,
    training_images,
)
from cdrl.runs.lock import locked
from cdrl.runs.run import MEASURED_ON, Run, RunError, os_error_in_words
from cdrl.sampling.noise import derive_seed
from cdrl.training.engine import World, by_main, locked_by_main, start
from cdrl.training.loop import Outputs, train
from cdrl.training.machine import machine_in_words
from cdrl.training.processes import others_watched
from cdrl.training.trackers import check_trackers
from pipelines.decoding import Decoder, LatentDecoder, PixelDecoder, PointDecoder
from pipelines.evaluation.evaluate import TrainingEvaluation, real_images
from pipelines.evaluation.features import INCEPTION_FILE
from pipelines.generation import default_device

NUM_POINTS = 200_000


def stage_one_folder(config: Config, run: Path) -> Path:
    """The first-stage run that a latent run uses: its own, unless the configuration names another.

    Raises:
        ConfigError: the configuration has no first stage.
    """
    if config.autoencoder is None:
        raise ConfigError("this configuration has no autoencoder section: it has no first stage")
    return run / "autoencoder" if config.autoencoder.run is None else config.autoencoder.run


def stage_one_model(config: Config, run: Path) -> Path:
    """The model folder of the trained first stage that a latent run uses.

    Raises:
        ConfigError: the configuration has no first stage.
        RunError: it has not been trained.
    """
    return find_autoencoder(stage_one_folder(config, run))


def verb_after_data(config: Config) -> str:
    """The verb with which a configuration's training begins, once its data are there."""
    if config.space != "latent" or config.autoencoder is None:
        return "train"
    return "encode" if config.autoencoder.training is None or config.autoencoder.run else "train-autoencoder"


def stage_one_settings(config: Config) -> StageOneConfig:
    """The settings that the first stage of a latent run is made of.

    Raises:
        ConfigError: the configuration has no first stage of its own to train.
    """
    if config.autoencoder is None:
        raise ConfigError("this configuration has no autoencoder section: it has no first stage")
    if config.autoencoder.training is None or config.autoencoder.run is not None:
        raise ConfigError("nothing to train: the first stage is taken from autoencoder.run, or has no training section")
    return StageOneConfig(
        seed=config.seed,
        zero_stage=config.deepspeed.zero_stage,
        threads=config.threads,
        data=config.data,
        autoencoder=config.autoencoder,
    )


def run_stage_one(config: Config, run: Path) -> Path:
    """Train the first stage of ``run``, or go on with it; returns the first stage's own run folder.

    Raises:
        ConfigError: the configuration has no first stage of its own to train.
        RunError: as `training_in`.
    """
    settings, folder = stage_one_settings(config), stage_one_folder(config, run)
    assert settings.autoencoder.training is not None
    check_trackers(settings.autoencoder.training.trackers)
    stage_one, world = Run(folder), start()
    with training_in(stage_one, settings, world):
        batch_size, seed = settings.autoencoder.training.batch_size, derive_seed(config.seed, "images")
        images, held_out = training_images(config.data), training_images(config.data, "test")
        by_main(world, lambda: stage_one.bind_data({**data_facts(images), MEASURED_ON: data_facts(held_out)}))
        kind = StreamedTrainingSet if config.data.stream else TrainingSet
        data = kind(images.grids, batch_size, seed, flip=config.data.flip)
        train_autoencoder(settings, stage_one, data, held_out, world)
    return folder


def run_encoding(config: Config, run: Path) -> None:
    """Write the latents of both splits into ``run``/latents, made by the trained first stage, or go on with it."""
    model = stage_one_model(config, run)
    stage_one = config.autoencoder
    assert stage_one is not None
    device = default_device()
    autoencoder = load_autoencoder(model).to(device)
    if (autoencoder.image_channels, autoencoder.image_size) != (config.data.channels, config.data.image_size):
        raise RunError(
            f"{model}: a first stage of {autoencoder.image_channels} x {autoencoder.image_size}^2 images, but data has "
            f"{config.data.channels} x {config.data.image_size}^2"
        )
    with locked(run / "latents"):
        for split in ("train", "test"):
            there = run / "latents" / split
            encoded = encode_images(
                autoencoder,
                model,
                training_images(config.data, split),
                there,
                kind=stage_one.latents,
                mirrors=config.data.flip and split == "train",
                device=device,
            )
            if not encoded:
                told = f"{there}: there already, made of the same images by the same first stage"
                print(told, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class StageTwoData:
    """Training data of stage two, and the decoder that turns its samples into images.

    Attributes:
        read: the data as they were read; None for points, which are drawn.
    """

    training_set: TrainingSet
    class_names: tuple[str, ...]
    decoder: Decoder
    read: GridSet | None = None


def stage_two_data(config: Config, run: Path) -> StageTwoData:
    """Pixels, latents or points, as ``config.space`` says."""
    batch_size, seed = config.training.batch_size, derive_seed(config.seed, "data")
    if config.space == "point":
        generator = torch.Generator().manual_seed(derive_seed(config.seed, "checkerboard"))
        points = sample_checkerboard(NUM_POINTS, generator)
        return StageTwoData(TrainingSet(points, batch_size, seed), (), PointDecoder())
    if config.space == "pixel":
        images = training_images(config.data)
        data = image_training_set(images, config.data, batch_size, seed)
        return StageTwoData(data, class_names(config.data, images), PixelDecoder(), images)
    model = stage_one_model(config, run)
    assert config.autoencoder is not None
    kind = config.autoencoder.latents
    latents = read_latents(run / "latents" / "train", model, kind, stream=config.data.stream)
    mean, std = (torch.tensor(latents.metadata[name], dtype=torch.float32) for name in ("mean", "std"))
    data = latent_training_set(latents, config.data, batch_size, seed)
    decoder = LatentDecoder(load_autoencoder(model), mean, std)
    return StageTwoData(data, class_names(config.data, latents), decoder, latents)


def run_stage_two(config: Config, run: Path) -> None:
    """Train the energies and initializers of ``run``, or go on with them.

    Raises:
        RunError: as `training_in`.
    """
    check_trackers(config.training.trackers)
    world = start()
    stage_two = Run(run)
    with training_in(stage_two, config, world):
        if config.space == "point":
            # Threads of layers as small as these wait for one another: with two a step takes a quarter longer.
            torch.set_num_threads(1)
        data = stage_two_data(config, run)
        real = images_to_evaluate_on(config, world)
        told = ""
        if data.read is not None:
            read = data.read
            told = data_in_words(config.data.name, "train", len(read), read.metadata)
            measured_on = {} if real is None else {MEASURED_ON: data_facts(real[1])}
            by_main(world, lambda: stage_two.bind_data({**data_facts(read), **measured_on}))
        description = {
            "config": config.model_dump(mode="json"),
            "class_names": list(data.class_names),
            "data": told,
            "machine": machine_in_words(world.size),
            **data.decoder.description(),
        }
        evaluate = None if real is None else TrainingEvaluation(config, data.decoder, world, real)
        outputs = Outputs(description, data.decoder.save, data.decoder.picture, evaluate)
        train(config, stage_two, data.training_set, len(data.class_names), outputs, world)


def images_to_evaluate_on(config: Config, world: World) -> tuple[str, GridSet] | None:
    """Name and `real_images` of evaluation during training; None where the configuration has none.

    Nor are there any where optional weights are missing, which one line tells.

    Raises:
        DataError: the data set cannot be read.
    """
    settings = config.evaluation
    if settings is None:
        return None
    weights = settings.weights or config.data.cache / INCEPTION_FILE
    if settings.optional and settings.metric == "fid" and not weights.exists():
        if world.is_main:
            line = f"evaluation off: no Inception weights at {weights} (evaluation.optional); no best model is kept"
            print(line, file=sys.stderr, flush=True)
        return None
    return real_images(config.data, settings.split)


@contextmanager
def training_in(run: Run, config: Config | StageOneConfig, world: World) -> Iterator[None]:
    """Lock a run folder and create it, or check that it was made with the same settings; every process calls it.

    Raises:
        RunError: another command writes there, or it holds a run with other settings; or a file cannot be written, and
            the message says which checkpoint is there.
    """
    try:
        with others_watched(world, run.last_checkpoint_in_words), locked_by_main(run.folder, world):
            by_main(world, lambda: run.open(config))
            yield
    except OSError as error:
        reason = os_error_in_words(error)
        if isinstance(error, FileNotFoundError) and not run.folder.is_dir():
            # Whichever of its files was missed first: the log is written by a thread.
            reason = f"{run.folder}: this run was removed while it was going on"
        raise RunError(f"{reason}; {run.last_checkpoint_in_words()} in {run.folder}") from error

"""The jobs of the two stages: data, networks and decoder brought together from one configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from autoencoder.checkpoint import load_autoencoder
from autoencoder.latents import encode_images, read_latents
from autoencoder.training import StageOneConfig, train_autoencoder
from cdrl.config import Config, ConfigError
from cdrl.data import (
    StreamedTrainingSet,
    TrainingSet,
    class_names,
    data_in_words,
    image_training_set,
    latent_training_set,
    sample_checkerboard,
    training_images,
)
from cdrl.runs.run import Run, RunError
from cdrl.sampling.noise import derive_seed
from cdrl.training.engine import World, barrier, start
from cdrl.training.loop import train
from pipelines.decoding import Decoder, LatentDecoder, PixelDecoder, PointDecoder
from pipelines.evaluation.evaluate import TrainingEvaluation
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


def run_stage_one(config: Config, run: Path) -> None:
    """Train the first stage of ``run``, or go on with it.

    Raises:
        ConfigError: the configuration has no first stage of its own to train.
    """
    folder = stage_one_folder(config, run)
    assert config.autoencoder is not None
    if config.autoencoder.training is None or config.autoencoder.run is not None:
        raise ConfigError("nothing to train: the first stage is taken from autoencoder.run, or has no training section")
    settings = StageOneConfig(
        seed=config.seed,
        zero_stage=config.deepspeed.zero_stage,
        data=config.data,
        autoencoder=config.autoencoder,
    )
    stage_one, world = Run(folder), start()
    open_run(stage_one, settings, world)
    batch_size, seed = config.autoencoder.training.batch_size, derive_seed(config.seed, "images")
    kind = StreamedTrainingSet if config.data.stream else TrainingSet
    data = kind(training_images(config.data).grids, batch_size, seed, flip=config.data.flip)
    train_autoencoder(settings, stage_one, data, training_images(config.data, "test"), world)


def run_encoding(config: Config, run: Path) -> None:
    """Write the latents of both splits into ``run``/latents, made by the trained first stage."""
    model = stage_one_folder(config, run) / "model"
    if not model.exists():
        raise RunError(f"{model}: no trained first stage there; train it with: python run.py train-autoencoder CONFIG")
    stage_one = config.autoencoder
    assert stage_one is not None
    device = default_device()
    autoencoder = load_autoencoder(model).to(device)
    if (autoencoder.image_channels, autoencoder.image_size) != (config.data.channels, config.data.image_size):
        raise RunError(
            f"{model}: a first stage of {autoencoder.image_channels} x {autoencoder.image_size}^2 images, but data has "
            f"{config.data.channels} x {config.data.image_size}^2"
        )
    for split in ("train", "test"):
        encode_images(
            autoencoder,
            model,
            training_images(config.data, split),
            run / "latents" / split,
            kind=stage_one.latents,
            mirrors=config.data.flip and split == "train",
            device=device,
        )


@dataclass(frozen=True)
class StageTwoData:
    """What stage two learns from, and what makes its samples visible.

    Attributes:
        read: what was read of the data, and what was left out, in words; empty for points.
    """

    training_set: TrainingSet
    class_names: tuple[str, ...]
    decoder: Decoder
    read: str = ""


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
        read = data_in_words(config.data.name, "train", len(images), images.metadata)
        return StageTwoData(data, class_names(config.data, images), PixelDecoder(), read)
    model = stage_one_folder(config, run) / "model"
    if not model.exists():
        raise RunError(f"{model}: no trained first stage there; train it with: python run.py train-autoencoder CONFIG")
    assert config.autoencoder is not None
    kind = config.autoencoder.latents
    latents = read_latents(run / "latents" / "train", model, kind, stream=config.data.stream)
    mean, std = (torch.tensor(latents.metadata[name], dtype=torch.float32) for name in ("mean", "std"))
    data = latent_training_set(latents, config.data, batch_size, seed)
    read = data_in_words(config.data.name, "train", len(latents), latents.metadata)
    decoder = LatentDecoder(load_autoencoder(model), mean, std)
    return StageTwoData(data, class_names(config.data, latents), decoder, read)


def run_stage_two(config: Config, run: Path) -> None:
    """Train the energies and initializers of ``run``, or go on with them."""
    world = start()
    stage_two = Run(run)
    open_run(stage_two, config, world)
    if config.space == "point":
        # Threads of layers as small as these wait for one another: with two a step takes a quarter longer.
        torch.set_num_threads(1)
    data = stage_two_data(config, run)
    train(
        config,
        stage_two,
        data.training_set,
        shape=data.training_set.grid_shape,
        num_classes=len(data.class_names),
        description={
            "config": config.model_dump(mode="json"),
            "class_names": list(data.class_names),
            "data": data.read,
            **data.decoder.description(),
        },
        add_files=data.decoder.save,
        render=data.decoder.picture,
        evaluate=None if config.evaluation is None else TrainingEvaluation(config, data.decoder, world),
        world=world,
    )


def open_run(run: Run, config: Config | StageOneConfig, world: World) -> None:
    """Create or check the run folder, one process first."""
    if world.is_main:
        run.open(config)
    barrier()
    run.open(config)

"""Both stages on drawn faces, end to end, and the figures that say how well they did."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from autoencoder.lite0 import Lite0
from autoencoder.model import DESCRIPTION, load_autoencoder
from autoencoder.objective import psnr, ssim
from autoencoder.training import pairs_picture
from cdrl.config import ConfigError, load_config
from cdrl.data import ImageSet, load_images, read_shards
from cdrl.runs.lock import locked
from cdrl.runs.outputs import one_calls_output
from cdrl.runs.run import read_json
from cdrl.training.interruption import save_picture
from pipelines.base import CDRLPipeline
from pipelines.decoding import LatentDecoder, grid_picture
from pipelines.evaluation.attributes import known_attributes, reconstructions
from pipelines.evaluation.distances import frechet_distance
from pipelines.evaluation.features import lite0_features
from pipelines.evaluation.figure_names import in_thousands
from pipelines.evaluation.judge import AttributeJudge, train_attribute_judge
from pipelines.evaluation.neighbours import nearest
from pipelines.jobs.training import run_encoding, run_stage_one, run_stage_two

JUDGED = ("Smiling", "Eyeglasses", "Long_Hair")
COMPARED = 1000
BATCH = 250
JUDGE_STEPS = 500

SHORT = (
    "data.num_train=256",
    "data.num_test=64",
    "autoencoder.training.num_steps=20",
    "training.num_steps=20",
    "sampling.steps=2",
)
"""Overrides of the rehearsal."""


def run_quickstart(config_path: Path, run: Path, *, short: bool) -> None:
    """Stage one, latents, stage two, pictures and figures.json in ``run``.

    ``short`` rehearses every step in about a minute, on few images and for few updates. ``seconds`` in figures.json
    are, of the two trainings, what all of their calls together have taken; of the rest, what this call has.

    Raises:
        ConfigError: the configuration has no initializer, which the figures need.
        RunError: another command writes there, or the folder holds a run with other settings.
    """
    config = load_config(config_path, SHORT if short else ())
    if config.initializer is None:
        raise ConfigError(f"{config_path}: the quickstart's figures need an initializer, but initializer is null")
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        seconds[stage] = round(time.monotonic() - started, 1)

    with one_calls_output(run, "figures.json", alone=False) as output, locked(run):
        with timed("data"):
            train, test = load_images(config.data, "train"), load_images(config.data, "test")
        run_stage_one(config, run)
        with timed("encode"):
            run_encoding(config, run)
        run_stage_two(config, run)
        with timed("figures"):
            steps = 20 if short else JUDGE_STEPS
            figures = compute_figures(run, output.folder, train, test, judge_steps=steps)
        trained = {
            "stage_one": read_json(run / "autoencoder" / "model" / DESCRIPTION)["wall_seconds"],
            "stage_two": read_json(run / "model" / "config.json")["wall_seconds"],
        }
        output.record = {"seconds": {**seconds, **trained}, **figures}


def compute_figures(run: Path, folder: Path, train: ImageSet, test: ImageSet, *, judge_steps: int) -> dict[str, object]:
    """Write samples.png, initializer.png and reconstructions.png into ``folder``, and return the figures.

    ``fd_lite0_{n}`` are Fréchet distances on EfficientNet-Lite0 features, n images a side, against held-out images
    and against reconstructions of held-out images. The latter leaves the decoder's blur out of the comparison, and
    so tells the second stage from the initializer alone.
    """
    pipeline = CDRLPipeline.from_pretrained(run)
    decoder = pipeline.decoder
    assert isinstance(decoder, LatentDecoder)
    count = min(COMPARED, len(test))
    real = test.images[:count] / 127.5 - 1
    reconstructed = reconstructions(load_autoencoder(run / "autoencoder" / "model"), real)
    generated = pipeline(count, batch_size=BATCH, progress=True)
    samples, initializer = generated.tensors, pipeline(count, steps=0, batch_size=BATCH).tensors
    noise = decoder.images(torch.randn(count, *pipeline.model.shape, generator=torch.Generator().manual_seed(0)))
    save_picture(folder / "samples.png", grid_picture(samples[:64]))
    save_picture(folder / "initializer.png", grid_picture(initializer[:64]))
    save_picture(folder / "reconstructions.png", pairs_picture(real[:32], reconstructed[:32]))

    judge = _judge(train, judge_steps)
    truth = known_attributes(test, JUDGED)[:count]
    network = Lite0()
    features = {
        name: lite0_features(images, network)
        for name, images in {
            "test": real,
            "train": train.images[:count] / 127.5 - 1,
            "reconstructions": reconstructed,
            "samples": samples,
            "initializer": initializer,
            "decoded_noise": noise,
        }.items()
    }
    return {
        "psnr": round(psnr(real, reconstructed).mean().item(), 2),
        "ssim": round(ssim(real, reconstructed).mean().item(), 4),
        "judge_right": {
            "test": _right(judge, real, truth),
            "reconstructions": _right(judge, reconstructed, truth),
        },
        "judge_reads_true": {"test": _share(judge, real), "samples": _share(judge, samples)},
        _fd_name(count, "test"): _distances(
            features, "test", ("train", "reconstructions", "samples", "initializer", "decoded_noise")
        ),
        _fd_name(count, "reconstructions"): _distances(features, "reconstructions", ("samples", "initializer")),
        "nearest_training_latent": nearest_latents(run, decoder, generated.grids),
    }


def nearest_latents(run: Path, decoder: LatentDecoder, samples: Tensor, count: int = 200) -> dict[str, float]:
    """Mean distance of samples, and of held-out latents, to the nearest training latent (root mean square).

    Samples nearer than held-out latents would be copies of training images.
    """
    latents = run / "latents"
    train, test = (read_shards(latents / split).grids[:] for split in ("train", "test"))
    mean, std = decoder.mean.view(-1, 1, 1), decoder.std.view(-1, 1, 1)
    known = ((train - mean) / std).flatten(end_dim=-4)
    queries = {"samples": samples[:count], "test": (test[:count] - mean) / std}
    return {name: round(nearest(grids, known)[0].mean().item(), 4) for name, grids in queries.items()}


def _judge(train: ImageSet, steps: int) -> AttributeJudge:
    return train_attribute_judge(train.images / 127.5 - 1, known_attributes(train, JUDGED), steps=steps, seed=0)


def _right(judge: AttributeJudge, images: Tensor, truth: Tensor) -> dict[str, float]:
    return _named((judge.read(images) == truth).float().mean(dim=0))


def _share(judge: AttributeJudge, images: Tensor) -> dict[str, float]:
    return _named(judge.read(images).float().mean(dim=0))


def _named(values: Tensor) -> dict[str, float]:
    return {name: round(value, 3) for name, value in zip(JUDGED, values.tolist(), strict=True)}


def _fd_name(count: int, against: str) -> str:
    return f"fd_lite0_{in_thousands(count)}_{against}"


def _distances(features: dict[str, Tensor], against: str, names: tuple[str, ...]) -> dict[str, float]:
    return {name: round(frechet_distance(features[name], features[against]), 1) for name in names}

"""Quality of samples: FID and related metrics, of a finished run or during training."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from cdrl.config import Config, DataConfig
from cdrl.data import Grids, GridSet, SomeGrids, Split, data_facts, training_images
from cdrl.installation import program
from cdrl.model import CDRL
from cdrl.runs.model_folder import find_model
from cdrl.runs.records import ModelRecord, read_record
from cdrl.runs.run import RunError, load_tensors, read_json, save_tensors, write_json
from cdrl.training.engine import World, locked_by_main, start
from cdrl.training.loop import Measured
from cdrl.training.monitor import summed_over_processes
from pipelines.base import CDRLPipeline, check_options
from pipelines.decoding import Decoder
from pipelines.evaluation.distances import (
    Reference,
    RunningStatistics,
    check_statistics,
    chosen_rows,
    compared,
    read_statistics,
    statistics_distance,
    statistics_of,
)
from pipelines.evaluation.features import INCEPTION_FILE, Extractor, FeaturesName, load_extractor
from pipelines.evaluation.figure_names import in_thousands, metric_name, sampling_suffix
from pipelines.evaluation.sample_store import SampleStore
from pipelines.generation import labels_in_turn

MOST_KEPT = 50_000
"""Reference features that are kept one by one; statistics are of all."""
BLOCK_IMAGES = 10
"""Images that a block of seeds has at least."""


@dataclass(frozen=True)
class Comparison:
    """What samples are compared with, and how.

    Attributes:
        split: of the run's real images.
        reference_images: how many of them, always the same ones; all by default.
        statistics: published statistics of real images (.npz with mu and sigma), in place of a split.
        features: ``inception``, or ``lite0``, which needs no download.
        weights: the file of Inception's weights; by default it is looked for in the folder ``data.cache``.
        blocks: parts of the samples whose figures are computed apart, to tell how much they vary; 1 for none.

    Raises:
        ValueError: one of them would change nothing beside the others.
    """

    split: Split = "train"
    reference_images: int | None = None
    statistics: Path | None = None
    features: FeaturesName = "inception"
    weights: Path | None = None
    blocks: int = 5

    def __post_init__(self) -> None:
        if self.statistics is not None and (self.split != "train" or self.reference_images is not None):
            raise ValueError("split and reference_images: would change nothing with statistics, which take their place")
        if self.features != "inception" and self.weights is not None:
            raise ValueError(f"weights: would change nothing with features {self.features}: they are Inception's")

    def check(self, num_images: int) -> None:
        """Raise ValueError where so many samples are too few for the blocks."""
        needed = self.blocks * BLOCK_IMAGES
        if self.blocks > 1 and num_images < needed:
            raise ValueError(f"num_images: {self.blocks} blocks need {needed} at least, found {num_images}")


def evaluate_run(
    run: Path,
    num_images: int = 10_000,
    against: Comparison | None = None,
    *,
    seed: int = 0,
    label: int | str | None = None,
    guidance: float = 0.0,
    best: bool = False,
    **options: Any,
) -> dict[str, dict[str, Any]]:
    """Measure samples of a run against real images; every process calls it, the main one measures.

    Images are drawn once, see `SampleStore`: interrupted, the same call goes on. RUN/evaluation.json holds what was
    ever measured, by name, each figure with all that it depends on; this call's figures are returned.

    Args:
        num_images: samples, of the seeds from ``seed`` on.
        against: what they are compared with; all training images on Inception's features by default.
        label: class id or name of all images; -1 for no class; all classes in turn by default.
        best: the model that was best in training, instead of the last.
        options: as in calling the pipeline.

    Raises:
        TypeError: there is no such option.
        RunError: the run has no images or no such model, or the weights or the statistics cannot be used; or another
            command evaluates it.
        ValueError: there are too few images, or more are wanted than the split has.
        Interrupted: after Ctrl-C or SIGTERM, with all finished batches kept.
    """
    check_options(options, evaluate_run)
    against = against or Comparison()
    against.check(num_images)
    model = run / "best" if best else find_model(run)
    world = start()
    pipeline = CDRLPipeline.from_pretrained(model, world.device)
    data = pipeline.config.data
    if pipeline.config.space == "point":
        raise RunError(f"{run}: images are evaluated, but this is a run of 2-D points: {program()} density {run}")
    with locked_by_main(run / "evaluation", world):
        store = SampleStore(run, model, pipeline, label=label, guidance=guidance, **options)
        seeds = range(seed, seed + num_images)
        if not world.is_main:
            store.draw(seeds, world)
            return {}
        # What may be missing is asked for before the long work; what the others need not wait for comes after theirs.
        extractor = load_extractor(against.features, against.weights or data.cache / INCEPTION_FILE, world.device)
        if against.statistics is not None:
            reference = read_statistics(against.statistics)
            store.draw(seeds, world)
        else:
            name, real = real_images(data, against.split, against.reference_images)
            store.draw(seeds, world)
            reference = read_reference(data, name, real, extractor)
        images, rate = store.read(seeds)
        drawn = extractor(images, progress="features")
        blocks, size = against.blocks, num_images // against.blocks
        kernel = against.features != "lite0"
        values = compared(drawn, reference, kernel=kernel)
        rows = [slice(size * i, size * (i + 1)) for i in range(blocks)] if blocks > 1 else []
        parts = [compared(drawn[part], reference, kernel=kernel) for part in rows]
        facts = {
            "samples": num_images,
            "first_seed": seed,
            **store.settings,
            "model": "best" if best else "last",
            "model_step": read_record(model / "config.json", ModelRecord).step,
            "reference": reference.name,
            "reference_images": reference.images,
            "features": against.features,
            "features_weights": extractor.weights,
            "images_per_second": round(rate, 3),
            "processes": world.size,
        }
        suffix = sampling_suffix(pipeline, facts)
        figures = {
            metric_name(metric, extractor.label, num_images, reference.name) + suffix: {
                "value": value,
                "blocks": _spread([part[metric] for part in parts], size) if parts else None,
                **facts,
            }
            for metric, value in values.items()
        }
        path = run / "evaluation.json"
        known = read_json(path) if path.exists() else {}
        write_json(path, {**known, **figures})
        return figures


def figure_lines(figures: Mapping[str, Mapping[str, Any]]) -> str:
    """A line a figure, and what all of them have in common."""
    lines = [f"{name}: {value_in_words(figure)}" for name, figure in figures.items()]
    facts = next(iter(figures.values()))
    known = facts["reference_images"]
    chains = f"{facts['steps']} {facts['kernel']} steps a level" if facts["steps"] else "initializer alone"
    lines.append(
        f"{facts['samples']} samples of seeds {facts['first_seed']} … {facts['first_seed'] + facts['samples'] - 1} "
        f"({facts['model']} model, step {facts['model_step']}) against {facts['reference']}"
        f"{'' if known is None else f' ({known} images)'}; {chains}, guidance "
        f"{facts['guidance']:g}; {facts['images_per_second']:.4g} images a second"
    )
    return "\n".join(lines)


def value_in_words(figure: Mapping[str, Any]) -> str:
    """A figure of RUN/evaluation.json and its spread over blocks of seeds."""
    blocks = figure["blocks"]
    spread = "" if blocks is None else " ({count} blocks of {images}: {mean:.4g} ± {std:.2g})".format(**blocks)
    return f"{figure['value']:.5g}{spread}"


def real_images(data: DataConfig, split: Split, count: int | None = None) -> tuple[str, GridSet]:
    """Images of a split prepared as for training, uint8 [N, C, H, W], and what they are called in names.

    They stay on disk where training leaves them there.

    Args:
        count: so many of them, the same ones each time; all by default.

    Raises:
        DataError: the data set cannot be read.
        ValueError: the split has fewer images.
    """
    images = training_images(data, split)
    if count is None or count == len(images):
        return split, images
    if not 2 <= count < len(images):
        raise ValueError(f"reference_images: the {split} split has {len(images)} images, found {count}")
    return f"{split}_{in_thousands(count)}", GridSet(SomeGrids(images.grids, chosen_rows(len(images), count)))


def read_reference(data: DataConfig, name: str, images: GridSet, extractor: Extractor) -> Reference:
    """Features and statistics of `real_images`, from the folder ``data.cache`` if they are there.

    Several processes may ask at a time: one computes, the others wait.
    """
    # The images themselves are part of the key: a folder's may change, and so may their preparation.
    key = _hash_of(data.name, name, data_facts(images), extractor.weights)
    path = data.cache / "features" / f"{data.name}_{name}_{key}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            save_tensors(path, _reference_tensors(images.grids, extractor, f"features of {data.name} {name}"))
    return _stored_reference(path, name, len(images))


def _reference_tensors(images: Grids, extractor: Extractor, title: str) -> dict[str, Tensor]:
    """Statistics of the features of images, and the features of some; of the others nothing stays in memory."""
    chosen, statistics = chosen_rows(len(images), min(MOST_KEPT, len(images))), RunningStatistics()
    kept, start = [], 0
    for part in extractor.parts(images, progress=title):
        stop = start + len(part.pooled)
        statistics.add(part.pooled)
        here = chosen[torch.searchsorted(chosen, start) : torch.searchsorted(chosen, stop)]
        kept.append(part.pooled[here - start])
        start = stop
    arrays = {name: torch.from_numpy(array) for name, array in statistics.statistics().items()}
    return {**arrays, "features": torch.cat(kept)}


def _stored_reference(path: Path, name: str, images: int) -> Reference:
    """What `read_reference` has stored. Raises RunError for a damaged file, which says how to have it made anew."""
    anew = f"remove {path.name} to have it made anew"
    try:
        stored = load_tensors(path, ("mu", "sigma", "features"))
        statistics = {part: stored[part].numpy() for part in ("mu", "sigma")}
        features = stored["features"]
        check_statistics(statistics)
        if features.ndim != 2 or features.shape[1] != len(statistics["mu"]) or not torch.isfinite(features).all():
            raise ValueError(
                f"features {list(features.shape)} are not finite, or not of {len(statistics['mu'])} numbers"
            )
    except RunError as error:
        raise RunError(f"{error}; {anew}") from None
    except (ValueError, TypeError) as error:
        raise RunError(f"{path}: damaged: {error}; {anew}") from None
    return Reference(name, images, statistics, features)


class TrainingEvaluation:
    """A metric of ``config.evaluation``, measured on a model in training; lower is better.

    Every process draws its share of the samples and makes their features; all of them come to the same value.
    """

    def __init__(self, config: Config, decoder: Decoder, world: World, real: tuple[str, GridSet]) -> None:
        """
        Args:
            real: `real_images` of ``config.evaluation.split``, with their name.

        Raises:
            RunError: Inception's weights are missing or cannot be used.
        """
        assert config.evaluation is not None
        settings = config.evaluation
        self._config, self._decoder, self._world = config, decoder, world
        name: FeaturesName = "inception" if settings.metric == "fid" else "lite0"
        self._extractor = load_extractor(name, settings.weights or config.data.cache / INCEPTION_FILE, world.device)
        self._reference = read_reference(config.data, *real, self._extractor)
        self.name = metric_name("fid", self._extractor.label, settings.num_samples, self._reference.name)

    def __call__(self, model: CDRL) -> Measured:
        """The metric of so many samples of seeds 0, 1, …, drawn in the run's own way, classes in turn."""
        assert self._config.evaluation is not None
        count, world = self._config.evaluation.num_samples, self._world
        pipeline = CDRLPipeline(model, self._decoder, self._config, ())
        seeds = range(world.rank, count, world.size)
        drawn = pipeline(len(seeds), seeds=seeds, label=labels_in_turn(pipeline, seeds))
        own = self._extractor(drawn.bytes).pooled
        gathered = torch.zeros(count, own.shape[1], device=world.device)
        gathered[world.rank :: world.size] = own.to(world.device)
        pooled = summed_over_processes(gathered)
        return Measured(self.name, statistics_distance(statistics_of(pooled), self._reference.statistics))


def _spread(values: list[float], images: int) -> dict[str, Any]:
    return {
        "count": len(values),
        "images": images,
        "mean": float(np.mean(values)),
        "std": float(np.std(values, ddof=1)),
        "values": values,
    }


def _hash_of(*parts: Any) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(f"{part}\x1f".encode())
    return digest.hexdigest()

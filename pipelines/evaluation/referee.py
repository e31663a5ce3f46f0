"""Evaluation of samples by a judge trained on real images, and the figures by which runs are compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from autoencoder.lite0 import Lite0
from cdrl.config import Config, DataConfig
from cdrl.data import Grids, inside_squares, num_classes, training_images
from cdrl.installation import program
from cdrl.runs.lock import locked
from cdrl.runs.run import RunError, write_json
from cdrl.sampling.noise import derive_seed
from pipelines.base import CDRLPipeline
from pipelines.evaluation.distances import frechet_distance
from pipelines.evaluation.features import lite0_features
from pipelines.evaluation.judge import ClassJudge, judge_steps, train_class_judge
from pipelines.generation import default_device, labels_in_turn
from pipelines.results import Generated


@dataclass(frozen=True)
class Referee:
    """A judge of a data set's classes, with its results on real images as the reference.

    Attributes:
        held_out: the judge's features of the held-out images, [N, 128].
        real: ``accuracy_real_test``, ``accepted_real_test`` and ``fd_judge_train_test``, the best that samples can do.
    """

    judge: ClassJudge
    held_out: Tensor
    real: dict[str, float]

    @classmethod
    def of(cls, data: DataConfig, kept: Path | None = None) -> Referee:
        """Load the judge of a data set from the folder ``kept``, or train it and save it there.

        Several processes may call this at once: one trains, the others wait.
        """
        train, test = training_images(data), training_images(data, "test")
        assert train.labels is not None
        assert test.labels is not None
        images, classes, steps = train.grids, num_classes(data, train), judge_steps(len(train.grids))
        if kept is None:
            judge = train_class_judge(images, train.labels, classes, steps=steps, seed=0)
        else:
            kept.mkdir(parents=True, exist_ok=True)
            path = kept / f"{data.name}_{derive_seed(data.model_dump_json(), steps):016x}.safetensors"
            with FileLock(path.with_suffix(".lock")):
                if not path.exists():
                    train_class_judge(images, train.labels, classes, steps=steps, seed=0).save(path)
            judge = ClassJudge.load(path, images.shape[1], images.shape[2], classes)
        read, accepted = judge.read(test.grids)
        held_out = judge.features(test.grids)
        figures = {
            "accuracy_real_test": (read == test.labels).float().mean().item(),
            "accepted_real_test": accepted.float().mean().item(),
            "fd_judge_train_test": frechet_distance(judge.features(images), held_out),
        }
        return cls(judge, held_out, figures)

    def figures(self, name: str, images: Grids, labels: Tensor) -> dict[str, float]:
        """Figures of images [N, C, H, W] in [-1, 1] that should show the classes ``labels`` [N].

        ``accuracy_*`` is the share classified correctly, ``accepted_*`` the share not classified as junk,
        ``fd_judge_*_test`` the Fréchet distance on the judge's features to the held-out images.
        """
        read, accepted = self.judge.read(images)
        return {
            f"accuracy_{name}": (read == labels).float().mean().item(),
            f"accepted_{name}": accepted.float().mean().item(),
            f"fd_judge_{name}_test": frechet_distance(self.judge.features(images), self.held_out),
        }


def judge_run(run: Path, num_images: int, seed: int) -> dict[str, float]:
    """Evaluate real images and samples by a judge trained on the run's data; also written to RUN/judge.json.

    Raises:
        RunError: the run has no classes.
    """
    pipeline = CDRLPipeline.from_pretrained(run, default_device())
    data = pipeline.config.data
    if not has_classes(pipeline.config):
        attributes = f"; see: {program()} judge-composition" if data.labels == "attributes" else ""
        raise RunError(f"{run}: the judge reads classes, but this run has data.labels={data.labels}{attributes}")
    with locked(run, "judge.json"):
        figures = _judged(pipeline, Referee.of(data), num_images, seed)
        write_json(run / "judge.json", {**figures, "num_images": num_images, "seed": seed})
    return figures


def run_figures(run: Path, num_images: int, seed: int, judges: Path) -> dict[str, float]:
    """Evaluate samples, and those of the initializer alone if there is one, by the metrics for this kind of run.

    Images with classes are classified by a judge, see `Referee`, trained once and kept in the folder ``judges``.
    Other images have ``fd_lite0_*_test``, the Fréchet distance on EfficientNet-Lite0 features to as many held-out
    images, and 2-D points ``inside_*``, the share of them inside the checkerboard's squares.
    """
    pipeline = CDRLPipeline.from_pretrained(run, default_device())
    config = pipeline.config
    if has_classes(config):
        return _judged(pipeline, Referee.of(config.data, judges), num_images, seed)
    drawn = _drawn(pipeline, num_images, seed)
    if config.space == "point":
        return {f"inside_{name}": inside_squares(each.grids).float().mean().item() for name, each, _ in drawn}
    network = Lite0()
    held_out = lite0_features(training_images(config.data, "test").grids[:num_images], network)
    return {
        f"fd_lite0_{name}_test": frechet_distance(lite0_features(each.bytes, network), held_out)
        for name, each, _ in drawn
    }


def has_classes(config: Config) -> bool:
    """Whether a run's samples are images with classes, which a `ClassJudge` can classify."""
    return config.data.labels == "class" and config.space != "point"


def _judged(pipeline: CDRLPipeline, referee: Referee, num_images: int, seed: int) -> dict[str, float]:
    figures = dict(referee.real)
    for name, generated, labels in _drawn(pipeline, num_images, seed):
        figures |= referee.figures(name, generated.bytes, torch.tensor(labels))
    return figures


def _drawn(pipeline: CDRLPipeline, num_images: int, seed: int) -> Iterator[tuple[str, Generated, list[int] | None]]:
    """Draw samples, and those of the initializer alone from the same seeds, with the classes in turn."""
    seeds = range(seed, seed + num_images)
    labels = labels_in_turn(pipeline, seeds)
    alone = {} if pipeline.model.initializer is None else {"initializer": 0}
    for name, steps in {"samples": None, **alone}.items():
        yield name, pipeline(num_images, seeds=seeds, label=labels, steps=steps, progress=True), labels

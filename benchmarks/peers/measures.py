"""What samples are measured by: distances on two sets of features, a judge's reading of classes, recall."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from autoencoder.lite0 import Lite0
from benchmarks.peers.task import Task
from cdrl.data import Grids, data_facts, training_images
from cdrl.runs.run import load_tensors, save_tensors
from cdrl.sampling.noise import derive_seed
from pipelines.evaluation.distances import Reference, compared, some_of, statistics_of
from pipelines.evaluation.features import Features, lite0_features
from pipelines.evaluation.figure_names import metric_name
from pipelines.evaluation.judge import ClassJudge, judge_steps, train_class_judge

SHOWN = ("fid", "precision", "recall")


@dataclass(frozen=True)
class Ruler:
    """Measures images against the held-out images of a task.

    Attributes:
        judge_accuracy: share of held-out images that the judge reads as their class.
        features: images -> features [N, D], by the name that distances on them have.
        references: the held-out images on these features.
    """

    judge: ClassJudge
    judge_accuracy: float
    features: dict[str, Callable[[Grids], Tensor]]
    references: dict[str, Reference]

    @classmethod
    def of(cls, task: Task, kept: Path) -> Ruler:
        """Load the judge of a task's data and what it makes of held-out images from the folder ``kept``.

        Where they are not there, they are made and saved. Several processes may call this at once: one works, the
        others wait.
        """
        data, held_out = task.recipe.data, training_images(task.recipe.data, "test")
        steps = judge_steps(len(task.train.grids))
        # Where the images lie does not matter: a judge may be brought along from another machine.
        key = derive_seed(steps, *(json.dumps(data_facts(images)) for images in (task.train, held_out)))
        path = kept / f"{data.name}_{key:016x}.safetensors"
        reading_path = path.with_suffix(".held_out.safetensors")
        kept.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                assert task.train.labels is not None
                train_class_judge(task.train.grids, task.train.labels, task.num_classes, steps=steps, seed=0).save(path)
            judge, network = ClassJudge.load(path, task.shape[0], task.shape[1], task.num_classes), Lite0()
            features: dict[str, Callable[[Grids], Tensor]] = {
                "judge": judge.features,
                "lite0": lambda images: lite0_features(images, network),
            }
            if not reading_path.exists():
                found = {name: read(held_out.grids) for name, read in features.items()}
                save_tensors(reading_path, {**found, "classes": judge.read(held_out.grids)[0]})
        reading = load_tensors(reading_path, (*features, "classes"))
        assert held_out.labels is not None
        accuracy = (reading["classes"] == held_out.labels).float().mean().item()
        references = {
            name: Reference("test", len(held_out), statistics_of(reading[name]), reading[name]) for name in features
        }
        return cls(judge, accuracy, features, references)

    def figures(self, images: Grids, label: Tensor) -> dict[str, float]:
        """Figures of images uint8 [N, C, H, W] that should show the classes ``label`` [N].

        ``accuracy`` is the share that the judge reads as their class, ``accepted`` the share that it does not take for
        junk; the distances, ``fd_judge_1k_test`` and ``fd_lite0_1k_test`` of 1,000 images, are those to the held-out
        images; ``recall_…`` is the share of held-out images within reach of a sample, ``precision_…`` the reverse (3
        neighbours; Kynkäänniemi et al., 2019).
        """
        read, accepted = self.judge.read(images)
        values = {
            "accuracy": (read == label).float().mean().item(),
            "accepted": accepted.float().mean().item(),
        }
        for name, features in self.features.items():
            found = compared(Features(features(images)), self.references[name], kernel=False)
            values |= {metric_name(metric, name, len(images), "test"): found[metric] for metric in SHOWN}
        return values

    def real_figures(self, task: Task, count: int) -> dict[str, float]:
        """The same figures of training images, the best that samples can do."""
        assert task.train.labels is not None
        rows = some_of(torch.arange(len(task.train)), min(count, len(task.train)))
        return self.figures(task.train.grids[rows], task.train.labels[rows])

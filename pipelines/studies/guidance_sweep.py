"""Effect of the guidance weight (Figure 3) on accuracy, Fréchet distance and diversity, with a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor
from torch.nn.functional import pdist

from cdrl.data import Grids, as_floats, training_images
from cdrl.runs.outputs import one_calls_output
from cdrl.runs.run import RunError
from cdrl.sampling.settings import effective
from cdrl.training.interruption import save_picture
from pipelines.base import CDRLPipeline, check_options
from pipelines.decoding import captioned_picture, figure_picture
from pipelines.evaluation.referee import Referee, has_classes
from pipelines.generation import default_device, labels_in_turn

MAX_ROWS = 10
CURVES = {
    "fd_judge_samples_test": "Fréchet distance (judge's features)",
    "accuracy_samples": "accuracy",
    "diversity": "diversity (of real images: 1)",
}
"""Figures that are plotted over w, and their labels."""

Point = dict[str, Any]
"""Figures at one weight: ``weight``, and name -> {``mean``, ``std``, ``blocks``}."""


@dataclass(frozen=True)
class Sweep:
    """Figures of samples at each guidance weight.

    Attributes:
        real: the judge's figures of real images, see `Referee`.
        points: one per weight, see `Point`.
    """

    real: Mapping[str, float]
    points: Sequence[Point]

    def table(self) -> str:
        """Format the curves as a Markdown table, one line per weight."""

        def cell(figure: Mapping[str, float]) -> str:
            return f"{figure['mean']:.3f} +- {figure['std']:.3f}"

        names = [*CURVES, "accepted_samples"]
        lines = [f"| w | {' | '.join(names)} |", "|" + "---|" * (len(names) + 1)]
        lines += [
            f"| {point['weight']:g} | {' | '.join(cell(point[name]) for name in names)} |" for point in self.points
        ]
        return "\n".join(lines)


def mean_distance_within(images: Grids, labels: Tensor) -> float:
    """Mean Euclidean distance between two different images [N, C, H, W] of the same class, over all such pairs.

    One class is in memory at a time.

    Args:
        images: uint8, or in [-1, 1]; in memory or on disk.
        labels: class ids [N].
    """
    total, pairs = 0.0, 0
    for label in labels.unique():
        alike = as_floats(images[(labels == label).nonzero().flatten()]).flatten(1)
        total += pdist(alike).double().sum().item()
        pairs += len(alike) * (len(alike) - 1) // 2
    return total / pairs if pairs else math.nan


def guidance_sweep(
    pipeline: CDRLPipeline,
    referee: Referee,
    weights: Sequence[float],
    num_images: int,
    blocks: int,
    seed: int,
    **options: Any,
) -> Sweep:
    """Evaluate samples of the same seeds under every weight, in blocks of seeds, with the classes in turn."""
    test = training_images(pipeline.config.data, "test")
    assert test.labels is not None
    real_distance = mean_distance_within(test.grids, test.labels)
    points = []
    for weight in weights:
        figures: list[dict[str, float]] = []
        for block in range(blocks):
            first = seed + block * num_images
            seeds = range(first, first + num_images)
            labels = torch.tensor(labels_in_turn(pipeline, seeds))
            images = pipeline(num_images, seeds=seeds, label=labels, guidance=weight, **options).tensors.cpu()
            diversity = mean_distance_within(images, labels) / real_distance
            figures.append({**referee.figures("samples", images, labels), "diversity": diversity})
        points.append({"weight": weight, **{name: summary([each[name] for each in figures]) for name in figures[0]}})
    return Sweep(referee.real, points)


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation (0 for one block) of a figure over blocks."""
    spread = stdev(values) if len(values) > 1 else 0.0
    return {"mean": fmean(values), "std": spread, "blocks": list(values)}


def sweep_images(pipeline: CDRLPipeline, weights: Sequence[float], seed: int, **options: Any) -> Tensor:
    """Picture of the same noise under growing guidance, uint8 [3, H, W].

    One row per class (at most ten), one column per weight.
    """
    rows = min(pipeline.model.num_classes, MAX_ROWS)
    seeds = range(seed, seed + rows)
    labels = labels_in_turn(pipeline, seeds)
    columns = [pipeline(rows, seeds=seeds, label=labels, guidance=weight, **options).tensors for weight in weights]
    words = [f"w = {weight:g}" for weight in weights]
    return captioned_picture([(torch.stack(columns, dim=1).flatten(0, 1), words)], columns=len(weights))


def curves_picture(sweep: Sweep) -> Tensor:
    """Plot Fréchet distance, accuracy and diversity over w, mean and deviation over the blocks: uint8 [3, H, W].

    Dashed lines: real images, of the training split or, for accuracy, held-out.
    """
    real = {
        "fd_judge_samples_test": sweep.real["fd_judge_train_test"],
        "accuracy_samples": sweep.real["accuracy_real_test"],
        "diversity": 1.0,
    }
    figure, panels = plt.subplots(1, len(CURVES), figsize=(4 * len(CURVES), 3), layout="constrained")
    across = [point["weight"] for point in sweep.points]
    for axes, (name, words) in zip(panels, CURVES.items(), strict=True):
        means, spreads = ([point[name][key] for point in sweep.points] for key in ("mean", "std"))
        axes.errorbar(across, means, spreads, marker="o", markersize=3, capsize=2, color="black", linewidth=1)
        axes.axhline(real[name], linestyle="--", linewidth=1, color="gray")
        axes.set(xlabel="guidance w", title=words)
    return figure_picture(figure)


def run_guidance_sweep(
    run: Path,
    weights: Sequence[float],
    num_images: int,
    *,
    blocks: int,
    seed: int = 0,
    **options: Any,
) -> tuple[Path, Sweep]:
    """Write samples.png, curves.png and figures.json into RUN/guidance; returns the folder and the figures.

    Args:
        num_images: samples per block.
        blocks: number of blocks; each has its own seeds, the same under every weight.
        options: as in calling the pipeline.

    Raises:
        RunError: the run's images have no classes.
        ValueError: there is no such kernel.
    """
    pipeline = CDRLPipeline.from_pretrained(run, default_device())
    check_options(options, run_guidance_sweep)
    sampling = effective(pipeline.drawing(**options).settings)
    config = pipeline.config
    if not has_classes(config):
        raise RunError(f"{run}: guidance is judged by classes, but this run has data.labels={config.data.labels}")
    folder = run / "guidance"
    with one_calls_output(folder, "figures.json") as output:
        sweep = guidance_sweep(pipeline, Referee.of(config.data), weights, num_images, blocks, seed, **options)
        save_picture(output.folder / "samples.png", sweep_images(pipeline, weights, seed, **options))
        save_picture(output.folder / "curves.png", curves_picture(sweep))
        facts = {"num_images": num_images, "blocks": blocks, "seed": seed, "sampling": sampling}
        output.record = {**facts, "real": sweep.real, "points": sweep.points}
    return folder, sweep


def parse_weights(text: str) -> list[float]:
    """Parse weights such as ``0,0.5,1``; returns them in growing order.

    Raises:
        ValueError: a weight is not a number of at least 0, or one comes twice.
    """
    try:
        weights = sorted({float(part) for part in text.split(",")})
    except ValueError:
        weights = []
    if len(weights) < len(text.split(",")) or not 0 <= weights[0] <= weights[-1] < float("inf"):
        raise ValueError(f"weights: expected different numbers of 0 or more such as 0,0.5,1, found '{text}'")
    return weights

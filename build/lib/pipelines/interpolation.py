"""Interpolation between two samples; every image in between is a sample too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdrl.arguments import check_kind, folder_of, whole_number
from cdrl.model import CDRL
from cdrl.runs.outputs import one_calls_output
from cdrl.runs.run import RunError
from cdrl.sampling.noise import InterpolatedNoise
from cdrl.sampling.sampler import LevelLogDensity, Propose
from cdrl.schedule import per_image
from cdrl.training.interruption import save_picture
from pipelines.base import CDRLPipeline, ImageSource, check_options, chosen_seeds, stream_seeds
from pipelines.decoding import grid_picture
from pipelines.generation import default_device, labels_of, model_facts
from pipelines.results import Generated


def between_classes(model: CDRL, labels: Sequence[int], share: Tensor) -> tuple[Propose, LevelLogDensity]:
    """Interpolate between two classes: (1 - u) f(.|first) + u f(.|second), and likewise the proposals' means.

    Both classes go through the networks in one batch; equal classes are evaluated once.

    Args:
        labels: first and second class id; -1 for no class.
        share: u of each image of a batch, [N] in [0, 1].
    """
    first, second = labels
    if first == second:
        conditioned = model.conditioned([first] * len(share))
        return conditioned.propose, conditioned.log_density
    both = model.conditioned([first] * len(share) + [second] * len(share))

    def mixed(values: Tensor) -> Tensor:
        from_first, from_second = values.chunk(2)
        u = per_image(share, from_first)
        return (1 - u) * from_first + u * from_second

    def propose(x_next: Tensor, level: int) -> Tensor:
        return mixed(both.propose(torch.cat([x_next, x_next]), level))

    def log_density(y: Tensor, level: int) -> Tensor:
        return mixed(both.log_density(torch.cat([y, y]), level))

    return propose, log_density


def interpolated(
    pipeline: CDRLPipeline,
    seeds: Sequence[int],
    num_images: int,
    labels: Sequence[int | str] = (-1, -1),
    **options: Any,
) -> Generated:
    """Draw images from the sample of the first seed and class to that of the second, in equal steps.

    All noise is interpolated spherically: the initial noise, that of the proposals and that of every step of the chains
    (Gao et al., 2021), see `InterpolatedNoise`. The first and last image are the two samples themselves.

    Args:
        seeds: the first and the second.
        labels: class id or name at either end; the density between two is that of `between_classes`.

    Raises:
        TypeError: there is no such option, or an argument is of another kind than it has to be.
        ValueError: fewer than two images, not two seeds or classes, or there is no such class or kernel.
    """
    check_options(options, interpolated)
    check_kind("pipeline", pipeline, CDRLPipeline, "a CDRLPipeline")
    if whole_number("num_images", num_images) < 2:
        raise ValueError(f"num_images: expected both ends at least, found {num_images}")
    how, model, device = pipeline.drawing(**options), pipeline.model, pipeline.device
    first, second = stream_seeds(chosen_seeds(2, seeds))
    ends = pipeline.class_ids(labels, 2).tolist()
    shares = torch.linspace(0, 1, num_images, device=device)

    def source(rows: slice) -> ImageSource:
        share = shares[rows]
        noise = InterpolatedNoise([first] * len(share), [second] * len(share), share, device)
        return ImageSource(noise, *between_classes(model, ends, share))

    return pipeline.draw(num_images, source, how)


def run_interpolation(
    run: Path,
    seeds: tuple[int, int],
    num_images: int = 8,
    *,
    label: int | str | None = None,
    **options: Any,
) -> Path:
    """Interpolate between two samples of a run and write RUN/interpolations/A_to_B.png; returns its path.

    A_to_B.json beside it records seeds, classes, the sampler's settings and the model's training step.

    Args:
        label: class id or name of all images; -1 for no class. By default either end has the class that
            ``run.py sample`` gives its seed.

    Raises:
        RunError: the run has no images.
        TypeError: there is no such option, or an argument is of another kind than it has to be.
        ValueError: there is no such class or kernel.
    """
    check_options(options, run_interpolation)
    run = folder_of("run", run)
    first, second = chosen_seeds(2, seeds)
    pipeline = CDRLPipeline.from_pretrained(run, default_device())
    if pipeline.config.space == "point":
        raise RunError(f"{run}: interpolations are shown as images, but this is a run of 2-D points")
    labels = labels_of(pipeline, label, (first, second)) or (-1, -1)
    folder, name = run / "interpolations", f"{first}_to_{second}"
    with one_calls_output(folder, f"{name}.json", alone=False) as output:
        generated = interpolated(pipeline, (first, second), num_images, labels, **options)
        save_picture(output.folder / f"{name}.png", grid_picture(generated.tensors, columns=num_images))
        facts = {"num_images": num_images, "seeds": [first, second], "labels": list(labels)}
        output.record = {**facts, **model_facts(run, generated)}
    return folder / f"{name}.png"

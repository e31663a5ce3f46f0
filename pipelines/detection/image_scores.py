"""How likely each of one's own images is: log densities of every level, and their place among training images."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cdrl.data import Decoding, pictures_in
from cdrl.runs.outputs import one_calls_output
from cdrl.runs.run import RunError
from pipelines.base import CDRLPipeline
from pipelines.detection.detect import Source, density_readings
from pipelines.detection.known_images import shipped_known
from pipelines.generation import default_device
from pipelines.images import Images
from pipelines.results import Drawn

SCORES = "scores.csv"
NUM_COMPARED = 1000
"""Training images that others are compared with."""
ALL_SHOWN, LEAST_SHOWN = 10, 5
"""So many pictures are all shown in a terminal; of more the least likely."""


@dataclass(frozen=True)
class ImageScores:
    """Scores of N images at T levels.

    Attributes:
        log_density: up to a constant a level, of y_t = alpha_y_t alpha_bar_t x_0 without noise, [N, T].
        percentile: share of training images with a lower log density, in per cent, [N, T]; few per cent or less at
            level 0: unlike the training images in their details.
        compared: training images that these are compared with.
    """

    log_density: Tensor
    percentile: Tensor
    compared: int


def score_images(
    pipeline: CDRLPipeline,
    images: Drawn | Images,
    *,
    num_compared: int = NUM_COMPARED,
    seed: int = 0,
    reference: Tensor | None = None,
) -> ImageScores:
    """Score images by a model; a conditional one is asked without a class.

    Args:
        images: see `CDRLPipeline.images_of`.
        num_compared: training images to compare with, chosen at random by ``seed``; fewer where there are fewer.
        reference: log densities of training images, [M, T], where they are known already; the two before change
            nothing then.

    Raises:
        RunError: the run has no images, or a density is NaN or infinite.
        DataError: the training images cannot be read.
        TypeError, ValueError: the images do not fit the model.
    """
    if pipeline.config.space == "point":
        raise RunError("images are scored, but this is a run of 2-D points")
    if reference is None:
        known = Source.parse("train", pipeline.config.data).images(num_compared, seed)
        reference = density_readings(pipeline, "train", known).log_density
    values = density_readings(pipeline, "images", pipeline.images_of(images)).log_density
    below = torch.searchsorted(reference.sort(dim=0).values.T.contiguous(), values.T.contiguous()).T
    return ImageScores(values, 100.0 * below / len(reference), len(reference))


def run_image_scores(run: Path, folder: Path, *, num_compared: int | None, seed: int) -> tuple[Path, str, str]:
    """Score every picture below a folder.

    A picture is cropped to its central square and resized as for training.

    Args:
        num_compared: training images to compare with. None for those whose densities lie with the weights, see
            `pipelines.detection.known_images`, or else 1,000.

    Returns:
        RUN/scores-NAME/scores.csv, what was read in words, and the `scores_table`.

    Raises:
        RunError, DataError: as `score_images`; or a picture cannot be read, or there is none.
    """
    pipeline = CDRLPipeline.from_pretrained(run, default_device())
    data = pipeline.config.data
    found = pictures_in(folder, data.image_size, data.channels, Decoding.of(data))
    known = shipped_known(run, pipeline) if num_compared is None else None
    scores = score_images(
        pipeline,
        found.images,
        num_compared=num_compared or NUM_COMPARED,
        seed=seed,
        reference=None if known is None else known.train_log_density,
    )
    place = run / f"scores-{folder.resolve().name}"
    with one_calls_output(place, "scores.json") as output:
        (output.folder / SCORES).write_text(_table(found.names, scores), encoding="utf-8")
        output.record = {"num_images": len(found.names), "num_compared": scores.compared, "seed": seed}
    whence = "training images" if known is None else "training images whose densities lie with the weights"
    told = f"{found.told}\ncompared with {scores.compared:,} {whence}"
    return place / SCORES, told, scores_table(found.names, scores)


def scores_table(names: Sequence[str], scores: ImageScores) -> str:
    """Scores at level 0 for a terminal, the least likely image first: of all images, or where they are many of a few.

    Args:
        names: of the images.
    """
    order = scores.log_density[:, 0].argsort().tolist()
    shown = order if len(order) <= ALL_SHOWN else order[:LEAST_SHOWN]
    title = "log density at level 0, and percentile among training images"
    lines = [title if len(shown) == len(order) else f"{title}, of the {len(shown)} least likely of {len(order):,}"]
    width = max(len(names[row]) for row in shown)
    for row in shown:
        density, percentile = scores.log_density[row, 0].item(), scores.percentile[row, 0].item()
        lines.append(f"{names[row]:{width}}  {density:12.6g}  {percentile:5.1f}")
    return "\n".join(lines)


def _table(names: Sequence[str], scores: ImageScores) -> str:
    """CSV, the least likely image at level 0 first."""
    levels = range(scores.log_density.shape[1])
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", *(f"log_density_{t}" for t in levels), *(f"percentile_train_{t}" for t in levels)])
    for row in scores.log_density[:, 0].argsort().tolist():
        densities = [f"{value:.6g}" for value in scores.log_density[row].tolist()]
        percentiles = [f"{value:.1f}" for value in scores.percentile[row].tolist()]
        table.writerow([names[row], *densities, *percentiles])
    return text.getvalue()

"""What each stage of a latent run loses: reconstructions, samples and the initializer's proposals, measured alike."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoencoder.lite0 import Lite0
from autoencoder.reconstruction import pairs_picture, reconstruct, worst_picture
from cdrl.data import Grids, GridSet, as_floats, stream_shards, to_bytes, training_images
from cdrl.runs.outputs import one_calls_output
from cdrl.runs.run import RunError
from cdrl.training.interruption import save_picture
from pipelines.base import CDRLPipeline
from pipelines.decoding import LatentDecoder, grid_picture
from pipelines.evaluation.attributes import known_attributes
from pipelines.evaluation.distances import frechet_distance
from pipelines.evaluation.features import lite0_features
from pipelines.evaluation.figure_names import from_thousands, in_thousands
from pipelines.evaluation.judge import judge_steps, train_attribute_judge, train_class_judge
from pipelines.evaluation.neighbours import nearest
from pipelines.generation import default_device, labels_in_turn

SHOWN = 64
NEIGHBOURS = 200
FEW = 200
"""Distances of fewer images are mostly chance."""

_IN_WORDS = {
    "train": "training images",
    "test": "held-out images",
    "reconstructions": "reconstructions of held-out images",
    "samples": "samples",
    "initializer": "initializer alone",
    "decoded_noise": "decoded noise",
}
_FEATURES = {"lite0": "EfficientNet-Lite0", "judge": "the judge"}


@dataclass(frozen=True)
class Reading:
    """How a judge trained on real images reads others.

    Attributes:
        features: images -> its features [N, D].
        read: images -> answers [N, A].
        truth: the right answers for the held-out images, [N, A].
        names: of the answers.
    """

    features: Callable[[Grids], Tensor]
    read: Callable[[Grids], Tensor]
    truth: Tensor
    names: tuple[str, ...]

    def right(self, images: Grids) -> dict[str, float]:
        """Share of right answers on the first held-out images, or on what was made of them."""
        return self._named((self.read(images) == self.truth[: len(images)]).float())

    def true(self, images: Grids) -> dict[str, float]:
        """Share of images that are read as having each attribute."""
        return self._named(self.read(images).float())

    def _named(self, values: Tensor) -> dict[str, float]:
        return {name: round(value, 3) for name, value in zip(self.names, values.mean(dim=0).tolist(), strict=True)}


def trained_reading(train: GridSet, test: GridSet, steps: int | None = None) -> Reading | None:
    """A judge of a data set's attributes, or of its classes where it has none; None where it has neither.

    Args:
        steps: updates of the judge; `judge_steps` by default.
    """
    steps = judge_steps(len(train.grids)) if steps is None else steps
    if train.attributes is not None and test.attributes is not None:
        names = train.attribute_names
        judge = train_attribute_judge(train.grids, known_attributes(train, names), steps=steps, seed=0)
        return Reading(judge.features, judge.read, known_attributes(test, names), names)
    if train.labels is not None and test.labels is not None:
        classes = train_class_judge(train.grids, train.labels, len(train.label_names), steps=steps, seed=0)
        return Reading(
            classes.features, lambda images: classes.read(images)[0][:, None], test.labels[:, None], ("class",)
        )
    return None


def run_stages(run: Path, num_images: int) -> dict[str, Any]:
    """`stage_figures` of a run; leaves figures.json and the pictures in RUN/stages.

    Raises:
        RunError: the run has no first stage or no initializer.
    """
    with one_calls_output(run / "stages", "figures.json") as output:
        output.record = stage_figures(run, output.folder, num_images)
    return output.record


def stage_figures(run: Path, folder: Path, num_images: int, *, judged_after: int | None = None) -> dict[str, Any]:
    """Figures of both stages; writes reconstructions.png, worst.png, samples.png and initializer.png into ``folder``.

    ``psnr`` and ``ssim`` are means over held-out images and their reconstructions. ``judge_right`` is what a judge of
    the data set's attributes or classes, see `trained_reading`, reads right on both, and ``judge_reads_true`` the share
    that it reads as having each attribute. ``fd_lite0_N_…`` and ``fd_judge_N_…`` are Fréchet distances of N images a
    side, on EfficientNet-Lite0's and the judge's features: to held-out images; and to their reconstructions, which
    leaves the decoder's losses out of the comparison and so tells the second stage from the initializer alone. The
    judge's features are in no objective; Lite0's are, where ``autoencoder.objective.perceptual`` is ``lite0``.
    ``halves_of_reconstructions`` is between two halves: what chance alone makes of N / 2 images.

    Args:
        num_images: of each kind; fewer where fewer are held out.
        judged_after: updates of the judge; `judge_steps` by default.

    Raises:
        RunError: the run has no first stage or no initializer.
    """
    pipeline = CDRLPipeline.from_pretrained(run, default_device())
    decoder, data = pipeline.decoder, pipeline.config.data
    if not isinstance(decoder, LatentDecoder) or pipeline.model.initializer is None:
        raise RunError(f"{run}: the stages of a latent run with an initializer are measured, but this is none")
    train, test = training_images(data), training_images(data, "test")
    count = min(num_images, len(test))
    real = test.grids[:count]
    made = reconstruct(decoder.autoencoder, real)
    how: dict[str, Any] = {"seeds": range(count), "label": labels_in_turn(pipeline, range(count)), "progress": True}
    generated = pipeline(count, **how)
    images: dict[str, Grids] = {
        "test": real,
        "train": train.grids[:count],
        "reconstructions": made.images,
        "samples": generated.bytes,
        "initializer": pipeline(count, **how, steps=0).bytes,
        "decoded_noise": _decoded_noise(decoder, (count, *pipeline.model.shape)),
    }
    for name in ("samples", "initializer"):
        save_picture(folder / f"{name}.png", grid_picture(as_floats(images[name][:SHOWN])))
    save_picture(
        folder / "reconstructions.png",
        pairs_picture(as_floats(real[: SHOWN // 2]), as_floats(made.images[: SHOWN // 2])),
    )
    save_picture(folder / "worst.png", worst_picture(real, made))
    figures: dict[str, Any] = {
        "psnr": round(made.psnr.mean().item(), 2),
        "ssim": round(made.ssim.mean().item(), 4),
        "worst_psnr": round(made.psnr.min().item(), 2),
    }
    network = Lite0()
    measures: dict[str, Callable[[Grids], Tensor]] = {"lite0": lambda part: lite0_features(part, network)}
    reading = trained_reading(train, test, judged_after)
    if reading is not None:
        measures["judge"] = reading.features
        figures["judge_right"] = {name: reading.right(images[name]) for name in ("test", "reconstructions")}
        if train.attributes is not None:
            figures["judge_reads_true"] = {name: reading.true(images[name]) for name in ("test", "samples")}
    for kind, measure in measures.items():
        figures |= _distances(f"fd_{kind}", {name: measure(part) for name, part in images.items()}, count)
    return {**figures, "nearest_training_latent": nearest_latents(run, decoder, generated.grids)}


def stages_table(report: Mapping[str, Any]) -> str:
    """A report of `stage_figures` for a terminal."""
    quality = f"PSNR {report['psnr']:.2f} dB (worst {report['worst_psnr']:.2f} dB), SSIM {report['ssim']:.4f}"
    blocks = [f"held-out images and their reconstructions: {quality}"]
    for name, head in (
        ("judge_right", "share that a judge of real images reads right"),
        ("judge_reads_true", "share that a judge of real images reads as"),
    ):
        if name in report:
            shares = report[name]
            rows = {key: [f"{of[key]:.3f}" for of in shares.values()] for key in next(iter(shares.values()))}
            blocks.append(_columns(head, [_IN_WORDS[of] for of in shares], rows))
    for name in report:
        if found := re.fullmatch(r"fd_(.+)_(\d+k?)_test", name):
            blocks.append(_distances_table(report, *found.groups()))
    distances = report["nearest_training_latent"]
    blocks.append(
        f"mean distance to the nearest training latent: samples {distances['samples']:.4g}, held-out latents "
        f"{distances['test']:.4g} (samples that are nearer are copies)"
    )
    return "\n\n".join(blocks)


def _distances_table(report: Mapping[str, Any], features: str, number: str) -> str:
    """Distances on the features of one network, to both sets; with a warning where there are few images."""
    count = from_thousands(number)
    to_test, to_made = (report[f"fd_{features}_{number}_{to}"] for to in ("test", "reconstructions"))
    halves = to_made["halves_of_reconstructions"]
    rows = {
        _IN_WORDS[name]: [f"{to[name]:.4g}" if name in to else "-" for to in (to_test, to_made)] for name in to_test
    }
    rows["reconstructions, one half to the other"] = ["-", f"{halves:.4g}"]
    title = f"Fréchet distance on features of {_FEATURES[features]}, {count} images a side"
    table = _columns(title, ["to held-out images", "to reconstructions"], rows)
    if count >= FEW:
        return table
    warning = f"warning: distances of fewer than {FEW} images are mostly chance; two halves of one set are {halves:.4g}"
    return f"{table}\n{warning} apart"


def _columns(title: str, heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    width = max(map(len, rows))
    lines = [
        name.ljust(width) + "".join(cell.rjust(len(head) + 2) for cell, head in zip(cells, heads, strict=True))
        for name, cells in (("", heads), *rows.items())
    ]
    return "\n".join([title, *lines])


def nearest_latents(run: Path, decoder: LatentDecoder, samples: Tensor) -> dict[str, float]:
    """Mean distance of samples, and of held-out latents, to the nearest training latent (root mean square).

    Samples nearer than held-out latents would be copies of training images.
    """
    known, held_out = (
        _StandardLatents(stream_shards(run / "latents" / split).grids, decoder) for split in ("train", "test")
    )
    queries = {"samples": samples[:NEIGHBOURS].cpu(), "test": held_out[:NEIGHBOURS]}
    return {name: round(nearest(grids, known)[0].mean().item(), 4) for name, grids in queries.items()}


class _StandardLatents:
    """Latents as a model sees them, each and that of its mirror image by itself, read when they are asked for."""

    def __init__(self, latents: Grids, decoder: LatentDecoder) -> None:
        """
        Args:
            latents: [N, c, h, w], or [N, 2, c, h, w].
        """
        self._latents = latents
        self._each = math.prod(latents.shape[1:-3])
        self._decoder = decoder
        self.shape = (len(latents) * self._each, *latents.shape[-3:])
        self.dtype = latents.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> Tensor:
        numbers = torch.arange(len(self))[rows]
        first, last = (int(numbers[end]) // self._each for end in (0, -1))
        flat = self._latents[first : last + 1].flatten(end_dim=-4)
        return self._decoder.standardized(flat[numbers - first * self._each])


def _decoded_noise(decoder: LatentDecoder, shape: tuple[int, ...]) -> Tensor:
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([to_bytes(decoder.images(part)).cpu() for part in noise.split(SHOWN)])


def _distances(kind: str, features: dict[str, Tensor], count: int) -> dict[str, dict[str, float]]:
    number, halves = in_thousands(count), features["reconstructions"].split(-(-count // 2))
    to_test = ("train", "reconstructions", "samples", "initializer", "decoded_noise")
    to_reconstructions = ("samples", "initializer")
    return {
        f"{kind}_{number}_test": {name: _rounded(features[name], features["test"]) for name in to_test},
        f"{kind}_{number}_reconstructions": {
            **{name: _rounded(features[name], features["reconstructions"]) for name in to_reconstructions},
            "halves_of_reconstructions": _rounded(*halves),
        },
    }


def _rounded(features: Tensor, others: Tensor) -> float:
    """A distance to four digits."""
    return float(f"{frechet_distance(features, others):.4g}")

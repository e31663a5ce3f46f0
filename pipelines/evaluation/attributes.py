"""Accuracy of composed attributes (eq. 13, 14), by a classifier trained on real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoencoder.model import Autoencoder
from autoencoder.reconstruction import reconstruct
from cdrl.config import DataConfig
from cdrl.data import GridSet, training_images
from cdrl.runs.outputs import one_calls_output
from cdrl.runs.run import RunError
from cdrl.sampling.settings import effective
from cdrl.training.interruption import save_picture
from pipelines.base import CDRLPipeline, check_options
from pipelines.composition import compose, concept_class
from pipelines.decoding import LatentDecoder, captioned_picture
from pipelines.evaluation.judge import AttributeJudge, judge_steps, train_attribute_judge
from pipelines.generation import default_device

COLUMNS = 8

Readings = dict[str, float]
"""Share of images that are read as asked: attribute -> share, and ``all`` of them at once."""


@dataclass(frozen=True)
class AttributeReferee:
    """A judge of the attributes of a data set, with its accuracy on real images.

    Attributes:
        names: names of the attributes, in the judge's order.
        real: its accuracy on held-out images.
        reconstructed: the same on their reconstructions by the first stage, for latent runs: the best that samples
            can reach.
    """

    judge: AttributeJudge
    names: tuple[str, ...]
    real: Readings
    reconstructed: Readings | None

    @classmethod
    def of(cls, data: DataConfig, autoencoder: Autoencoder | None) -> AttributeReferee:
        """Train the judge on the training split."""
        train, test = training_images(data), training_images(data, "test")
        known, steps = known_attributes(train, data.attributes), judge_steps(len(train.grids))
        judge = train_attribute_judge(train.grids, known, steps=steps, seed=0)
        truth = known_attributes(test, data.attributes)
        reconstructed = None
        if autoencoder is not None:
            made = reconstruct(autoencoder, test.grids).images
            reconstructed = readings(judge.read(made), truth, data.attributes)
        return cls(judge, data.attributes, readings(judge.read(test.grids), truth, data.attributes), reconstructed)


def known_attributes(images: GridSet, names: Sequence[str]) -> Tensor:
    """True attributes of images that have attributes: bool [N, A], in the order of ``names``."""
    assert images.attributes is not None
    return images.attributes[:, [images.attribute_names.index(name) for name in names]]


def readings(read: Tensor, asked: Tensor, names: Sequence[str]) -> Readings:
    """Share of rows in which the predicted attributes, bool [N, A], equal the requested ones, bool [N, A]."""
    right = read == asked
    shares = dict(zip(names, right.float().mean(dim=0).tolist(), strict=True))
    return {**shares, "all": right.all(dim=1).float().mean().item()}


def values_in_turn(num_images: int, num_attributes: int) -> Tensor:
    """All combinations of values in turn, bool [N, M]: attribute i of image n is bit i of n."""
    return (torch.arange(num_images)[:, None] >> torch.arange(num_attributes)) % 2 == 1


def asked_attributes(num_attributes: int) -> list[tuple[int, ...]]:
    """Sets of attributes to compose: every pair, and all of them."""
    everything = tuple(range(num_attributes))
    return sorted({*combinations(everything, 2), everything}, key=len)


def judged_composition(
    pipeline: CDRLPipeline,
    referee: AttributeReferee,
    attributes: Sequence[int],
    guidance: float | None,
    seeds: Sequence[int],
    **options: Any,
) -> Readings:
    """Draw images of some attributes, all combinations of values in turn, and evaluate them by the judge.

    Args:
        guidance: w; None for the plain sum of log densities, see `composed`.
    """
    asked = values_in_turn(len(seeds), len(attributes))
    concepts = [[concept_class(a, bool(value)) for value in asked[:, i]] for i, a in enumerate(attributes)]
    drawn = compose(pipeline, len(seeds), concepts, seeds=seeds, guidance=guidance, **options)
    read = referee.judge.read(drawn.bytes)[:, list(attributes)]
    return readings(read, asked, [referee.names[a] for a in attributes])


def shown_values(num_attributes: int) -> list[dict[int, bool]]:
    """Rows of the picture: one more attribute true per row; then all but one true; then all false."""
    growing = [dict.fromkeys(range(count), True) for count in range(1, num_attributes + 1)]
    all_but_one = [{a: a != other for a in range(num_attributes)} for other in range(num_attributes)]
    return [*growing, *all_but_one, dict.fromkeys(range(num_attributes), False)]


def composition_picture(pipeline: CDRLPipeline, guidance: float, seeds: Sequence[int], **options: Any) -> Tensor:
    """Picture of the same seeds under different sets of concepts, named below each row (Figure 4): uint8 [3, H, W]."""
    names, rows = pipeline.config.data.attributes, []
    for values in shown_values(len(names)):
        concepts = [concept_class(a, value) for a, value in values.items()]
        images = compose(pipeline, len(seeds), concepts, seeds=seeds, guidance=guidance, **options).tensors
        free = [f"any {name}" for a, name in enumerate(names) if a not in values]
        rows.append((images, [*(pipeline.class_names[concept] for concept in concepts), *free]))
    return captioned_picture(rows, columns=len(seeds))


def run_composition(
    run: Path,
    weights: Sequence[float],
    num_images: int,
    *,
    seed: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate compositions under every weight and the plain sum; write figures and pictures to RUN/composition.

    Every pair of attributes is composed, and all of them together, each time from the same seeds.

    Args:
        num_images: images for each set of attributes and each weight.

    Raises:
        RunError: the run was not trained on attributes, or on fewer than two.
        ValueError: there is no such kernel.
    """
    pipeline = CDRLPipeline.from_pretrained(run, default_device())
    check_options(options, run_composition)
    sampling = effective(pipeline.drawing(**options).settings)
    data, decoder = pipeline.config.data, pipeline.decoder
    if len(data.attributes) < 2:
        raise RunError(f"{run}: composition is judged for two or more of data.attributes, found {len(data.attributes)}")
    seeds = range(seed, seed + num_images)
    ways: dict[str, float | None] = {**{f"w={weight:g}": weight for weight in weights}, "sum": None}
    with one_calls_output(run / "composition", "figures.json") as output:
        referee = AttributeReferee.of(data, decoder.autoencoder if isinstance(decoder, LatentDecoder) else None)
        drawn = {
            "+".join(data.attributes[a] for a in attributes): {
                way: judged_composition(pipeline, referee, attributes, weight, seeds, **options)
                for way, weight in ways.items()
            }
            for attributes in asked_attributes(len(data.attributes))
        }
        for weight in weights:
            picture = composition_picture(pipeline, weight, range(seed, seed + COLUMNS), **options)
            save_picture(output.folder / f"guidance_{weight:g}.png", picture)
        output.record = {
            "num_images": num_images,
            "seed": seed,
            "sampling": sampling,
            "judge_right": {"test": referee.real, "reconstructions": referee.reconstructed},
            "composed": drawn,
        }
    return output.record


def composition_lines(figures: Mapping[str, Any]) -> str:
    """The figures of `run_composition`, a line a set of attributes and way."""

    def line(name: str, shares: Readings) -> str:
        return f"{name}: " + ", ".join(f"{attribute} {share:.3f}" for attribute, share in shares.items())

    lines = [line(f"judge on real {name}", shares) for name, shares in figures["judge_right"].items() if shares]
    lines += [line(f"{way:>6}", shares) for ways in figures["composed"].values() for way, shares in ways.items()]
    return "\n".join(lines)

"""Composition of concepts (eq. 13, 14): the density of several conditions together, and samples of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cdrl.arguments import check_kind, finite_number, in_order
from cdrl.config import DataConfig
from cdrl.model import CDRL, Label
from cdrl.sampling.noise import ImageNoise
from cdrl.sampling.sampler import LevelLogDensity, Propose
from pipelines.base import CDRLPipeline, ImageSource, LabelOrName, check_options, chosen_seeds, stream_seeds
from pipelines.results import Generated


def composed(
    model: CDRL, concepts: Sequence[Label], weight: float | None, count: int
) -> tuple[Propose, LevelLogDensity]:
    """Density of images that show M independent concepts: sum_i (w+1) f(.|c_i) - (Mw + M - 1) f(.|null).

    All evaluations go through the energy in one batch. The proposal is that of the null class. With one
    concept this is guidance of the density, and w = 0 composes without guidance (eq. 13).

    Args:
        concepts: at least one; each a class id for all images, or one per image.
        weight: w; None for sum_i f(.|c_i), the product of experts of Du et al. (2020), in which the factor common
            to all concepts, p(x), counts M times.
        count: number of images in a batch.
    """
    if not concepts:
        raise ValueError("concepts: expected at least one class id")
    device = next(model.parameters()).device
    num = len(concepts)
    labels = [model.labels(concept, count, device) for concept in concepts]
    weights = [1.0 if weight is None else weight + 1.0] * num
    null_weight = 0.0 if weight is None else num * weight + num - 1
    # The null class costs no evaluation where it does not count.
    if null_weight:
        labels, weights = [*labels, model.labels(None, count, device)], [*weights, -null_weight]
    together = model.conditioned(torch.cat(labels))
    factors = torch.tensor(weights, device=device)

    def log_density(y: Tensor, level: int) -> Tensor:
        values = together.log_density(y.repeat(len(factors), *[1] * (y.ndim - 1)), level)
        return factors @ values.reshape(len(factors), count)

    return model.conditioned(None).propose, log_density


def compose(
    pipeline: CDRLPipeline,
    num_images: int | None,
    concepts: Sequence[LabelOrName],
    *,
    seeds: Sequence[int] | None = None,
    seed: int | None = None,
    guidance: float | None = 0.0,
    **options: Any,
) -> Generated:
    """Draw images that show all given concepts (eq. 14).

    Args:
        concepts: class ids or names, at least one; each for all images, or one an image. See `composed`.
        num_images, seeds, seed, options: as in calling the pipeline. An image depends on its own seed and concepts.
        guidance: weight w; None for the plain sum of the concepts' log densities.

    Raises:
        TypeError, ValueError: as in calling the pipeline; or there is no concept.
    """
    check_options(options, compose)
    check_kind("pipeline", pipeline, CDRLPipeline, "a CDRLPipeline")
    if guidance is not None:
        guidance = finite_number("guidance", guidance, least=0, expected="a weight of 0 or more, or None")
    how = pipeline.drawing(**options)
    chosen = chosen_seeds(num_images, seeds, seed)
    labels = [
        pipeline.class_ids(concept, len(chosen)) for concept in in_order("concepts", concepts, "a list, such as [3, 8]")
    ]
    if not labels:
        raise ValueError("concepts: expected at least one class id or name, found none")

    def source(rows: slice) -> ImageSource:
        noise = ImageNoise(stream_seeds(chosen[rows]), pipeline.device)
        return ImageSource(noise, *composed(pipeline.model, [label[rows] for label in labels], guidance, len(noise)))

    drawn = pipeline.draw(len(chosen), source, how)
    return dataclasses.replace(drawn, seeds=tuple(chosen), guidance=guidance)


def concept_class(attribute: int, value: bool) -> int:
    """Class id of a value of the i-th attribute in ``data.attributes``."""
    return 2 * attribute + int(value)


def parse_concepts(data: DataConfig, words: Sequence[str]) -> list[int]:
    """Parse concepts such as ``Smiling=1`` (true) and ``Eyeglasses=0`` (false) into class ids.

    Raises:
        TypeError: there are no words in an order.
        ValueError: the run was not trained on attributes, a concept is not ATTRIBUTE=0 or 1, or one comes twice.
    """
    if data.labels != "attributes":
        raise ValueError(f"concepts are attributes and their values, but this run has data.labels={data.labels}")
    chosen: dict[int, int] = {}
    for word in in_order("concepts", words, "a list, such as ['Smiling=1']"):
        check_kind("concepts", word, str, "words such as 'Smiling=1'")
        name, _, value = word.partition("=")
        if name not in data.attributes or value not in ("0", "1"):
            known = ", ".join(data.attributes)
            raise ValueError(f"concept '{word}': expected NAME=1 or NAME=0 with one of the attributes {known}")
        attribute = data.attributes.index(name)
        if attribute in chosen:
            raise ValueError(f"concept '{word}': {name} is there already")
        chosen[attribute] = concept_class(attribute, value == "1")
    return list(chosen.values())

"""Out-of-distribution detection by the densities that a run has learned (Section 4.4, Tables 4 and 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from cdrl.arguments import check_kind, folder_of, in_order, whole_number
from cdrl.config import DataConfig
from cdrl.data import DataError, Split, as_floats, training_images
from cdrl.data.readers.checksums import NotAsPublishedError
from cdrl.registry import DATA_SETS
from cdrl.runs.outputs import one_calls_output
from cdrl.runs.run import RunError
from cdrl.sampling.noise import derive_seed
from cdrl.training.interruption import save_picture
from pipelines.base import CDRLPipeline
from pipelines.decoding import figure_picture
from pipelines.detection.scores import PAPER_SCORE, Readings, all_scores, detection_figures, read_levels
from pipelines.generation import default_device
from pipelines.images import Images
from pipelines.results import Drawn

_OWN_SPLITS: tuple[Split, ...] = ("test", "train")

TABLE_8_SETS = {
    "interpolation": "CIFAR-10 interpolation",
    "cifar100": "CIFAR-100",
    "celeba": "CelebA",
    "svhn": "SVHN",
    "dtd": "Texture",
}
"""The paper's sets for a CIFAR-10 model: their names here, and there."""

TABLE_8: dict[str, tuple[float | None, ...]] = {
    "PixelCNN": (0.71, 0.63, None, 0.32, 0.33),
    "GLOW": (0.51, 0.55, 0.57, 0.24, 0.27),
    "NVAE": (0.64, 0.56, 0.68, 0.42, None),
    "EBM-IG": (0.70, 0.50, 0.70, 0.63, 0.48),
    "VAEBM": (0.70, 0.62, 0.77, 0.83, None),
    "EBM-CD": (0.65, 0.83, None, 0.91, 0.88),
    "EBM-CD, by Yoon et al.": (None, 0.53, 0.54, 0.78, 0.73),
    "CLEL": (0.72, 0.72, 0.77, 0.98, 0.94),
    "DRL": (None, 0.44, 0.64, 0.88, 0.45),
    "MPDR-S": (None, 0.56, 0.73, 0.99, 0.66),
    "MPDR-R": (None, 0.64, 0.83, 0.98, 0.80),
    "CDRL": (0.75, 0.78, 0.84, 0.82, 0.65),
}
"""AUROC in the paper's Table 8, in the order of `TABLE_8_SETS`."""


# ---- sets of images ------------------------------------------------------------------------------------------------


def uniform_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every pixel any of 256 values."""
    return torch.randint(256, images.shape, generator=generator) / 127.5 - 1


def constant_images(images: Tensor, generator: torch.Generator) -> Tensor:
    """One of 256 values in all pixels of a channel."""
    return uniform_noise(images[..., :1, :1], generator).expand_as(images)


def inverted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Light for dark."""
    return -images


def shuffled(images: Tensor, generator: torch.Generator) -> Tensor:
    """The pixels of each image in an order of its own, the same in all its channels."""
    pixels = images.flatten(2)
    order = torch.rand(len(images), 1, pixels.shape[2], generator=generator).argsort(dim=2)
    return pixels.gather(2, order.expand_as(pixels)).view_as(images)


def interpolations(images: Tensor, generator: torch.Generator) -> Tensor:
    """The mean of each image and another one: halfway on the line between two images (Du & Mordatch, 2019).

    Raises:
        DataError: there is no other one.
    """
    if len(images) < 2:
        raise DataError("interpolation: needs two images at least, found one")
    order = torch.randperm(len(images), generator=generator)
    others = torch.empty_like(images)
    others[order] = images[order.roll(1)]
    return (images + others) / 2


def rotated(images: Tensor, generator: torch.Generator) -> Tensor:
    """A quarter turn to the left, which leaves all pixels' values as they are."""
    return images.rot90(1, (2, 3))


SYNTHETIC: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "noise": uniform_noise,
    "constant": constant_images,
    "inverted": inverted,
    "shuffled": shuffled,
    "interpolation": interpolations,
    "rotated": rotated,
}
"""Sets that need no files: made of in-distribution images [N, C, H, W] in [-1, 1]."""


@dataclass(frozen=True)
class Source:
    """A set of images as it is asked for: ``test``, ``train``, one of `SYNTHETIC`, or a data set's NAME or NAME:PATH.

    Attributes:
        spec: what was asked for.
        data: how the images are read; the run's own data set for its splits and for what is made of them.
        split: of that data set.
    """

    spec: str
    data: DataConfig
    split: Split

    @classmethod
    def parse(cls, spec: str, own: DataConfig) -> Source:
        """Read a specification; another data set's images get the size and the channels of the run's ``own``.

        Raises:
            DataError: there is no such set, or it needs a path.
            TypeError: the specification is no text.
        """
        check_kind("set of images", spec, str, "NAME or NAME:PATH")
        name, _, path = spec.partition(":")
        if not path and (name in _OWN_SPLITS or name in SYNTHETIC):
            return cls(spec, own, "train" if name == "train" else "test")
        if name not in DATA_SETS:
            known = ", ".join((*_OWN_SPLITS, *SYNTHETIC, *DATA_SETS))
            raise DataError(f"{spec}: no such set of images; there are {known}, the last ones as NAME or NAME:PATH")
        values = {"name": name, "image_size": own.image_size, "channels": own.channels, "cache": own.cache}
        try:
            return cls(spec, DataConfig.model_validate({**values, "path": path or None}), "test")
        except ValidationError:
            raise DataError(f"{spec}: where is it? Name its folder: {name}:PATH") from None

    def note(self) -> str:
        """What the images are."""
        if self.spec in SYNTHETIC:
            return f"{self.spec}: made of the in-distribution images"
        shape = f"{self.data.channels} x {self.data.image_size} x {self.data.image_size}"
        own = "the run's own images"
        kind = own if self.spec in _OWN_SPLITS else "cropped, resized and turned grey or RGB if published otherwise"
        return f"{self.spec}: {self.split} split of {self.data.name}, {shape}, {kind}"

    def images(self, count: int, seed: int) -> Tensor:
        """Up to ``count`` images that are read, chosen at random where there are more: uint8 [N, C, H, W].

        Raises:
            DataError: the set is missing or damaged.
        """
        try:
            found = training_images(self.data, self.split).grids
        except NotAsPublishedError as error:
            if self.spec in _OWN_SPLITS or self.spec in SYNTHETIC:  # the run's configuration has the setting
                raise
            way = "in a configuration: prepare its data, and name them here as shards:FOLDER"
            raise DataError(f"{error}, {way}") from None
        if len(found) > count:
            generator = torch.Generator().manual_seed(derive_seed(seed, "images", self.spec))
            return found[torch.randperm(len(found), generator=generator)[:count].sort().values]
        return found[:]


def made_of(images: Tensor, spec: str, seed: int) -> Tensor:
    """One of the `SYNTHETIC` sets, made of images, uint8 [N, C, H, W]: floats in [-1, 1]."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "synthetic", spec))
    return SYNTHETIC[spec](as_floats(images), generator)


def other_images(source: Source, inside: Tensor, count: int, seed: int) -> Tensor:
    """Images of a set [N, C, H, W]: read, or made of the in-distribution ones ``inside``, uint8.

    Raises:
        DataError: the set is missing or damaged.
    """
    return made_of(inside, source.spec, seed) if source.spec in SYNTHETIC else source.images(count, seed)


def title(spec: str) -> str:
    """A short name of the set that was asked for as ``spec``."""
    name, _, path = spec.partition(":")
    return Path(path).name if name in ("folder", "shards") else name


# ---- detection -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detection:
    """What came of it.

    Attributes:
        report: as written to detection.json.
        inside: the paper's score of the in-distribution images, [N].
        outside: that of each other set, by what it was asked for as.
    """

    report: dict[str, Any]
    inside: Tensor
    outside: dict[str, Tensor]


def detect(
    pipeline: CDRLPipeline,
    out: Sequence[str] = (),
    *,
    images: Mapping[str, Drawn | Images] | None = None,
    in_distribution: str = "test",
    num_images: int = 1000,
    seed: int = 0,
) -> Detection:
    """Tell in-distribution images from those of other sets by every score there is.

    A conditional model is asked without a class.

    Args:
        in_distribution: ``test``, ``train`` or another data set, see `Source`.
        out: the other sets, see `Source`.
        images: further sets by name, such as samples that the pipeline or `pipelines.fill` returned, see
            `CDRLPipeline.images_of`.
        num_images: of each set at most.

    Raises:
        RunError: the run has no images, or a density is NaN or infinite.
        DataError: a set is missing, damaged or unknown, or named twice.
        TypeError, ValueError: another argument is of another kind than it has to be, or cannot be.
    """
    num_images, seed = whole_number("num_images", num_images, least=2), whole_number("seed", seed)
    check_kind("pipeline", pipeline, CDRLPipeline, "a CDRLPipeline")
    check_kind("in_distribution", in_distribution, str, "NAME or NAME:PATH")
    out = in_order("out", out, "a list, such as ['noise']")
    check_kind("images", {} if images is None else images, Mapping, "sets of images by name, such as {'mine': images}")
    for name in images or {}:
        check_kind("images", name, str, "names of sets in text")
    if pipeline.config.space == "point":
        raise RunError("detection reads images, but this is a run of 2-D points")
    given = {name: pipeline.images_of(found).cpu() for name, found in (images or {}).items()}
    named_twice = len({*out, *given}) < len(out) + len(given) or in_distribution in given
    if named_twice or not (out or given):
        raise DataError("the sets to be told from the in-distribution one: expected at least one, and none twice")
    if in_distribution in SYNTHETIC:
        raise DataError(f"{in_distribution}: is made of in-distribution images, and cannot be these itself")
    own = pipeline.config.data
    inside, sources = Source.parse(in_distribution, own), [Source.parse(spec, own) for spec in out]
    inside_images = inside.images(num_images, seed)

    # All are read before any is scored, so that a missing one is told at once; as bytes, which take little memory.
    read = {each.spec: None if each.spec in SYNTHETIC else each.images(num_images, seed) for each in sources}
    others = {**read, **given}
    notes = {**{source.spec: source.note() for source in sources}, **dict.fromkeys(given, "images that were given")}
    reference = density_readings(pipeline, "train", Source.parse("train", own).images(num_images, seed))
    inside_scores = all_scores(density_readings(pipeline, in_distribution, inside_images), reference)
    sets, outside = {}, {}
    for name, found in others.items():
        shown = made_of(inside_images, name, seed) if found is None else found
        readings = reference if name == "train" else density_readings(pipeline, name, shown)
        scores = all_scores(readings, reference)
        outside[name] = scores[PAPER_SCORE]
        sets[name] = {
            "note": notes[name],
            "num_images": len(scores[PAPER_SCORE]),
            "scores": {score: detection_figures(inside_scores[score], values) for score, values in scores.items()},
        }
    report = {
        "data": own.name,
        "in_distribution": inside.note(),
        "num_images": len(inside_images),
        "seed": seed,
        "out_of_distribution": sets,
    }
    return Detection(report, inside_scores[PAPER_SCORE], outside)


def density_readings(pipeline: CDRLPipeline, name: str, images: Tensor) -> Readings:
    """`read_levels` of images [N, C, H, W] by a model without a class.

    Raises:
        RunError: a density is NaN or infinite; the message has the ``name`` of the images.
    """
    grids = pipeline.grids_of(images)
    readings = read_levels(pipeline.model.schedule, pipeline.model.conditioned().log_density, grids)
    broken = int((~(readings.log_density + readings.gradient_norm).isfinite().all(dim=1)).sum())
    if broken:
        raise RunError(f"{name}: the model's densities are NaN or infinite for {broken} of {len(images)} images")
    return readings


def run_detection(run: Path, out: Sequence[str], **options: Any) -> Detection:
    """`detect` for a run; leaves detection.json and the histograms detection.png in its folder."""
    run = folder_of("run", run)
    pipeline = CDRLPipeline.from_pretrained(run, default_device())
    with one_calls_output(run, "detection.json", alone=False) as output:
        detection = detect(pipeline, out, **options)
        save_picture(output.folder / "detection.png", histograms(detection))
        output.record = detection.report
    return detection


def detection_table(report: Mapping[str, Any]) -> str:
    """A report of `detect` for a terminal; of a CIFAR-10 model with the paper's Table 8 where it has such sets."""
    sets = report["out_of_distribution"]
    heads = [title(spec) for spec in sets]
    notes = [f"in-distribution: {report['in_distribution']}", *(f"against: {found['note']}" for found in sets.values())]
    names = list(next(iter(sets.values()))["scores"])
    auroc = {name: [found["scores"][name]["auroc"] for found in sets.values()] for name in names}
    others = {
        f"{figure} of {PAPER_SCORE}": [found["scores"][PAPER_SCORE][figure] for found in sets.values()]
        for figure in ("aupr_in", "aupr_out", "fpr95")
    }
    blocks = ["\n".join(notes), _table("AUROC", heads, auroc), _table("", heads, others)]
    ours = {spec.partition(":")[0]: found["scores"][PAPER_SCORE]["auroc"] for spec, found in sets.items()}
    if report["data"] == "cifar10" and ours.keys() & TABLE_8_SETS.keys():
        rows = {**TABLE_8, "this run": tuple(ours.get(name) for name in TABLE_8_SETS)}
        blocks.append(_table("Table 8 (AUROC)", list(TABLE_8_SETS.values()), rows))
    return "\n\n".join(blocks)


def _table(corner: str, heads: Sequence[str], rows: Mapping[str, Sequence[float | None]]) -> str:
    width = max(len(name) for name in (corner, *rows)) + 2
    lines = [corner.ljust(width) + "".join(head.rjust(max(8, len(head) + 2)) for head in heads)]
    for name, figures in rows.items():
        cells = ["-" if figure is None else f"{figure:.3f}" for figure in figures]
        lines.append(
            name.ljust(width) + "".join(c.rjust(max(8, len(h) + 2)) for c, h in zip(cells, heads, strict=True))
        )
    return "\n".join(lines)


def histograms(detection: Detection, columns: int = 3) -> Tensor:
    """The paper's score of the in-distribution images and of each other set, a panel a set: uint8 [3, H, W].

    All panels have one axis: where the in-distribution scores lie, and three times as far below. What lies beyond is
    counted in the outermost bars.
    """
    inside = detection.inside
    reach = max(float(inside.max() - inside.min()), 1e-6)
    low, high = float(inside.min()) - 3 * reach, float(inside.max()) + reach / 2
    edges = np.linspace(low, high, 61)
    rows = -(-len(detection.outside) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.1 * rows), dpi=100, sharex=True, squeeze=False)
    for panel in axes.flat[len(detection.outside) :]:
        panel.set_axis_off()
    for panel, (spec, scores) in zip(axes.flat, detection.outside.items(), strict=False):
        auroc = detection.report["out_of_distribution"][spec]["scores"][PAPER_SCORE]["auroc"]
        for values, colour, name in ((inside, "tab:blue", "in"), (scores, "tab:orange", "out")):
            clipped = values.clamp(low, high).numpy()
            panel.hist(
                clipped, edges, weights=np.full(len(clipped), 1 / len(clipped)), color=colour, alpha=0.6, label=name
            )
        panel.set_title(f"{title(spec)}: AUROC {auroc:.3f}", fontsize=9)
        panel.set(xlim=(low, high), yticks=[])
        panel.tick_params(labelsize=7)
    axes.flat[0].legend(fontsize=8, loc="upper left")
    figure.supxlabel("log density of level 0, up to a constant", fontsize=9)
    figure.tight_layout()
    return figure_picture(figure)

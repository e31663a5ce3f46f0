"""What log densities and normalizers say of images: likelihoods, a bound through a decoder, detection, baselines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cdrl.data import DataError, Split
from cdrl.runs.run import RunError
from pipelines.base import CDRLPipeline
from pipelines.decoding import LatentDecoder
from pipelines.detection.detect import Source, other_images
from pipelines.detection.scores import detection_figures
from pipelines.likelihood.baselines import BASELINES, check_baselines
from pipelines.likelihood.decoder_bound import Coded, bound_seeds, coded, run_posterior
from pipelines.likelihood.images import EIGHT_BIT_STEP, Clean, chosen_images, clean_grids, noised, only_class
from pipelines.likelihood.normalizer import Normalizers

SPREAD_IMAGES = 4000
"""Training images at most from which covariances are taken."""
BASELINE_IMAGES, BASELINE_BYTES = 60_000, 2**30
"""Training images at most to which baselines are fitted, and bytes of their 8-bit pixels: they are held in memory, as
grids, for which pixels take four times as much."""
_BATCH = 256
_End = Literal["bridge", "lower", "upper"]


@dataclass(frozen=True)
class Question:
    """Whose likelihood is asked for.

    Attributes:
        num_images: of each split at most.
        label: class id or name that the density is conditioned on; None or -1 for none.
        each_class: every class has its own normalizer, and images are scored under each of them.
        level: whose noise images have, and whose density is measured; 0 has the least.
        baselines: names of `BASELINES`, densities to be fitted and evaluated on the same noisy held-out images.
        against: other sets of images, as `pipelines.detection.detect.Source` names them, to be told from held-out ones.
    """

    num_images: int = 500
    label: int | str | None = None
    each_class: bool = False
    level: int = 0
    baselines: tuple[str, ...] = ()
    against: tuple[str, ...] = ()

    def classes(self, pipeline: CDRLPipeline) -> list[int]:
        """The class ids whose normalizers are needed.

        Raises:
            ValueError: the run has no classes, or a class is asked for beside all of them.
        """
        if not self.each_class:
            return [int(pipeline.class_ids(self.label, 1)[0])]
        if not pipeline.model.num_classes:
            raise ValueError("each_class: this run has no classes")
        if self.label is not None:
            raise ValueError("label: would change nothing where each class is asked for")
        return list(range(pipeline.model.num_classes))

    def check(self, pipeline: CDRLPipeline, seed: int) -> None:
        """Read all images once, and look for what baselines need: what is wrong is told before hours are spent.

        Raises:
            DataError: a set is unknown, missing or damaged, named twice, or that of the held-out images; or there is no
                image of the class.
            RunError: the run is one of points, or a baseline needs a package that is not installed.
            ValueError: a baseline is unknown, or named twice.
        """
        check_baselines(self.baselines)
        if self.against and pipeline.config.space == "point":
            raise RunError("against: sets of images, but this is a run of 2-D points")
        if len(set(self.against)) < len(self.against):
            raise DataError(f"against: a set is named twice: {', '.join(self.against)}")
        if "test" in self.against:
            raise DataError("against: test are the held-out images, from which other sets are to be told")
        if pipeline.config.space == "point":
            return
        classes = self.classes(pipeline)
        label = only_class(classes)
        own = chosen_images(pipeline, "test", self.num_images, seed, label)[0]
        chosen_images(pipeline, "train", self.num_images, seed, label)
        for spec in self.against:
            other_images(Source.parse(spec, pipeline.config.data), own, self.num_images, seed)


@torch.no_grad()
def class_log_densities(pipeline: CDRLPipeline, x: Tensor, classes: Sequence[int], level: int = 0) -> Tensor:
    """Log density of x_t [N, *shape] up to log Z under each class: float64 [N, classes]."""
    schedule = pipeline.model.schedule
    alpha_y = float(schedule.alpha_y[level])
    columns = []
    for label in classes:
        conditioned = pipeline.model.conditioned(label)
        parts = [conditioned.log_density(alpha_y * part, level).double().cpu() for part in x.split(_BATCH)]
        columns.append(torch.cat(parts) + x[0].numel() * math.log(alpha_y))
    return torch.stack(columns, dim=1)


def split_figures(values: Tensor, clean: Clean, normalizers: Normalizers, *, eight_bits: bool) -> dict[str, Any]:
    """Figures of one split, see `likelihood_report`, from log densities up to log Z, [N, classes].

    Of several classes the density is their mixture in equal shares; ``conditional`` is that given the true class, and
    ``class_right`` the share of images whose likeliest class is the true one.
    """
    dimension = clean.grids[0].numel()
    each = list(normalizers.of_class.values())
    nats = mixed(values, normalizers)
    figures: dict[str, Any] = {
        "num_images": len(values),
        "nats": float(nats.mean()),
        "with_upper_log_z": float(mixed(values, normalizers, "upper").mean()),
        "with_lower_log_z": float(mixed(values, normalizers, "lower").mean()),
        "standard_error": float(nats.std() / math.sqrt(len(values))),
    }
    bits = -figures["nats"] / dimension / math.log(2)
    figures["bits_per_dimension"] = bits
    if eight_bits:
        figures["bits_per_dimension_of_8_bit_steps"] = bits - math.log2(EIGHT_BIT_STEP)
    if len(each) > 1:
        normalized = values - log_z_of(normalizers)
        true = normalized.gather(1, clean.labels[:, None])[:, 0]
        figures["conditional"] = float(true.mean())
        figures["class_right"] = float((normalized.argmax(dim=1) == clean.labels).double().mean())
    return figures


def log_z_of(normalizers: Normalizers, which: _End = "bridge") -> Tensor:
    """log Z of every class by one of the estimates, float64 [classes]."""
    each = normalizers.of_class.values()
    found = [one.bridge if which == "bridge" else getattr(one.bracket, which) for one in each]
    return torch.tensor([one.log_z for one in found], dtype=torch.float64)


def mixed(values: Tensor, normalizers: Normalizers, which: _End = "bridge") -> Tensor:
    """Log density in nats under the mixture of all classes in equal shares, [N], from `class_log_densities`."""
    return (values - log_z_of(normalizers, which)).logsumexp(dim=1) - math.log(values.shape[1])


def image_bound(pipeline: CDRLPipeline, question: Question, normalizers: Normalizers, seed: int) -> dict[str, Any]:
    """A lower bound on the mean log-likelihood of held-out images themselves, see `decoder_bound`.

    It holds as far as log Z does not exceed the largest of its three estimates, which is what it is computed with.

    The decoder's standard deviation is the best one for training images. ``rate`` is log q - log p of the latent, what
    it takes to send it. Both are nats an image.
    """
    decoder, schedule = pipeline.decoder, pipeline.model.schedule
    assert isinstance(decoder, LatentDecoder)
    classes = list(normalizers.of_class)
    label = only_class(classes)
    posterior = run_posterior(pipeline.config, decoder, schedule)
    signal = float(schedule.alpha_bar[0])

    def draws(split: Split) -> Coded:
        images, _ = chosen_images(pipeline, split, question.num_images, seed, label)
        seeds = bound_seeds(split, len(images), seed)
        return coded(images, posterior, lambda z: decoder.decoded(z / signal), seeds, pipeline.device)

    std, held_out = draws("train").best_std, draws("test")
    values = class_log_densities(pipeline, held_out.latents, classes)
    ends: tuple[_End, ...] = ("bridge", "lower", "upper")
    log_prior = min((mixed(values, normalizers, end) for end in ends), key=lambda each: float(each.mean()))
    if not bool((log_prior + held_out.log_q + held_out.squared_error).isfinite().all()):
        raise RunError("the bound through the decoder is NaN or infinite for some held-out images")
    bound = held_out.bound(log_prior, std)
    nats = float(bound.mean())
    return {
        "nats": nats,
        "standard_error": float(bound.std() / math.sqrt(len(bound))),
        "bits_per_dimension_of_8_bit_steps": -nats / held_out.pixels / math.log(2) - math.log2(EIGHT_BIT_STEP),
        "rate": float((held_out.log_q - log_prior).mean()),
        "decoder_std": std,
        "dequantization": "noise as wide as one step of 8 bits, uniform",
    }


def detection_by_likelihood(
    pipeline: CDRLPipeline, question: Question, normalizers: Normalizers, seed: int, nats: Mapping[Split, Tensor]
) -> dict[str, Any]:
    """AUROC of held-out images against other sets, all with the level's noise, by log density and by typicality.

    Typicality is minus the distance of an image's log density from the mean over training images (Nalisnick et al.,
    2019).

    Args:
        nats: of the held-out images and of the training images.
    """
    schedule, classes = pipeline.model.schedule, list(normalizers.of_class)
    label = only_class(classes)
    own = chosen_images(pipeline, "test", question.num_images, seed, label)[0]
    typical = nats["train"].mean()
    found = {}
    for spec in question.against:
        images = other_images(Source.parse(spec, pipeline.config.data), own, question.num_images, seed)
        x = noised(schedule, pipeline.grids_of(images), question.level, seed, spec)
        values = mixed(class_log_densities(pipeline, x, classes, question.level), normalizers)
        if not bool(values.isfinite().all()):
            raise RunError(f"{spec}: the model's densities are NaN or infinite for some images")
        scores = {"likelihood": (nats["test"], values)}
        scores["typicality"] = (-(nats["test"] - typical).abs(), -(values - typical).abs())
        auroc = {name: detection_figures(inside, outside)["auroc"] for name, (inside, outside) in scores.items()}
        found[spec] = {"num_images": len(values), "nats": float(values.mean()), "auroc": auroc}
    return found


def baseline_figures(
    pipeline: CDRLPipeline, noisy: Tensor, question: Question, classes: Sequence[int]
) -> dict[str, dict[str, float]]:
    """Nats and bits a dimension of noisy held-out images [N, *shape] under what `baselines` fits to training images."""
    schedule, level = pipeline.model.schedule, question.level
    label = only_class(classes)
    data = pipeline.config.data
    count = min(BASELINE_IMAGES, BASELINE_BYTES // (data.channels * data.image_size**2))
    train = clean_grids(pipeline, "train", count, 0, label).grids.flatten(1).cpu()
    alpha, sigma = float(schedule.alpha_bar[level]), float(schedule.sigma_bar[level])
    figures = {}
    for name in question.baselines:
        fitted = BASELINES[name](train, noisy.flatten(1).cpu(), alpha, sigma)
        nats = float(fitted.log_density.mean())
        error = float(fitted.log_density.std() / math.sqrt(len(noisy)))
        bits = -nats / train.shape[1] / math.log(2)
        figures[fitted.name] = {"nats": nats, "standard_error": error, "bits_per_dimension": bits}
    return figures

"""Log-likelihoods of held-out and training images under a run's own density, with the normalizer in a bracket.

What is measured is the density of the slightly noisy image x_0 = alpha_bar_0 x + sigma_bar_0 eps, the model's smallest
noise: of this the lowest energy is a density, and the noise takes the place of dequantization. Higher levels are
densities of noisier images.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from cdrl.arguments import folder_of
from cdrl.data import Split
from cdrl.runs.model_folder import find_model
from cdrl.runs.outputs import one_calls_output
from cdrl.runs.run import RunError
from cdrl.sampling.noise import derive_seed
from cdrl.training.engine import World, barrier, locked_by_main, start
from cdrl.training.interruption import save_picture
from pipelines.base import CDRLPipeline
from pipelines.decoding import figure_picture
from pipelines.likelihood.figures import (
    SPREAD_IMAGES,
    Question,
    baseline_figures,
    class_log_densities,
    detection_by_likelihood,
    image_bound,
    mixed,
    split_figures,
)
from pipelines.likelihood.images import EIGHT_BIT_STEP, clean_grids, noised, only_class
from pipelines.likelihood.levels import LevelPath, clean_spread, tail_slope
from pipelines.likelihood.normalizer import METHOD, Bracketing, Effort, Normalizer, Normalizers

RECORD, PICTURE = "likelihood.json", "likelihood.png"
_CROSSED = 3.0
"""Standard errors by which a gap has to be negative for that to be told."""


# ---- one model -----------------------------------------------------------------------------------------------------


def level_normalizers(
    pipeline: CDRLPipeline, classes: Sequence[int], effort: Effort, folder: Path, world: World, *, level: int = 0
) -> Normalizers:
    """Bracket log Z of a level for some classes; the chains of the way back start in noised training images.

    Args:
        folder: keeps what is finished; of this model and these classes alone.

    Raises:
        DataError: training images cannot be read, or there are none of a class.
        Interrupted: after Ctrl-C or SIGTERM; the same call goes on.
    """
    schedule, seed = pipeline.model.schedule, effort.seed
    clean = clean_grids(pipeline, "train", SPREAD_IMAGES, seed)
    starts = []
    for label in classes:
        grids = clean_grids(pipeline, "train", effort.chains, derive_seed("starts", seed), label).grids
        # Where there are fewer images than chains some start twice, with other noise.
        repeated = grids[torch.arange(effort.chains, device=grids.device) % len(grids)]
        starts.append(noised(schedule, repeated, level, seed, f"start {label}"))
    labels = torch.tensor(list(classes), device=pipeline.device)
    path = LevelPath(pipeline.model, labels, clean_spread(clean.grids.cpu()), lowest=level)
    return Bracketing(path, effort, folder, world).run(float(schedule.alpha_y[level]) * torch.cat(starts))


def check_normalizable(pipeline: CDRLPipeline, label: int, level: int) -> None:
    """Raise RunError where a level's density has no finite integral, see `levels.tail_slope`."""
    slope = tail_slope(pipeline.model, label, level)
    if slope <= 0:
        return
    found = (
        other
        for other in range(level + 1, pipeline.model.schedule.num_levels)
        if tail_slope(pipeline.model, label, other) <= 0
    )
    higher = next(found, None)
    instead = "" if higher is None else f"; level {higher} can be: --level {higher}"
    raise RunError(
        f"level {level}: its density cannot be normalized: far from all data its logarithm rises by {slope:.3g} nats a "
        f"unit of distance{instead}"
    )


# ---- report --------------------------------------------------------------------------------------------------------


def run_likelihood(run: Path, question: Question, effort: Effort) -> dict[str, Any]:
    """Measure a run; every process calls it. Leaves likelihood.json and likelihood.png in its folder.

    What is finished of the long computation is kept in RUN/likelihood: interrupted, the same call goes on.

    Raises:
        RunError: there is no trained model, or its densities are not finite on images.
        DataError: the images cannot be read.
        ValueError: there is no such class, or an argument would change nothing.
        Interrupted: after Ctrl-C or SIGTERM.
    """
    run, world = folder_of("run", run), start()
    pipeline = CDRLPipeline.from_pretrained(run, world.device)
    classes, level = question.classes(pipeline), pipeline.model.level_of(question.level)
    question.check(pipeline, effort.seed)
    for label in classes:
        check_normalizable(pipeline, label, level)
    own = hashlib.blake2b(digest_size=16)
    for path in sorted((*find_model(run).rglob("*.safetensors"), find_model(run) / "config.json")):
        own.update(path.read_bytes())
    key = derive_seed("likelihood", own.hexdigest(), METHOD, *classes)
    folder = run / "likelihood" / f"{key:016x}"
    with locked_by_main(run / "likelihood", world):
        normalizers = level_normalizers(pipeline, classes, effort, folder, world, level=level)
        report: dict[str, Any] = {}
        if world.is_main:
            report = likelihood_report(pipeline, question, normalizers, effort)
            with one_calls_output(run, RECORD, alone=False) as output:
                save_picture(output.folder / PICTURE, bracket_picture(normalizers))
                output.record = report
        barrier()
    return report


def likelihood_report(
    pipeline: CDRLPipeline, question: Question, normalizers: Normalizers, effort: Effort
) -> dict[str, Any]:
    """What is written to likelihood.json.

    ``held_out`` and ``train`` have, in nats an image, the mean log density of noisy images, ``standard_error`` over
    images, and the same ``with_upper_log_z`` and ``with_lower_log_z`` in the place of the bridge's; and
    ``bits_per_dimension``, of pixels in [-1, 1]; ``…_of_8_bit_steps`` counts pixels as 0 … 255 are counted. Fewer bits
    are better. A latent run has ``image_at_least`` too, see `image_bound`; and ``detection`` what
    `detection_by_likelihood` finds, if it is asked for.
    """
    classes = list(normalizers.of_class)
    schedule = pipeline.model.schedule
    dimension, noise = math.prod(pipeline.model.shape), float(schedule.sigma_bar[question.level])
    splits: dict[str, Any] = {}
    noisy_held_out = torch.empty(0)
    nats: dict[Split, Tensor] = {}
    named: tuple[tuple[str, Split], ...] = (("held_out", "test"), ("train", "train"))
    for name, split in named:
        # A density of one class is that of its images.
        label = only_class(classes)
        clean = clean_grids(pipeline, split, question.num_images, effort.seed, label)
        x = noised(schedule, clean.grids, question.level, effort.seed, split)
        values = class_log_densities(pipeline, x, classes, question.level)
        noisy_held_out = x if split == "test" else noisy_held_out
        if not bool(values.isfinite().all()):
            raise RunError(f"{split}: the model's densities are NaN or infinite for some images")
        splits[name] = split_figures(values, clean, normalizers, eight_bits=pipeline.config.space == "pixel")
        nats[split] = mixed(values, normalizers)
    if pipeline.config.space == "latent" and question.level == 0:
        splits["image_at_least"] = image_bound(pipeline, question, normalizers, effort.seed)
    if question.against:
        splits["detection"] = detection_by_likelihood(pipeline, question, normalizers, effort.seed, nats)
    return {
        "density_of": _thing(pipeline, noise),
        "level": question.level,
        "dimension": dimension,
        "noise": noise,
        "classes": [_class_name(pipeline, label) for label in classes],
        **splits,
        **({"baselines": baseline_figures(pipeline, noisy_held_out, question, classes)} if question.baselines else {}),
        "noise_alone_bits_per_dimension": math.log2(noise * math.sqrt(2 * math.pi * math.e)),
        "log_z": {
            _class_name(pipeline, label): _normalizer_facts(each) for label, each in normalizers.of_class.items()
        },
        "mean_log_density_up_to_log_z": normalizers.typical,
        "gradients": normalizers.gradients,
        "effort": {**dataclasses.asdict(effort), "num_images": question.num_images},
    }


def _thing(pipeline: CDRLPipeline, noise: float) -> str:
    space = pipeline.config.space
    if space == "latent":
        return f"standardized latent of the first stage with Gaussian noise of standard deviation {noise:.4f} upon it"
    if space == "point":
        return f"point with Gaussian noise of standard deviation {noise:.4f} upon it"
    steps = noise / EIGHT_BIT_STEP
    return (
        f"image, pixels in [-1, 1], with Gaussian noise of standard deviation {noise:.4f} upon it "
        f"({steps:.2f} steps of 8 bits), which takes the place of dequantization"
    )


def _class_name(pipeline: CDRLPipeline, label: int) -> str:
    return "none" if label < 0 else pipeline.class_names[label]


def _normalizer_facts(normalizer: Normalizer) -> dict[str, Any]:
    bracket = normalizer.bracket
    return {
        "lower": dataclasses.asdict(bracket.lower),
        "upper": dataclasses.asdict(bracket.upper),
        "gap": bracket.upper.log_z - bracket.lower.log_z,
        "bridge": dataclasses.asdict(normalizer.bridge),
        "integral": dataclasses.asdict(normalizer.integral) if normalizer.integral else None,
        "segments": [dataclasses.asdict(segment) for segment in normalizer.segments],
    }


def likelihood_table(report: Mapping[str, Any]) -> str:
    """A report for a terminal."""
    lines = [f"log density of the {report['density_of']}; {report['dimension']} dimensions"]
    for name in ("held_out", "train"):
        found = report[name]
        upper, lower = found["with_upper_log_z"], found["with_lower_log_z"]
        ends = f"{upper:.2f} with the upper estimates of log Z, {lower:.2f} with the lower"
        line = (
            f"{name.replace('_', '-')} ({found['num_images']}): {found['nats']:.2f} ± {found['standard_error']:.2f} "
            f"nats ({ends}), {found['bits_per_dimension']:.3f} bits a dimension"
        )
        if "bits_per_dimension_of_8_bit_steps" in found:
            line += f", {found['bits_per_dimension_of_8_bit_steps']:.3f} of 8-bit steps"
        if "class_right" in found:
            line += f"; likeliest class right {found['class_right']:.3f}"
        lines.append(line)
    for name, found in report["log_z"].items():
        lower, upper, bridge = found["lower"], found["upper"], found["bridge"]
        which = "" if name == "none" else f" of class {name}"
        lines.append(
            f"log Z{which}: {lower['log_z']:.3f} ± {lower['standard_error']:.3f} to "
            f"{upper['log_z']:.3f} ± {upper['standard_error']:.3f}, bridge {bridge['log_z']:.3f} "
            f"(gap {found['gap']:.3f}; effective samples {lower['effective_samples']:.1f}, "
            f"{upper['effective_samples']:.1f})"
            + (
                f"; by integration {each['log_z']:.3f} ± {each['standard_error']:.3f}"
                if (each := found["integral"])
                else ""
            )
        )
    lines.extend(_crossed(report["log_z"]))
    for name, found in report.get("baselines", {}).items():
        lines.append(
            f"{name}: {found['nats']:.2f} ± {found['standard_error']:.2f} nats on the same held-out ones, "
            f"{found['bits_per_dimension']:.3f} bits a dimension"
        )
    if "image_at_least" in report:
        found = report["image_at_least"]
        lines.append(
            f"the image itself, through the decoder: at least {found['nats']:.1f} ± {found['standard_error']:.1f} nats "
            f"({found['bits_per_dimension_of_8_bit_steps']:.3f} bits a dimension of 8-bit steps), of which the latent "
            f"takes {found['rate']:.1f}"
        )
    for name, found in report.get("detection", {}).items():
        by = ", ".join(f"{score} {value:.3f}" for score, value in found["auroc"].items())
        lines.append(f"{name} ({found['num_images']}): {found['nats']:.2f} nats; AUROC of held-out ones by {by}")
    typical = report["mean_log_density_up_to_log_z"]
    lines.append(
        f"mean log density up to log Z: noisy training images {typical['start']:.2f}, moved on by the chains "
        f"{typical['equilibrated']:.2f}, forward chains' ends {typical['annealed']:.2f}"
    )
    return "\n".join(lines)


def _crossed(log_z: Mapping[str, Any]) -> Iterator[str]:
    """A line where estimates contradict that chains of the way back started in samples of the model."""
    errors = {
        name: math.hypot(*(found[end]["standard_error"] for end in ("lower", "upper"))) for name, found in log_z.items()
    }
    names = [name for name, found in log_z.items() if found["gap"] < -_CROSSED * errors[name]]
    if names:
        yield (
            f"upper estimates below the lower ones (class {', '.join(names)}): the model may have mass to which no "
            "training image leads; trust the likelihoods with the lower estimates, or spend more"
        )


def bracket_picture(normalizers: Normalizers) -> Tensor:
    """log Z along the levels, and the width of its bracket, a line a class: uint8 [3, H, W]."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(6, 5.5), dpi=100, sharex=True)
    for label, normalizer in normalizers.of_class.items():
        levels = [segment.level for segment in normalizer.segments]
        lower, upper, middle = zip(*normalizer.along(), strict=True)
        name = "no class" if label < 0 else f"class {label}"
        above.plot(levels, middle, marker="o", markersize=3, label=name)
        above.fill_between(levels, lower, upper, alpha=0.3)
        below.plot(levels, [b - a for a, b in zip(lower, upper, strict=True)], marker="o", markersize=3)
    above.set(ylabel="log Z of the level in nats")
    above.legend(fontsize=7, ncols=2)
    below.axhline(0, color="grey", linewidth=0.5)
    below.set(ylabel="upper minus lower estimate", xlabel="level: noise on the left, images on the right")
    below.invert_xaxis()
    figure.tight_layout()
    return figure_picture(figure)

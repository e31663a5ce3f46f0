"""Comparison of sampling with different numbers of energy gradients (Table 2)."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from autoencoder.lite0 import Lite0
from autoencoder.reconstruction import reconstruct
from cdrl.config import SamplerSettings
from cdrl.data import Grids, training_images
from cdrl.runs.lock import locked
from cdrl.runs.run import RunError, write_json
from cdrl.sampling.settings import AUTO_REACH, ChainPlan, effective, step_adjustment
from pipelines.base import CDRLPipeline
from pipelines.decoding import LatentDecoder
from pipelines.evaluation.distances import frechet_distance
from pipelines.evaluation.features import lite0_features
from pipelines.evaluation.referee import Referee
from pipelines.generation import default_device, labels_in_turn

BUDGETS = (15, 8, 5, 3)
"""Steps a level in the paper's Table 2."""
_REJECTING = ("mala", "hmc")
_TOLD = ("steps", "step_scale", "temperature", "denoise")


def budgets(pipeline: CDRLPipeline) -> dict[str, ChainPlan]:
    """Sampler plans to compare, by name: Table 2's, ``auto``, and the run's own.

    Chains of 8, 5 and 3 steps travel as far as 15 of the trained size: s' = s sqrt(15 / steps). The two parts of
    ``auto`` are also tested separately: its steps at temperature 1, and its temperature with 15 steps.
    """
    own, auto = pipeline.drawing().plan, pipeline.drawing(steps="auto").plan
    levels = pipeline.model.schedule.num_levels
    table = {
        str(steps): replace(
            own, temperature=1.0, steps=(steps,) * levels, step_scale=step_adjustment(AUTO_REACH, steps)
        )
        for steps in BUDGETS
    }
    return {
        **table,
        f"15 at temperature {auto.temperature}": replace(table["15"], temperature=auto.temperature),
        "auto at temperature 1": replace(auto, temperature=1.0),
        "auto": auto,
        "the run's own": own,
    }


def gradients(plan: ChainPlan, own: SamplerSettings) -> int:
    """Number of energy gradients per image with the kernel of ``own``, including the last denoising step.

    A kernel that accepts or rejects needs one more per level than its steps: that at the last position.
    """
    a_step = own.leapfrog_steps if own.kernel == "hmc" else 1
    a_level = int(own.kernel in _REJECTING)
    return sum(a_step * steps + a_level for steps in plan.steps if steps) + bool(plan.denoise)


Ruler = Callable[[Grids, Tensor], float]
"""(images [N, C, H, W], uint8 or in [-1, 1], their requested classes [N]) -> distance to real images."""


def ruler_of(pipeline: CDRLPipeline, run: Path, num_images: int) -> tuple[str, Ruler]:
    """Name of the distance by which a run's samplers are compared, and the function that computes it.

    With classes: the Fréchet distance on a judge's features to the held-out images. Otherwise that on
    EfficientNet-Lite0's features to as many held-out images; for a latent run to their reconstructions, as the
    decoder's blur would otherwise dominate it.

    Raises:
        RunError: the run has no images.
    """
    data = pipeline.config.data
    if pipeline.config.space == "point":
        raise RunError(f"{run}: distances are between images, but this is a run of 2-D points")
    if data.labels == "class":
        referee = Referee.of(data, run / "judge")
        return "fd_judge_test", lambda images, labels: referee.figures("", images, labels)["fd_judge__test"]
    network, real = Lite0(), training_images(data, "test").grids[:num_images]
    against = "test"
    if isinstance(pipeline.decoder, LatentDecoder):
        against, real = "reconstructions", reconstruct(pipeline.decoder.autoencoder, real).images
    held_out = lite0_features(real, network)
    name = f"fd_lite0_{len(real)}_{against}"
    return name, lambda images, labels: frechet_distance(lite0_features(images, network), held_out)


def compare_budgets(run: Path, num_images: int, seeds: Sequence[int], batch_size: int) -> list[dict[str, Any]]:
    """Evaluate each of `budgets`: one row each, also written to RUN/steps.json.

    A row holds the ``gradients`` an image, the distance as mean and half of the range over blocks of ``num_images``
    images, which begin at each of ``seeds`` times ``num_images``, the ``seconds`` of a block, and the ``settings`` of
    the sampler; the kernel is the run's own, as the file's ``sampling`` has it.
    """
    pipeline = CDRLPipeline.from_pretrained(run, default_device())
    with locked(run, "steps.json"):
        facts = {"num_images": num_images, "seeds": list(seeds), "sampling": effective(pipeline.drawing().settings)}
        rows = _rows(pipeline, run, num_images, seeds, batch_size)
        write_json(run / "steps.json", {**facts, "rows": rows})
    return rows


def _rows(
    pipeline: CDRLPipeline, run: Path, num_images: int, seeds: Sequence[int], batch_size: int
) -> list[dict[str, Any]]:
    name, ruler = ruler_of(pipeline, run, num_images)
    own = pipeline.drawing().settings
    rows: list[dict[str, Any]] = []
    for title, plan in budgets(pipeline).items():
        distances, started = [], time.monotonic()
        for seed in seeds:
            images, labels = _drawn(pipeline, plan, range(seed * num_images, (seed + 1) * num_images), batch_size)
            distances.append(ruler(images, labels))
        rows.append(
            {
                "steps": title,
                "gradients": gradients(plan, own),
                name: statistics.mean(distances),
                "half_range": (max(distances) - min(distances)) / 2,
                "seconds": (time.monotonic() - started) / len(distances),
                "settings": {name: value for name, value in vars(plan).items() if name in _TOLD},
            }
        )
    return rows


def budget_table(rows: Sequence[dict[str, Any]]) -> str:
    """Format the rows of `compare_budgets` as a Markdown table."""
    name = next(key for key in rows[0] if key.startswith("fd_"))
    lines = [f"| steps a level | gradients an image | {name} | seconds |", "|---|---|---|---|"]
    for row in rows:
        distance = f"{row[name]:.2f} ± {row['half_range']:.2f}"
        lines.append(f"| {row['steps']} | {row['gradients']} | {distance} | {row['seconds']:.1f} |")
    return "\n".join(lines)


def _drawn(pipeline: CDRLPipeline, plan: ChainPlan, seeds: range, batch_size: int) -> tuple[Tensor, Tensor]:
    labels = pipeline.class_ids(labels_in_turn(pipeline, seeds), len(seeds))
    how = replace(pipeline.drawing(batch_size=batch_size, progress=True), plan=plan)
    drawn = pipeline.draw(len(seeds), pipeline.source(seeds, labels, guidance=0.0), how)
    return drawn.tensors.cpu(), labels.cpu()

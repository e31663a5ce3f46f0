"""Long-run chains: images after many more steps than the model was trained with.

Gao et al. (2021) run long chains on the conditional densities p(y_t | x_{t+1}), one level after the other, down from
noise; so does this module: Algorithm 2 with that many steps at every level. If the images are typical of the energy's
own density, long chains stay realistic; if the energy only learned to look right after K steps, they drift away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdrl.runs.outputs import one_calls_output
from cdrl.runs.run import RunError
from cdrl.sampling.sampler import denoised
from cdrl.sampling.settings import effective
from cdrl.training.interruption import save_picture
from pipelines.base import CDRLPipeline, check_options
from pipelines.decoding import grid_picture
from pipelines.generation import default_device, labels_of


@dataclass(frozen=True)
class Chains:
    """States of long chains at every level.

    Attributes:
        kept: the S steps whose states are kept, from 0, the proposal, to the last.
        states: y_t, [T, S, N, *shape].
        accepted: share of moves at each level that changed the image, [T]: 1 for unadjusted Langevin steps.
    """

    kept: tuple[int, ...]
    states: Tensor
    accepted: Tensor


class _Recorder:
    """Callback that records some states of each level, over all batches."""

    def __init__(self, num_levels: int, kept: Sequence[int]) -> None:
        self._states: list[dict[int, list[Tensor]]] = [{step: [] for step in kept} for _ in range(num_levels)]
        self._moves, self._made = torch.zeros(num_levels), torch.zeros(num_levels)
        self._last = torch.empty(0)

    def __call__(self, *, level: int, step: int, y: Tensor) -> None:
        if step:
            self._moves[level] += (y != self._last).flatten(1).any(dim=1).sum().cpu()
            self._made[level] += len(y)
        if step in self._states[level]:
            self._states[level][step].append(y.cpu())
        self._last = y

    def chains(self) -> Chains:
        states = [torch.stack([torch.cat(parts) for parts in level.values()]) for level in self._states]
        return Chains(tuple(self._states[0]), torch.stack(states), self._moves / self._made)


def long_chains(
    pipeline: CDRLPipeline,
    seeds: Sequence[int],
    label: Sequence[int] | int | None,
    *,
    every: int,
    **options: Any,
) -> Chains:
    """Run Algorithm 2 with the step sizes of training, and keep every ``every``-th state of every level."""
    steps = long_steps(options)
    recorder = _Recorder(pipeline.model.schedule.num_levels, sorted({*range(0, steps + 1, every), steps}))
    pipeline(len(seeds), seeds=seeds, label=label, **{**long_options(options), "callback": recorder})
    return recorder.chains()


def long_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler's options with what long chains have of their own.

    Raises:
        ValueError: they have one of these already, or as in `long_steps`.
    """
    for name in ("step_adjustment", "denoise", "callback"):
        if options.get(name) is not None:
            raise ValueError(f"{name}: not taken: long chains move by the steps of training, and are not denoised")
    return {**options, "steps": long_steps(options), "step_adjustment": False, "denoise": 0.0}


def long_steps(options: Mapping[str, Any]) -> int:
    """Number of steps at every level, by default 1,000. Raises ValueError for 0."""
    steps = options.get("steps")
    if steps == 0 or steps == "auto":
        raise ValueError(f"steps: expected a number of at least 1 for long chains, found {steps}")
    return 1000 if steps is None else steps


def chain_figures(pipeline: CDRLPipeline, chains: Chains, label: Sequence[int] | int | None) -> list[dict[str, Any]]:
    """Figures of each level, from level 0 up; lists have one number per kept state, None if not finite.

    ``energy`` is the mean of -f(y_t) over the images, up to the level's constant, ``mean_abs`` that of |y_t|, and
    ``drift`` is the last ``mean_abs`` minus the first. ``accepted`` is the share of accepted moves: 1 for Langevin
    steps, which are always accepted.
    """
    conditioned = pipeline.model.conditioned(label)
    levels = []
    with torch.no_grad():
        for level, states in enumerate(chains.states):
            energies = [-conditioned.log_density(y.to(pipeline.device), level).mean().item() for y in states]
            mean_abs = [y.abs().mean().item() for y in states]
            levels.append(
                {
                    "level": level,
                    "energy": [_finite(energy) for energy in energies],
                    "mean_abs": [_finite(size) for size in mean_abs],
                    "drift": _finite(mean_abs[-1] - mean_abs[0]),
                    "accepted": chains.accepted[level].item(),
                }
            )
    return levels


def chain_images(pipeline: CDRLPipeline, states: Tensor, level: int, label: Sequence[int] | int | None) -> Tensor:
    """Denoise and decode the states y_t [S, N, *shape] of a level: images [N, S, C, H, W] in [-1, 1].

    Each is shown as the clean image expected at the level (eq. 18 with c = 1). At level 0 that is the state itself
    except for invisible noise.
    """
    schedule = pipeline.model.schedule.to(pipeline.device)
    conditioned = pipeline.model.conditioned(label)
    clean = [
        denoised(schedule, conditioned.log_density, y.to(pipeline.device) / schedule.alpha_y[level], 1.0, level)
        for y in states
    ]
    return torch.stack([pipeline.decoder.images(grids) for grids in clean], dim=1)


def run_chains(
    run: Path,
    num_images: int = 8,
    *,
    seed: int = 0,
    label: int | str | None = None,
    every: int | None = None,
    level: int = 0,
    **options: Any,
) -> tuple[Path, list[dict[str, Any]]]:
    """Run long chains; write a picture of one level's states, one row per image, and all levels' figures as JSON.

    Both are in RUN/chains, named by kernel, steps and level; returns the picture's path and the figures.

    Args:
        label: class id or name for all images; -1 for no class; all classes in turn by default.
        every: steps between two kept states; by default a tenth of all.
        options: as in calling the pipeline; 1,000 steps a level unless told otherwise.

    Raises:
        RunError: the run has no images.
        ValueError: there is no such level, class or kernel.
    """
    check_options(options, run_chains)
    pipeline = CDRLPipeline.from_pretrained(run, default_device())
    if pipeline.config.space == "point":
        raise RunError(f"{run}: chains are shown as images, but this is a run of 2-D points")
    level = pipeline.model.level_of(level)
    seeds = range(seed, seed + num_images)
    labels = labels_of(pipeline, label, seeds)
    steps = long_steps(options)
    sampling = pipeline.drawing(**long_options(options)).settings
    folder, name = run / "chains", f"{sampling.kernel}_{steps}_steps_level_{level}"
    with one_calls_output(folder, f"{name}.json", alone=False) as output:
        every = max(1, steps // 10) if every is None else every
        chains = long_chains(pipeline, seeds, labels, every=every, **options)
        figures = chain_figures(pipeline, chains, labels)
        images = chain_images(pipeline, chains.states[level], level, labels)
        save_picture(output.folder / f"{name}.png", grid_picture(images.flatten(0, 1), columns=len(chains.kept)))
        facts = {"num_images": num_images, "seed": seed, "labels": labels, "sampling": effective(sampling)}
        output.record = {**facts, "shown_level": level, "kept": chains.kept, "levels": figures}
    return folder / f"{name}.png", figures


def chain_lines(levels: Sequence[Mapping[str, Any]]) -> str:
    """The figures of `chain_figures`, a line a level, in the order of sampling."""

    def line(figures: Mapping[str, Any]) -> str:
        drift = "out of all bounds" if figures["drift"] is None else f"by {figures['drift']:+.4f}"
        return f"level {figures['level']}: mean |y| drifts {drift}, accepted {figures['accepted']:.3f}"

    return "\n".join(line(figures) for figures in reversed(levels))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None

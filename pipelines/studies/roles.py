"""Contributions of the initializer and of the energies to an image (Appendix F)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdrl.runs.outputs import one_calls_output
from cdrl.runs.run import RunError
from cdrl.sampling.noise import Draw, ImageNoise, derive_seed
from cdrl.sampling.sampler import LevelLogDensity, Propose
from cdrl.sampling.settings import effective, idle_settings
from cdrl.training.interruption import save_picture
from pipelines.base import CDRLPipeline, ImageSource, LabelOrName, check_options
from pipelines.decoding import captioned_picture
from pipelines.generation import default_device, labels_of
from pipelines.guidance import guided
from pipelines.results import Generated


class TwoStreams(ImageNoise):
    """Separate streams for the noise of proposals and the noise of chains, one pair per image.

    Algorithm 2 computes a proposal's mean before it draws the proposal's noise, and a gradient before it draws a
    step's noise: whichever of the two callables of `watched` was called last selects the stream. The initial noise
    belongs to the proposals.
    """

    def __init__(self, proposals: Sequence[int], chains: Sequence[int], device: torch.device | str = "cpu") -> None:
        super().__init__(proposals, device)
        self._chains = ImageNoise(chains, device)
        self._in_chain = False

    def watched(self, propose: Propose, log_density: LevelLogDensity) -> ImageSource:
        """Wrap the sampler's callables so that each call selects its stream."""

        def proposed(x_next: Tensor, level: int) -> Tensor:
            self._in_chain = False
            return propose(x_next, level)

        def refined(y: Tensor, level: int) -> Tensor:
            self._in_chain = True
            return log_density(y, level)

        return ImageSource(self, proposed, refined)

    def expect(self, draws: Sequence[Draw]) -> None:
        """Nothing is made ahead: which stream a draw comes from is known when it is asked for."""

    def normal(self, shape: Sequence[int]) -> Tensor:
        return self._chains.normal(shape) if self._in_chain else super().normal(shape)

    def uniform(self) -> Tensor:
        return self._chains.uniform() if self._in_chain else super().uniform()


def drawn_from_two_streams(
    pipeline: CDRLPipeline,
    proposals: Sequence[int],
    chains: Sequence[int],
    label: LabelOrName = None,
    **options: Any,
) -> Generated:
    """Draw images with the noise of proposals from one seed and the noise of chains from another.

    Args:
        proposals, chains: one seed per image each.
        options: as in calling the pipeline.

    Raises:
        ValueError: there is no such class or kernel.
    """
    labels = pipeline.class_ids(label, len(proposals))

    def source(rows: slice) -> ImageSource:
        noise = TwoStreams(
            [derive_seed("proposal", seed) for seed in proposals[rows]],
            [derive_seed("chain", seed) for seed in chains[rows]],
            pipeline.device,
        )
        return noise.watched(*guided(pipeline.model, labels[rows], 0.0))

    return pipeline.draw(len(proposals), source, pipeline.drawing(**options))


def distance(first: Tensor, second: Tensor) -> float:
    """Root mean square difference between two sets of images [N, C, H, W]."""
    return (first - second).square().mean().sqrt().item()


def run_roles(
    run: Path,
    num_images: int = 8,
    *,
    fresh: int = 6,
    seed: int = 0,
    label: int | str | None = None,
    **options: Any,
) -> tuple[Path, dict[str, Any]]:
    """Write a picture of both models' roles, RUN/roles.png, and distances between its images, RUN/roles.json.

    One row per image: the initializer alone, the full model with the same noise in the proposals, and the full model
    with fresh noise in the chains, ``fresh`` times. Figures are root mean square differences of images:
    ``initializer`` between the initializer and the full model, ``fresh_chains`` between two images of the full model
    that share the noise of their proposals, ``all_fresh`` between two that share only the class.

    Args:
        label: class id or name for all images; -1 for no class; all classes in turn by default.
        options: as in calling the pipeline.

    Raises:
        TypeError: there is no such option.
        RunError: the run has no images, or no initializer.
        ValueError: there is no such class or kernel, or there are no steps of a chain.
    """
    check_options(options, run_roles)
    if options.get("steps") == 0:
        raise ValueError("steps: the full model needs at least one, found 0")
    pipeline = CDRLPipeline.from_pretrained(run, default_device())
    if pipeline.config.space == "point":
        raise RunError(f"{run}: the roles of both models are shown as images, but this is a run of 2-D points")
    if pipeline.model.initializer is None:
        raise RunError(f"{run}: there is but one model in it: its initializer is null")
    seeds = range(seed, seed + num_images)
    labels = labels_of(pipeline, label, seeds)

    sampling = effective(pipeline.drawing(**options).settings)
    idle = idle_settings(pipeline.drawing(steps=0).settings)
    without_chains = {name: value for name, value in options.items() if name != "steps" and name not in idle}

    def draw(proposals: Sequence[int], chains: Sequence[int]) -> Tensor:
        return drawn_from_two_streams(pipeline, proposals, chains, labels, **options).tensors

    with one_calls_output(run, "roles.json", alone=False) as output:
        alone = drawn_from_two_streams(pipeline, seeds, seeds, labels, steps=0, **without_chains).tensors
        full = draw(seeds, seeds)
        # Seeds that no image of this picture has.
        others = [range(seed + turn * num_images, seed + (turn + 1) * num_images) for turn in range(1, fresh + 1)]
        renewed = [draw(seeds, chains) for chains in others]
        unrelated = draw(others[0], others[0])
        figures = {
            "initializer": distance(alone, full),
            "fresh_chains": distance(full, renewed[0]),
            "all_fresh": distance(full, unrelated),
        }
        columns = [alone, full, *renewed]
        words = ["initializer", "full", *["new chain"] * fresh]
        images = torch.stack(columns, dim=1).flatten(0, 1)
        save_picture(output.folder / "roles.png", captioned_picture([(images, words)], columns=len(columns)))
        facts = {"num_images": num_images, "fresh": fresh, "seed": seed, "labels": labels, "sampling": sampling}
        output.record = {**facts, **figures}
    return run / "roles.png", figures

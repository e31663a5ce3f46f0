"""Inpainting: the known part of an image stays exactly as it is, the rest is drawn (Appendix C)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import Tensor

from cdrl.arguments import check_kind, shown, whole_number
from cdrl.sampling.noise import ImageNoise
from cdrl.sampling.sampler import Callback, Constrain
from pipelines.base import (
    CDRLPipeline,
    Drawing,
    ImageSource,
    LabelOrName,
    SourceOfRows,
    check_options,
    chosen_seeds,
)
from pipelines.decoding import LatentDecoder, PixelDecoder
from pipelines.guidance import Guidance
from pipelines.images import Images
from pipelines.inpainting.masks import as_mask, hidden_cells
from pipelines.inpainting.observations import (
    Seen,
    block_means,
    cells,
    enlarged,
    measurement_likelihood,
    reset_to,
    times_likelihood,
)
from pipelines.results import Drawn, Filled, Move

# Noise that is granted to what a decoder makes of known pixels: with less the chains' steps are too long for it.
STD = 0.5
PASSES = 2


@runtime_checkable
class Observation(Protocol):
    """Which part of an image is known, in pixels or in means of blocks."""

    @property
    def seen(self) -> Seen:
        """The projection of images [N, C, H, W] to their known part."""
        ...

    @property
    def unknown(self) -> float:
        """Share of the pixels of which something is unknown."""
        ...

    def shown(self, images: Tensor) -> Tensor:
        """The known part as a picture for people, [N, C, H, W]."""
        ...

    def latent_cells(self, factor: int) -> Tensor:
        """Which cells [H / factor, W / factor] of a latent are known. Raises ValueError where there are none."""
        ...

    def without_seam(self, images: Tensor, given: Tensor) -> Tensor:
        """Decoded ``images``, blended towards the known part of ``given`` at its border; both [N, C, H, W]."""
        ...

    def completed(self, images: Tensor, given: Tensor) -> Tensor:
        """``images`` with the known part taken from ``given``, both [N, C, H, W] in [-1, 1]."""
        ...


@dataclass(frozen=True)
class Hidden:
    """All pixels are known but those where ``mask``, bool [H, W], is true.

    Raises:
        TypeError: the mask is no tensor.
        ValueError: it is not as high and wide as the images, hides all or nothing, or has values beside 0 and 1.
    """

    mask: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask", as_mask(self.mask))

    @property
    def seen(self) -> Seen:
        known = cells(~self.mask)

        def seen(images: Tensor) -> Tensor:
            if images.shape[-2:] != self.mask.shape:
                sizes = f"{list(images.shape[-2:])}, as high and wide as the images, found {list(self.mask.shape)}"
                raise ValueError(f"mask: expected {sizes}")
            return known(images)

        return seen

    @property
    def unknown(self) -> float:
        return self.mask.float().mean().item()

    def shown(self, images: Tensor) -> Tensor:
        return torch.where(self.mask, 0.0, images)

    def latent_cells(self, factor: int) -> Tensor:
        known = ~hidden_cells(self.mask, factor)
        if not known.any():
            raise ValueError(f"by: reset knows whole cells of {factor}x{factor} pixels, and some of each is hidden")
        return known

    def without_seam(self, images: Tensor, given: Tensor) -> Tensor:
        """Within some pixels of the seam the decoder's error there, smoothed, is taken off what it shows inside."""
        known = (~self.mask).to(images)[None, None]
        sigma = images.shape[-1] / 32
        window = 2 * math.ceil(2 * sigma) + 1

        def blur(values: Tensor) -> Tensor:
            return gaussian_blur2d(values, (window, window), (sigma, sigma), border_type="replicate")

        near = blur(known)
        error = blur(self.seen(given - images)) / near.clamp(min=1e-6)
        return (images + (2 * near).clamp(max=1) * error).clamp(-1, 1)

    def completed(self, images: Tensor, given: Tensor) -> Tensor:
        return torch.where(self.mask.to(images.device), images, given)


@dataclass(frozen=True)
class Averaged:
    """The mean of every block of factor x factor pixels is known.

    Raises:
        TypeError: the factor is no number.
        ValueError: it is not whole, less than 2, or does not divide the images' height and width exactly.
    """

    factor: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", whole_number("factor", self.factor, least=2))

    @property
    def seen(self) -> Seen:
        return block_means(self.factor)

    @property
    def unknown(self) -> float:
        return 1.0

    def shown(self, images: Tensor) -> Tensor:
        return self.seen(images)

    def latent_cells(self, factor: int) -> Tensor:
        raise ValueError("by: a latent holds no means of pixels to be reset; use likelihood")

    def without_seam(self, images: Tensor, given: Tensor) -> Tensor:
        return images

    def completed(self, images: Tensor, given: Tensor) -> Tensor:
        """A block whose new mean would push pixels out of [-1, 1] loses as much contrast as that takes."""
        means = self.seen(given)
        contrast = images - self.seen(images)
        room = torch.where(contrast > 0, 1 - means, 1 + means)
        excess = F.max_pool2d(contrast.abs() / room.clamp(min=1e-6), self.factor).clamp(min=1)
        return means + contrast / enlarged(excess, self.factor)


class _Recorder:
    """A callback that keeps every move, and passes it on."""

    def __init__(self, callback: Callback | None) -> None:
        self._moves: list[Move] = []
        self._callback = callback

    def __call__(self, *, level: int, step: int, y: Tensor) -> None:
        self._moves.append(Move(level, step, y.cpu()))
        if self._callback is not None:
            self._callback(level=level, step=step, y=y)

    def chains(self, batches: int) -> tuple[Move, ...]:
        """The moves of all batches, each of which made the same ones."""
        count = len(self._moves) // batches
        parts = zip(*(self._moves[start : start + count] for start in range(0, len(self._moves), count)), strict=True)
        return tuple(Move(same[0].level, same[0].step, torch.cat([move.y for move in same])) for same in parts)


@torch.no_grad()
def fill(
    pipeline: CDRLPipeline,
    given: Drawn | Images,
    observation: Observation,
    *,
    by: str | None = None,
    passes: int = PASSES,
    keep_chains: bool = False,
    **asked: Any,
) -> Filled:
    """Draw each of some images from its own seed, given what is known of it.

    Args:
        given: images of the run's size in any usual form, see `CDRLPipeline.images_of`; what is not known of them
            does not matter, not even in latent runs.
        by: ``reset`` puts what is known back after every move (Appendix C), in a latent run the latent's cells whose
            pixels are all known; ``likelihood`` multiplies the density by that of what is known, see
            `pipelines.inpainting.observations.measurement_likelihood`. By default pixels are reset and latents weighed.
        passes: visits to each level, see `cdrl.sampling.settings.ChainPlan`: the more, the better the rest agrees
            with what is known.
        keep_chains: keep every move.
        asked: ``seeds``, ``seed``, ``label``, ``guidance`` and the sampler's options, as in calling the pipeline. Under
            a likelihood ``denoise`` is 1 by default, since twice the gradient goes beyond what is known.

    Raises:
        TypeError: there is no such option, or an argument is of another kind than it has to be.
        ValueError: arguments are not fit for the images, or ``by`` is not for this run.
    """
    check_options(asked, fill, _requested)
    check_kind("pipeline", pipeline, CDRLPipeline, "a CDRLPipeline")
    decoder = pipeline.decoder
    if not isinstance(decoder, PixelDecoder | LatentDecoder):
        raise ValueError("2-D points have no pixels to fill in")
    if isinstance(observation, type) or not isinstance(observation, Observation):
        raise TypeError(f"observation: expected Hidden(mask) or Averaged(factor), found {shown(observation)}")
    passes = whole_number("passes", passes, least=1)
    check_kind("keep_chains", keep_chains, bool, "True or False")
    by = ("likelihood" if isinstance(decoder, LatentDecoder) else "reset") if by is None else by
    if by not in ("reset", "likelihood"):
        raise ValueError(f"by: expected reset or likelihood, found {shown(by)}")
    images = pipeline.images_of(given)
    known, count = observation.seen(images), len(images)
    if by == "likelihood" and asked.get("denoise") is None:
        asked = {**asked, "denoise": 1.0}
    request = _requested(pipeline, count, **asked)
    how = replace(request.how, plan=replace(request.how.plan, passes=passes))
    recorder = _Recorder(how.callback) if keep_chains else None
    if recorder is not None:
        how = replace(how, callback=recorder)
    if by == "reset":
        drawn = pipeline.draw(count, request.source, how, reset_to_known(pipeline, decoder, known, observation))
    else:
        drawn = pipeline.draw(
            count, weighted_by_decoder_likelihood(pipeline, decoder, known, observation, request.source), how
        )
    images = drawn.tensors
    if isinstance(decoder, LatentDecoder):
        images = observation.without_seam(images, known)
    return Filled(
        observation.completed(images, known),
        drawn.grids,
        energies_of(pipeline, drawn.grids, request.labels, how.batch_size),
        by,
        how.settings,
        recorder.chains(math.ceil(count / how.batch_size)) if recorder is not None else (),
    )


class _Request(NamedTuple):
    """What the caller of `fill` asked for, as the pipeline's `draw` takes it."""

    source: SourceOfRows
    labels: Tensor
    how: Drawing


def _requested(
    pipeline: CDRLPipeline,
    count: int,
    *,
    seeds: Sequence[int] | None = None,
    seed: int | None = None,
    label: LabelOrName = None,
    guidance: float | Guidance = 0.0,
    **options: Any,
) -> _Request:
    how, labels = pipeline.drawing(**options), pipeline.class_ids(label, count)
    return _Request(pipeline.source(chosen_seeds(count, seeds, seed), labels, guidance), labels, how)


def energies_of(pipeline: CDRLPipeline, grids: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """-f of grids [N, *shape] of classes [N] at level 0, ``batch_size`` at a time: [N]."""
    parts = zip(grids.split(batch_size), labels.split(batch_size), strict=True)
    return torch.cat([-pipeline.log_density(part, label=ids) for part, ids in parts])


def reset_to_known(
    pipeline: CDRLPipeline, decoder: PixelDecoder | LatentDecoder, known: Tensor, observation: Observation
) -> Callable[[slice, ImageNoise], Constrain]:
    """The constraint that puts the known pixels back after every move; in a latent run, the known cells.

    Args:
        known: the known part of the images, zero elsewhere, [N, C, H, W] in [-1, 1].
    """
    schedule = pipeline.model.schedule
    if isinstance(decoder, PixelDecoder):
        return lambda rows, noise: reset_to(schedule, known[rows], observation.seen, noise)
    seen = cells(observation.latent_cells(known.shape[-1] // decoder.autoencoder.latent_shape[-1]).to(known.device))
    # Where nothing is known the encoder is shown the mean colour of what is: its cells see a little of each other.
    share = observation.seen(torch.ones_like(known))
    mean = known.sum(dim=(2, 3), keepdim=True) / share.sum(dim=(2, 3), keepdim=True)
    shown = known + (1 - share) * mean

    def constrain(rows: slice, noise: ImageNoise) -> Constrain:
        return reset_to(schedule, pipeline.encoded(shown[rows], noise), seen, noise)

    return constrain


def weighted_by_decoder_likelihood(
    pipeline: CDRLPipeline,
    decoder: PixelDecoder | LatentDecoder,
    known: Tensor,
    observation: Observation,
    free: SourceOfRows,
) -> SourceOfRows:
    """The same source of images, its density multiplied by the likelihood of what is known of the decoded grids.

    Args:
        known: the known part of the images, zero elsewhere, [N, C, H, W] in [-1, 1].
        free: what would draw the images if nothing were known of them.
    """

    def source(rows: slice) -> ImageSource:
        noise, propose, log_density = free(rows)
        likelihood = measurement_likelihood(
            pipeline.model.schedule,
            log_density,
            lambda grids: observation.seen(decoder.decoded(grids)),
            known[rows],
            STD,
        )
        return ImageSource(noise, propose, times_likelihood(log_density, likelihood))

    return source

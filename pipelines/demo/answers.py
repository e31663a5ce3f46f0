"""What the page shows, made by the pipelines; no word of the page is in here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from kornia.geometry import rotate
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from cdrl.data import to_bytes
from cdrl.data.images.preparing import crop_center, prepare_images
from cdrl.sampling.noise import ImageNoise
from pipelines.base import CDRLPipeline, stream_seeds
from pipelines.composition import compose, parse_concepts
from pipelines.decoding import captioned_picture, figure_picture, to_pil
from pipelines.detection.detect import density_readings
from pipelines.detection.known_images import KnownImages
from pipelines.images import as_tensor
from pipelines.inpainting.fill import Hidden, fill
from pipelines.inpainting.masks import checked
from pipelines.interpolation import interpolated

Steps = int | str | None
"""Langevin steps a level; None for the run's own."""

_SMALLEST = 256
"""Pixels of a side that `enlarged` makes at least."""
_ON_THE_WAY = 8
_A_ROW, _STRIP_SIDE = 4, 128
_NOISES = (0.0, 0.05, 0.1, 0.2, 0.4)
_BLURS = (0.0, 0.01, 0.02, 0.04, 0.08)
_ANGLES = (0.0, 10.0, 20.0, 45.0, 90.0)


@dataclass(frozen=True)
class Drawn:
    """Images, and the way to the first of them.

    Attributes:
        images: what was drawn.
        way: the first image's stations from pure noise on, each with its name below.
    """

    images: list[Image.Image]
    way: Image.Image


def generated(pipeline: CDRLPipeline, count: int, seed: int, label: str | None, guidance: float, steps: Steps) -> Drawn:
    """Draw images of ``seed``, ``seed`` + 1, …; of one class, or, for None, of none."""

    def draw(**options: Any) -> list[Image.Image]:
        return pipeline(count, seed=seed, label=label, guidance=guidance, **options).images

    return _with_way(pipeline, seed, draw, steps)


def composed(
    pipeline: CDRLPipeline, count: int, seed: int, concepts: Sequence[str], weight: float, steps: Steps
) -> Drawn:
    """Draw images that show all concepts, such as ``Smiling=1`` and ``Male=0``."""
    ids = parse_concepts(pipeline.config.data, concepts)

    def draw(**options: Any) -> list[Image.Image]:
        return compose(pipeline, count, ids, seed=seed, guidance=weight, **options).images

    return _with_way(pipeline, seed, draw, steps)


def _with_way(pipeline: CDRLPipeline, seed: int, draw: Callable[..., list[Image.Image]], steps: Steps) -> Drawn:
    last: dict[int, Tensor] = {}

    def keep(*, level: int, step: int, y: Tensor) -> None:
        last[level] = y[:1]

    options: dict[str, Any] = {} if steps is None else {"steps": steps}
    images = draw(callback=keep, **options)
    schedule = pipeline.model.schedule
    start = ImageNoise(stream_seeds([seed]), pipeline.device).normal(pipeline.model.shape)
    stations = [start, *(y / schedule.alpha_y[level].to(y) for level, y in last.items())]
    names = ["noise", *(f"level {level}" for level in last), "image"]
    pictures = [*to_pil(pipeline.decoder.images(torch.cat(stations))), images[0]]
    return Drawn(enlarged(images), _strip(pictures, names))


def _strip(pictures: Sequence[Image.Image], names: Sequence[str]) -> Image.Image:
    """Pictures with their names below, some a row: all in one row would be too small on a phone."""
    side = (_STRIP_SIDE, _STRIP_SIDE)
    images = as_tensor([picture.resize(side, Image.Resampling.LANCZOS) for picture in enlarged(pictures)], 3)
    rows = [
        (images[start : start + _A_ROW], [*names[start : start + _A_ROW], *[""] * (start + _A_ROW - len(names))])
        for start in range(0, len(names), _A_ROW)
    ]
    (strip,) = to_pil(captioned_picture(rows, _A_ROW)[None])
    return strip


def between(pipeline: CDRLPipeline, first: int, second: int, label: str | None, steps: Steps) -> list[Image.Image]:
    """Draw images from the sample of one seed to that of another."""
    options: dict[str, Any] = {} if steps is None else {"steps": steps}
    labels = (-1, -1) if label is None else (label, label)
    return enlarged(interpolated(pipeline, (first, second), _ON_THE_WAY, labels, **options).images)


def fitted(pipeline: CDRLPipeline, picture: Image.Image) -> Tensor:
    """A picture of any size as the model's own images are: uint8 [1, C, H, W], its central square.

    One that was `enlarged` becomes exactly what it was.
    """
    data = pipeline.config.data
    pixels = to_bytes(as_tensor(picture, data.channels))
    factor, rest = divmod(picture.width, data.image_size)
    if factor > 1 and not rest and picture.height == picture.width:
        small = pixels[..., ::factor, ::factor]
        if torch.equal(small.repeat_interleave(factor, 2).repeat_interleave(factor, 3), pixels):
            return small.contiguous()
    return prepare_images(pixels, data.image_size, data.channels)


def hole(pipeline: CDRLPipeline, painted: Sequence[Image.Image]) -> Tensor:
    """The pixels [H, W] of the model's image that some transparent layers hide.

    Raises:
        DataError: they hide all or nothing.
    """
    covers = torch.stack([torch.from_numpy(np.asarray(layer.convert("RGBA"))[..., 3].copy()) for layer in painted])
    painted_over = crop_center((covers.amax(dim=0, keepdim=True) > 127).float()[None])
    # A pixel that is painted over in part is hidden.
    hidden = F.adaptive_max_pool2d(painted_over, pipeline.config.data.image_size)
    return checked(hidden[0, 0] > 0, "the painted hole")


def filled(
    pipeline: CDRLPipeline, picture: Image.Image, painted: Sequence[Image.Image], fills: int, seed: int
) -> tuple[Image.Image, list[Image.Image]]:
    """Fill a hole several times: what is known of the picture, and the pictures filled in."""
    image, hidden = fitted(pipeline, picture), Hidden(hole(pipeline, painted))
    drawn = fill(pipeline, image.expand(fills, -1, -1, -1), hidden, seed=seed)
    (known,) = enlarged(to_pil(hidden.shown(pipeline.images_of(image))))
    return known, enlarged(drawn.images)


@dataclass(frozen=True)
class Likelihood:
    """Where one image stands.

    Attributes:
        histograms: its energy at every level on those of training and held-out images.
        changes: its energy at level 0 under growing noise, blur and rotation.
        words: its percentile, in a sentence.
    """

    histograms: Image.Image
    changes: Image.Image
    words: str


def likelihood(pipeline: CDRLPipeline, known: KnownImages, picture: Image.Image) -> Likelihood:
    """Compare a picture's energies with those of the model's own images.

    Raises:
        RunError: the model's density of it is NaN or infinite.
    """
    image = pipeline.images_of(fitted(pipeline, picture))
    (density,) = density_readings(pipeline, "the picture", image).log_density
    share = 100 * (known.train_log_density[:, 0] < density[0]).float().mean().item()
    words = (
        f"At level 0 the picture is likelier than {share:.0f} % of {len(known.train_log_density)} training images: "
        + ("in its details it is unlike them." if share < 1 else "in its details it could be one of them.")
    )
    return Likelihood(_histograms(known, density), _changes(pipeline, known, image), words)


def _histograms(known: KnownImages, density: Tensor) -> Image.Image:
    levels = range(len(density))
    figure, axes = plt.subplots(2, -(-len(levels) // 2), figsize=(9, 4.4), dpi=110, squeeze=False)
    for level, panel in zip(levels, axes.flat, strict=False):
        training, held_out = -known.train_log_density[:, level].numpy(), -known.held_out_log_density[:, level].numpy()
        edges = np.histogram_bin_edges(np.concatenate([training, held_out]), 40)
        panel.hist(training, edges, density=True, color="tab:blue", alpha=0.5, label="training images")
        panel.hist(held_out, edges, density=True, color="tab:orange", alpha=0.5, label="held-out images")
        panel.axvline(-float(density[level]), color="black", label="this picture")
        panel.set_title(f"level {level}", fontsize=9)
        panel.set(yticks=[])
        panel.xaxis.set_major_locator(MaxNLocator(4))
        panel.tick_params(labelsize=7)
    axes.flat[0].legend(fontsize=7)
    return _finished(figure, "energy, up to a constant: the further left, the likelier")


def _changes(pipeline: CDRLPipeline, known: KnownImages, image: Tensor) -> Image.Image:
    """A panel for each kind of change, over the middle 98 % of the training images."""
    side = image.shape[-1]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(image.device)

    def blurred(share: float) -> Tensor:
        sigma = share * side
        window = 2 * max(1, round(2.5 * sigma)) + 1
        return gaussian_blur2d(image, (window, window), (sigma, sigma), border_type="replicate") if share else image

    def turned(angle: float) -> Tensor:
        about = torch.tensor([angle], device=image.device)
        return rotate(image, about, padding_mode="border") if angle else image

    kinds: dict[str, tuple[Sequence[float], Callable[[float], Tensor]]] = {
        "noise (share of the range)": (_NOISES, lambda share: image + 2 * share * noise),
        "blur (share of the side)": (_BLURS, blurred),
        "rotation (degrees)": (_ANGLES, turned),
    }
    low, high = (-known.train_log_density[:, 0]).float().quantile(torch.tensor([0.01, 0.99])).tolist()
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), dpi=110, sharey=True)
    for panel, (name, (amounts, change)) in zip(axes, kinds.items(), strict=True):
        changed = torch.cat([change(amount) for amount in amounts]).clamp(-1, 1)
        energies = -density_readings(pipeline, name, changed).log_density[:, 0]
        panel.axhspan(low, high, color="tab:blue", alpha=0.2)
        panel.plot(range(len(amounts)), energies.tolist(), "o-", color="black")
        panel.set_xticks(range(len(amounts)), [f"{amount:g}" for amount in amounts])
        panel.set_title(name, fontsize=9)
        panel.set(xlim=(-0.5, len(amounts) - 0.5))
        panel.tick_params(labelsize=7)
        for column, picture in enumerate(to_pil(changed)):
            small = panel.inset_axes((column / len(amounts), -0.34, 1 / len(amounts), 0.22))
            small.imshow(picture, cmap="gray", vmin=0, vmax=255)
            small.set_axis_off()
    return _finished(figure, "energy at level 0, higher for the less likely; blue: where 98 % of training images lie")


def _finished(figure: plt.Figure, caption: str) -> Image.Image:  # type: ignore[name-defined]
    figure.supxlabel(caption, fontsize=9)
    figure.tight_layout()
    (picture,) = to_pil(figure_picture(figure)[None])
    return picture


def enlarged(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Small images made larger by a whole factor, pixel by pixel: browsers blur what they enlarge."""
    factor = max(1, -(-_SMALLEST // images[0].width))
    return [image.resize((image.width * factor,) * 2, Image.Resampling.NEAREST) for image in images]

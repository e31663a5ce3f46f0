"""Decoders: from the grids that CDRL samples (pixels, latents, points) to images and pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from autoencoder.model import Autoencoder, load_autoencoder, save_autoencoder
from cdrl.arguments import check_grids, check_kind
from cdrl.data import contact_sheet, expect_finite, fewer_of_large, filled_row, to_bytes
from cdrl.runs.records import ModelRecord
from cdrl.runs.run import RunError

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DECODER_FOLDER = "autoencoder"
BATCH = 64


class Decoder(Protocol):
    """Interface of the decoders: turn grids into images, or into one picture of all of them."""

    def images(self, grids: Tensor) -> Tensor:
        """Grids [N, *shape] -> images [N, C, H, W] in [-1, 1]."""
        ...

    def picture(self, grids: Tensor) -> Tensor:
        """Grids [N, *shape] -> one uint8 picture [3, H, W]."""
        ...

    def description(self) -> dict[str, Any]:
        """Entries of a model's config.json from which `load_decoder` rebuilds this decoder."""
        ...

    def save(self, folder: Path) -> None:
        """Write the decoder's files, if it has any, into a model folder."""
        ...


@dataclass(frozen=True)
class PixelDecoder:
    """Decoder of pixel runs, whose grids are images already."""

    def images(self, grids: Tensor) -> Tensor:
        check_kind("grids", grids, Tensor, "a tensor")
        return self.decoded(grids).clamp(-1, 1)

    def decoded(self, grids: Tensor) -> Tensor:
        """Like `images`, but not clamped."""
        return grids

    def picture(self, grids: Tensor) -> Tensor:
        return grid_picture(self.images(grids))

    def description(self) -> dict[str, Any]:
        return {}

    def save(self, folder: Path) -> None:
        pass


@dataclass(frozen=True)
class LatentDecoder:
    """Decoder of latent runs: undo the standardization by mean and std [C], then decode by the first stage."""

    autoencoder: Autoencoder
    mean: Tensor
    std: Tensor

    @torch.no_grad()
    def images(self, grids: Tensor) -> Tensor:
        check_grids("grids", grids, self.autoencoder.latent_shape)
        parts = grids.split(fewer_of_large(BATCH, self.autoencoder.image_size))
        return torch.cat([self.decoded(part).float().clamp(-1, 1) for part in parts])

    def decoded(self, grids: Tensor) -> Tensor:
        """Like `images`, but differentiable and not clamped."""
        self.autoencoder.to(grids.device)
        return self.autoencoder.decode(grids * _channels(self.std, grids) + _channels(self.mean, grids))

    def standardized(self, latents: Tensor) -> Tensor:
        """Standardize latents [N, c, h, w] of the first stage: the grids that CDRL models."""
        return (latents - _channels(self.mean, latents)) / _channels(self.std, latents)

    def picture(self, grids: Tensor) -> Tensor:
        return grid_picture(self.images(grids))

    def description(self) -> dict[str, Any]:
        return {"latent_mean": self.mean.tolist(), "latent_std": self.std.tolist()}

    def save(self, folder: Path) -> None:
        save_autoencoder(folder / DECODER_FOLDER, self.autoencoder)


@dataclass(frozen=True)
class PointDecoder:
    """Decoder of 2-D points: no images; the picture is a scatter plot."""

    def images(self, grids: Tensor) -> Tensor:
        raise TypeError("a run of 2-D points has no images: read .grids")

    def picture(self, grids: Tensor) -> Tensor:
        expect_finite(grids)  # matplotlib would leave such points out
        figure, axes = plt.subplots(figsize=(4, 4), dpi=100)
        across, up = grids.cpu().T.numpy()
        axes.scatter(across, up, s=1, color="black")
        axes.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal")
        return figure_picture(figure)

    def description(self) -> dict[str, Any]:
        return {}

    def save(self, folder: Path) -> None:
        pass


def _channels(values: Tensor, grids: Tensor) -> Tensor:
    return values.to(grids.device).view(-1, 1, 1)


def load_decoder(folder: Path, record: ModelRecord, space: str) -> Decoder:
    """The decoder of a model folder, from its files and its config.json.

    Raises:
        RunError: a file is missing, damaged or of another model.
    """
    if space != "latent":
        return PixelDecoder() if space == "pixel" else PointDecoder()
    path, channels = folder / "config.json", record.shape[0]
    if not (record.latent_mean and record.latent_std and len(record.latent_mean) == len(record.latent_std) == channels):
        raise RunError(f"{path}: expected latent_mean and latent_std, a number for each of {channels} channels")
    autoencoder = load_autoencoder(folder / DECODER_FOLDER)
    if list(autoencoder.latent_shape) != record.shape:
        raise RunError(f"{path}: shape: {record.shape} there, but its decoder is for {list(autoencoder.latent_shape)}")
    return LatentDecoder(autoencoder, torch.tensor(record.latent_mean), torch.tensor(record.latent_std))


def to_pil(images: Tensor) -> list[Image.Image]:
    """Convert images [N, 1 or 3, H, W], uint8 or in [-1, 1], to 8-bit PIL images.

    Raises:
        TypeError: they are no tensor of bytes or floats.
        ValueError: they have another shape, or one holds NaN or infinity.
    """
    if isinstance(images, Tensor) and (images.ndim != 4 or images.shape[1] not in (1, 3)):
        raise ValueError(f"images: expected [N, 1 or 3, H, W], found {list(images.shape)}")
    is_bytes = isinstance(images, Tensor) and images.dtype == torch.uint8
    arrays = (images if is_bytes else to_bytes(images)).movedim(1, -1).cpu().numpy()
    return [Image.fromarray(array.squeeze(-1) if array.shape[-1] == 1 else array) for array in arrays]


def grid_picture(images: Tensor, columns: int = 8) -> Tensor:
    """Arrange images [N, C, H, W] in [-1, 1] in a grid, enlarging small ones, see `contact_sheet`: uint8 [3, H', W'].

    Raises:
        TypeError: they are no tensor.
        ValueError: they have another shape, or there are none; or as `to_bytes`.
    """
    check_kind("images", images, Tensor, "a tensor")
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError(f"images: expected at least one, [N, 1 or 3, H, W], found {list(images.shape)}")
    return contact_sheet(to_bytes(images), columns)


def captioned_picture(rows: Sequence[tuple[Tensor, Sequence[str]]], columns: int = 8) -> Tensor:
    """Stack grids of images [N, C, H, W] in [-1, 1], each with its captions below: uint8 [3, H', W'].

    The captions of a grid are spread evenly over its width, so that one per column labels the columns. All grids are as
    wide as the widest.
    """
    line, font = 20, ImageFont.load_default(size=12)
    columns = min(columns, max(len(images) for images, _ in rows))
    parts = []
    for images, words in rows:
        grid = grid_picture(filled_row(images, columns), columns)
        caption = Image.new("RGB", (grid.shape[2], line), "white")
        draw = ImageDraw.Draw(caption)
        for place, word in enumerate(words):
            draw.text(((place + 0.5) * caption.width / len(words), line / 2), word, "black", font, anchor="mm")
        parts += [grid, torch.from_numpy(np.asarray(caption).copy()).movedim(-1, 0)]
    return torch.cat(parts, dim=1)


def figure_picture(figure: plt.Figure) -> Tensor:  # type: ignore[name-defined]
    """Render a matplotlib figure as uint8 [3, H, W] and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    return torch.from_numpy(np.asarray(Image.open(buffer).convert("RGB")).copy()).movedim(-1, 0)

"""From pictures of any size to uint8 tensors of the wanted size and number of channels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import kornia
import torch
from torch import Tensor

from cdrl.data.images.sets import ImageSet, Part, Source
from cdrl.runs.progress import progress_bar

_CHUNK_PIXELS = 2**22  # pixels that are resized together, of as many pictures as that makes
_LARGE_PIXELS = 2**21  # of a square that Kornia would take seconds and gigabytes for


def prepare_images(images: Tensor, size: int, channels: int) -> Tensor:
    """uint8 [N, C, H, W] -> uint8 [N, channels, size, size]: centre-cropped to a square, resized where needed.

    Resizing is Kornia's, bilinear and antialiased: what shrinks by a factor r is first blurred by a Gaussian of
    (r - 1) / 2 pixels. Images that have the wanted shape already come back untouched.
    """
    if images.shape[1:] == (channels, size, size):
        return images
    prepared = torch.empty(len(images), channels, size, size, dtype=torch.uint8)
    rows = max(1, _CHUNK_PIXELS // (images.shape[2] * images.shape[3]))
    for start in range(0, len(images), rows):
        chunk = _resize(crop_center(images[start : start + rows]), size)
        prepared[start : start + rows] = _convert_channels(chunk, channels)
    return prepared


def prepared_parts(source: Source, size: int, channels: int, name: str, start: int = 0) -> Iterator[Part]:
    """The pictures of a source from number ``start`` on, as uint8 [n, channels, size, size], part by part.

    A set that is published at another size is resized, but not silently: a warning tells that ``name`` was.
    """
    if source.published_size not in (None, size):
        warnings.warn(f"{name}: images of {source.published_size} pixels are resized to {size}", stacklevel=2)
    for part in source.parts(start):
        if isinstance(part.pictures, Tensor):
            yield part._replace(pictures=prepare_images(part.pictures, size, channels))
        else:
            yield part._replace(pictures=prepare_mixed(part.pictures, size, channels))


def read_source(source: Source, size: int, channels: int, name: str) -> ImageSet:
    """All pictures of a source in memory, as `prepared_parts` makes them."""
    # Where the number is known, the pictures are never in memory twice.
    images = None if source.count is None else torch.empty(source.count, channels, size, size, dtype=torch.uint8)
    parts: list[Part] = []
    count = 0  # not the bar's own, which stands still where it is not shown
    with progress_bar(source.count, f"reading {name}", unit="image") as bar:
        for part in prepared_parts(source, size, channels, name):
            pictures = torch.as_tensor(part.pictures)
            if images is not None:
                images[count : count + len(pictures)] = pictures
                part = part._replace(pictures=pictures[:0])
            parts.append(part)
            count += len(pictures)
            bar.update(len(pictures))
    labels = [part.labels for part in parts if part.labels is not None]
    attributes = [part.attributes for part in parts if part.attributes is not None]
    return ImageSet(
        torch.cat([torch.as_tensor(part.pictures) for part in parts]) if images is None else images,
        torch.cat(labels) if labels else None,
        source.label_names,
        torch.cat(attributes) if attributes else None,
        source.attribute_names,
    )


def crop_center(images: Tensor, side: int | None = None) -> Tensor:
    """The centre square of [..., H, W], of the given side or the largest one."""
    height, width = images.shape[-2:]
    side = min(height, width) if side is None else side
    top, left = (height - side) // 2, (width - side) // 2
    return images[..., top : top + side, left : left + side]


def prepare_mixed(pictures: Sequence[Tensor], size: int, channels: int) -> Tensor:
    """Pictures [C_i, H_i, W_i] of different shapes -> uint8 [N, channels, size, size]; equal shapes go together."""
    prepared = torch.empty(len(pictures), channels, size, size, dtype=torch.uint8)
    for shape in sorted({tuple(picture.shape) for picture in pictures}):
        rows = [row for row, picture in enumerate(pictures) if tuple(picture.shape) == shape]
        # A single picture, which may be a large one, is not copied.
        alike = pictures[rows[0]][None] if len(rows) == 1 else torch.stack([pictures[row] for row in rows])
        prepared[rows] = prepare_images(alike, size, channels)
    return prepared


def _resize(squares: Tensor, size: int) -> Tensor:
    if squares.shape[-1] == size:
        return squares
    if squares.shape[-1] ** 2 > _LARGE_PIXELS:
        return torch.stack([_resize_large(square, size) for square in squares])
    # With the channels last the blur takes half the time.
    pixels = squares.float().contiguous(memory_format=torch.channels_last)
    resized = kornia.geometry.transform.resize(pixels, (size, size), interpolation="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _resize_large(square: Tensor, size: int) -> Tensor:
    """What Kornia makes of uint8 [C, S, S], from a few rows at a time: its memory grows with S alone."""
    weights = _resize_weights(square.shape[-1], size)
    resized = torch.zeros(len(square), size, size)
    rows = max(1, _CHUNK_PIXELS // 4 // square.shape[-1])
    for first in range(0, square.shape[-1], rows):
        some = square[:, first : first + rows].float()
        resized += weights[:, first : first + rows] @ (some @ weights.T)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _resize_weights(side: int, size: int) -> Tensor:
    """What each of ``side`` pixels adds to each of ``size``: float32 [size, side].

    A Gaussian of (r - 1) / 2 pixels, cut off at two of them on each side and reflected at the edges, then linear.
    """
    ratio = side / size
    places = ((torch.arange(size, dtype=torch.float64) + 0.5) * ratio - 0.5).clamp(0, side - 1)
    left = places.long()
    taps, reach = torch.ones(1, dtype=torch.float64), 0
    if ratio > 1:
        sigma = (ratio - 1) / 2
        reach = int(max(4 * sigma, 3)) // 2
        taps = torch.exp(-(torch.arange(-reach, reach + 1, dtype=torch.float64) ** 2) / (2 * sigma**2))
        taps /= taps.sum()
    weights = torch.zeros(size, side, dtype=torch.float64)
    for shift, tap in zip(range(-reach, reach + 1), taps, strict=True):
        for middle, share in ((left, 1 - (places - left)), ((left + 1).clamp(max=side - 1), places - left)):
            place = (middle + shift).abs()
            place = torch.minimum(place, 2 * (side - 1) - place)
            weights.scatter_add_(1, place[:, None], (share * tap)[:, None])
    return weights.float()


def _convert_channels(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    return kornia.color.rgb_to_grayscale(images.float()).round().clamp(0, 255).to(torch.uint8)

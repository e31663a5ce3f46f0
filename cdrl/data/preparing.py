"""From pictures of any size to uint8 tensors of the wanted size and number of channels."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kornia
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cdrl.data.sets import DataError, ImageSet, Part, Source, fingerprint_of
from cdrl.progress import progress_bar

_CHUNK = 64  # pictures that are decoded together
_CHUNK_PIXELS = 2**22  # pixels that are resized together, of as many pictures as that makes
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


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


def decode_image(content: bytes, source: str) -> Tensor:
    """A PNG, JPEG, … file's bytes -> uint8 [C, H, W], grey pictures with one channel, all others with three.

    Raises:
        DataError: it is no whole picture of 8 bits a channel; the message starts with ``source``.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            upright = ImageOps.exif_transpose(picture)
            if upright.mode in _DEEP_MODES:
                raise DataError(f"{source}: expected 8 bits a channel, found mode {upright.mode}")
            array = np.array(upright if upright.mode == "L" else upright.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{source}: expected a whole picture (PNG, JPEG, …): {error}") from None
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(planes))


def load_array(content: bytes, source: str) -> np.ndarray:
    """A .npy file's bytes -> its array; never runs a pickle. Raises DataError naming ``source``."""
    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{source}: expected a whole .npy array of numbers: {error}") from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{source}: expected one .npy array, found an archive of arrays")
    return array


def read_bytes(path: Path) -> bytes:
    """The file's content. Raises DataError naming a file that cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def read_lines(path: Path) -> list[str]:
    """The text file's lines. Raises DataError naming a file that cannot be read as text."""
    try:
        return read_bytes(path).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: expected a text file in UTF-8") from None


def read_picture(path: Path) -> Tensor:
    """A picture file -> uint8 [C, H, W]. Raises DataError naming the file."""
    return decode_image(read_bytes(path), str(path))


def picture_files(
    paths: Sequence[Path],
    read: Callable[[Path], Tensor] = read_picture,
    labels: Tensor | None = None,
    label_names: tuple[str, ...] = (),
    attributes: Tensor | None = None,
    attribute_names: tuple[str, ...] = (),
) -> Source:
    """A source of picture files of any sizes, decoded by threads, in the order of ``paths``.

    ``read`` turns a path into uint8 [C, H, W].
    """

    def parts(start: int) -> Iterator[Part]:
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            # A chunk at a time: decoded pictures may be far larger than the prepared ones.
            for first in range(start, len(paths), _CHUNK):
                rows = slice(first, first + _CHUNK)
                yield Part(
                    list(pool.map(read, paths[rows])),
                    None if labels is None else labels[rows],
                    None if attributes is None else attributes[rows],
                )

    def fingerprint(rows: slice) -> str:
        return fingerprint_of(paths[rows], *(known[rows] for known in (labels, attributes) if known is not None))

    return Source(parts, fingerprint, len(paths), label_names, attribute_names)


def prepare_mixed(pictures: Sequence[Tensor], size: int, channels: int) -> Tensor:
    """Pictures [C_i, H_i, W_i] of different shapes -> uint8 [N, channels, size, size]; equal shapes go together."""
    prepared = torch.empty(len(pictures), channels, size, size, dtype=torch.uint8)
    for shape in sorted({tuple(picture.shape) for picture in pictures}):
        rows = [row for row, picture in enumerate(pictures) if tuple(picture.shape) == shape]
        prepared[rows] = prepare_images(torch.stack([pictures[row] for row in rows]), size, channels)
    return prepared


def _resize(squares: Tensor, size: int) -> Tensor:
    if squares.shape[-1] == size:
        return squares
    # With the channels last the blur takes half the time.
    pixels = squares.float().contiguous(memory_format=torch.channels_last)
    resized = kornia.geometry.transform.resize(pixels, (size, size), interpolation="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _convert_channels(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    return kornia.color.rgb_to_grayscale(images.float()).round().clamp(0, 255).to(torch.uint8)

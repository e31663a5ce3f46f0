"""From pictures of any size to uint8 tensors of the wanted size and number of channels."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kornia
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from cdrl.data.sets import DataError

_CHUNK = 256
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def prepare_images(images: Tensor, size: int, channels: int) -> Tensor:
    """uint8 [N, C, H, W] -> uint8 [N, channels, size, size]: centre-cropped to a square, resized where needed.

    Images that have the wanted shape already come back untouched.
    """
    if images.shape[1:] == (channels, size, size):
        return images
    prepared = torch.empty(len(images), channels, size, size, dtype=torch.uint8)
    for start in range(0, len(images), _CHUNK):
        chunk = _resize(crop_center(images[start : start + _CHUNK]), size)
        prepared[start : start + _CHUNK] = _convert_channels(chunk, channels)
    return prepared


def prepare_fixed(images: Tensor, size: int, channels: int, name: str) -> Tensor:
    """As `prepare_images`, for sets published at one size: a warning tells that ``name`` had to be resized."""
    published = images.shape[-1]
    if published != size:
        warnings.warn(f"{name}: images of {published} pixels are resized to {size}", stacklevel=2)
    return prepare_images(images, size, channels)


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


def read_pictures(
    paths: Sequence[Path],
    size: int,
    channels: int,
    name: str,
    read: Callable[[Path], Tensor] = read_picture,
) -> Tensor:
    """Picture files of any sizes -> uint8 [N, channels, size, size], decoded by threads, in the order of ``paths``.

    ``read`` turns a path into uint8 [C, H, W]. A progress bar called ``name`` shows on a terminal.
    """
    images = torch.empty(len(paths), channels, size, size, dtype=torch.uint8)
    threads = os.cpu_count() or 1
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(paths), desc=f"reading {name}", unit="image", disable=None) as progress,
    ):
        # A chunk at a time: decoded pictures may be far larger than the prepared ones.
        for start in range(0, len(paths), _CHUNK):
            pictures = list(pool.map(read, paths[start : start + _CHUNK]))
            images[start : start + len(pictures)] = prepare_mixed(pictures, size, channels)
            progress.update(len(pictures))
    return images


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
    resized = kornia.geometry.transform.resize(squares.float(), (size, size), antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def _convert_channels(images: Tensor, channels: int) -> Tensor:
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    return kornia.color.rgb_to_grayscale(images.float()).round().clamp(0, 255).to(torch.uint8)

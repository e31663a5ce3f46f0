"""Files of pictures and arrays: read, decoded, refused with the file's name where they are damaged."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from cdrl.data.images.sets import DataError, Part, Source, fingerprint_of
from cdrl.foreign.arrays import parse_npy
from cdrl.foreign.files import open_file

_CHUNK = 64  # pictures that are decoded together
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


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
        return parse_npy(content)
    except ValueError as error:
        raise DataError(f"{source}: expected a whole .npy array of numbers: {error}") from None


def read_bytes(path: Path) -> bytes:
    """The file's content. Raises DataError naming a file that cannot be read."""
    try:
        with open_file(path) as file:
            return file.read()
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

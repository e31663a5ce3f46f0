"""Fashion-MNIST as published: idx files, plain or compressed by gzip."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from cdrl.config import DataConfig
from cdrl.data.images.sets import DataError, ImageSet, Source, Split, source_in_memory
from cdrl.data.readers.checksums import check_published
from cdrl.foreign.files import read_file

# Where Debian's package dataset-fashion-mnist puts the files.
_SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_IMAGES_MAGIC = 2051
_LABELS_MAGIC = 2049
_MOST_BYTES = 2**28
"""Of a file, packed or not: the published ones have 47 MB, others of their kind 200 MB."""
_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def open_fashion_mnist(path: Path | None, split: Split, data: DataConfig) -> Source:
    """Fashion-MNIST from ``path``, or from where the system's package keeps it, which has compressed it anew.

    The images of 28 pixels are padded by two rows of zeros on each side for size 32, and resized for other sizes.
    MD5 sums are published of the compressed files, so only these are compared.

    Raises:
        DataError: a file is missing, damaged, or holds something else.
    """
    if path is None and not _SYSTEM_FOLDER.is_dir():
        raise DataError(
            f"{_SYSTEM_FOLDER}: not there: install Debian's package dataset-fashion-mnist, or set data.path to a "
            "folder with the four idx files of https://github.com/zalandoresearch/fashion-mnist"
        )
    folder = path or _SYSTEM_FOLDER
    prefix = "train" if split == "train" else "t10k"
    check_sums = data.check_sums and path is not None
    images = _read_idx(_find(folder, f"{prefix}-images-idx3-ubyte"), _IMAGES_MAGIC, dims=3, check_sums=check_sums)
    labels_file = _find(folder, f"{prefix}-labels-idx1-ubyte")
    labels = _read_idx(labels_file, _LABELS_MAGIC, dims=1, check_sums=check_sums)
    if len(labels) != len(images):
        raise DataError(f"{labels_file}: expected {len(images)} labels, one an image, found {len(labels)}")
    if labels.max(initial=0) >= len(_CLASSES):
        raise DataError(f"{labels_file}: expected labels 0 … {len(_CLASSES) - 1}, found {labels.max()}")
    pixels = torch.from_numpy(images)[:, None]
    if data.image_size == 32:
        pixels = F.pad(pixels, (2, 2, 2, 2))
    images_set = ImageSet(pixels, torch.from_numpy(labels.astype(np.int64)), _CLASSES)
    return source_in_memory(images_set, published_size=pixels.shape[-1])


def _find(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise DataError(f"{folder / name}: not there, nor with .gz at its end")


def _read_idx(path: Path, magic: int, dims: int, check_sums: bool) -> np.ndarray:
    """The uint8 array of an idx file: magic number and sizes as big-endian 32-bit numbers, then the values."""
    packed = path.suffix == ".gz"
    try:
        content = read_file(path, _MOST_BYTES)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    if packed and check_sums:
        check_published(content, f"fashion_mnist/{path.name}", str(path))
    try:
        with gzip.open(io.BytesIO(content)) if packed else io.BytesIO(content) as stream:
            return _parse_idx(stream, magic, dims, path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a whole gzip file: {error}") from None


def _parse_idx(stream: io.BufferedIOBase, magic: int, dims: int, path: Path) -> np.ndarray:
    header = stream.read(4 * (1 + dims))
    if len(header) < 4 * (1 + dims) or int.from_bytes(header[:4], "big") != magic:
        raise DataError(f"{path}: expected an idx file with the magic number {magic}")
    shape = tuple(int(side) for side in np.frombuffer(header[4:], dtype=">u4"))
    if dims == 3 and shape[1:] != (28, 28):
        raise DataError(f"{path}: expected images of 28 by 28 pixels, found {shape[1]} by {shape[2]}")
    count = math.prod(shape)
    if count > _MOST_BYTES:
        raise DataError(f"{path}: claims {count:,} values, expected {_MOST_BYTES:,} at most")
    # One more than there should be is asked for: a file may unfold to far more than it claims.
    values = stream.read(count + 1)
    if len(values) != count:
        raise DataError(f"{path}: expected {count} values, found {len(values) if len(values) < count else 'more'}")
    return np.frombuffer(values, np.uint8).reshape(shape).copy()

"""Street View House Numbers as published: MATLAB files of cropped digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from cdrl.config import DataConfig
from cdrl.data.images.sets import DataError, ImageSet, Source, Split, source_in_memory
from cdrl.data.readers.checksums import check_published
from cdrl.foreign.files import read_file
from cdrl.foreign.matlab import parse_matlab

_SIDE = 32
_MOST_BYTES = 2**29
"""Of a file or of its pictures: the larger published one has 182 MB and unfolds to 225 MB."""


def open_svhn(path: Path, split: Split, data: DataConfig) -> Source:
    """SVHN's cropped digits from `train_32x32.mat` or `test_32x32.mat` in ``path``; the label 10 is the digit 0.

    Raises:
        DataError: the file is missing, damaged, or differs from the published one.
    """
    file = path / f"{split}_32x32.mat"
    try:
        content = read_file(file, _MOST_BYTES)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{file}: {error}") from None
    if data.check_sums:
        check_published(content, f"svhn/{file.name}", str(file))
    pixels, labels = _read_matlab(content, file)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[:3] != (_SIDE, _SIDE, 3):
        raise DataError(f"{file}: expected 'X' as uint8 ({_SIDE}, {_SIDE}, 3, N), found {pixels.dtype} {pixels.shape}")
    count = pixels.shape[3]
    if labels.size != count or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{file}: expected {count} whole numbers as 'y', found {labels.dtype} {labels.shape}")
    if labels.min() < 1 or labels.max() > 10:
        raise DataError(f"{file}: expected labels 1 … 10, found {labels.min()} … {labels.max()}")
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1)))
    digits = torch.from_numpy(labels.reshape(-1).astype(np.int64)) % 10
    return source_in_memory(ImageSet(images, digits, tuple(map(str, range(10)))), _SIDE)


def _read_matlab(content: bytes, file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        arrays = parse_matlab(content, ("X", "y"), _MOST_BYTES)
        return arrays["X"], arrays["y"]
    except ValueError as error:
        raise DataError(f"{file}: expected a whole MATLAB file with 'X' and 'y': it {error}") from None
    except KeyError as error:
        raise DataError(f"{file}: expected a whole MATLAB file with 'X' and 'y': it holds no {error}") from None

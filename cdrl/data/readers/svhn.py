"""Street View House Numbers as published: MATLAB files of cropped digits."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from cdrl.config import DataConfig
from cdrl.data.images.files import read_bytes
from cdrl.data.images.sets import DataError, ImageSet, Source, Split, source_in_memory
from cdrl.data.readers.checksums import check_published

_SIDE = 32


def open_svhn(path: Path, split: Split, data: DataConfig) -> Source:
    """SVHN's cropped digits from `train_32x32.mat` or `test_32x32.mat` in ``path``; the label 10 is the digit 0.

    Raises:
        DataError: the file is missing, damaged, or differs from the published one.
    """
    file = path / f"{split}_32x32.mat"
    content = read_bytes(file)
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
    from scipy.io import loadmat  # here, because it takes a while

    try:
        arrays = loadmat(io.BytesIO(content), variable_names=("X", "y"))
        return np.asarray(arrays["X"]), np.asarray(arrays["y"])
    except Exception as error:
        # scipy reports damage by a dozen types of exception.
        raise DataError(f"{file}: expected a whole MATLAB file with 'X' and 'y': {error}") from None

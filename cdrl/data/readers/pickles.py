"""CIFAR-10, CIFAR-100 and ImageNet32 as published: pickles of 32 by 32 images, read without running what they say."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from cdrl.config import DataConfig
from cdrl.data.images.files import read_bytes
from cdrl.data.images.sets import DataError, ImageSet, Part, Source, Split, fingerprint_of, source_in_memory
from cdrl.data.readers.checksums import check_published
from cdrl.foreign.arrays import PICKLED_ARRAYS, PickledArray, read_npz
from cdrl.foreign.files import open_file
from cdrl.foreign.unpickling import read_pickle

_SIDE = 32
_PART = 1000  # images of a file that are handed on together
_IMAGENET32_FILES = {"train": tuple(f"train_data_batch_{number}" for number in range(1, 11)), "test": ("val_data",)}
_IMAGENET32_CLASSES = 1000
_MOST_BYTES = 2**29
"""Of a file of ImageNet32 or of an unpacked archive: the largest published has 394 MB."""


class _Cifar(NamedTuple):
    """Names in the layout that CIFAR-10 and CIFAR-100 share."""

    folder: str
    archive: str
    files: dict[Split, tuple[str, ...]]
    meta: str
    labels: str
    label_names: str


_CIFAR10 = _Cifar(
    "cifar-10-batches-py",
    "cifar-10-python.tar.gz",
    {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)},
    "batches.meta",
    "labels",
    "label_names",
)
_CIFAR100 = _Cifar(
    "cifar-100-python",
    "cifar-100-python.tar.gz",
    {"train": ("train",), "test": ("test",)},
    "meta",
    "fine_labels",
    "fine_label_names",
)


def open_cifar10(path: Path, split: Split, data: DataConfig) -> Source:
    """CIFAR-10 from its folder `cifar-10-batches-py`, the folder above it, or `cifar-10-python.tar.gz`.

    Raises:
        DataError: a file is missing, damaged, or differs from the published one.
    """
    return _open_cifar(_CIFAR10, path, split, data.check_sums)


def open_cifar100(path: Path, split: Split, data: DataConfig) -> Source:
    """CIFAR-100 with its 100 fine classes, from `cifar-100-python`, the folder above it, or the archive.

    Raises:
        DataError: a file is missing, damaged, or differs from the published one.
    """
    return _open_cifar(_CIFAR100, path, split, data.check_sums)


def _open_cifar(layout: _Cifar, path: Path, split: Split, check_sums: bool) -> Source:
    contents = _read_cifar(layout, path, [*layout.files[split], layout.meta])
    if check_sums:
        for name, content in contents.items():
            check_published(content, f"{layout.folder}/{name}", f"{path}: {name}")
    meta = _unpickle(contents[layout.meta], f"{path}: {layout.meta}")
    names = meta.get(layout.label_names)
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: {layout.meta}: expected the names of the classes as '{layout.label_names}'")
    batches = []
    for name in layout.files[split]:
        where = f"{path}: {name}"
        batches.append(_parse_batch(_unpickle(contents[name], where), layout.labels, 0, len(names), where))
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    return source_in_memory(ImageSet(images, labels, tuple(map(str, names))), _SIDE)


def open_imagenet32(path: Path, split: Split, data: DataConfig) -> Source:
    """Downsampled ImageNet, pickles or `.npz` of the same names; ``test`` is the validation set.

    The published labels 1 … 1000 (in the order of map_clsloc.txt) become ids 0 … 999, named by the former. One file
    at a time is in memory.

    Raises:
        DataError: a file is missing, damaged, or holds a label outside 1 … 1000; all but a missing one when read.
    """
    files = []
    for name in _IMAGENET32_FILES[split]:
        found = [file for file in (path / f"{name}.npz", path / name) if file.is_file()]
        if not found:
            raise DataError(f"{path / name}: not there, nor with .npz at its end")
        files.append(found[0])

    def parts(start: int) -> Iterator[Part]:
        for file in files:
            images, labels = _read_imagenet32(file)
            for first in range(start, len(images), _PART):
                rows = slice(first, first + _PART)
                # A copy: whoever holds some of a file's images does not hold all of them while the next file is read.
                yield Part(images[rows].clone(), labels[rows].clone())
            start = max(start - len(images), 0)
            del images, labels

    names = tuple(str(label) for label in range(1, _IMAGENET32_CLASSES + 1))
    # Which file a picture is from is not known before they are read.
    return Source(parts, lambda rows: fingerprint_of(files), label_names=names, published_size=_SIDE)


def _read_imagenet32(file: Path) -> tuple[Tensor, Tensor]:
    if file.suffix == ".npz":
        batch = _read_npz(file)
    else:
        try:
            with open_file(file) as stream:
                batch = _unpickle(stream, str(file))
        except OSError as error:
            raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    images, labels = _parse_batch(batch, "labels", 1, _IMAGENET32_CLASSES, str(file))
    return images, labels - 1


def _read_cifar(layout: _Cifar, path: Path, names: list[str]) -> dict[str, bytes]:
    archive = path if path.is_file() else path / layout.archive
    folder = next((place for place in (path, path / layout.folder) if (place / layout.meta).is_file()), None)
    if folder is not None:
        return {name: read_bytes(folder / name) for name in names}
    if archive.is_file():
        return _read_archive(archive, layout.folder, names)
    raise DataError(f"{path}: expected {layout.folder} or {layout.archive} there")


def _read_archive(archive: Path, folder: str, names: list[str]) -> dict[str, bytes]:
    contents = {}
    try:
        # As a stream: what it unfolds to is counted, of files that nobody asked for and of its own headers too.
        with _unfolded(archive) as stream, tarfile.open(mode="r|", fileobj=cast(Any, _Bounded(stream))) as tar:
            for member in tar:
                name = member.name.removeprefix(f"{folder}/")
                file = tar.extractfile(member) if name in names and member.isreg() and not member.sparse else None
                if file is not None:
                    contents[name] = file.read()
    except (tarfile.TarError, EOFError, OSError, ValueError, zlib.error) as error:
        raise DataError(f"{archive}: expected a whole .tar.gz: {error}") from None
    missing = [name for name in names if name not in contents]
    if missing:
        raise DataError(f"{archive}: expected {folder}/{missing[0]} in it")
    return contents


class _Bounded:
    """A stream that ends in an error where it is longer than any archive that was published."""

    def __init__(self, stream: io.BufferedIOBase) -> None:
        self._stream, self._left = stream, _MOST_BYTES

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes."""
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"it unfolds to more than {_MOST_BYTES:,} bytes")
        return content


@contextmanager
def _unfolded(archive: Path) -> Iterator[io.BufferedIOBase]:
    """The bytes of an archive, unpacked if they are packed."""
    with open_file(archive) as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        if not packed:
            yield cast(io.BufferedIOBase, file)
            return
        with gzip.open(file) as stream:
            yield stream


def _parse_batch(batch: dict[str, Any], key: str, first: int, count: int, where: str) -> tuple[Tensor, Tensor]:
    """Pixels uint8 [N, 3, 32, 32] and labels int64 [N], ``first`` … of ``count`` classes, of one batch."""
    pixels = batch.get("data")
    width = 3 * _SIDE * _SIDE
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != width:
        raise DataError(f"{where}: expected 'data' as uint8 [N, {width}]")
    labels = _as_array(batch.get(key))
    if not len(pixels) or labels.shape != (len(pixels),) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{where}: expected {len(pixels)} whole numbers as '{key}'")
    last = first + count - 1
    if labels.min() < first or labels.max() > last:
        raise DataError(f"{where}: expected labels {first} … {last}, found {labels.min()} … {labels.max()}")
    images = torch.from_numpy(np.ascontiguousarray(pixels).reshape(-1, 3, _SIDE, _SIDE))
    return images, torch.from_numpy(labels.astype(np.int64))


def _as_array(labels: Any) -> np.ndarray:
    """Labels as an array; an empty one of what is neither an array nor a list of whole numbers of 64 bits."""
    if isinstance(labels, np.ndarray):
        return labels
    # Looked at one by one: numpy would follow lists within lists, which a small file may nest without end.
    fit = isinstance(labels, list | tuple) and all(type(label) is int and abs(label) < 2**63 for label in labels)
    return np.asarray(labels if fit else [], np.int64)


def _read_npz(file: Path) -> dict[str, Any]:
    try:
        return read_npz(file, ("data", "labels"), _MOST_BYTES)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{file}: expected a whole .npz: {error}") from None


def _unpickle(stream: IO[bytes] | bytes, where: str) -> dict[str, Any]:
    try:
        batch = read_pickle(stream, PICKLED_ARRAYS)
    except ValueError as error:
        raise DataError(f"{where}: expected a whole pickle of arrays, lists and names: {error}") from None
    if not isinstance(batch, dict):
        raise DataError(f"{where}: expected a pickled dict, found {type(batch).__name__}")
    # Some have the keys of Python 2, which are bytes to Python 3.
    named = {name.decode("latin1") if isinstance(name, bytes) else name: value for name, value in batch.items()}
    return {name: value.array if isinstance(value, PickledArray) else value for name, value in named.items()}

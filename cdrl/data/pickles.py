"""CIFAR-10 and ImageNet32 as published: pickled batches of 32 by 32 images, read without running what they say."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from cdrl.data.folders import Split
from cdrl.data.preparing import prepare_fixed, read_bytes
from cdrl.data.sets import DataError, ImageSet

_SIDE = 32
_CIFAR10_FOLDER = "cifar-10-batches-py"
_CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
_IMAGENET32_FILES = {"train": tuple(f"train_data_batch_{number}" for number in range(1, 11)), "test": ("val_data",)}
_IMAGENET32_CLASSES = 1000


def load_cifar10(path: Path, split: Split, size: int, channels: int) -> ImageSet:
    """CIFAR-10 from its folder `cifar-10-batches-py`, the folder above it, or `cifar-10-python.tar.gz`.

    Raises:
        DataError: a file is missing or differs from the published one.
    """
    batches = [name for name in CIFAR10_MD5 if name.startswith("data_batch" if split == "train" else "test_batch")]
    contents = _read_cifar10(path, [*batches, "batches.meta"])
    meta = _unpickle(contents["batches.meta"], f"{path}: batches.meta")
    names = tuple(str(name) for name in meta.get("label_names", ()))
    parts = [_parse_batch(_unpickle(contents[name], f"{path}: {name}"), f"{path}: {name}") for name in batches]
    return _join_batches(parts, names, size, channels, "cifar10")


def load_imagenet32(path: Path, split: Split, size: int, channels: int) -> ImageSet:
    """Downsampled ImageNet, pickles or `.npz` of the same names; ``test`` is the validation set.

    The published labels 1 … 1000 (in the order of map_clsloc.txt) become ids 0 … 999, named by the former.

    Raises:
        DataError: a file is missing, damaged, or holds a label outside 1 … 1000.
    """
    parts = []
    for name in _IMAGENET32_FILES[split]:
        file = path / f"{name}.npz" if (path / f"{name}.npz").is_file() else path / name
        content = read_bytes(file)
        batch = _read_npz(content, str(file)) if file.suffix == ".npz" else _unpickle(content, str(file))
        pixels, labels = _parse_batch(batch, str(file))
        parts.append((pixels, labels - 1))
        if labels.min() < 1 or labels.max() > _IMAGENET32_CLASSES:
            raise DataError(f"{file}: expected labels 1 … {_IMAGENET32_CLASSES}, found {labels.min()} … {labels.max()}")
    names = tuple(str(label) for label in range(1, _IMAGENET32_CLASSES + 1))
    return _join_batches(parts, names, size, channels, "imagenet32")


def _join_batches(
    parts: list[tuple[np.ndarray, np.ndarray]], names: tuple[str, ...], size: int, channels: int, source: str
) -> ImageSet:
    images = torch.from_numpy(np.concatenate([pixels for pixels, _ in parts]))
    labels = torch.from_numpy(np.concatenate([labels for _, labels in parts]))
    return ImageSet(prepare_fixed(images, size, channels, source), labels, names)


def _read_cifar10(path: Path, names: list[str]) -> dict[str, bytes]:
    archive = path if path.is_file() else path / _CIFAR10_ARCHIVE
    folder = next((place for place in (path, path / _CIFAR10_FOLDER) if (place / "batches.meta").is_file()), None)
    if folder is not None:
        contents = {name: read_bytes(folder / name) for name in names}
    elif archive.is_file():
        contents = _read_archive(archive, names)
    else:
        raise DataError(f"{path}: expected {_CIFAR10_FOLDER} or {_CIFAR10_ARCHIVE} there")
    for name, content in contents.items():
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != CIFAR10_MD5[name]:
            raise DataError(f"{folder or archive}: {name}: damaged: expected the MD5 {CIFAR10_MD5[name]}")
    return contents


def _read_archive(archive: Path, names: list[str]) -> dict[str, bytes]:
    contents = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = member.name.removeprefix(f"{_CIFAR10_FOLDER}/")
                file = tar.extractfile(member) if name in names else None
                if file is not None:
                    contents[name] = file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{archive}: expected a whole .tar.gz: {error}") from None
    missing = [name for name in names if name not in contents]
    if missing:
        raise DataError(f"{archive}: expected {_CIFAR10_FOLDER}/{missing[0]} in it")
    return contents


def _parse_batch(batch: dict[str, Any], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [N, 3, 32, 32] and labels int64 [N] of one batch."""
    pixels = batch.get("data")
    width = 3 * _SIDE * _SIDE
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != width:
        raise DataError(f"{where}: expected 'data' as uint8 [N, {width}]")
    labels = np.asarray(batch.get("labels", []))
    if labels.shape != (len(pixels),) or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{where}: expected {len(pixels)} whole numbers as 'labels'")
    return pixels.reshape(-1, 3, _SIDE, _SIDE), labels.astype(np.int64)


def _read_npz(content: bytes, where: str) -> dict[str, Any]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return {name: archive[name] for name in ("data", "labels") if name in archive}
    except Exception as error:
        # numpy and zipfile report damage by a dozen types of exception.
        raise DataError(f"{where}: expected a whole .npz: {error}") from None


def _unpickle(content: bytes, where: str) -> dict[str, Any]:
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:
        # A damaged pickle may fail in any way at all.
        raise DataError(f"{where}: expected a whole pickle of arrays, lists and names: {error}") from None
    if not isinstance(batch, dict):
        raise DataError(f"{where}: expected a pickled dict, found {type(batch).__name__}")
    return batch


def _encode_latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


def _new_array(*_: object) -> np.ndarray:
    """The empty array that the pickled state then fills."""
    return np.empty(0, np.uint8)


def _new_dtype(code: str, *_: object) -> np.dtype[Any]:
    dtype = np.dtype(code, copy=True)
    if dtype.kind not in "biuf":
        raise pickle.UnpicklingError(f"an array of type {code}")
    return dtype


class _ArrayUnpickler(pickle.Unpickler):
    """Builds dicts, lists, strings, numbers and arrays of numbers; refuses to look up anything else.

    `_codecs.encode` is how Python 3 writes bytes for Python 2.
    """

    _allowed: ClassVar[dict[tuple[str, str], Callable[..., Any] | None]] = {
        ("numpy.core.multiarray", "_reconstruct"): _new_array,
        ("numpy._core.multiarray", "_reconstruct"): _new_array,
        ("numpy", "ndarray"): None,  # an argument of _reconstruct only
        ("numpy", "dtype"): _new_dtype,
        ("_codecs", "encode"): _encode_latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which the format does not hold")
        return self._allowed[module, name]

"""What is inside webdataset's tar files: samples of `key.png`, `.jpg` or `.npy` with `key.cls` or `key.json`."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset
from torch import Tensor

from cdrl.data.images.files import decode_image, load_array, read_bytes
from cdrl.data.images.sets import DataError


class ForeignSample(NamedTuple):
    """What a shard that was not written here says of a sample; ``attributes`` is empty where it names none."""

    key: str
    label: int | None
    attributes: dict[str, bool]


def list_foreign_shard(path: Path) -> Iterator[ForeignSample]:
    """The samples of one shard: an image with `key.cls` or `key.json`, if there is any.

    A json file may hold ``label`` (a class id) and ``attributes`` (a mapping of names to true or false).

    Raises:
        DataError: the shard is cut or damaged; the message names it.
    """
    for files in iterate_tar(read_bytes(path), path):
        key, where = files["__key__"], f"{path}: sample {files['__key__']}"
        notes = parse_json(files["json"], where) if "json" in files else {}
        label = parse_label(files["cls"], where) if "cls" in files else notes.get("label")
        attributes = notes.get("attributes", {})
        if label is not None and (not isinstance(label, int) or label < 0):
            raise DataError(f"{where}: expected a class id as label, found {label!r}")
        if not isinstance(attributes, dict) or not all(isinstance(value, bool) for value in attributes.values()):
            raise DataError(f"{where}: expected attributes as a mapping of names to true or false")
        yield ForeignSample(key, label, attributes)


def read_foreign_images(path: Path, keys: Sequence[str]) -> list[Tensor]:
    """The images of some samples of one shard, in its order: `key.png`, `.jpg` or `.npy` (uint8).

    Raises:
        DataError: the shard is cut or damaged, or a sample holds no image; the message names it.
    """
    wanted = set(keys)
    return [
        _parse_foreign_image(files, f"{path}: sample {files['__key__']}")
        for files in iterate_tar(read_bytes(path), path)
        if files["__key__"] in wanted
    ]


def iterate_tar(content: bytes, path: Path) -> Iterator[dict[str, Any]]:
    """The samples of a tar file's bytes, each a mapping of extensions to bytes, with its ``__key__``."""
    # An archive ends with blocks of zeros; without them it was cut, perhaps between two files, where tarfile would
    # just stop.
    if len(content) < tarfile.BLOCKSIZE or any(content[-tarfile.BLOCKSIZE :]):
        raise DataError(f"{path}: damaged: expected a whole tar file, but its end is missing")
    try:
        # webdataset's own opener would take braces and 'pipe:' in a path for commands: it gets the bytes instead.
        files = webdataset.tariterators.tar_file_iterator(io.BytesIO(content))
        for sample in webdataset.tariterators.group_by_keys({**file, "__url__": str(path)} for file in files):
            yield dict(sample)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path}: damaged: expected a whole tar file: {error}") from None


def parse_label(content: bytes, where: str) -> int:
    """The class id in a .cls file's bytes. Raises DataError starting with ``where``."""
    text = content.decode("ascii", errors="replace").strip()
    if not text.isdecimal():
        raise DataError(f"{where}: expected a class id in its .cls file, found {text!r}")
    return int(text)


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """The object in a .json file's bytes. Raises DataError starting with ``where``."""
    try:
        notes = json.loads(content)
    except ValueError as error:
        raise DataError(f"{where}: expected JSON: {error}") from None
    if not isinstance(notes, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(notes).__name__}")
    return notes


def _parse_foreign_image(files: dict[str, Any], where: str) -> Tensor:
    for extension in ("png", "jpg", "jpeg"):
        if extension in files:
            return decode_image(files[extension], where)
    if "npy" not in files:
        raise DataError(f"{where}: expected a .png, .jpg or .npy file")
    array = load_array(files["npy"], where)
    if array.dtype == np.uint8 and array.ndim == 2:
        array = array[None]
    elif array.dtype == np.uint8 and array.ndim == 3 and array.shape[0] not in (1, 3):
        array = array.transpose(2, 0, 1)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] not in (1, 3):
        raise DataError(f"{where}: expected uint8 [H, W], [H, W, 3] or [3, H, W], found {array.dtype} {array.shape}")
    return torch.from_numpy(np.ascontiguousarray(array))

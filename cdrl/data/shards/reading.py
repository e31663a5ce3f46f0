"""Shards read whole: those written here, and what tells them from shards of others."""

from __future__ import annotations

import hashlib
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError
from torch import Tensor

from cdrl.data.images.files import load_array, read_bytes
from cdrl.data.images.sets import DataError, GridSet
from cdrl.data.shards.folders import Elsewhere
from cdrl.data.shards.format import INDEX, PARTIAL, Index, Sample
from cdrl.data.shards.tars import iterate_tar, parse_json, parse_label
from cdrl.names import counted

# Bytes of grids that a byte of a shard can hold: what deflate, and so PNG, can make of zeros.
_UNFOLDED = 1100


def read_shards(folder: str | Path) -> GridSet:
    """Read what `write_shards` wrote: all of it, in the order it was written.

    Raises:
        DataError: the folder is half-written or not written here, or a shard is missing, damaged, or holds
            something other than the index says; the message names the shard.
    """
    folder = Path(folder)
    index = read_index(folder)
    try:
        there = sum((folder / shard.name).stat().st_size for shard in index.shards)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None
    check_claim(str(folder / INDEX), index, there)
    grids = torch.empty(index.count, *index.shape, dtype=getattr(torch, index.dtype))
    labels = torch.empty(index.count, dtype=torch.int64)
    attributes = torch.empty(index.count, len(index.attribute_names), dtype=torch.bool)
    row = 0
    for shard in index.shards:
        path = folder / shard.name
        content = read_bytes(path)
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            raise DataError(f"{path}: damaged: its SHA-256 differs from the one in {INDEX}")
        samples = [_parse_sample(sample, path, index) for sample in iterate_tar(content, path)]
        if len(samples) != shard.count or row + len(samples) > index.count:
            raise DataError(f"{path}: expected {counted(shard.count, 'sample')}, found {len(samples)}")
        for sample in samples:
            grids[row] = sample.grid
            labels[row] = -1 if sample.label is None else sample.label
            attributes[row] = torch.tensor(sample.attributes, dtype=torch.bool)
            row += 1
    if row != index.count:
        raise DataError(f"{folder / INDEX}: expected shards of {counted(index.count, 'sample')}, found {row}")
    return GridSet(
        grids=grids,
        labels=labels if index.label_names else None,
        label_names=index.label_names,
        attributes=attributes if index.attribute_names else None,
        attribute_names=index.attribute_names,
        metadata=index.metadata,
    )


def check_claim(where: str, index: Index, num_bytes: int) -> None:
    """Make sure that so many bytes can hold what the index says, before it is given memory.

    Raises:
        DataError: they cannot; the message starts with ``where``.
    """
    claimed = index.count * math.prod(index.shape) * (1 if index.dtype == "uint8" else 4)
    if claimed > _UNFOLDED * num_bytes:
        found = f"{counted(index.count, 'grid')} of {list(index.shape)}"
        raise DataError(f"{where}: expected what its shards can hold, found {found}")


def has_index(folder: str | Path) -> bool:
    """Whether the folder holds a complete set written by `write_shards`."""
    return (Path(folder) / INDEX).is_file()


def has_foreign_shards(folder: str | Path) -> bool:
    """Whether the folder holds tar files that `write_shards` did not write, in whole or in part."""
    folder = Path(folder)
    return any(folder.glob("*.tar")) and not has_index(folder) and not any(folder.glob(f"*{PARTIAL}"))


def read_index(folder: str | Path | Elsewhere, name: str = INDEX) -> Index:
    """The index of the set in ``folder``. Raises DataError when there is none, or a damaged one."""
    if isinstance(folder, Elsewhere):
        return _parse_index(folder.index(), folder.where(INDEX))
    path = Path(folder) / name
    if not path.is_file() and any(path.parent.glob(f"*{PARTIAL}")):
        raise DataError(f"{folder}: half-written: {INDEX} is missing and {PARTIAL} files are left; write it again")
    return _parse_index(read_bytes(path), str(path))


def _parse_index(content: bytes, where: str) -> Index:
    try:
        return Index.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where}: expected the index of shards ({place or 'JSON'}: {first['msg']})") from None
    except RecursionError:
        raise DataError(f"{where}: expected the index of shards, found JSON that is nested too deep") from None


def extension_of(dtype: str) -> str:
    """File ending for grids of a data type."""
    return "png" if dtype == "uint8" else "npy"


def parse_grid(content: bytes, where: str, index: Index) -> Tensor:
    """One grid from its file's bytes.

    Raises:
        DataError: it is damaged, or not what ``index`` says; the message starts with ``where``.
    """
    grid = _parse_png(content, where, index) if index.dtype == "uint8" else parse_npy(content, where)
    if tuple(grid.shape) != index.shape or grid.dtype != getattr(torch, index.dtype):
        raise DataError(f"{where}: expected {index.dtype} {list(index.shape)}, found {grid.dtype} {list(grid.shape)}")
    if grid.dtype == torch.float32 and not torch.isfinite(grid).all():
        raise DataError(f"{where}: expected finite numbers, found NaN or infinity")
    return grid


def _parse_png(content: bytes, where: str, index: Index) -> Tensor:
    # Leaner than `decode_image`, which takes whatever others wrote.
    try:
        with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
            if picture.size != (index.shape[-1], index.shape[-2]):
                width, height = picture.size
                raise DataError(f"{where}: expected uint8 {list(index.shape)}, found {width} x {height} pixels")
            array = np.array(picture)
    except DataError:
        raise
    except UnidentifiedImageError:
        raise DataError(f"{where}: expected a whole PNG picture, found something else") from None
    except Exception as error:
        # Pillow reports damage by a dozen types of exception.
        raise DataError(f"{where}: expected a whole PNG picture: {error}") from None
    return torch.from_numpy(array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1)))


def parse_npy(content: bytes, where: str) -> Tensor:
    """The float32 numbers in a file of numpy's. Raises DataError: it is damaged, or holds others."""
    array = load_array(content, where)
    if array.dtype != np.float32:
        raise DataError(f"{where}: expected float32 numbers, found {array.dtype}")
    return torch.from_numpy(array)


def _parse_sample(files: dict[str, Any], path: Path, index: Index) -> Sample:
    where = f"{path}: sample {files['__key__']}"
    extension = extension_of(index.dtype)
    if extension not in files:
        raise DataError(f"{where}: expected a .{extension} file")
    grid = parse_grid(files[extension], where, index)
    return Sample(grid, _expect_label(files, where, index), _expect_attributes(files, where, index))


def _expect_label(files: dict[str, Any], where: str, index: Index) -> int | None:
    if not index.label_names:
        return None
    if "cls" not in files:
        raise DataError(f"{where}: expected a .cls file")
    label = parse_label(files["cls"], where)
    if label >= len(index.label_names):
        raise DataError(f"{where}: expected a label in 0 … {len(index.label_names) - 1}, found {label}")
    return label


def _expect_attributes(files: dict[str, Any], where: str, index: Index) -> list[bool]:
    if not index.attribute_names:
        return []
    values = parse_json(files.get("json", b"{}"), where).get("attributes")
    if not isinstance(values, dict) or not all(isinstance(values.get(name), bool) for name in index.attribute_names):
        raise DataError(f"{where}: expected a .json file with attributes {', '.join(index.attribute_names)}")
    return [values[name] for name in index.attribute_names]

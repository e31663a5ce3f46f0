"""Shards in webdataset's layout: tar files of `key.png` or `key.npy` with `key.cls` and `key.json` beside them.

Shards written here come with an `index.json` that says what they hold; it appears last, so a folder without it is
either somebody else's or half-written. Both kinds are read: ours as a `GridSet`, others sample by sample.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import webdataset
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from cdrl.data.preparing import decode_image, load_array, read_bytes
from cdrl.data.sets import DataError, GridSet
from cdrl.data.tars import iterate_tar, parse_json, parse_label

_INDEX = "index.json"
_PARTIAL = ".partial"
_FORMAT = "cdrl-shards"
_VERSION = 1


class Sample(NamedTuple):
    """One grid to be written: uint8 [1 or 3, H, W] (an image) or float32 of any shape (a latent).

    ``label`` is a class id or None; ``attributes`` has one value for each attribute name of the set.
    """

    grid: Tensor
    label: int | None = None
    attributes: Sequence[bool] = ()


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Shard(_Record):
    name: str = Field(pattern=r"^[^/\\]+\.tar$")
    count: int = Field(ge=1)
    sha256: str


class _Index(_Record):
    format: str = Field(pattern=f"^{_FORMAT}$")
    version: int = Field(ge=_VERSION, le=_VERSION)
    count: int = Field(ge=1)
    shape: tuple[int, ...]
    dtype: str = Field(pattern="^(uint8|float32)$")
    label_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    shards: tuple[_Shard, ...]
    metadata: dict[str, Any]


def write_shards(
    folder: str | Path,
    samples: Iterable[Sample],
    metadata: Mapping[str, Any],
    shard_size: int = 1000,
    label_names: tuple[str, ...] = (),
    attribute_names: tuple[str, ...] = (),
) -> None:
    """Write ``samples`` to `shard-000000.tar`, … and `index.json` in ``folder``, whole or not at all.

    A set that an earlier call wrote there stays as it is until the new one is complete. ``metadata`` must fit into
    JSON; it is read after the last sample, so it may be filled while the samples are drawn.

    Raises:
        DataError: there are no samples, they differ in shape, type or annotations, hold NaN, or the folder holds
            shards that were not written here.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if has_foreign_shards(folder):
        raise DataError(f"{folder}: holds shards without {_INDEX}, which will not be overwritten")
    for leftover in folder.glob(f"*{_PARTIAL}"):
        leftover.unlink()
    check = _SampleCheck(folder, label_names, attribute_names)
    shards = [
        _write_shard(folder, f"shard-{number:06d}.tar", chunk, attribute_names)
        for number, chunk in enumerate(_chunks(map(check, samples), shard_size))
    ]
    if check.first is None:
        raise DataError(f"{folder}: there are no samples to write")
    index = _Index(
        format=_FORMAT,
        version=_VERSION,
        count=sum(shard.count for shard in shards),
        shape=tuple(check.first.shape),
        dtype=str(check.first.dtype).removeprefix("torch."),
        label_names=label_names,
        attribute_names=attribute_names,
        shards=tuple(shards),
        metadata=dict(metadata),
    )
    (folder / (_INDEX + _PARTIAL)).write_text(index.model_dump_json(indent=1), encoding="utf-8")
    _publish(folder, [shard.name for shard in shards])


def read_shards(folder: str | Path) -> GridSet:
    """Read what `write_shards` wrote: all of it, in the order it was written.

    Raises:
        DataError: the folder is half-written or not written here, or a shard is missing, damaged, or holds
            something other than the index says; the message names the shard.
    """
    folder = Path(folder)
    index = _read_index(folder)
    grids = torch.empty(index.count, *index.shape, dtype=getattr(torch, index.dtype))
    labels = torch.empty(index.count, dtype=torch.int64)
    attributes = torch.empty(index.count, len(index.attribute_names), dtype=torch.bool)
    row = 0
    for shard in index.shards:
        path = folder / shard.name
        content = read_bytes(path)
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            raise DataError(f"{path}: damaged: its SHA-256 differs from the one in {_INDEX}")
        samples = [_parse_sample(sample, path, index) for sample in iterate_tar(content, path)]
        if len(samples) != shard.count or row + len(samples) > index.count:
            raise DataError(f"{path}: expected {shard.count} samples, found {len(samples)}")
        for sample in samples:
            grids[row] = sample.grid
            labels[row] = -1 if sample.label is None else sample.label
            attributes[row] = torch.tensor(sample.attributes, dtype=torch.bool)
            row += 1
    if row != index.count:
        raise DataError(f"{folder / _INDEX}: expected shards of {index.count} samples, found {row}")
    return GridSet(
        grids=grids,
        labels=labels if index.label_names else None,
        label_names=index.label_names,
        attributes=attributes if index.attribute_names else None,
        attribute_names=index.attribute_names,
        metadata=index.metadata,
    )


def has_index(folder: str | Path) -> bool:
    """Whether the folder holds a complete set written by `write_shards`."""
    return (Path(folder) / _INDEX).is_file()


def has_foreign_shards(folder: str | Path) -> bool:
    """Whether the folder holds tar files that `write_shards` did not write, in whole or in part."""
    folder = Path(folder)
    return any(folder.glob("*.tar")) and not has_index(folder) and not any(folder.glob(f"*{_PARTIAL}"))


class _SampleCheck:
    """Passes samples through that are like the first one and whole; refuses all others."""

    def __init__(self, folder: Path, label_names: tuple[str, ...], attribute_names: tuple[str, ...]) -> None:
        self.first: Tensor | None = None
        self._folder, self._number = folder, -1
        self._num_labels = len(label_names)
        self._num_attributes = len(attribute_names)

    def __call__(self, sample: Sample) -> Sample:
        grid = sample.grid
        self._number += 1
        if self.first is None:
            self.first = grid
            is_image = grid.dtype == torch.uint8 and grid.ndim == 3 and grid.shape[0] in (1, 3)
            if not is_image and grid.dtype != torch.float32:
                self._refuse(f"expected uint8 [1 or 3, H, W] or float32, found {grid.dtype} {list(grid.shape)}")
        if grid.shape != self.first.shape or grid.dtype != self.first.dtype:
            self._refuse(f"expected {list(self.first.shape)} like the first, found {list(grid.shape)}")
        if grid.dtype == torch.float32 and not torch.isfinite(grid).all():
            self._refuse("expected finite numbers, found NaN or infinity")
        if (sample.label is not None) != bool(self._num_labels):
            self._refuse("labels and label_names must be given together")
        if sample.label is not None and not 0 <= sample.label < self._num_labels:
            self._refuse(f"expected a label in 0 … {self._num_labels - 1}, found {sample.label}")
        if len(sample.attributes) != self._num_attributes:
            self._refuse(f"expected {self._num_attributes} attributes, found {len(sample.attributes)}")
        return sample

    def _refuse(self, reason: str) -> None:
        raise DataError(f"{self._folder}: sample {self._number} to be written: {reason}")


def _chunks(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    chunk: list[Sample] = []
    for sample in samples:
        chunk.append(sample)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _write_shard(folder: Path, name: str, samples: list[Sample], attribute_names: tuple[str, ...]) -> _Shard:
    content = io.BytesIO()
    # A fixed time makes equal samples equal files.
    with webdataset.TarWriter(content, encoder=False, mtime=0) as writer:
        for number, sample in enumerate(samples):
            files: dict[str, Any] = {"__key__": f"{name.removesuffix('.tar')}-{number:06d}"}
            extension = "png" if sample.grid.dtype == torch.uint8 else "npy"
            files[extension] = _encode_png(sample.grid) if extension == "png" else _encode_npy(sample.grid)
            if sample.label is not None:
                files["cls"] = str(sample.label).encode()
            if attribute_names:
                values = dict(zip(attribute_names, map(bool, sample.attributes), strict=True))
                files["json"] = json.dumps({"attributes": values}).encode()
            writer.write(files)
    (folder / (name + _PARTIAL)).write_bytes(content.getbuffer())
    return _Shard(name=name, count=len(samples), sha256=hashlib.sha256(content.getbuffer()).hexdigest())


def _publish(folder: Path, names: list[str]) -> None:
    """Replace the old set by the new one; if this is cut short, files left with the partial suffix tell."""
    if has_index(folder):
        outdated = _read_index(folder)
        (folder / _INDEX).unlink()
        for shard in outdated.shards:
            (folder / shard.name).unlink(missing_ok=True)
    for name in [*names, _INDEX]:
        os.replace(folder / (name + _PARTIAL), folder / name)


def _encode_png(image: Tensor) -> bytes:
    array = image.cpu().numpy()
    content = io.BytesIO()
    Image.fromarray(array[0] if len(array) == 1 else array.transpose(1, 2, 0)).save(content, format="PNG")
    return content.getvalue()


def _encode_npy(grid: Tensor) -> bytes:
    content = io.BytesIO()
    np.save(content, grid.cpu().numpy(), allow_pickle=False)
    return content.getvalue()


def _read_index(folder: Path) -> _Index:
    path = folder / _INDEX
    if not path.is_file() and any(folder.glob(f"*{_PARTIAL}")):
        raise DataError(f"{folder}: half-written: {_INDEX} is missing and {_PARTIAL} files are left; write it again")
    try:
        return _Index.model_validate_json(read_bytes(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{path}: expected the index of shards ({where or 'JSON'}: {first['msg']})") from None


def _parse_sample(files: dict[str, Any], path: Path, index: _Index) -> Sample:
    where = f"{path}: sample {files['__key__']}"
    extension = "png" if index.dtype == "uint8" else "npy"
    if extension not in files:
        raise DataError(f"{where}: expected a .{extension} file")
    grid = _parse_grid[extension](files[extension], where)
    if tuple(grid.shape) != index.shape or grid.dtype != getattr(torch, index.dtype):
        raise DataError(f"{where}: expected {index.dtype} {list(index.shape)}, found {grid.dtype} {list(grid.shape)}")
    if grid.dtype == torch.float32 and not torch.isfinite(grid).all():
        raise DataError(f"{where}: expected finite numbers, found NaN or infinity")
    return Sample(grid, _expect_label(files, where, index), _expect_attributes(files, where, index))


def _parse_npy(content: bytes, where: str) -> Tensor:
    array = load_array(content, where)
    if array.dtype != np.float32:
        raise DataError(f"{where}: expected float32 numbers, found {array.dtype}")
    return torch.from_numpy(array)


_parse_grid: dict[str, Callable[[bytes, str], Tensor]] = {"png": decode_image, "npy": _parse_npy}


def _expect_label(files: dict[str, Any], where: str, index: _Index) -> int | None:
    if not index.label_names:
        return None
    if "cls" not in files:
        raise DataError(f"{where}: expected a .cls file")
    label = parse_label(files["cls"], where)
    if label >= len(index.label_names):
        raise DataError(f"{where}: expected a label in 0 … {len(index.label_names) - 1}, found {label}")
    return label


def _expect_attributes(files: dict[str, Any], where: str, index: _Index) -> list[bool]:
    if not index.attribute_names:
        return []
    values = parse_json(files.get("json", b"{}"), where).get("attributes")
    if not isinstance(values, dict) or not all(isinstance(values.get(name), bool) for name in index.attribute_names):
        raise DataError(f"{where}: expected a .json file with attributes {', '.join(index.attribute_names)}")
    return [values[name] for name in index.attribute_names]

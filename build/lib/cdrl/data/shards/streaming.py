"""Shards that stay on disk: any grid of a set, read when it is asked for."""

from __future__ import annotations

import hashlib
import os
import zlib
from copy import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from cdrl.data.images.files import open_regular, read_bytes
from cdrl.data.images.sets import DataError, GridSet
from cdrl.data.shards.format import TABLE, Index
from cdrl.data.shards.reading import parse_grid, read_index
from cdrl.data.shards.tars import MAX_MEMBER_BYTES
from cdrl.names import counted


class ShardGrids:
    """The grids of a set of shards, [N, *shape], each read from its place in its tar file.

    Nothing but the places is kept, 32 bytes a grid: memory stays the same however many are read. Processes may share
    it, by fork or by pickle.
    """

    def __init__(self, folder: Path, index: Index, table: dict[str, Tensor]) -> None:
        """
        Args:
            table: ``offset``, ``length`` and ``crc32`` of each grid's file in its shard, int64 [N] each.
        """
        self.shape = (index.count, *index.shape)
        self.dtype: torch.dtype = getattr(torch, index.dtype)
        self._index = index
        self._paths = [str(folder / shard.name) for shard in index.shards]
        counts = torch.tensor([shard.count for shard in index.shards])
        shard = torch.repeat_interleave(torch.arange(len(counts)), counts)
        self._places = torch.stack([shard, table["offset"], table["length"], table["crc32"]], dim=1)

    def __len__(self) -> int:
        return self.shape[0]

    def first(self, count: int) -> ShardGrids:
        """The first grids alone."""
        some = copy(self)
        some.shape, some._places = (count, *self.shape[1:]), self._places[:count]
        return some

    @property
    def checksum(self) -> str:
        """A hash of the shards' checksums, as their index has them, and of their number where not all are here."""
        shards = "\n".join(shard.sha256 for shard in self._index.shards)
        if len(self) < self._index.count:
            shards += f"\nfirst {len(self)}"
        return hashlib.blake2b(shards.encode(), digest_size=16).hexdigest()

    def __getitem__(self, rows: Any) -> Tensor:
        """The grids of a slice, or of numbers int64 [n].

        Raises:
            DataError: a shard is missing or damaged where one of them lies; the message names it.
        """
        chosen = torch.arange(len(self))[rows]
        grids = torch.empty(len(chosen), *self.shape[1:], dtype=self.dtype)
        for grid, row, place in zip(grids, chosen.tolist(), self._places[chosen].tolist(), strict=True):
            grid.copy_(self._read(row, *place))
        return grids

    def _read(self, row: int, shard: int, offset: int, length: int, crc32: int) -> Tensor:
        path = self._paths[shard]
        with open_regular(Path(path)) as file:
            content = os.pread(file.fileno(), length, offset)
        if len(content) != length or zlib.crc32(content) != crc32:
            raise DataError(f"{path}: damaged: sample {row} differs from what was written there")
        return parse_grid(content, f"{path}: sample {row}", self._index)


def stream_shards(folder: str | Path) -> GridSet:
    """What `read_shards` returns, with the grids left on disk; labels and attributes are in memory.

    Raises:
        DataError: the folder is half-written or not written here, or the table of its samples is missing or damaged.
    """
    folder = Path(folder)
    index = read_index(folder)
    path = folder / TABLE
    if index.table_sha256 is None:
        raise DataError(f"{folder}: written before shards could be read sample by sample; write them again")
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != index.table_sha256:
        raise DataError(f"{path}: damaged: its SHA-256 differs from the one in the index")
    try:
        table = load(content)
    except SafetensorError as error:
        raise DataError(f"{path}: expected a table of samples: {error}") from None
    wanted = ["offset", "length", "crc32"]
    wanted += ["label"] * bool(index.label_names) + ["attributes"] * bool(index.attribute_names)
    for name in wanted:
        if name not in table or table[name].ndim < 1 or len(table[name]) != index.count:
            raise DataError(f"{path}: expected '{name}' of {counted(index.count, 'sample')}")
    for name in ("offset", "length"):
        column = table[name]
        if column.dtype != torch.int64 or column.ndim != 1 or column.min() < 0:
            raise DataError(f"{path}: expected '{name}' as whole numbers from 0 on")
    if table["length"].max() > MAX_MEMBER_BYTES:
        raise DataError(f"{path}: expected samples of at most {MAX_MEMBER_BYTES:,} bytes")
    if sum(shard.count for shard in index.shards) != index.count:
        raise DataError(f"{folder}: expected shards of {counted(index.count, 'sample')}, as the index says")
    for shard in index.shards:
        if not (folder / shard.name).is_file():
            raise DataError(f"{folder / shard.name}: missing")
    return GridSet(
        ShardGrids(folder, index, table),
        table.get("label"),
        index.label_names,
        table.get("attributes"),
        index.attribute_names,
        index.metadata,
    )

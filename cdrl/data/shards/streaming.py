"""Shards that stay where they are, on disk or elsewhere: any grid of a set, read when it is asked for."""

from __future__ import annotations

import hashlib
from copy import copy
from pathlib import Path
from tarfile import RECORDSIZE
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from cdrl.data.images.sets import DataError, GridSet
from cdrl.data.shards.folders import Elsewhere, Folder, LocalFolder, Piece, Wanted
from cdrl.data.shards.format import INDEX, TABLE, Index
from cdrl.data.shards.reading import check_claim, parse_grid, read_index
from cdrl.data.shards.tars import MAX_MEMBER_BYTES
from cdrl.names import counted

_ROWS = 4096  # that are looked up together


class ShardGrids:
    """The grids of a set of shards, [N, *shape], each read from its place in its tar file.

    Nothing but the places is kept, 32 bytes a grid: memory stays the same however many are read. Processes may share
    it, by fork or by pickle.
    """

    def __init__(self, folder: Folder, index: Index, table: dict[str, Tensor]) -> None:
        """
        Args:
            table: ``offset``, ``length`` and ``crc32`` of each grid's file in its shard, int64 [N] each.
        """
        self.shape = (index.count, *index.shape)
        self.dtype: torch.dtype = getattr(torch, index.dtype)
        self._index, self._folder = index, folder
        counts = torch.tensor([shard.count for shard in index.shards])
        shard = torch.repeat_interleave(torch.arange(len(counts)), counts)
        self._places = torch.stack([shard, table["offset"], table["length"], table["crc32"]], dim=1)
        # A tar file goes on behind its last grid, by two blocks at least and up to the end of a record.
        ends = torch.zeros_like(counts).scatter_reduce(0, shard, table["offset"] + table["length"], "amax")
        self._bytes = ((ends // RECORDSIZE + 1) * RECORDSIZE).tolist()
        self._has_room = folder.has_room(sum(self._bytes))
        self._following = -1  # the row after the last slice

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
        in_order = isinstance(rows, slice)
        if in_order and len(chosen):
            self._note_slice(int(chosen[0]), int(chosen[-1]))
        grids = torch.empty(len(chosen), *self.shape[1:], dtype=self.dtype)
        # Some at a time: the places of a million grids as Python's numbers take more than the grids.
        for start in range(0, len(chosen), _ROWS):
            some = slice(start, start + _ROWS)
            self._read(chosen[some], grids[some], whole=in_order or self._has_room)
        return grids

    def _read(self, rows: Tensor, grids: Tensor, *, whole: bool) -> None:
        """Fill ``grids`` with those of some rows, shard by shard."""
        by_shard: dict[int, list[tuple[int, int, Piece]]] = {}
        places = zip(rows.tolist(), self._places[rows].tolist(), strict=True)
        for number, (row, (shard, *piece)) in enumerate(places):
            by_shard.setdefault(shard, []).append((number, row, Piece(*piece)))
        wanted = [Wanted(self._index.shards[shard], [piece for *_, piece in some]) for shard, some in by_shard.items()]
        contents = self._folder.pieces(wanted, whole=whole)
        for (shard, _), some, read in zip(wanted, by_shard.values(), contents, strict=True):
            where = self._folder.where(shard.name)
            for (number, row, piece), content in zip(some, read, strict=True):
                if not piece.fits(content):
                    raise DataError(f"{where}: damaged: sample {row} differs from what was written there")
                grids[number] = parse_grid(content, f"{where}: sample {row}", self._index)

    def _note_slice(self, first: int, last: int) -> None:
        """Where slices follow one another, the next shard is soon wanted."""
        following, self._following = self._following, last + 1
        shard = int(self._places[last, 0]) + 1
        if first == following and shard < len(self._bytes) and self._places[-1, 0] >= shard:
            self._folder.expect(self._index.shards[shard], self._bytes[shard])


def stream_shards(folder: str | Path | Elsewhere) -> GridSet:
    """What `read_shards` returns, with the grids left where they are; labels and attributes are in memory.

    Raises:
        DataError: the folder is half-written or not written here, or the table of its samples is missing or damaged;
            or, elsewhere, it cannot be read.
    """
    index = read_index(folder)
    place = folder if isinstance(folder, Elsewhere) else LocalFolder(Path(folder))
    path = place.where(TABLE)
    if index.table_sha256 is None:
        raise DataError(f"{place}: written before shards could be read sample by sample; write them again")
    content = place.table(index.table_sha256)
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
        raise DataError(f"{place}: expected shards of {counted(index.count, 'sample')}, as the index says")
    check_claim(place.where(INDEX), index, int(table["length"].sum()))
    place.check_shards(index.shards)
    return GridSet(
        ShardGrids(place, index, table),
        table.get("label"),
        index.label_names,
        table.get("attributes"),
        index.attribute_names,
        index.metadata,
    )

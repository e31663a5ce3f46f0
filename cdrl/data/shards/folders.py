"""Where the shards of a set lie, and how the bytes of its grids are read there: on this machine, or elsewhere."""

from __future__ import annotations

import os
import re
import sys
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from tqdm import tqdm

from cdrl.data.images.files import open_regular, read_bytes
from cdrl.data.images.sets import DataError
from cdrl.data.shards.cache import ShardCache
from cdrl.data.shards.fetching import AT_ONCE, Fetcher, Stop, Stopped, in_threads
from cdrl.data.shards.format import INDEX, TABLE, Shard

_PLAIN_NAME = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)  # becomes part of a URL or of a command
_AHEAD = 4
"""Shards that a cache has room for at least, where one is fetched before it is wanted."""


class Piece(NamedTuple):
    """Where the file of a grid lies in its shard, and the checksum of its bytes."""

    offset: int
    length: int
    crc32: int

    def fits(self, content: bytes) -> bool:
        """Whether these are its bytes."""
        return len(content) == self.length and zlib.crc32(content) == self.crc32


class Wanted(NamedTuple):
    """Some pieces of a shard."""

    shard: Shard
    pieces: Sequence[Piece]


class Folder(Protocol):
    """Where the files of a set lie. Processes may share it, by fork or by pickle."""

    def where(self, name: str) -> str:
        """What a file is called in messages."""

    def index(self) -> bytes:
        """The content of the set's index."""

    def table(self, sha256: str) -> bytes:
        """The content of the table of the set's samples, which may differ from its checksum."""

    def check_shards(self, shards: Sequence[Shard]) -> None:
        """Raise DataError for the first one that is missing, where that can be seen at once."""

    def has_room(self, num_bytes: int) -> bool:
        """Whether shards of so many bytes can all be at hand."""

    def expect(self, shard: Shard, num_bytes: int) -> None:
        """Take note that a shard of so many bytes is likely to be read next."""

    def pieces(self, wanted: Sequence[Wanted], *, whole: bool) -> Iterator[list[bytes]]:
        """The bytes of all pieces, shard by shard; who reads them checks them.

        Args:
            whole: bring shards here as a whole, as most of each will be wanted soon.
        """


class LocalFolder:
    """A folder of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def where(self, name: str) -> str:
        """As `Folder` has it."""
        return str(self.path / name)

    def index(self) -> bytes:
        """As `Folder` has it. Raises DataError where there is none."""
        return read_bytes(self.path / INDEX)

    def table(self, sha256: str) -> bytes:
        """As `Folder` has it. Raises DataError where there is none."""
        return read_bytes(self.path / TABLE)

    def check_shards(self, shards: Sequence[Shard]) -> None:
        """As `Folder` has it."""
        for shard in shards:
            if not (self.path / shard.name).is_file():
                raise DataError(f"{self.where(shard.name)}: missing")

    def has_room(self, num_bytes: int) -> bool:
        """They are here."""
        return True

    def expect(self, shard: Shard, num_bytes: int) -> None:
        """It is here."""

    def pieces(self, wanted: Sequence[Wanted], *, whole: bool) -> Iterator[list[bytes]]:
        """As `Folder` has it. Raises DataError where a shard is missing."""
        for shard, pieces in wanted:
            with open_regular(self.path / shard.name) as file:
                yield _read(file, pieces)


class Elsewhere:
    """A folder elsewhere, whose shards are fetched when they are wanted, checked, and kept in a cache.

    Where a set has more bytes than the cache may keep, grids in random order are fetched one by one, unless their
    shards are at hand.
    """

    def __init__(self, place: str, cache: ShardCache) -> None:
        """
        Args:
            place: as `cdrl.foreign.places.checked_place` has it.

        Raises:
            DataError: it is a command, and the environment does not allow it.
        """
        self._fetcher, self._cache = Fetcher(place), cache
        self._knows_parts = self._fetcher.knows_parts
        self._expected = ""

    def __str__(self) -> str:
        return self._fetcher.place

    def where(self, name: str) -> str:
        """As `Folder` has it."""
        return self._fetcher.where(name)

    def index(self) -> bytes:
        """As `Folder` has it, as it is now. Raises DataError where there is none, or it cannot be fetched."""
        return self._fetcher.content(INDEX)

    def table(self, sha256: str) -> bytes:
        """As `Folder` has it. Raises DataError where there is none, or it cannot be fetched."""
        with ExitStack() as files:
            return self._opened([_File(TABLE, sha256)], files)[0].read()

    def check_shards(self, shards: Sequence[Shard]) -> None:
        """As `Folder` has it, but that a request for each would take long: a missing one is told when it is fetched."""
        for shard in shards:
            if not _PLAIN_NAME.fullmatch(shard.name):
                raise DataError(
                    f"{self.where(INDEX)}: expected names of letters, digits, - and _, found {shard.name!r}"
                )

    def has_room(self, num_bytes: int) -> bool:
        """As `Folder` has it."""
        return num_bytes <= self._cache.most_bytes or not self._knows_parts

    def expect(self, shard: Shard, num_bytes: int) -> None:
        """As `Folder` has it: it is fetched beside what else is done."""
        # In a cache of a few shards it would take the place of the one that is being read.
        if shard.sha256 == self._expected or _AHEAD * num_bytes > self._cache.most_bytes:
            return
        self._expected = shard.sha256
        if not self._cache.holds(shard.sha256):
            threading.Thread(target=self._fetch_ahead, args=(_File(shard.name, shard.sha256),)).start()

    def pieces(self, wanted: Sequence[Wanted], *, whole: bool) -> Iterator[list[bytes]]:
        """As `Folder` has it. Raises DataError where a shard is not there, or cannot be fetched."""
        for start in range(0, len(wanted), AT_ONCE):
            some = wanted[start : start + AT_ONCE]
            contents = None if whole or not self._knows_parts else self._one_by_one(some)
            if contents is not None:
                yield from contents
                continue
            with ExitStack() as files:
                names = [_File(shard.name, shard.sha256) for shard, _ in some]
                for name, file, (_, pieces) in zip(names, self._opened(names, files), some, strict=True):
                    yield self._checked(file, name, pieces, files)

    def _one_by_one(self, wanted: Sequence[Wanted]) -> list[list[bytes]] | None:
        """As `pieces`, with no shard fetched as a whole; None where it turns out that there is no other way."""
        with ExitStack() as files:
            names = [_File(shard.name, shard.sha256) for shard, _ in wanted]
            found = self._at_hand(names, files)
            parts = [
                (name, piece)
                for name, file, (_, pieces) in zip(names, found, wanted, strict=True)
                for piece in pieces
                if file is None
            ]
            try:
                fetched = iter(in_threads(self._part, parts) if parts else [])
            except NotImplementedError:
                self._knows_parts = False
                tqdm.write(
                    f"{self}: gives no parts of files, so that whole shards are fetched for single images, again and "
                    "again: let data.cache_gib be more than the set has",
                    file=sys.stderr,
                )
                return None
            return [
                [next(fetched) for _ in pieces] if file is None else self._checked(file, name, pieces, files)
                for name, file, (_, pieces) in zip(names, found, wanted, strict=True)
            ]

    def _part(self, part: tuple[_File, Piece], stop: Stop) -> bytes:
        name, piece = part
        return self._fetcher.part(name.name, piece.offset, piece.length, piece.fits, stop)

    def _checked(self, file: BinaryIO, name: _File, pieces: Sequence[Piece], files: ExitStack) -> list[bytes]:
        """Pieces of a shard that is at hand, which is fetched anew where it was damaged on this machine."""
        contents = _read(file, pieces)
        if all(piece.fits(content) for piece, content in zip(pieces, contents, strict=True)):
            return contents
        self._cache.forget(name.sha256)
        return _read(self._opened([name], files)[0], pieces)

    def _at_hand(self, names: Sequence[_File], files: ExitStack) -> list[BinaryIO | None]:
        found = [self._cache.open(name.sha256) for name in names]
        for file in found:
            if file is not None:
                files.enter_context(file)
        return found

    def _opened(self, names: Sequence[_File], files: ExitStack) -> list[BinaryIO]:
        """The files, open as long as ``files`` is; those that are not at hand are fetched."""
        found = self._at_hand(names, files)
        missing = [name for name, file in zip(names, found, strict=True) if file is None]
        fetched = iter(
            in_threads(lambda name, stop: files.enter_context(self._open_or_fetch(name, stop)), missing)
            if missing
            else []
        )
        return [next(fetched) if file is None else file for file in found]

    def _open_or_fetch(self, name: _File, stop: Stop) -> BinaryIO:
        return self._cache.open_or_fetch(name.sha256, partial(self._fetcher.fetch, name.name), stop)

    def _fetch_ahead(self, name: _File) -> None:
        # Whoever reads it will meet the same trouble, and tell.
        with suppress(DataError, Stopped):
            self._open_or_fetch(name, Stop()).close()


class _File(NamedTuple):
    name: str
    sha256: str


def _read(file: BinaryIO, pieces: Sequence[Piece]) -> list[bytes]:
    return [os.pread(file.fileno(), piece.length, piece.offset) for piece in pieces]

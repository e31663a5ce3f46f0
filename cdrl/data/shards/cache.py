"""Files from elsewhere, kept on this machine under their checksums; those not used for longest make room for others."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from filelock import FileLock, Timeout

from cdrl.data.images.sets import DataError
from cdrl.data.shards.fetching import Stop

_PARTIAL = ".partial-"
_LOCKS = "locks"
_ROOM = "room"
_IS_KEPT = re.compile(r"[0-9a-f]{64}")
_WAIT = 0.5  # seconds between looks at whether anybody waits still


Fetch = Callable[[Path, Callable[[Path], None], Stop], None]
"""Writes a file to a path, and writes it anew where the function that it is given raises OSError of it."""


class _Kept(NamedTuple):
    used: float
    size: int
    path: Path


class ShardCache:
    """A folder of files by their SHA-256, of bounded size, that any number of processes may use at a time.

    A file has its name when it is whole, and no earlier. Whoever has opened one may read it to its end, even if it
    makes room for another meanwhile. It keeps nothing open itself, so processes may share it, by fork or by pickle.
    """

    def __init__(self, folder: Path, most_bytes: int) -> None:
        """
        Args:
            most_bytes: of all files together; those that are being fetched come on top.
        """
        self.folder, self.most_bytes = folder, most_bytes

    def open(self, sha256: str) -> BinaryIO | None:
        """The file of this checksum, which thereby is the last to make room; None where it is not kept."""
        path = self.folder / sha256
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        with suppress(FileNotFoundError):  # it has made room, and is open nevertheless
            os.utime(path)
        return file

    def holds(self, sha256: str) -> bool:
        """Whether it is kept at the moment."""
        return (self.folder / sha256).exists()

    def open_or_fetch(self, sha256: str, fetch: Fetch, stop: Stop) -> BinaryIO:
        """The file of this checksum; it is fetched where it is not kept, once, however many processes ask for it.

        Raises:
            DataError: the folder cannot be written, or the file is larger than the cache may be.
            Stopped: it was to give up.
        """
        try:
            (self.folder / _LOCKS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be made to keep shards there: {error.strerror}") from None
        with _held(self._lock_of(sha256), stop):
            found = self.open(sha256)
            if found is not None:
                return found
            partial = self.folder / f"{_PARTIAL}{sha256}"
            try:
                fetch(partial, lambda path: _check(path, sha256), stop)
                return self._take_in(partial, sha256)
            finally:
                partial.unlink(missing_ok=True)

    def forget(self, sha256: str) -> None:
        """Remove a file that turned out to be damaged on this machine's disk."""
        (self.folder / sha256).unlink(missing_ok=True)

    def _take_in(self, partial: Path, sha256: str) -> BinaryIO:
        """Give a whole file its name, and open it before anyone can remove it."""
        size = partial.stat().st_size
        if size > self.most_bytes:
            raise DataError(
                f"data.cache_gib={self.most_bytes / 2**30:g}: a shard of {size / 2**30:.3g} GiB does not fit in: make "
                "it larger"
            )
        with FileLock(self._lock(_ROOM)):
            self._make_room(size)
            file = partial.open("rb")
            os.replace(partial, self.folder / sha256)
        return file

    def _make_room(self, size: int) -> None:
        kept: list[_Kept] = []
        for entry in os.scandir(self.folder):
            if entry.name.startswith(_PARTIAL):
                self._remove_if_left_over(Path(entry.path))
            elif _IS_KEPT.fullmatch(entry.name):
                with suppress(FileNotFoundError):
                    stat = entry.stat()
                    kept.append(_Kept(stat.st_mtime, stat.st_size, Path(entry.path)))
        total = size + sum(each.size for each in kept)
        for each in sorted(kept):
            if total <= self.most_bytes:
                break
            each.path.unlink(missing_ok=True)
            total -= each.size

    def _remove_if_left_over(self, partial: Path) -> None:
        """Remove what a killed process was writing; what is being written is locked."""
        with suppress(Timeout), FileLock(self._lock_of(partial.name.removeprefix(_PARTIAL)), timeout=0):
            partial.unlink(missing_ok=True)

    def _lock_of(self, sha256: str) -> Path:
        # Some share one: there are at most 256 of these files, and a process waits for one of them at a time.
        return self._lock(sha256[:2])

    def _lock(self, name: str) -> Path:
        return self.folder / _LOCKS / name


@contextmanager
def _held(path: Path, stop: Stop) -> Iterator[None]:
    """Hold a lock of the system's, which ends with the process, once nobody else does."""
    lock = FileLock(path)
    while not lock.is_locked:
        stop.check()
        with suppress(Timeout):
            lock.acquire(timeout=_WAIT)
    try:
        yield
    finally:
        lock.release()


def _check(path: Path, sha256: str) -> None:
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise OSError("what came differs from what the index says: its SHA-256 is another")

"""Checksums of a folder's files, written with them and compared when they are read: damage does not look whole."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cdrl.runs.run import RunError, read_json, write_json
from cdrl.runs.whole import written_whole

CHECKSUMS = "checksums.json"


@contextmanager
def folder_with_checksums(path: Path) -> Iterator[Path]:
    """Write a folder as a whole, with checksums of all its files."""
    with written_whole(path) as folder:
        yield folder
        write_checksums(folder)


def write_checksums(folder: Path) -> None:
    """Write the SHA-256 of every file in ``folder``, and below it, into checksums.json; but texts may be edited."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    files = [path for path in files if path.suffix != ".md"]
    write_json(folder / CHECKSUMS, {path.relative_to(folder).as_posix(): _sha256(path) for path in files})


def verify_checksums(folder: Path) -> None:
    """Compare a folder's files with its checksums.json; folders that were written without one pass.

    Raises:
        RunError: a file is missing or differs; the message names it.
    """
    path = folder / CHECKSUMS
    if not path.exists():
        return
    for name, expected in read_json(path).items():
        file = folder / name
        if not file.is_file():
            raise RunError(f"{file}: missing, though {CHECKSUMS} beside it names it")
        if _sha256(file) != expected:
            raise RunError(f"{file}: damaged or edited: its SHA-256 differs from the one in {CHECKSUMS}")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

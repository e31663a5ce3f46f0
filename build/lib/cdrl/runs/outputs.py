"""What one call has drawn or measured: its files and no others, listed in its record."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cdrl.runs.lock import locked
from cdrl.runs.run import RunError, read_json, write_json
from cdrl.runs.whole import clear_leftovers, discard, file_named, partial_name, sync


class Output:
    """Folder that a call writes into, and the record of that call."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record: dict[str, Any] = {}


@contextmanager
def one_calls_output(folder: Path, record: str, *, alone: bool = True) -> Iterator[Output]:
    """Write the files of one call, replacing those that an earlier call recorded in ``folder``.

    They are written aside and appear when all of them are complete; ``folder``/``record`` then lists them under
    ``files``. A call that fails leaves those of the call before; of one that is killed while its files take their
    names, the record tells which there may be, and the next call removes them.

    Args:
        record: name of a JSON file.
        alone: there must be nothing else in the folder; False where other commands write there too.

    Raises:
        RunError: the folder holds other files, or is being written by another process.
        OSError: it cannot be written.
    """
    with locked(folder, record):
        path = folder / record
        aside = folder / f"files-of-{record}"
        clear_leftovers(path)
        clear_leftovers(aside)
        earlier = _files_of(path)
        if alone:
            _refuse_others(folder, record, earlier)
        output = Output(partial_name(aside))
        output.folder.mkdir()
        try:
            with file_named(folder):
                yield output
            sync(output.folder)
            files = sorted(file.name for file in output.folder.iterdir())
            write_json(path, {"unfinished": True, "files": sorted({*files, *earlier})})
            for name in sorted(set(earlier) - set(files)):
                discard(folder / name)
            for name in files:
                os.replace(output.folder / name, folder / name)
            write_json(path, {**output.record, "files": files})
        finally:
            clear_leftovers(aside)


def _files_of(record: Path) -> list[str]:
    """The files that a record lists; nothing else of what it may hold is a file of that call."""
    if not record.exists():
        return []
    files = read_json(record).get("files", [])
    if not isinstance(files, list) or not all(isinstance(name, str) and Path(name).name == name for name in files):
        raise RunError(f"{record}: files: expected a list of names of files beside it")
    return files


def _refuse_others(folder: Path, record: str, earlier: list[str]) -> None:
    known = {record, *earlier}
    others = sorted(path.name for path in folder.iterdir() if path.name not in known and path.name[0] != ".")
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise RunError(
            f"{folder}: holds {others[0]}{more}, which {record} does not list as written by an earlier call: "
            "name another folder, or remove this one"
        )

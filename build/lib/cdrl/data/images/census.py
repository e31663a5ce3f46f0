"""What a reader has left out of the files that it found, and why: told in one line, and kept with the data."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from tqdm import tqdm

from cdrl.config import DataConfig
from cdrl.names import counted

LEFT_OUT = "left_out"
"""Under which the metadata of grids hold what was left out of them."""

_LONGEST_NAME = 320
"""Characters of a name that is shown whole: lists of files may hold any."""

SINGULAR = {
    "files beside the images": "file beside the images",
    "files or folders that are no shards": "file or folder that is no shard",
    "files that are no pictures by their endings": "file that is no picture by its ending",
    "folders or pictures beside those of the splits": "folder or picture beside those of the splits",
    "folders without a picture": "folder without a picture",
    "hidden or system files": "hidden or system file",
    "hidden or system folders": "hidden or system folder",
    "links back to a folder above them": "link back to a folder above it",
    "links that lead nowhere": "link that leads nowhere",
    "pictures of formats that are not read": "picture of a format that is not read",
    "pipes or devices named like pictures": "pipe or device named like a picture",
}
"""Reasons, which the metadata of data sets hold in the plural, as they are told of one file or folder."""


@dataclass(frozen=True)
class LeftOut:
    """Files or folders that a reader left out for the same reason.

    Attributes:
        first: the name of the first of them, as `printable` gives it.
    """

    reason: str
    count: int
    first: str


class Tally:
    """Counts what is left out below a folder, by reason."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, reason: str, path: Path | str) -> None:
        """Count one file or folder as left out, named by its path below the root."""
        if isinstance(path, Path) and path.is_relative_to(self._root):
            path = path.relative_to(self._root)
        count, first = self._found.get(reason, (0, printable(path)))
        self._found[reason] = (count + 1, first)

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Everything left out, in the order in which the reasons were first met."""
        return tuple(LeftOut(reason, count, first) for reason, (count, first) in self._found.items())


def printable(name: Path | str) -> str:
    r"""A file name as printable text; bytes that are not UTF-8 are shown as ``\xe9``, and very long ones are cut."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME // 2]} … {text[-_LONGEST_NAME // 4 :]}"


def as_metadata(left_out: Sequence[LeftOut]) -> dict[str, Any]:
    """What was left out, as plain values for JSON metadata."""
    return {LEFT_OUT: [asdict(each) for each in left_out]}


def data_in_words(name: str, split: str, count: int, metadata: Mapping[str, Any]) -> str:
    """One line about a split: the number of images read, and what its metadata say was left out."""
    read = f"{name}, {split} split: {counted(count, 'image')} read"
    if LEFT_OUT not in metadata:
        return read
    try:
        left_out = TypeAdapter(list[LeftOut]).validate_python(metadata[LEFT_OUT])
    except ValidationError:
        return f"{read}; what was left out is no longer told by its damaged metadata"
    return f"{read}; left out: {left_out_in_words(left_out) or 'nothing'}"


def left_out_in_words(left_out: Sequence[LeftOut]) -> str:
    """Counts, reasons and the first name for each reason."""
    return ", ".join(
        f"{counted(each.count, SINGULAR.get(each.reason, each.reason), each.reason)} (first: {each.first})"
        for each in left_out
    )


def tell(data: DataConfig, split: str, count: int, metadata: Mapping[str, Any]) -> None:
    """Print `data_in_words` to stderr, once however often the same data are read; of several processes one does."""
    place = "" if data.path is None else f" in {printable(data.path)}"
    if os.environ.get("RANK", "0") == "0":
        _print_once(data_in_words(f"{data.name}{place}", split, count, metadata))


@cache
def _print_once(line: str) -> None:
    tqdm.write(line, file=sys.stderr)

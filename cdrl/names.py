"""Names that users write: looked up in a table, and corrected where they are nearly right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")


def one_of(what: str, name: str, table: Mapping[str, Value]) -> Value:
    """The value of a name in a table.

    Raises:
        ValueError: there is no such name; the message has the nearest one, or all.
    """
    check_name(what, name, table)
    return table[name]


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raise ValueError for an unknown name; the message has the nearest known one, or all."""
    if name not in (names := list(known)):
        where = f"{what}: " if what else ""
        raise ValueError(f"{where}unknown '{name}'; {suggestion(name, names)}")


def suggestion(name: str, known: Iterable[str]) -> str:
    """What a message says of an unknown name: the nearest known one, or all where none is near."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(names)}"

"""Words in messages: names that users write, corrected where they are nearly right, and nouns with their numbers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")

_MOST_NAMES = 24
"""Names that one message lists."""


def one_of(what: str, name: str, table: Mapping[str, Value]) -> Value:
    """The value of a name in a table.

    Raises:
        ValueError: there is no such name; the message has the nearest one, or those there are.
    """
    check_name(what, name, table)
    return table[name]


def check_name(what: str, name: str, known: Iterable[str]) -> None:
    """Raise ValueError for an unknown name; the message has the nearest known one, or those there are."""
    if name not in (names := list(known)):
        where = f"{what}: " if what else ""
        raise ValueError(f"{where}unknown '{name}'; {suggestion(name, names)}")


def suggestion(name: str, known: Iterable[str], where: str = "") -> str:
    """What a message says of an unknown name: the nearest known one, behind ``where``, or those there are."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    rest = ", …" if len(names) > _MOST_NAMES else ""
    return f"did you mean '{where}{near[0]}'?" if near else f"expected one of {', '.join(names[:_MOST_NAMES])}{rest}"


def counted(count: int, one: str, many: str | None = None) -> str:
    """A number and its noun: ``1 image``, ``2,000 images``; ``many`` is the plural where an s does not make it."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"

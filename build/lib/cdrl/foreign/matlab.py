"""MATLAB's files of level 5, read for arrays of numbers: sizes are checked before memory is asked for.

A file is a header of 128 bytes and elements, each a type, a number of bytes and that many bytes; a matrix is an element
of elements: its flags, its sizes, its name and its numbers; compressed elements hold one matrix each.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_HEAD = 4096  # flags, sizes and name of a matrix are shorter than this


def parse_matlab(content: bytes, names: Sequence[str], most: int) -> dict[str, np.ndarray]:
    """Those matrices of a MATLAB file that are in ``names``.

    Args:
        most: bytes that one matrix may have.

    Raises:
        ValueError: it is damaged, or a matrix is larger or not of real numbers.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[_HEADER - 2 : _HEADER])
    if order is None:
        raise ValueError("does not begin as MATLAB's files of level 5 do")
    found = {}
    place = _HEADER
    while place < len(content):
        kind, size = _unpack(f"{order}II", content, place)
        place += 8
        if size > len(content) - place:
            raise ValueError("is cut short")
        element = memoryview(content)[place : place + size]
        place += size if kind == _COMPRESSED else size + -size % 8
        matrix = _read_matrix(element, kind == _COMPRESSED, kind, order)
        if matrix is not None and matrix.name in names:
            found[matrix.name] = matrix.read(most)
    return found


class _Matrix:
    """A matrix in its element, whose numbers are not read before they are asked for."""

    def __init__(self, head: bytes, unfold: Callable[[int], bytes], order: str) -> None:
        """
        Args:
            head: the beginning of the element.
            unfold: gives so many of its first bytes.
        """
        self._unfold = unfold
        _, _, flags, _ = _unpack(f"{order}IIII", head, 0)
        self._class, self._complex = flags & 0xFF, bool(flags & 0x0800)
        place, kind, sizes = _sub_element(head, 16, order)
        self._shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes[: len(sizes) // 4 * 4]) if kind == 5 else ()
        place, _, name = _sub_element(head, place, order)
        self.name = name.decode("latin1")
        self._order, self._place = order, place
        self._stored, self._size, self._start = _tag(head, place, order) if self._class in _CLASSES else (0, 0, 0)

    def read(self, most: int) -> np.ndarray:
        """The numbers. Raises ValueError where there are none, or they take more than ``most`` bytes."""
        if self._class not in _CLASSES or self._stored not in _STORED or self._complex:
            raise ValueError(f"'{self.name}' is no matrix of real numbers")
        stored, numbers = (np.dtype(self._order + kind) for kind in (_STORED[self._stored], _CLASSES[self._class]))
        count = math.prod(self._shape)
        if min(self._shape, default=-1) < 0 or count * stored.itemsize != self._size:
            raise ValueError(f"'{self.name}' is of sizes {str(self._shape)[:60]} in {self._size:,} bytes")
        if count * numbers.itemsize > most:
            raise ValueError(f"'{self.name}' has {count * numbers.itemsize:,} bytes, expected {most:,} at most")
        content = self._unfold(self._start + self._size)[self._start :]
        if len(content) != self._size:
            raise ValueError(f"'{self.name}' is cut short")
        flat = np.frombuffer(content, stored).astype(numbers.newbyteorder("="))
        return flat.reshape(self._shape, order="F")


def _read_matrix(element: memoryview, compressed: bool, kind: int, order: str) -> _Matrix | None:
    if not compressed:
        return _Matrix(bytes(element[:_HEAD]), lambda count: bytes(element[:count]), order) if kind == _MATRIX else None

    def first(count: int) -> bytes:
        try:
            return zlib.decompressobj().decompress(element, count)
        except zlib.error as error:
            raise ValueError(f"is damaged ({error})") from None

    kind, _ = _unpack(f"{order}II", first(8), 0)
    if kind != _MATRIX:
        return None
    return _Matrix(first(8 + _HEAD)[8:], lambda count: first(8 + count)[8:], order)


def _tag(content: bytes, place: int, order: str) -> tuple[int, int, int]:
    """Type, number of bytes, and where the bytes begin, of the element at ``place``; short ones lie within the tag."""
    (first,) = _unpack(f"{order}I", content, place)
    if first >> 16:
        return first & 0xFFFF, first >> 16, place + 4
    return first, _unpack(f"{order}I", content, place + 4)[0], place + 8


def _sub_element(content: bytes, place: int, order: str) -> tuple[int, int, bytes]:
    """Where the next one begins, and type and bytes, of a short element before a matrix's numbers."""
    kind, size, start = _tag(content, place, order)
    if size > len(content) - start:
        raise ValueError("has a matrix whose head is damaged")
    end = place + 8 if start == place + 4 else start + size + -size % 8
    return end, kind, content[start : start + size]


def _unpack(form: str, content: bytes | memoryview, place: int) -> tuple[Any, ...]:
    if place + struct.calcsize(form) > len(content):
        raise ValueError("is cut short")
    return struct.unpack_from(form, content, place)

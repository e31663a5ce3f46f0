"""Arrays of numbers in files of others: npy, npz and numpy's pickles. Sizes are checked before memory is asked for."""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cdrl.foreign.files import open_file, read_at_most

_NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 10_000
_HEADER = re.compile(
    r"\{\s*'descr'\s*:\s*'(?P<type>[^']*)'\s*,\s*'fortran_order'\s*:\s*(?P<fortran>True|False)\s*,"
    r"\s*'shape'\s*:\s*\((?P<shape>[\d\sL,]*)\)\s*,?\s*\}\s*"
)


def number_type(text: Any) -> np.dtype[Any]:
    """The type of numbers that numpy writes as ``text``, such as ``<f4``; nothing but its text is used.

    Raises:
        ValueError: it is not of numbers.
    """
    if not isinstance(text, str) or not _NUMBERS.fullmatch(text):
        raise ValueError(f"an array of type {str(text)[:20]}, expected numbers")
    return np.dtype(text)


def array_of_bytes(
    content: bytes | bytearray | memoryview, numbers: np.dtype[Any], shape: Any, *, fortran: bool
) -> np.ndarray:
    """An array, copied from its bytes.

    Raises:
        ValueError: there are more or fewer bytes than numbers of this type and shape take.
    """
    if not isinstance(shape, tuple) or not all(type(side) is int and 0 <= side < 2**62 for side in shape):
        raise ValueError("an array whose shape is no tuple of whole numbers")
    if len(shape) > 8 or math.prod(shape) * numbers.itemsize != len(content):
        raise ValueError(f"an array of shape {str(shape)[:60]} and type {numbers.str} in {len(content):,} bytes")
    flat = np.frombuffer(content, numbers)
    return flat.reshape(shape, order="F" if fortran else "C").copy("K")


def parse_npy(content: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file.

    Raises:
        ValueError: it is not one whole array of numbers.
    """
    if content[:4] == b"PK\x03\x04":
        raise ValueError("expected one array, found an archive of arrays")
    if content[: len(_MAGIC)] != _MAGIC or content[6:7] not in (b"\x01", b"\x02", b"\x03"):
        raise ValueError("does not begin as a .npy file does")
    start, form = (10, "<H") if content[6] == 1 else (12, "<I")
    if len(content) < start:
        raise ValueError("its header is cut")
    (length,) = struct.unpack(form, content[8:start])
    header = _HEADER.fullmatch(content[start : start + min(length, _LONGEST_HEADER)].decode("latin1"))
    if header is None:
        raise ValueError("its header does not describe an array of numbers")
    shape = tuple(int(side.rstrip("L")) for side in re.findall(r"\d{1,19}L?", header["shape"]))
    numbers = number_type(header["type"])
    return array_of_bytes(memoryview(content)[start + length :], numbers, shape, fortran=header["fortran"] == "True")


def read_npz(path: Path, names: Sequence[str], most: int) -> dict[str, np.ndarray]:
    """Those arrays of an .npz file that are in ``names``.

    Args:
        most: bytes that one array may have.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, or an array is larger or not of numbers.
    """
    with open_file(path) as file:
        try:
            archive = zipfile.ZipFile(file)
            held = {member.filename: member for member in archive.infolist()}
            return {name: _npz_member(archive, held[f"{name}.npy"], most) for name in names if f"{name}.npy" in held}
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            # OSError: an offset before the file's beginning. RuntimeError: it wants a password.
            raise ValueError(f"damaged ({error})") from None


def _npz_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, most: int) -> np.ndarray:
    if member.file_size > most:
        raise ValueError(f"{member.filename} claims {member.file_size:,} bytes, expected {most:,} at most")
    with archive.open(member) as stream:
        content = read_at_most(stream.read, member.file_size)
    return parse_npy(content)


class _Type:
    """numpy's dtype in a pickle: its text, to which its state adds the order of bytes alone."""

    def __init__(self, text: Any, *_: Any) -> None:
        self.numbers = number_type(text)

    def take_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise ValueError("a type of numbers in an unknown state")
        self.numbers = number_type(f"{state[1]}{self.numbers.str[1:]}")


class PickledArray:
    """numpy's array in a pickle, empty until its state comes."""

    def __init__(self, array: np.ndarray | None = None) -> None:
        self.array = array

    def take_state(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _Type):
            raise ValueError("an array in an unknown state")
        _, shape, numbers, fortran, content = state
        self.array = array_of_bytes(_as_bytes(content), numbers.numbers, shape, fortran=bool(fortran))


def _as_bytes(content: Any) -> bytes | bytearray:
    # Python 2 had one type for text and bytes.
    if isinstance(content, str):
        return content.encode("latin1")
    if not isinstance(content, bytes | bytearray):
        raise ValueError("an array without its bytes")
    return content


def _new_array(*_: Any) -> PickledArray:
    return PickledArray()


def _array_from_buffer(content: Any, numbers: Any, shape: Any, order: Any = "C") -> PickledArray:
    """As numpy writes arrays since protocol 5."""
    if not isinstance(numbers, _Type) or order not in ("C", "F"):
        raise ValueError("an array of an unknown type")
    return PickledArray(array_of_bytes(_as_bytes(content), numbers.numbers, shape, fortran=order == "F"))


def _scalar(numbers: Any, content: Any) -> Any:
    if not isinstance(numbers, _Type):
        raise ValueError("a number of an unknown type")
    return array_of_bytes(_as_bytes(content), numbers.numbers, (), fortran=False).item()


def _encoded(text: Any, encoding: Any = "latin1") -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if encoding != "latin1" or not isinstance(text, str):
        raise ValueError("bytes in an unknown encoding")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How Python 3 writes no bytes at all for Python 2."""
    return b""


_CORES = ("numpy.core", "numpy._core")
PICKLED_ARRAYS: Mapping[tuple[str, str], Any] = {
    **{(f"{core}.multiarray", "_reconstruct"): _new_array for core in _CORES},
    **{(f"{core}.multiarray", "scalar"): _scalar for core in _CORES},
    **{(f"{core}.numeric", "_frombuffer"): _array_from_buffer for core in _CORES},
    ("numpy", "ndarray"): None,  # an argument of _reconstruct only
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encoded,
    ("__builtin__", "bytes"): _no_bytes,
}
"""What pickles of arrays name, for `cdrl.foreign.unpickling.read_pickle`: arrays become `PickledArray`."""

"""npy and npz: the arrays are numpy's own, and no memory is asked for that the file has not."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cdrl.foreign.arrays import parse_npy, read_npz


def npy(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, array, version)
    return content.getvalue()


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0), None])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6, dtype=">u2").reshape(2, 3)),
        np.array(3.5),
        np.zeros((0, 4), np.uint8),
        np.arange(3),
    ],
    ids=str,
)
def test_arrays_are_those_that_were_written(array: np.ndarray, version: tuple[int, int] | None) -> None:
    found = parse_npy(npy(array, version))
    assert found.dtype == array.dtype
    assert found.flags.writeable
    assert np.array_equal(found, array)


WHOLE = npy(np.zeros((1, 2), np.float32))


def with_header(text: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(8)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin as a .npy file does"),
        (b"junk" * 10, "does not begin as a .npy file does"),
        (b"PK\x03\x04" + bytes(50), "an archive of arrays"),
        (WHOLE[:9], "its header is cut"),
        (WHOLE[:40], "does not describe an array"),
        (WHOLE[:-1], r"shape \(1, 2\) and type <f4 in 7 bytes"),
        (WHOLE + b"x", "in 9 bytes"),
        (WHOLE.replace(b"(1, 2)", b"(1, 2 "), "does not describe an array"),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"), "in 8 bytes"),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,), }"), "shape"),
        (with_header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"), "an array of type"),
        (with_header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,), }"), "does not describe"),
        (with_header("{'descr': '<f4', 'fortran_order': False, 'shape': " + "(" * 5000), "does not describe"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "does not describe an array"),
    ],
)
def test_damage_is_told_before_memory_is_asked_for(content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_npy(content)


def test_npz(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, a=np.arange(3), b=np.zeros(100))
    found = read_npz(path, ("a", "c"), 1000)
    assert list(found) == ["a"]
    assert found["a"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"b.npy claims 928 bytes, expected 500 at most"):
        read_npz(path, ("b",), 500)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match="damaged"):
        read_npz(path, ("a",), 1000)


def test_a_member_that_unfolds_to_more_than_it_claims_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(10**6))
    content = path.read_bytes()
    path.write_bytes(content.replace((10**6).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    with pytest.raises(ValueError, match=r"unfolds|damaged|begin"):
        read_npz(path, ("a",), 10**9)

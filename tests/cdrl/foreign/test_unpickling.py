"""Pickles: the values are Python's own, and nothing that a pickle asks for is done."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdrl.foreign.arrays import PICKLED_ARRAYS, PickledArray
from cdrl.foreign.unpickling import MOST_OPCODES, Foreign, read_pickle

VALUES: dict[str, Any] = {
    "numbers": [0, 1, -1, 255, 256, 2**31, -(2**70), 1.5, True, False, None],
    "text": ["", "a", "ü€", b"\x00\xff", bytearray(b"x" * 300)],
    "nested": ({"a": ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))}, [], {}, ()),
    1: "a number for a key",
}


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back_as_they_were(protocol: int) -> None:
    values = {**VALUES, "shared": VALUES["nested"]}
    if protocol < 3:
        values["text"] = ["", "a", "ü€"]  # bytes would be a call of a codec
    found = read_pickle(pickle.dumps(values, protocol), {("builtins", "bytearray"): bytearray})
    assert found == values
    assert found["shared"] is found["nested"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(20)[::2],
        np.array(1.5, np.float32),
        np.array([True, False]),
        np.zeros((0, 3)),
    ],
    ids=str,
)
def test_arrays_come_back_as_they_were(array: np.ndarray, protocol: int) -> None:
    found = read_pickle(pickle.dumps({"a": array, "b": array.dtype.type(1)}, protocol), PICKLED_ARRAYS)
    assert isinstance(found["a"], PickledArray)
    assert found["a"].array is not None
    assert found["a"].array.dtype == array.dtype
    assert np.array_equal(found["a"].array, array)
    assert found["b"] == array.dtype.type(1)


CALL = b"cos\nmkdir\n(X\x04\x00\x00\x00harmtR."
DTYPE = b"cnumpy\ndtype\n(X\x02\x00\x00\x00u1\x89\x88tR"
ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Runs()), "names posix.mkdir"),
        (CALL, "names os.mkdir"),
        (b"\x8c\x02os\x8c\x05mkdir\x93\x8c\x04harm\x85R.", "names os.mkdir"),
        (b"(ios\nmkdir\n.", "names os.mkdir"),
        (b"K\x01K\x02\x85R.", "calls what is no function"),
        (DTYPE + b"}b.", "unknown state"),
        (DTYPE + b"(K\x03X\x01\x00\x00\x00ONNNK\x00K\x00K\x00tb.", "unknown state"),
        (b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8\x89\x88tR.", "an array of type O8"),
        (b"cnumpy\ndtype\n(X\x05\x00\x00\x00u1,u1tR.", "an array of type u1,u1"),
        (b"cnumpy\ndtype\n(tR.", "with what that does not take"),
        (ARRAY + b"(K\x01" + b"J\xff\xff\xff\x7f\x85" + DTYPE + b"\x89C\x01xtb.", "in 1 bytes"),
        (ARRAY + b"}b.", "an array in an unknown state"),
        (b"cnumpy\nndarray\n)R.", "calls what is no function"),
        (b"}K\x01b.", "puts a state on dict"),
        (b"](K\x01K\x02u.", "puts items into list"),
        (b"}(]K\x01u.", "list for the key"),
        (b"}(K\x01u.", "puts items into dict"),
        (b"K\x00" + 40 * b"2\x86" + b"}" + b"q\x00" + b".", None),
        (b"h\x05.", "which it has not put aside"),
        (b"\x94.", "more from its stack"),
        (b"e.", "more from its stack"),
        (b"P1\n.", "an object outside of it"),
        (b"\x82\x01.", "the opcode EXT1"),
        (b"\x97.", "the opcode NEXT_BUFFER"),
        (b"K\x01", "pickle exhausted"),
        (b"", "pickle exhausted"),
        (b"X\xff\xff\xff\xff.", "expected"),
        (b"\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "expected"),
        (b"\xff.", "opcode"),
    ],
    ids=range(29),
)
def test_what_a_pickle_asks_for_is_not_done(
    content: bytes, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if message is None:
        read_pickle(content, PICKLED_ARRAYS)  # forty tuples, each of the one before twice: none is followed
    else:
        with pytest.raises(ValueError, match=message):
            read_pickle(content, PICKLED_ARRAYS)
    assert not list(tmp_path.iterdir())


def test_the_key_of_a_dict_is_not_followed_without_end() -> None:
    with pytest.raises(ValueError, match="tuple for the key"):
        read_pickle(b"}K\x00" + 40 * b"2\x86" + b"K\x01s.", {})


def test_a_memo_at_any_number_takes_no_memory() -> None:
    assert read_pickle(b"K\x07r\xff\xff\xff\x7f.", {}) == 7


def test_a_pickle_of_too_many_opcodes_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 5,000,000 opcodes"):
        read_pickle(b"N0" * (MOST_OPCODES // 2) + b"N.", {})


def test_the_unknown_can_be_ignored() -> None:
    found = read_pickle(pickle.dumps({"a": Runs(), "b": {1, 2}, "c": frozenset("x")}), {}, ignore_unknown=True)
    assert all(isinstance(found[name], Foreign) for name in "abc")


def test_a_file_that_claims_more_than_any_memory_is_refused(tmp_path: Path) -> None:
    """In a file, unlike in bytes, what is claimed is asked for before it is read."""
    path = tmp_path / "claims"
    path.write_bytes(b"\x80\x04\x8e" + (2**62).to_bytes(8, "little") + b"abc.")
    with path.open("rb") as file, pytest.raises(ValueError, match="it claims more bytes than there is memory for"):
        read_pickle(file, {})

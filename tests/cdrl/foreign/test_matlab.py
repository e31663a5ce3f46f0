"""MATLAB's files: the matrices are those that scipy wrote, and sizes are looked at first."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from cdrl.foreign.matlab import parse_matlab

X = np.random.default_rng(0).integers(0, 256, (4, 3, 2), dtype=np.uint8)


def matlab(compressed: bool = False, **arrays: Any) -> bytes:
    content = io.BytesIO()
    savemat(content, arrays, do_compression=compressed)
    return content.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i4", "i8", "f4", "f8"])
def test_matrices_are_those_that_were_written(compressed: bool, kind: str) -> None:
    content = matlab(compressed, text="abc", X=X.astype(kind), y=np.array([[7]], kind), cell={"a": 1})
    found = parse_matlab(content, ("X", "y", "z"), 10_000)
    assert list(found) == ["X", "y"]
    assert found["X"].dtype == np.dtype(kind)
    assert np.array_equal(found["X"], X.astype(kind))
    assert found["y"].tolist() == [[7]]


@pytest.mark.parametrize("compressed", [True, False])
def test_damage_and_size_are_told(compressed: bool) -> None:
    content = matlab(compressed, X=X)
    with pytest.raises(ValueError, match="'X' has 24 bytes, expected 10 at most"):
        parse_matlab(content, ("X",), 10)
    for end in (0, 127, 130, 140, len(content) - 8):
        with pytest.raises(ValueError, match=r"is cut short|does not begin"):
            parse_matlab(content[:end], ("X",), 100)
    with pytest.raises(ValueError, match="'s' is no matrix of real numbers"):
        parse_matlab(matlab(compressed, s="text"), ("s",), 100)


def test_a_matrix_that_claims_too_much_is_refused() -> None:
    content = bytearray(matlab(X=X))
    at = content.index((4).to_bytes(4, "little") + (3).to_bytes(4, "little") + (2).to_bytes(4, "little"))
    content[at : at + 4] = (2**30).to_bytes(4, "little")
    with pytest.raises(ValueError, match=r"'X' is of sizes \(1073741824, 3, 2\) in 24 bytes"):
        parse_matlab(bytes(content), ("X",), 2**40)


def test_a_packed_matrix_unfolds_no_further_than_it_says() -> None:
    whole = matlab(X=X)
    bomb = zlib.compress(whole[128:] + bytes(10**7))
    content = whole[:128] + (15).to_bytes(4, "little") + len(bomb).to_bytes(4, "little") + bomb
    assert np.array_equal(parse_matlab(content, ("X",), 100)["X"], X)

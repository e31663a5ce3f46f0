"""SVHN: the published MATLAB files in small, and damaged ones."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from cdrl.config import DataConfig
from cdrl.data import DataError, ImageSet, load_images
from cdrl.data.readers.checksums import PUBLISHED_MD5

PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), dtype=np.uint8)
LABELS = np.array([[1], [10], [9], [10]], dtype=np.uint8)


def save(path: Path, **changes: Any) -> None:
    savemat(path, {"X": PIXELS, "y": LABELS, **changes}, do_compression=True)


def load(path: Path, split: str = "test", **fields: Any) -> ImageSet:
    return load_images(DataConfig(name="svhn", path=path, **{"check_sums": False, **fields}), split)  # type: ignore[arg-type]


def test_both_splits_are_read_and_ten_is_zero(tmp_path: Path) -> None:
    save(tmp_path / "train_32x32.mat")
    save(tmp_path / "test_32x32.mat", X=PIXELS[..., :1], y=LABELS[:1])
    images = load(tmp_path, "train")
    for number in range(4):
        assert np.array_equal(images.images[number].permute(1, 2, 0).numpy(), PIXELS[..., number])
    assert images.labels is not None
    assert images.labels.tolist() == [1, 0, 9, 0]
    assert images.label_names == tuple("0123456789")
    assert len(load(tmp_path, "test")) == 1


def test_a_file_that_differs_from_the_published_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "test_32x32.mat"
    save(file)
    with pytest.raises(DataError, match=r"test_32x32.mat: damaged: expected the published MD5 eb5a983b"):
        load(tmp_path, check_sums=True)
    monkeypatch.setitem(PUBLISHED_MD5, "svhn/test_32x32.mat", hashlib.md5(file.read_bytes()).hexdigest())
    assert len(load(tmp_path, check_sums=True)) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": PIXELS[:28]}, r"expected 'X' as uint8 \(32, 32, 3, N\), found uint8 \(28, 32, 3, 4\)"),
        ({"X": PIXELS / 255}, "expected 'X' as uint8"),
        ({"y": LABELS[:3]}, "expected 4 whole numbers as 'y'"),
        ({"y": LABELS / 2}, "expected 4 whole numbers as 'y'"),
        ({"y": LABELS + np.uint8(1)}, "expected labels 1 … 10, found 2 … 11"),
        ({"y": LABELS - np.uint8(1)}, "expected labels 1 … 10, found 0 … 9"),
    ],
)
def test_wrong_content_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save(tmp_path / "test_32x32.mat", **changes)
    with pytest.raises(DataError, match=f"test_32x32.mat: {message}"):
        load(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "test_32x32.mat"
    save(file)
    content = file.read_bytes()
    for wrong in (b"", b"no MATLAB file" * 20, content[:1000], content[: len(content) // 2]):
        file.write_bytes(wrong)
        with pytest.raises(DataError, match=r"test_32x32.mat: expected a whole MATLAB file"):
            load(tmp_path)
    savemat(file, {"X": PIXELS})
    with pytest.raises(DataError, match="expected a whole MATLAB file with 'X' and 'y': it holds no 'y'"):
        load(tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"test_32x32.mat: cannot be read"):
        load(tmp_path)

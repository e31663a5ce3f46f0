"""Fashion-MNIST: the published layout in small, padding, and damaged files."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from cdrl.config import DataConfig
from cdrl.data import DataError, ImageSet, load_images
from cdrl.data.readers import idx


def idx_file(array: np.ndarray, magic: int | None = None) -> bytes:
    magic = 0x0800 + array.ndim if magic is None else magic
    return struct.pack(f">{1 + array.ndim}i", magic, *array.shape) + array.astype(np.uint8).tobytes()


def make_pixels(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Plain training files, compressed test files."""
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_file(make_pixels(5)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_file(np.array([9, 0, 3, 3, 1])))
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx_file(make_pixels(2))))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_file(np.array([7, 8]))))
    return tmp_path


def load(path: Path | None, split: str = "train", size: int = 28, channels: int = 1) -> ImageSet:
    data = DataConfig(name="fashion_mnist", path=path, image_size=size, channels=channels, check_sums=False)  # type: ignore[arg-type]
    return load_images(data, split)  # type: ignore[arg-type]


def test_both_splits_are_read(folder: Path) -> None:
    train, test = load(folder), load(folder, "test")
    assert np.array_equal(train.images[:, 0].numpy(), make_pixels(5))
    assert np.array_equal(test.images[:, 0].numpy(), make_pixels(2))
    assert train.labels is not None
    assert train.labels.tolist() == [9, 0, 3, 3, 1]
    assert train.label_names[9] == "Ankle boot"


def test_size_32_is_padded_and_others_are_resized(folder: Path) -> None:
    padded = load(folder, size=32, channels=3).images
    assert torch.equal(padded[:, :, 2:-2, 2:-2], load(folder, channels=3).images)
    assert padded.sum() == padded[:, :, 2:-2, 2:-2].sum()
    with pytest.warns(UserWarning, match="fashion_mnist: images of 28 pixels are resized to 14"):
        assert load(folder, size=14).images.shape == (5, 1, 14, 14)


def test_the_systems_package_is_the_default(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "_SYSTEM_FOLDER", folder)
    assert len(load(None)) == 5
    monkeypatch.setattr(idx, "_SYSTEM_FOLDER", folder / "nothing")
    with pytest.raises(DataError, match="install Debian's package dataset-fashion-mnist"):
        load(None)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", idx_file(make_pixels(5))[:-1], "expected 3920 values, found 3919"),
        ("train-images-idx3-ubyte", idx_file(make_pixels(5)) + b"x", "expected 3920 values, found more"),
        (
            "train-images-idx3-ubyte",
            idx_file(make_pixels(5), magic=2049),
            "expected an idx file with the magic number 2051",
        ),
        ("train-images-idx3-ubyte", b"\0\0", "expected an idx file with the magic number 2051"),
        ("train-images-idx3-ubyte", idx_file(make_pixels(5)[:, 1:]), "expected images of 28 by 28"),
        ("train-labels-idx1-ubyte", idx_file(np.zeros(4)), "expected 5 labels, one an image, found 4"),
        ("train-labels-idx1-ubyte", idx_file(np.arange(6, 11)), "expected labels 0 … 9, found 10"),
    ],
)
def test_wrong_files_are_named(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{name}: {message}"):
        load(folder)


def test_missing_and_cut_files_are_named(folder: Path) -> None:
    labels = folder / "t10k-labels-idx1-ubyte.gz"
    content = labels.read_bytes()
    for wrong in (content[:-6], content[:5], b"not compressed"):
        labels.write_bytes(wrong)
        with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz: expected a whole gzip file"):
            load(folder, "test")
    labels.unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte: not there, nor with .gz"):
        load(folder, "test")


def test_compressed_files_that_are_not_the_published_ones_are_named(folder: Path) -> None:
    data = DataConfig(name="fashion_mnist", path=folder, image_size=28, channels=1)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz: damaged: expected the published MD5 bef4ecab"):
        load_images(data, "test")


def test_files_that_claim_or_unfold_too_much_are_named(folder: Path) -> None:
    images = folder / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:4] + b"\xff\xff\xff\xff" + whole[8:])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte: claims 3,367,254,359,280 values, expected"):
        load(folder)
    images.unlink()
    # A thousand times as many pixels as it says, which it does not come to.
    images.with_suffix(".gz").write_bytes(gzip.compress(whole + bytes(10**7)))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz: expected 3920 values, found more"):
        load(folder)

"""CIFAR-10 and ImageNet32: the published layouts in small, and that no pickle runs what it says."""

import hashlib
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdrl.config import DataConfig
from cdrl.data import DataError, ImageSet, Split, load_images
from cdrl.data.readers import pickles
from cdrl.data.readers.checksums import PUBLISHED_MD5
from cdrl.data.readers.pickles import open_imagenet32

CIFAR10 = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"]
NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def old_string(text: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(text)) + text


def old_pickle(values: dict[str, Any]) -> bytes:
    """A dict pickled by the opcodes that Python 2 wrote, as the published files are: text and bytes are one type."""

    def encode(value: Any) -> bytes:
        if isinstance(value, np.ndarray):
            rows, columns = value.shape
            reconstruct = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + old_string(b"b") + b"tR"
            dtype = b"cnumpy\ndtype\n(" + old_string(b"u1") + b"K\x00K\x01tR"
            dtype += b"(K\x03" + old_string(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            shape = b"J" + struct.pack("<i", rows) + b"J" + struct.pack("<i", columns) + b"\x86"
            return reconstruct + b"(K\x01" + shape + dtype + b"I00\n" + old_string(value.tobytes()) + b"tb"
        if isinstance(value, list):
            return b"](" + b"".join(map(encode, value)) + b"e"
        return b"K" + bytes([value]) if isinstance(value, int) else old_string(value.encode())

    items = b"".join(encode(key) + encode(value) for key, value in values.items())
    return b"\x80\x02}(" + items + b"u."


def make_pixels(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of seven files in the published layout, three images a batch, with checksums that fit."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for seed, name in enumerate(CIFAR10):
        batch = {
            "batch_label": name,
            "labels": [seed, 9, 0],
            "data": make_pixels(3, seed),
            "filenames": ["a", "b", "c"],
        }
        meta = {"num_cases_per_batch": 3, "label_names": NAMES, "num_vis": 72}
        (folder / name).write_bytes(old_pickle(meta if name == "batches.meta" else batch))
    trust_files(folder, monkeypatch)
    return tmp_path


def trust_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in folder.iterdir():
        monkeypatch.setitem(PUBLISHED_MD5, f"{folder.name}/{file.name}", hashlib.md5(file.read_bytes()).hexdigest())


def load(path: Path, split: Split = "train", name: str = "cifar10") -> ImageSet:
    return load_images(DataConfig(name=name, path=path, image_size=32, channels=3), split)  # type: ignore[arg-type]


def pack(root: Path) -> Path:
    archive = root / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(root / "cifar-10-batches-py", "cifar-10-batches-py")
    for file in (root / "cifar-10-batches-py").iterdir():
        file.unlink()
    return archive


def test_cifar10_from_every_place(cifar10: Path) -> None:
    places: list[Callable[[], Path]] = [
        lambda: cifar10,
        lambda: cifar10 / "cifar-10-batches-py",
        lambda: pack(cifar10),
        lambda: cifar10,  # now the folder holds the archive only
    ]
    for place in places:
        path = place()
        train, test = load(path, "train"), load(path, "test")
        expected = np.concatenate([make_pixels(3, seed) for seed in range(5)]).reshape(-1, 3, 32, 32)
        assert np.array_equal(train.images.numpy(), expected)
        assert train.labels is not None
        assert train.labels.tolist() == [label for seed in range(5) for label in (seed, 9, 0)]
        assert train.label_names == tuple(NAMES)
        assert np.array_equal(test.images.numpy(), make_pixels(3, 5).reshape(-1, 3, 32, 32))


def test_resizing_cifar10_is_not_silent(cifar10: Path) -> None:
    data = DataConfig(name="cifar10", path=cifar10, image_size=16, channels=1)
    with pytest.warns(UserWarning, match="cifar10: images of 32 pixels are resized to 16"):
        assert load_images(data, "test").images.shape == (3, 1, 16, 16)


class Runs:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


class RunsNumpy:
    def __reduce__(self) -> tuple[Any, ...]:
        return np.save, ("harm.npy", [1])


BATCH_PIXELS = make_pixels(3, 2)
BATCH = {"data": BATCH_PIXELS, "labels": [1, 2, 3]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({**BATCH, "labels": Runs()}), "names posix.mkdir, which the format does not hold"),
        (pickle.dumps({**BATCH, "labels": RunsNumpy()}), "names numpy.save"),
        (pickle.dumps({**BATCH, "labels": np.array([{}])}), "an array of type O8"),
        (pickle.dumps([1, 2]), "expected a pickled dict, found list"),
        (pickle.dumps(BATCH)[:5000], "expected a whole pickle"),
        (b"", "expected a whole pickle"),
        (pickle.dumps({"labels": [1]}), r"expected 'data' as uint8 \[N, 3072\]"),
        (pickle.dumps({**BATCH, "data": make_pixels(3, 0)[:, :100]}), r"expected 'data' as uint8 \[N, 3072\]"),
        (pickle.dumps({**BATCH, "data": make_pixels(3, 0).astype(np.int64)}), "expected 'data' as uint8"),
        (pickle.dumps({**BATCH, "labels": [1]}), "expected 3 whole numbers as 'labels'"),
        (pickle.dumps({**BATCH, "labels": ["1", "2", "3"]}), "expected 3 whole numbers as 'labels'"),
        (pickle.dumps({**BATCH, "labels": [1, 2, 10]}), "data_batch_2: expected labels 0 … 9, found 1 … 10"),
    ],
)
def test_wrong_batches_are_refused_and_run_nothing(
    cifar10: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    folder = cifar10 / "cifar-10-batches-py"
    (folder / "data_batch_2").write_bytes(content)
    trust_files(folder, monkeypatch)
    monkeypatch.chdir(cifar10)
    with pytest.raises(DataError, match=message):
        load(cifar10)
    assert not list(cifar10.glob("harm*"))


def test_files_that_differ_from_the_published_ones_are_named(cifar10: Path) -> None:
    (cifar10 / "cifar-10-batches-py" / "data_batch_4").write_bytes(pickle.dumps(BATCH))
    with pytest.raises(DataError, match="data_batch_4: damaged: expected the published MD5"):
        load(cifar10)
    # A copy that somebody packed anew is read when it is asked for.
    data = DataConfig(name="cifar10", path=cifar10, check_sums=False)
    assert np.array_equal(load_images(data, "train").images[9:12].numpy(), BATCH_PIXELS.reshape(-1, 3, 32, 32))
    (cifar10 / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(DataError, match="data_batch_4: cannot be read"):
        load(cifar10)
    with pytest.raises(DataError, match=r"expected cifar-10-batches-py or cifar-10-python.tar.gz"):
        load(cifar10 / "elsewhere")


def test_cut_archives_are_named(cifar10: Path) -> None:
    archive = pack(cifar10)
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz: expected a whole .tar.gz"):
        load(archive)


def test_archives_that_unfold_without_end_are_named(cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = pack(cifar10)
    load(archive, "test")
    monkeypatch.setattr(pickles, "_MOST_BYTES", 50_000)
    with tarfile.open(archive, "w:gz") as tar:
        big = tarfile.TarInfo("somebody-elses-file")
        big.size = 10**6
        tar.addfile(big, io.BytesIO(bytes(10**6)))
    with pytest.raises(DataError, match=r"cifar-10-python.tar.gz: .*it unfolds to more than 50,000 bytes"):
        load(archive, "test")


def test_labels_that_hold_each_other_are_not_followed(cifar10: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cifar10 / "cifar-10-batches-py"
    labels: Any = [1, 2, 3]
    for _ in range(60):
        labels = [labels] * 3
    (folder / "data_batch_2").write_bytes(pickle.dumps({**BATCH, "labels": labels}))
    trust_files(folder, monkeypatch)
    with pytest.raises(DataError, match="expected 3 whole numbers as 'labels'"):
        load(cifar10)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_every_protocol_and_numpys_own_numbers_are_read(tmp_path: Path, protocol: int) -> None:
    pixels = make_pixels(3, 0)
    batch = {b"data": pixels, "labels": [np.int64(1), 2, np.uint16(1000)]}
    (tmp_path / "val_data").write_bytes(pickle.dumps(batch, protocol))
    images = load(tmp_path, "test", "imagenet32")
    assert np.array_equal(images.images.numpy(), pixels.reshape(3, 3, 32, 32))
    assert images.labels is not None
    assert images.labels.tolist() == [0, 1, 999]


def test_cifar100_has_its_fine_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    fine, coarse = [f"fine {number}" for number in range(100)], [f"coarse {number}" for number in range(20)]
    (folder / "meta").write_bytes(old_pickle({"fine_label_names": fine, "coarse_label_names": coarse}))
    for seed, name in enumerate(("train", "test")):
        batch = {"filenames": ["a", "b"], "fine_labels": [99, seed], "coarse_labels": [19, 0]}
        (folder / name).write_bytes(old_pickle({**batch, "data": make_pixels(2, seed)}))
    with pytest.raises(DataError, match="train: damaged: expected the published MD5 16019d7e"):
        load(tmp_path, "train", "cifar100")
    trust_files(folder, monkeypatch)
    with tarfile.open(tmp_path / "cifar-100-python.tar.gz", "w:gz") as tar:
        tar.add(folder, "cifar-100-python")
    for path in (tmp_path, folder, tmp_path / "cifar-100-python.tar.gz"):
        for seed, split in enumerate(("train", "test")):
            images = load(path, split, "cifar100")  # type: ignore[arg-type]
            assert np.array_equal(images.images.numpy(), make_pixels(2, seed).reshape(2, 3, 32, 32))
            assert images.labels is not None
            assert images.labels.tolist() == [99, seed]
            assert images.label_names == tuple(fine)


def assert_told_by_its_files(folder: Path, name: str) -> None:
    def fingerprint() -> str:
        return open_imagenet32(folder, "train", DataConfig(name="imagenet32", path=folder)).fingerprint(slice(0, 1))

    before, file = fingerprint(), folder / name
    assert fingerprint() == before
    file.write_bytes(file.read_bytes() + b"0")
    assert fingerprint() != before


@pytest.mark.parametrize("suffix", ["", ".npz"])
def test_imagenet32(tmp_path: Path, suffix: str) -> None:
    for number, name in enumerate([*(f"train_data_batch_{n}" for n in range(1, 11)), "val_data"]):
        batch: dict[str, Any] = {"data": make_pixels(2, number), "labels": [number + 1, 1000]}
        if number < 10:
            batch["mean"] = np.zeros(3072)
        if suffix:
            np.savez(tmp_path / name, **batch)
        else:
            (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=2))
    train, test = load(tmp_path, "train", "imagenet32"), load(tmp_path, "test", "imagenet32")
    assert_told_by_its_files(tmp_path, f"train_data_batch_4{suffix}")
    assert np.array_equal(train.images[18:].numpy(), make_pixels(2, 9).reshape(2, 3, 32, 32))
    assert train.labels is not None
    assert train.labels.tolist() == [label for number in range(10) for label in (number, 999)]
    assert len(train.label_names) == 1000
    assert np.array_equal(test.images.numpy(), make_pixels(2, 10).reshape(2, 3, 32, 32))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("val_data", pickle.dumps({**BATCH, "labels": [0, 1, 2]}), "val_data: expected labels 1 … 1000, found 0 … 2"),
        ("val_data", pickle.dumps({**BATCH, "labels": [1, 2, 1001]}), "expected labels 1 … 1000, found 1 … 1001"),
        ("val_data.npz", b"PK\3\4 and no more", "val_data.npz: expected a whole .npz"),
        ("val_data.txt", b"", "val_data: not there, nor with .npz"),
        ("val_data", pickle.dumps(BATCH)[:5000], "val_data: expected a whole pickle"),
    ],
)
def test_wrong_imagenet32_files_are_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path, "test", "imagenet32")

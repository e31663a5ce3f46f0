"""Published data sets in small: every file that a reader looks for, in the published layout."""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
import struct
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
"""Four images of 32 by 32 pixels, in planes."""


def picture(path: Path, size: tuple[int, int]) -> None:
    """A picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)


def cifar10(data: Path) -> None:
    """Seven pickles."""
    (data / "cifar-10-batches-py").mkdir()
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        batch = {"data": PIXELS, "labels": [0, 1, 2, 9]}
        (data / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"label_names": [str(number) for number in range(10)]}
    (data / "cifar-10-batches-py" / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))


def cifar10_archive(data: Path) -> None:
    """The archive alone."""
    cifar10(data)
    with tarfile.open(data / "cifar-10-python.tar.gz", "w:gz") as tar:
        tar.add(data / "cifar-10-batches-py", "cifar-10-batches-py")
    shutil.rmtree(data / "cifar-10-batches-py")


def cifar100(data: Path) -> None:
    """Three pickles."""
    (data / "cifar-100-python").mkdir()
    for name in ("train", "test"):
        batch = {"data": PIXELS, "fine_labels": [0, 1, 2, 99], "coarse_labels": [0, 0, 0, 0]}
        (data / "cifar-100-python" / name).write_bytes(pickle.dumps(batch, protocol=2))
    meta = {"fine_label_names": [str(number) for number in range(100)]}
    (data / "cifar-100-python" / "meta").write_bytes(pickle.dumps(meta, protocol=2))


def imagenet32(data: Path) -> None:
    """Eleven `.npz` files."""
    for name in (*(f"train_data_batch_{number}" for number in range(1, 11)), "val_data"):
        np.savez(data / name, data=PIXELS, labels=np.array([1, 2, 3, 1000]))


def cifar100_archive(data: Path) -> None:
    """The archive alone."""
    cifar100(data)
    with tarfile.open(data / "cifar-100-python.tar.gz", "w:gz") as tar:
        tar.add(data / "cifar-100-python", "cifar-100-python")
    shutil.rmtree(data / "cifar-100-python")


def imagenet32_pickles(data: Path) -> None:
    """Pickles, of which those for training have a mean."""
    for name in (*(f"train_data_batch_{number}" for number in range(1, 11)), "val_data"):
        mean = {} if name == "val_data" else {"mean": PIXELS.mean(axis=0)}
        batch = {"data": PIXELS, "labels": [1, 2, 3, 1000], **mean}
        (data / name).write_bytes(pickle.dumps(batch, protocol=2))


def svhn(data: Path) -> None:
    """Two MATLAB files."""
    for split in ("train", "test"):
        pixels = PIXELS.reshape(4, 3, 32, 32).transpose(2, 3, 1, 0)
        savemat(data / f"{split}_32x32.mat", {"X": pixels, "y": np.array([[1], [2], [3], [10]], np.uint8)})


def dtd(data: Path) -> None:
    """A picture a split."""
    for name in ("banded", "dotted"):
        picture(data / "dtd" / "images" / name / f"{name}_0001.jpg", (50, 40))
    (data / "dtd" / "labels").mkdir()
    (data / "dtd" / "labels" / "train1.txt").write_text("banded/banded_0001.jpg\n")
    (data / "dtd" / "labels" / "test1.txt").write_text("dotted/dotted_0001.jpg\n")


def fashion_mnist(data: Path) -> None:
    """Images as they are, labels compressed."""
    for prefix in ("train", "t10k"):
        pixels = PIXELS[:, : 28 * 28].tobytes()
        (data / f"{prefix}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 4, 28, 28) + pixels)
        labels = struct.pack(">2i", 2049, 4) + bytes([0, 1, 2, 9])
        (data / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def fashion_mnist_compressed(data: Path) -> None:
    """All four files as they are published."""
    fashion_mnist(data)
    for file in data.glob("*-images-idx3-ubyte"):
        file.with_name(file.name + ".gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()


def celeba(data: Path) -> None:
    """Two pictures for training, one for test."""
    names = [f"{number + 1:06d}.jpg" for number in range(3)]
    for name in names:
        picture(data / "img_align_celeba" / name, (178, 218))
    rows = [f"{name} " + " ".join(["1", "-1"] * 20) for name in names]
    header = ["3", " ".join(f"Attribute_{number}" for number in range(40))]
    (data / "list_attr_celeba.txt").write_text("\n".join([*header, *rows]) + "\n")
    (data / "list_eval_partition.txt").write_text("".join(f"{name} {part}\n" for name, part in zip(names, (0, 0, 2))))


def mask_hq(data: Path) -> None:
    """CelebAMask-HQ with CelebA's partition."""
    celeba(data)
    for number in range(3):
        picture(data / "CelebA-HQ-img" / f"{number}.jpg", (64, 64))
    text = (data / "list_attr_celeba.txt").read_text()
    for number in range(3):
        text = text.replace(f"{number + 1:06d}.jpg", f"{number}.jpg")
    (data / "CelebAMask-HQ-attribute-anno.txt").write_text(text)
    mapping = [f"{number} {number} {number + 1:06d}.jpg" for number in range(3)]
    (data / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(["idx orig_idx orig_file", *mapping]) + "\n")


def celebahq_arrays(data: Path) -> None:
    """An array a split, and the lists of them."""
    for number, name in enumerate(("train", "validation")):
        np.save(data / f"imgHQ{number:05d}.npy", np.zeros((1, 3, 64, 64), np.uint8))
        (data / f"celebahq{name}.txt").write_text(f"imgHQ{number:05d}.npy\n")


def folder(data: Path) -> None:
    """A picture a split, in one class."""
    picture(data / "train" / "a" / "0.png", (20, 20))
    picture(data / "test" / "a" / "0.png", (20, 20))


def foreign_shards(data: Path, label: bytes = b"0") -> None:
    """A tar file a split, four samples each."""
    content = io.BytesIO()
    Image.fromarray(PIXELS[0].reshape(32, 32, 3)).save(content, format="PNG")
    for split in ("train", "test"):
        (data / split).mkdir(exist_ok=True)
        with tarfile.open(data / split / "0.tar", "w") as tar:
            for number in range(4):
                for extension, file in (("png", content.getvalue()), ("cls", label)):
                    member = tarfile.TarInfo(f"{number}.{extension}")
                    member.size = len(file)
                    tar.addfile(member, io.BytesIO(file))


def pictures_in_folder(data: Path) -> None:
    """Eight pictures a split, without classes."""
    for number in range(8):
        picture(data / "train" / f"{number}.png", (12, 12))
        picture(data / "test" / f"{number}.png", (12, 12))

"""One door to all images: from the data section of a configuration to an `ImageSet`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cdrl.config import DataConfig
from cdrl.data.images.census import as_metadata, tell
from cdrl.data.images.preparing import read_source
from cdrl.data.images.sets import DataError, GridSet, ImageSet, Source, Split, source_in_memory
from cdrl.data.readers.celeba import open_celeba, open_celebahq
from cdrl.data.readers.dtd import open_dtd
from cdrl.data.readers.faces import open_faces
from cdrl.data.readers.folders import open_folder, open_shard_folder
from cdrl.data.readers.idx import open_fashion_mnist
from cdrl.data.readers.pickles import open_cifar10, open_cifar100, open_imagenet32
from cdrl.data.readers.svhn import open_svhn
from cdrl.data.shards.prepared import read_prepared

_DIGITS_TEST = 500
_WITHOUT_FILES = ("faces", "digits")  # there is nothing of the user's that could be left out

_READERS: dict[str, Callable[[Path, Split, DataConfig], Source]] = {
    "cifar10": lambda path, split, data: open_cifar10(path, split, data.check_sums),
    "cifar100": lambda path, split, data: open_cifar100(path, split, data.check_sums),
    "svhn": lambda path, split, data: open_svhn(path, split, data.check_sums),
    "dtd": open_dtd,
    "imagenet32": lambda path, split, data: open_imagenet32(path, split),
    "celeba": open_celeba,
    "celebahq": open_celebahq,
    "folder": open_folder,
    "shards": open_shard_folder,
}


def load_images(data: DataConfig, split: Split) -> ImageSet:
    """The images of one split: uint8 [N, data.channels, data.image_size, data.image_size], in a fixed order.

    Raises:
        DataError: the data set is missing, damaged or differs from the published layout; the message names the file.
    """
    if data.prepared is not None:
        return read_prepared(data, split, stream=False).to_images()
    return _read_published(data, split)[0]


def training_images(data: DataConfig, split: Split = "train") -> GridSet:
    """The images of one split as grids: on disk with ``data.stream``, otherwise in memory as `load_images` has them.

    Raises:
        DataError: as `load_images`; or, of images on disk, when a damaged one is asked for.
    """
    if data.prepared is not None:
        return read_prepared(data, split, stream=data.stream)
    images, metadata = _read_published(data, split)
    return GridSet(
        images.images, images.labels, images.label_names, images.attributes, images.attribute_names, metadata
    )


def open_source(data: DataConfig, split: Split) -> Source:
    """One split as it was published, before any preparation.

    Raises:
        DataError: the data set is missing or differs from the published layout; the message names the file.
    """
    if data.name == "faces":
        num = data.num_train if split == "train" else data.num_test
        return open_faces(data.style, split, num, data.image_size, data.zoom, data.cache)
    if data.name == "digits":
        return _open_digits(split)
    if data.name == "fashion_mnist":
        return open_fashion_mnist(data.path, split, data.image_size, data.check_sums)
    if data.name not in _READERS or data.path is None:
        raise DataError(f"data.name={data.name}: holds no images to be read")
    return _READERS[data.name](data.path, split, data)


def _read_published(data: DataConfig, split: Split) -> tuple[ImageSet, dict[str, Any]]:
    """The images of one split, and metadata that tell what was left out of the files that lie there."""
    source = open_source(data, split)
    images = read_source(source, data.image_size, data.channels, data.name)
    if data.name in _WITHOUT_FILES:
        return images, {}
    metadata = as_metadata(source.left_out)
    tell(data, split, len(images), metadata)
    return images, metadata


def _open_digits(split: Split) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8 pixels: 1,297 for training, 500 held out, classes in proportion."""
    # Imported here, since this alone would double the time that it takes to import this package.
    from sklearn.datasets import load_digits as load_sklearn_digits
    from sklearn.model_selection import train_test_split

    digits = load_sklearn_digits()
    train, test = train_test_split(
        range(len(digits.target)), test_size=_DIGITS_TEST, stratify=digits.target, random_state=0
    )
    rows = sorted(train if split == "train" else test)
    # The published values are 0 … 16.
    pixels = (torch.from_numpy(digits.images[rows]) * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target[rows]).long()
    return source_in_memory(ImageSet(pixels, labels, tuple(map(str, range(10)))), published_size=8)

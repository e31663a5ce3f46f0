"""One door to all images: from the data section of a configuration to an `ImageSet`."""

from __future__ import annotations

from pathlib import Path

import torch

from cdrl.config import DataConfig
from cdrl.data.celeba import load_celeba, load_celebahq
from cdrl.data.faces import load_faces
from cdrl.data.folders import Split, load_folder, load_shards
from cdrl.data.idx import load_fashion_mnist
from cdrl.data.pickles import load_cifar10, load_imagenet32
from cdrl.data.preparing import prepare_fixed
from cdrl.data.sets import DataError, ImageSet

_DIGITS_TEST = 500

_READERS = {
    "imagenet32": load_imagenet32,
    "cifar10": load_cifar10,
    "celeba": load_celeba,
    "celebahq": load_celebahq,
    "folder": load_folder,
    "shards": load_shards,
}


def load_images(data: DataConfig, split: Split) -> ImageSet:
    """The images of one split: uint8 [N, data.channels, data.image_size, data.image_size], in a fixed order.

    Raises:
        DataError: the data set is missing, damaged or differs from the published layout; the message names the file.
    """
    size, channels = data.image_size, data.channels
    if data.name == "faces":
        num = data.num_train if split == "train" else data.num_test
        return load_faces(data.style, split, num, size, channels, data.cache)
    if data.name == "digits":
        return load_digits(split, size, channels)
    if data.name == "fashion_mnist":
        return load_fashion_mnist(data.path, split, size, channels)
    if data.name not in _READERS or data.path is None:
        raise DataError(f"data.name={data.name}: holds no images to be read")
    return _READERS[data.name](Path(data.path), split, size, channels)


def load_digits(split: Split, size: int, channels: int) -> ImageSet:
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
    return ImageSet(prepare_fixed(pixels, size, channels, "digits"), labels, tuple(map(str, range(10))))

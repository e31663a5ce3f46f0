"""scikit-learn's 1,797 handwritten digits, which need no file."""

from __future__ import annotations

import torch

from cdrl.config import DataConfig
from cdrl.data.images.sets import ImageSet, Source, Split, source_in_memory

_TEST = 500


def open_digits(path: None, split: Split, data: DataConfig) -> Source:
    """Digits of 8x8 pixels: 1,297 for training, 500 held out, with the classes in proportion."""
    # Imported here, since this alone would double the time that it takes to import this package.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    train, test = train_test_split(range(len(digits.target)), test_size=_TEST, stratify=digits.target, random_state=0)
    rows = sorted(train if split == "train" else test)
    # The published values are 0 … 16.
    pixels = (torch.from_numpy(digits.images[rows]) * (255 / 16)).round().to(torch.uint8)[:, None]
    labels = torch.from_numpy(digits.target[rows]).long()
    return source_in_memory(ImageSet(pixels, labels, tuple(map(str, range(10)))), published_size=8)

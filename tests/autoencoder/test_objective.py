"""The loss terms against their closed forms, and who gets gradients from which."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from autoencoder.model import Autoencoder, GaussianLatent, QuantizedLatent
from autoencoder.objective import (
    LINEAR_FILE,
    VGG_FILE,
    LPIPSDistance,
    PatchDiscriminator,
    StageOneObjective,
    adaptive_weight,
    center_weighting,
    hinge_loss,
    psnr,
    reconstruction_error,
    ssim,
)
from cdrl.config import BottleneckConfig, ConfigError, ReconstructionConfig


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_reconstruction_errors() -> None:
    x, y = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), -0.5)
    assert reconstruction_error(x, y, "l1").item() == 0.5
    assert reconstruction_error(x, y, "l2").item() == 0.25
    assert reconstruction_error(x, y, "sum").item() == 0.75


def test_the_middle_counts_more_and_the_whole_as_much() -> None:
    weight = center_weighting(65, excess=3.0)
    assert weight.mean().item() == pytest.approx(1.0)
    for turned in (weight.flip(0), weight.flip(1), weight.T):
        torch.testing.assert_close(weight, turned)
    assert (weight[32, 32] / weight[0, 0]).item() == pytest.approx(4.0, abs=1e-3)
    one_deviation = weight[32, 32 + round(0.15 * 65)] / weight[0, 0]
    assert one_deviation.item() == pytest.approx(1 + 3 * math.exp(-0.5), abs=0.05)
    assert torch.equal(center_weighting(8, excess=0.0), torch.ones(8, 8))


def test_the_weight_falls_on_its_pixel() -> None:
    x, y = torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8)
    y[:, :, 3, 4] = 2.0
    weight = center_weighting(8, excess=5.0)
    expected = 4.0 * weight[3, 4].item() / 64
    assert reconstruction_error(x, y, "l2", weight).item() == pytest.approx(expected)


def test_psnr_of_a_constant_error() -> None:
    x = noise(3, 3, 8, 8) * 0.5
    # An error of 0.2 in [-1, 1] is one of 0.1 in [0, 1]: 20 dB.
    assert torch.allclose(psnr(x, x + 0.2), torch.full((3,), 20.0), atol=1e-4)
    assert torch.isinf(psnr(x, x)).all()
    assert torch.isinf(psnr(torch.ones(1, 1, 4, 4), torch.full((1, 1, 4, 4), 1.7))).all()


def test_ssim_of_equal_constant_and_noisy_images() -> None:
    x = noise(2, 3, 32, 32)
    assert torch.allclose(ssim(x, x), torch.ones(2), atol=1e-5)
    # Two constant images differ in luminance alone: (2ab + c) / (a^2 + b^2 + c), c = 0.01^2, in [0, 1].
    a, b, c = 0.5, 0.75, 1e-4
    constant = ssim(torch.zeros(1, 1, 32, 32), torch.full((1, 1, 32, 32), 0.5))
    assert constant.item() == pytest.approx((2 * a * b + c) / (a**2 + b**2 + c), rel=1e-3)
    assert (ssim(x, x + 0.5 * noise(2, 3, 32, 32, seed=1)) < 0.95).all()


def test_hinge_loss_vanishes_outside_the_margin_and_is_one_at_zero() -> None:
    assert hinge_loss(torch.tensor([1.0, 3.0]), torch.tensor([-1.0, -2.0])).item() == 0.0
    assert hinge_loss(torch.zeros(4), torch.zeros(4)).item() == 1.0
    real, fake = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    hinge_loss(real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert real.grad.max() < 0 < fake.grad.min()


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    drawn = torch.tensor([1.0, 2.0], requires_grad=True)

    def doubled(gradient: torch.Tensor) -> torch.Tensor:
        return 2 * gradient

    weight = adaptive_weight((drawn * torch.tensor([3.0, 4.0])).sum(), drawn[0] * 2.5, drawn, doubled)
    assert weight.item() == pytest.approx(5.0 / 2.5, rel=1e-3)
    assert not weight.requires_grad
    assert adaptive_weight((1e6 * drawn).sum(), drawn[0] * 0.0, drawn, doubled).item() == 1e4


def test_the_gradient_at_the_last_layer_is_that_of_the_whole_graph() -> None:
    torch.manual_seed(0)
    model = Autoencoder(BottleneckConfig(channels=32, multipliers=(1,), num_blocks=1, pixel_unshuffle=2), 1, 16)
    images, noisy = noise(2, 1, 16, 16), torch.randn(2, *model.latent_shape)
    with model.last_layer_watched() as at_last_layer:
        reconstruction, _ = model(images, noisy)
        stopped = reconstruction.view_as(reconstruction)
        loss = (stopped - images).square().mean()
        (gradient,) = torch.autograd.grad(loss, stopped, retain_graph=True)
        found = at_last_layer(gradient)
    (expected,) = torch.autograd.grad(loss, model.decoder.conv_out.weight)
    torch.testing.assert_close(found, expected)
    assert not model.decoder.conv_out._forward_hooks


AtLastLayer = Callable[[torch.Tensor], torch.Tensor]


def never(gradient: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the last layer is asked without an adversarial term")


def at_weight_of(images: torch.Tensor) -> AtLastLayer:
    """What turns the gradient at `toy`'s reconstruction into that at its weight."""
    return lambda gradient: (gradient * images).sum()


def toy() -> tuple[torch.Tensor, torch.Tensor, nn.Parameter, GaussianLatent]:
    """Images, a reconstruction made by one weight, that weight, and a latent with a gradient."""
    images, weight = noise(2, 3, 32, 32), nn.Parameter(torch.tensor(0.5))
    mean = torch.full((2, 1, 2, 2), 2.0, requires_grad=True)
    return images, images * weight, weight, GaussianLatent(mean, torch.zeros(2, 1, 2, 2))


def test_terms_add_up_with_their_weights() -> None:
    images, reconstruction, _, latent = toy()
    config = ReconstructionConfig(reconstruction="l2", perceptual="lite0", perceptual_weight=0.3, kl_weight=0.01)
    loss, terms = StageOneObjective(config, 3, 32).autoencoder_loss(
        images, reconstruction, latent, at_last_layer=never, step=0
    )
    kl = 0.5 * 4 * 2.0**2
    assert terms["kl"].item() == pytest.approx(kl)
    assert terms["reconstruction"].item() == pytest.approx((0.25 * images.square()).mean().item(), rel=1e-5)
    expected = terms["reconstruction"] + 0.3 * terms["perceptual"] + 0.01 * kl / (3 * 32 * 32)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert not any(term.requires_grad for term in terms.values())


def test_codebook_term() -> None:
    images, reconstruction, _, _ = toy()
    latent = QuantizedLatent(torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.tensor(0.125))
    objective = StageOneObjective(ReconstructionConfig(codebook_weight=2.0), 3, 32)
    loss, terms = objective.autoencoder_loss(images, reconstruction, latent, at_last_layer=never, step=0)
    assert loss.item() == pytest.approx(terms["reconstruction"].item() + 0.25, rel=1e-5)


def test_adversarial_term_starts_at_its_step_and_balances_the_reconstruction() -> None:
    torch.manual_seed(0)
    objective = StageOneObjective(ReconstructionConfig(adversarial_weight=0.5, adversarial_start=3, kl_weight=0), 3, 32)

    def loss_at(step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor], nn.Parameter]:
        images, reconstruction, weight, latent = toy()
        loss, terms = objective.autoencoder_loss(
            images, reconstruction, latent, at_last_layer=at_weight_of(images), step=step
        )
        return loss, terms, weight

    loss, terms, weight = loss_at(2)
    (reconstruction_gradient,) = torch.autograd.grad(loss, weight)
    assert "adversarial" not in terms
    assert not objective.is_adversarial(2)
    loss, terms, weight = loss_at(3)
    (gradient,) = torch.autograd.grad(loss, weight)
    added = (gradient - reconstruction_gradient).abs()
    assert added.item() == pytest.approx(0.5 * reconstruction_gradient.abs().item(), rel=0.05)
    assert terms["adaptive_weight"].item() > 0


def test_autoencoder_pass_leaves_the_discriminator_without_gradients() -> None:
    objective = StageOneObjective(ReconstructionConfig(adversarial_weight=1.0), 3, 32)
    assert isinstance(objective.discriminator, PatchDiscriminator)
    images, reconstruction, weight, latent = toy()
    loss, _ = objective.autoencoder_loss(images, reconstruction, latent, at_last_layer=at_weight_of(images), step=0)
    loss.backward()
    assert weight.grad is not None
    assert weight.grad.abs() > 0
    assert all(parameter.grad is None for parameter in objective.discriminator.parameters())
    assert all(parameter.requires_grad for parameter in objective.discriminator.parameters())
    loss, _ = objective.discriminator_loss(*objective.discriminator(images, reconstruction.detach()))
    loss.backward()
    assert all(parameter.grad is not None for parameter in objective.discriminator.parameters())


def test_discriminator_learns_to_tell_noise_from_flat_images() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(1)
    objective = StageOneObjective(ReconstructionConfig(), 1, 32)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-3)
    losses = []
    for seed in range(12):
        loss, terms = objective.discriminator_loss(
            *discriminator(noise(4, 1, 32, 32, seed=seed), torch.zeros(4, 1, 32, 32))
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert terms["logits_real"] > terms["logits_fake"]


def test_one_whole_step_lowers_the_loss() -> None:
    torch.manual_seed(0)
    model = Autoencoder(BottleneckConfig(channels=32, multipliers=(1,), num_blocks=1, pixel_unshuffle=4), 1, 16)
    objective = StageOneObjective(ReconstructionConfig(reconstruction="sum"), 1, 32)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    images, losses = noise(4, 1, 16, 16), []
    for step in range(10):
        draws = torch.randn(4, *model.latent_shape, generator=torch.Generator().manual_seed(step))
        reconstruction, latent = model(images, draws)
        loss, _ = objective.autoencoder_loss(images, reconstruction, latent, at_last_layer=never, step=step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def lpips_files(folder: Path, linear: dict[str, torch.Tensor]) -> None:
    """Files of the published names and shapes, with random VGG weights."""
    generator = torch.Generator().manual_seed(0)
    widths = [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 512)]
    widths += [(512, 512)] * 5
    layers = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    vgg = {}
    for layer, (inputs, outputs) in zip(layers, widths, strict=True):
        scale = math.sqrt(2 / (9 * inputs))
        vgg[f"features.{layer}.weight"] = torch.randn(outputs, inputs, 3, 3, generator=generator) * scale
        vgg[f"features.{layer}.bias"] = torch.zeros(outputs)
    torch.save(vgg, folder / VGG_FILE)
    torch.save(linear, folder / LINEAR_FILE)


def linear_layers() -> dict[str, torch.Tensor]:
    return {f"lin{i}.model.1.weight": torch.ones(1, c, 1, 1) for i, c in enumerate((64, 128, 256, 512, 512))}


def test_lpips_reads_its_files_and_is_zero_for_equal_images(tmp_path: Path) -> None:
    lpips_files(tmp_path, linear_layers())
    distance = LPIPSDistance(tmp_path).train()
    x = noise(2, 1, 16, 16)
    damaged = (x + 0.2 * noise(2, 1, 16, 16, seed=1)).requires_grad_()
    assert torch.equal(distance(x, x), torch.zeros(2))
    result = distance(x, damaged)
    assert result.shape == (2,)
    assert (result > 0).all()
    assert torch.equal(result, distance(x, damaged)), "dropout must be off"
    result.sum().backward()
    assert damaged.grad is not None
    assert damaged.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_lpips_weights_that_are_missing_or_wrong_are_named(tmp_path: Path) -> None:
    config = ReconstructionConfig(perceptual="lpips", lpips_weights=tmp_path)
    with pytest.raises(ConfigError, match=VGG_FILE):
        StageOneObjective(config, 3, 32)
    lpips_files(tmp_path, {})
    with pytest.raises(ConfigError, match=r"vgg\.pth.*lin0"):
        LPIPSDistance(tmp_path)
    lpips_files(tmp_path, linear_layers() | {"lin2.model.1.weight": torch.ones(1, 3, 1, 1)})
    with pytest.raises(ConfigError, match=r"vgg\.pth.*lin2.*shape"):
        LPIPSDistance(tmp_path)
    (tmp_path / VGG_FILE).write_bytes(b"not a file of tensors")
    with pytest.raises(ConfigError, match=VGG_FILE):
        LPIPSDistance(tmp_path)

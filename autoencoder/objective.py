"""The first stage's objective: reconstruction, perceptual, adversarial, and KL or codebook terms.

Together they are the loss of VQGAN (Esser et al. 2021, eq. 4 to 7) with the KL bottleneck of latent diffusion
(Rombach et al. 2022, App. G). Terms are means over image values, not sums, so that the loss does not grow with
the image: the weights of the two papers keep their meaning, and learning rates and clipping do not depend on the size.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from kornia.metrics import ssim as ssim_map
from taming.modules.discriminator.model import NLayerDiscriminator, weights_init
from taming.modules.losses import lpips as taming_lpips
from torch import Tensor, nn

from autoencoder.lite0 import Lite0Distance
from autoencoder.model import GaussianLatent, LatentDistribution
from cdrl.config import ConfigError, ReconstructionConfig
from cdrl.runs.archives import check_finite, check_is_there

VGG_FILE = "vgg16-397923af.pth"
LINEAR_FILE = "vgg.pth"
# Convolutions of VGG16's `features` in each of LPIPS's five slices.
_VGG_SLICES = {1: (0, 2), 2: (5, 7), 3: (10, 12, 14), 4: (17, 19, 21), 5: (24, 26, 28)}

_MAX_ADAPTIVE_WEIGHT = 1e4
_SSIM_WINDOW = 11


class StageOneObjective(nn.Module):
    """Losses of the autoencoder and of its patch discriminator.

    Each of the two has its own engine, with one forward and one backward pass per step::

        with autoencoder.last_layer_watched() as at_last_layer:
            reconstruction, latent = autoencoder_engine(images, noise)
            loss, diagnostics = objective.autoencoder_loss(
                images, reconstruction, latent, at_last_layer=at_last_layer, step=step
            )
        autoencoder_engine.backward(loss)
        if objective.is_adversarial(step):
            logits = discriminator_engine(images, reconstruction.detach())
            loss, diagnostics = objective.discriminator_loss(*logits)
            discriminator_engine.backward(loss)

    Attributes:
        discriminator: the only part with trainable parameters; None if ``adversarial_weight`` is 0.

    Raises:
        ConfigError: the weights of the perceptual term are missing or of another network.
    """

    weight: Tensor | None

    def __init__(self, config: ReconstructionConfig, image_channels: int, image_size: int) -> None:
        super().__init__()
        self.config = config
        weight = center_weighting(image_size, config.center_weight) if config.center_weight else None
        self.register_buffer("weight", weight, persistent=False)
        self.perceptual = _perceptual_distance(config)
        self.discriminator = PatchDiscriminator(image_channels) if config.adversarial_weight > 0 else None

    def is_adversarial(self, step: int) -> bool:
        """Whether the discriminator takes part in this step (counted from 0)."""
        return self.discriminator is not None and step >= self.config.adversarial_start

    def autoencoder_loss(
        self,
        images: Tensor,
        reconstruction: Tensor,
        latent: LatentDistribution,
        *,
        at_last_layer: Callable[[Tensor], Tensor],
        step: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the autoencoder, a scalar, and its terms before weighting.

        Args:
            images: [N, C, H, W] in [-1, 1].
            reconstruction: [N, C, H, W].
            latent: distribution from which ``reconstruction`` was decoded.
            at_last_layer: gradient at ``reconstruction`` -> gradient at the weight of the decoder's last layer, for the
                adaptive weight; see `Autoencoder.last_layer_watched`.
            step: training step, from 0.
        """
        config = self.config
        # A view: gradients are taken here, short of the hooks that an engine has put on its output.
        reconstruction = reconstruction.view_as(reconstruction).float()
        loss = reconstruction_error(images, reconstruction, config.reconstruction, self.weight)
        diagnostics = {"reconstruction": loss, "psnr": psnr(images, reconstruction).mean()}
        if self.perceptual is not None:
            perceptual = self.perceptual(images, reconstruction).mean()
            loss = loss + config.perceptual_weight * perceptual
            diagnostics["perceptual"] = perceptual
        if self.is_adversarial(step):
            assert self.discriminator is not None
            with _without_parameter_gradients(self.discriminator):
                adversarial = -self.discriminator.score(reconstruction).float().mean()
            balance = adaptive_weight(loss, adversarial, reconstruction, at_last_layer)
            loss = loss + config.adversarial_weight * balance * adversarial
            diagnostics |= {"adversarial": adversarial, "adaptive_weight": balance}
        if isinstance(latent, GaussianLatent):
            kl = latent.kl().mean()
            # Nats an image value: the published weight, 1e-6, multiplies the sum beside a sum of errors.
            loss = loss + config.kl_weight * kl / images[0].numel()
            diagnostics["kl"] = kl
        else:
            loss = loss + config.codebook_weight * latent.codebook_loss
            diagnostics["codebook"] = latent.codebook_loss
        return loss, {name: value.detach() for name, value in diagnostics.items()}

    def discriminator_loss(self, logits_real: Tensor, logits_fake: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of the discriminator, a scalar, and diagnostics, from the logits that its forward pass returned."""
        loss = hinge_loss(logits_real.float(), logits_fake.float())
        diagnostics = {"discriminator": loss, "logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}
        return loss, {name: value.detach() for name, value in diagnostics.items()}


class PatchDiscriminator(nn.Module):
    """taming's patch discriminator (Isola et al. 2017): a grid of logits per image, high for real patches."""

    def __init__(self, image_channels: int) -> None:
        super().__init__()
        self.network = NLayerDiscriminator(image_channels, n_layers=3).apply(weights_init)

    def forward(self, images: Tensor, reconstruction: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both batches, [N, 1, h, w] each, for one update.

        One forward, because DeepSpeed expects one a step; two passes, because batch normalisation must not mix
        the statistics of real and reconstructed images.
        """
        return self.score(images), self.score(reconstruction)

    def score(self, images: Tensor) -> Tensor:
        """Logits [N, 1, h, w] of ``images`` [N, C, H, W]."""
        return self.network(images)


def center_weighting(size: int, excess: float) -> Tensor:
    """Weight of each pixel's error, [size, size], 1 on average.

    The centre weighs up to 1 + ``excess`` times as much as the border, falling off as a Gaussian of 0.15 image sides:
    for aligned faces, whose important features take up few pixels in the centre.
    """
    offset = (torch.arange(size) + 0.5) / size - 0.5
    distance = offset.square()[:, None] + offset.square()
    weight = 1 + excess * torch.exp(-distance / (2 * 0.15**2))
    return weight / weight.mean()


def reconstruction_error(images: Tensor, reconstruction: Tensor, kind: str, weight: Tensor | None = None) -> Tensor:
    """Mean absolute (``l1``) or squared (``l2``) error over all values, or their sum (``sum``).

    Args:
        weight: weight of each pixel, [H, W]; None for equal weights.
    """
    difference = images - reconstruction

    def mean(error: Tensor) -> Tensor:
        return error.mean() if weight is None else (weight * error).mean()

    if kind == "sum":
        return mean(difference.abs() + difference.square())
    return mean(difference.abs() if kind == "l1" else difference.square())


def hinge_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Half of E[max(0, 1 - D(real))] + E[max(0, 1 + D(fake))]: 0 once both are on their side of the margin."""
    return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())


def adaptive_weight(
    reconstruction_loss: Tensor,
    adversarial_loss: Tensor,
    reconstruction: Tensor,
    at_last_layer: Callable[[Tensor], Tensor],
) -> Tensor:
    """Ratio of the two losses' gradient norms at the decoder's last layer (Esser et al. 2021, eq. 7), no gradient.

    It gives the adversarial term a gradient of the same size as the reconstruction's. In [0, 1e4].

    Args:
        reconstruction: that the losses were computed from.
        at_last_layer: see `StageOneObjective.autoencoder_loss`.
    """
    norms = []
    for loss in (reconstruction_loss, adversarial_loss):
        (gradient,) = torch.autograd.grad(loss, reconstruction, retain_graph=True)
        norms.append(at_last_layer(gradient).float().norm())
    return (norms[0] / (norms[1] + 1e-4)).clamp(0.0, _MAX_ADAPTIVE_WEIGHT).detach()


class LPIPSDistance(taming_lpips.LPIPS):
    """LPIPS (Zhang et al. 2018) on taming's architecture, with weights from a folder instead of a download.

    Args:
        folder: holds ``vgg16-397923af.pth`` (torchvision's VGG16) and ``vgg.pth`` (LPIPS's linear layers).

    Raises:
        ConfigError: a file is missing or does not hold these weights.
    """

    def __init__(self, folder: Path) -> None:
        # LPIPS.__init__ would download both files; its parts are put together here without that.
        nn.Module.__init__(self)
        self.chns = [64, 128, 256, 512, 512]
        self.scaling_layer = taming_lpips.ScalingLayer()
        # On "meta", since VGG16's classifier alone is half a gigabyte, built and thrown away. The warnings are
        # torchvision's about the argument by which taming asks for no weights.
        with torch.device("meta"), warnings.catch_warnings(action="ignore", category=UserWarning):
            self.net = taming_lpips.vgg16(pretrained=False, requires_grad=False)
            for i, channels in enumerate(self.chns):
                self.add_module(f"lin{i}", taming_lpips.NetLinLayer(channels, use_dropout=True))
        self._assign(folder / VGG_FILE, {f"net.{key}": name for key, name in _vgg_names()})
        self._assign(folder / LINEAR_FILE, {f"lin{i}.model.1.weight": f"lin{i}.model.1.weight" for i in range(5)})
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> LPIPSDistance:
        """Stay in evaluation mode: dropout belongs to the linear layers' own training."""
        return super().train(False)

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance [N] between two batches [N, 1 or 3, H, W] in [-1, 1]."""
        distance = super().forward(images.expand(-1, 3, -1, -1), reconstruction.expand(-1, 3, -1, -1))
        return distance.flatten()

    def _assign(self, path: Path, names: dict[str, str]) -> None:
        """Set this module's parameters (keys of ``names``) to those of a file (values of ``names``)."""
        expected = {key: self.get_parameter(key).shape for key in names}
        if path.exists():
            check_is_there(path)
        try:
            stored = torch.load(path, map_location="cpu", weights_only=True)
            weights = {key: stored[name].float() for key, name in names.items()}
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; perceptual=lpips needs {VGG_FILE} and {LINEAR_FILE}") from None
        except (OSError, RuntimeError, pickle.UnpicklingError, TypeError, EOFError) as error:
            raise ConfigError(f"{path}: not a file of weights ({' '.join(str(error).split())[:200]})") from None
        except KeyError as error:
            raise ConfigError(f"{path}: expected the LPIPS weights, found no {error}") from None
        for key, shape in expected.items():
            if weights[key].shape != shape:
                raise ConfigError(
                    f"{path}: {names[key]} has shape {tuple(weights[key].shape)}, expected {tuple(shape)}"
                )
        check_finite(path, weights)
        self.load_state_dict(weights, strict=False, assign=True)


def psnr(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, [N], of images [N, C, H, W] in [-1, 1]: the peak is the full range, 2.

    ``reconstruction`` is clamped to [-1, 1]. Equal images give infinity.
    """
    error = (images - reconstruction.clamp(-1.0, 1.0)).square().mean(dim=(1, 2, 3))
    return 10.0 * torch.log10(4.0 / error)


def ssim(images: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity, [N], of images [N, C, H, W] in [-1, 1]; windows of 11 pixels, as Wang et al. (2004)."""
    unit_range = ((images + 1.0) / 2.0, (reconstruction.clamp(-1.0, 1.0) + 1.0) / 2.0)
    return ssim_map(*unit_range, window_size=_SSIM_WINDOW).mean(dim=(1, 2, 3))


def _perceptual_distance(config: ReconstructionConfig) -> nn.Module | None:
    if config.perceptual == "none" or config.perceptual_weight == 0:
        return None
    if config.perceptual == "lite0":
        return Lite0Distance()
    assert config.lpips_weights is not None
    return LPIPSDistance(config.lpips_weights)


def _vgg_names() -> Iterator[tuple[str, str]]:
    """Names of each VGG16 parameter in taming's slices and in torchvision's file."""
    for number, layers in _VGG_SLICES.items():
        for layer in layers:
            for kind in ("weight", "bias"):
                yield f"slice{number}.{layer}.{kind}", f"features.{layer}.{kind}"


@contextmanager
def _without_parameter_gradients(module: nn.Module) -> Iterator[None]:
    """Keep gradients away from the parameters of ``module``; they still pass through it to its inputs."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)

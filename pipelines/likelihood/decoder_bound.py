"""A lower bound on the log-likelihood of the image itself, through the decoder of a latent run (ELBO).

The run is read as a model of images: a standardized latent with noise, z_0, from the energy of level 0, then
x ~ N(decoded(z_0 / alpha_bar_0), s^2 I) with one s for all pixels. For any q(z_0 | x),

    log p(x) >= E_q[log p(x | z_0)] + E_q[log p(z_0) - log q(z_0 | x)]    (Kingma & Welling, 2014).

q is what training made of an image: the first stage's posterior, or its mean, with the noise of level 0 upon it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autoencoder.model import GaussianLatent, QuantizedLatent
from cdrl.config import Config
from cdrl.data import as_floats, fewer_of_large
from cdrl.runs.progress import progress_bar
from cdrl.sampling.noise import ImageNoise, derive_seed
from cdrl.schedule import NoiseSchedule
from pipelines.decoding import LatentDecoder
from pipelines.likelihood.images import EIGHT_BIT_STEP

Posterior = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Images [N, C, H, W] -> mean and standard deviation of q(z_0 | x), each [N, c, h, w]."""

_BATCH = 64
_LOG_TAU = math.log(2 * math.pi)


@dataclass(frozen=True)
class Coded:
    """One draw of z_0 from q(z_0 | x) for each of N images.

    Attributes:
        latents: z_0, [N, c, h, w].
        log_q: log q(z_0 | x), float64 [N].
        squared_error: (x - decoded(z_0 / alpha_bar_0))^2, summed over the pixels, float64 [N].
        pixels: numbers of an image.
    """

    latents: Tensor
    log_q: Tensor
    squared_error: Tensor
    pixels: int

    @property
    def best_std(self) -> float:
        """The s under which the images are likeliest."""
        return math.sqrt(float(self.squared_error.mean()) / self.pixels)

    def bound(self, log_prior: Tensor, std: float) -> Tensor:
        """One-draw estimates of the bound in nats, float64 [N], from log p(z_0) [N] and s = ``std``."""
        log_decoder = -self.squared_error / (2 * std**2) - self.pixels * (_LOG_TAU / 2 + math.log(std))
        return log_decoder + log_prior.double().cpu() - self.log_q


@torch.no_grad()
def coded(
    images: Tensor,
    posterior: Posterior,
    decoded: Callable[[Tensor], Tensor],
    seeds: Sequence[int],
    device: torch.device,
) -> Coded:
    """Draw z_0 for each image, and decode it.

    Args:
        images: uint8 [N, C, H, W], which are made continuous by noise as wide as a step of 8 bits; or floats, as they
            are.
        decoded: z_0 -> mean of p(x | z_0).
        seeds: one an image.
    """
    latents, log_q, errors = [], [], []
    with progress_bar(len(images), "bound", unit="image") as bar:
        for rows in torch.arange(len(images)).split(fewer_of_large(_BATCH, images.shape[-1])):
            noise = ImageNoise([seeds[row] for row in rows.tolist()], device)
            shown, x = dequantized(images[rows].to(device), noise)
            mean, std = posterior(shown)
            unit = noise.normal(mean.shape[1:])
            z = mean + std * unit
            whitened = (_LOG_TAU + unit.double().square()) / 2 + std.double().log()
            latents.append(z)
            log_q.append(-whitened.flatten(1).sum(dim=1).cpu())
            errors.append((x - decoded(z)).double().flatten(1).square().sum(dim=1).cpu())
            bar.update(len(rows))
    return Coded(torch.cat(latents), torch.cat(log_q), torch.cat(errors), images[0].numel())


def dequantized(images: Tensor, noise: ImageNoise) -> tuple[Tensor, Tensor]:
    """Images as they are, in [-1, 1], and made continuous: bytes by uniform noise as wide as their step."""
    if images.dtype != torch.uint8:
        return images, images
    shown = as_floats(images)
    # The normal distribution function makes uniform draws of normal ones.
    return shown, shown + EIGHT_BIT_STEP * (torch.special.ndtr(noise.normal(shown.shape[1:])) - 0.5)


def run_posterior(config: Config, decoder: LatentDecoder, schedule: NoiseSchedule) -> Posterior:
    """q(z_0 | x) of a latent run: what its energies were trained on, with the noise of level 0."""
    stage_one = config.autoencoder
    assert stage_one is not None
    signal, noise = float(schedule.alpha_bar[0]), float(schedule.sigma_bar[0])

    def posterior(images: Tensor) -> tuple[Tensor, Tensor]:
        latent = decoder.autoencoder.to(images.device).encode(images)
        center = latent.pre_quantization if isinstance(latent, QuantizedLatent) else latent.mean
        mean = signal * decoder.standardized(center)
        variance = torch.full_like(mean, noise**2)
        if isinstance(latent, GaussianLatent) and stage_one.latents == "sample":
            variance = variance + signal**2 * latent.logvar.exp() / decoder.std.to(mean.device).view(-1, 1, 1) ** 2
        return mean, variance.sqrt()

    return posterior


def bound_seeds(split: str, count: int, seed: int) -> list[int]:
    """Seeds of the draws, one an image."""
    return [derive_seed("likelihood", "bound", split, seed, row) for row in range(count)]

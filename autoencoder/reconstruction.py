"""Images that a first stage has encoded and decoded: how good they are, and pictures of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autoencoder.model import Autoencoder
from autoencoder.objective import psnr, ssim
from cdrl.data import Grids, as_floats, contact_sheet, filled_row, image_batches, to_bytes

SHOWN, WORST = 32, 8


@dataclass(frozen=True)
class Reconstruction:
    """Images that a first stage has encoded and decoded.

    Attributes:
        images: uint8 [N, C, H, W], on the CPU.
        psnr, ssim: of each image before it was rounded to 8 bits, [N].
    """

    images: Tensor
    psnr: Tensor
    ssim: Tensor


@torch.no_grad()
def reconstruct(autoencoder: Autoencoder, images: Grids) -> Reconstruction:
    """Encode images [N, C, H, W], uint8 or in [-1, 1], and decode the means of their posteriors."""
    device = next(autoencoder.parameters()).device
    parts = []
    for part in image_batches(images):
        given = part.to(device)
        made = autoencoder.decode(autoencoder.encode(given).mean).float().clamp(-1, 1)
        parts.append((to_bytes(made).cpu(), psnr(given, made).cpu(), ssim(given, made).cpu()))
    return Reconstruction(*(torch.cat(column) for column in zip(*parts, strict=True)))


def mean_image_psnr(images: Tensor) -> float:
    """PSNR in dB, on average, of the mean of ``images`` [N, C, H, W] in each one's place."""
    return psnr(images, images.mean(dim=0, keepdim=True).expand_as(images)).clamp(max=100).mean().item()


def held_out_quality(autoencoder: Autoencoder, images: Tensor) -> tuple[dict[str, float], Tensor]:
    """PSNR and SSIM on held-out images [N, C, H, W] in [-1, 1], and a picture of pairs: image above reconstruction."""
    was_training = autoencoder.training
    made = reconstruct(autoencoder.eval(), images)
    autoencoder.train(was_training)
    quality = {"held_out_psnr": made.psnr.mean().item(), "held_out_ssim": made.ssim.mean().item()}
    return quality, pairs_picture(images[:SHOWN].cpu(), as_floats(made.images[:SHOWN]))


def worst_picture(images: Tensor, reconstruction: Reconstruction) -> Tensor:
    """The images uint8 [N, C, H, W] with the lowest PSNR, worst first, above their reconstructions: [3, H', W']."""
    worst = reconstruction.psnr.argsort()[:WORST]
    return pairs_picture(as_floats(images[worst]), as_floats(reconstruction.images[worst]))


def pairs_picture(images: Tensor, reconstruction: Tensor, columns: int = 8) -> Tensor:
    """Rows of images, each right above its reconstruction, as one uint8 picture [3, H, W]; small ones are enlarged.

    Raises:
        ValueError: as `cdrl.data.to_bytes`.
    """
    columns = min(columns, len(images))
    parts = zip(to_bytes(images).split(columns), to_bytes(reconstruction).split(columns), strict=True)
    rows = [filled_row(part, columns) for pair in parts for part in pair]
    return contact_sheet(torch.cat(rows), columns)

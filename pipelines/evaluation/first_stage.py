"""Quality of a first stage on held-out images: errors of pixels, a distance of features, what a judge still reads."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from autoencoder.model import Autoencoder
from autoencoder.objective import psnr, ssim
from autoencoder.training import pairs_picture
from cdrl.data import Grids, as_floats, image_batches
from pipelines.decoding import to_bytes

WORST = 8


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


def worst_picture(images: Tensor, reconstruction: Reconstruction) -> Tensor:
    """The images uint8 [N, C, H, W] with the lowest PSNR, worst first, above their reconstructions: [3, H', W']."""
    worst = reconstruction.psnr.argsort()[:WORST]
    return pairs_picture(as_floats(images[worst]), as_floats(reconstruction.images[worst]))

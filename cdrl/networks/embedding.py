"""What both networks are told beside the image: the noise level and the class."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def noise_features(logsnr: Tensor, width: int) -> Tensor:
    """Sinusoidal features of the noise level, [N] -> [N, width] (Appendix A.3).

    The level enters as 1000 arctan(exp(-lambda / 2)) / (pi / 2), which runs from 0 (clean) to 1000 (noise); the
    wavelengths are those of the Transformer's position code (Vaswani et al., 2017).
    """
    position = 1000 * torch.arctan(torch.exp(-logsnr / 2)) / (math.pi / 2)
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, device=logsnr.device))
    angles = position[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def one_hot_classes(label: Tensor, num_classes: int) -> Tensor:
    """Class ids, -1 for the null class, as one-hot rows with the null class first: [N] -> [N, num_classes + 1]."""
    return F.one_hot(label + 1, num_classes + 1).float()

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
    steps = torch.arange(half, dtype=logsnr.dtype, device=logsnr.device)
    frequencies = torch.exp(-math.log(10_000) / (half - 1) * steps)
    angles = position[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def random_frequencies(dimension: int, count: int) -> Tensor | None:
    """Angular frequencies for `fourier_features`, [dimension, count], of about one cycle a unit; None for none."""
    return 2 * math.pi * torch.randn(dimension, count) if count else None


def fourier_features(points: Tensor, frequencies: Tensor, amplitudes: Tensor | None = None) -> Tensor:
    """Points [N, D] with sine and cosine of their products with [D, M] frequencies: [N, D + 2M].

    A network of such features learns sharp edges in few steps, where one of coordinates learns them last (Tancik et
    al., 2020). ``amplitudes`` ([1, M] or [N, M]) multiply the waves.
    """
    angles = points @ frequencies
    waves = [angles.sin(), angles.cos()]
    return torch.cat([points, *(wave if amplitudes is None else amplitudes * wave for wave in waves)], dim=1)


def noised_amplitudes(logsnr: Tensor, frequencies: Tensor) -> Tensor:
    """Amplitudes [N, M] that noise of level logsnr [N] leaves to waves of [D, M] frequencies.

    exp(-|frequency|^2 sigma_bar^2 / 2): a noised density holds no finer waves, which would only unsteady its chains.
    """
    return (-torch.sigmoid(-logsnr)[:, None] * frequencies.square().sum(dim=0) / 2).exp()


def one_hot_classes(label: Tensor, num_classes: int) -> Tensor:
    """Class ids, -1 for the null class, as one-hot rows with the null class first: [N] -> [N, num_classes + 1]."""
    return F.one_hot(label + 1, num_classes + 1).float()


def distinct_conditions(logsnr: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of noise level and class id that occur in [N] and [N]: both for each pair, and each image's pair [N].

    A batch holds few levels and, of points, hundreds of rows: what depends on the condition alone is computed once
    a pair.
    """
    if logsnr.is_meta:  # tensors without values, by which sizes are checked: each row may be a pair of its own
        return logsnr, label, torch.arange(len(logsnr), device=logsnr.device)
    # Three searches in one dimension: one over rows is many times slower.
    levels, level = torch.unique(logsnr, return_inverse=True)
    classes, class_ = torch.unique(label, return_inverse=True)
    pairs, index = torch.unique(level * len(classes) + class_, return_inverse=True)
    return levels[pairs // len(classes)], classes[pairs % len(classes)], index

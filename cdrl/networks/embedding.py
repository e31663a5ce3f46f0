"""Embeddings of the noise level, the class and 2-D coordinates, shared by both networks."""

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
    """Random angular frequencies for `fourier_features`, [dimension, count], normal with standard deviation 2 pi.

    None if ``count`` is 0.
    """
    return 2 * math.pi * torch.randn(dimension, count) if count else None


def fourier_features(points: Tensor, frequencies: Tensor, amplitudes: Tensor | None = None) -> Tensor:
    """Append Fourier features to points [N, D]: sine and cosine of points @ frequencies ([D, M]) -> [N, D + 2M].

    With them a network learns sharp edges early; from coordinates alone it learns them last (Tancik et al., 2020).
    ``amplitudes`` ([1, M] or [N, M]) multiply the sines and cosines.
    """
    angles = points @ frequencies
    waves = [angles.sin(), angles.cos()]
    return torch.cat([points, *(wave if amplitudes is None else amplitudes * wave for wave in waves)], dim=1)


def noised_amplitudes(logsnr: Tensor, frequencies: Tensor) -> Tensor:
    """Factors [N, M] by which noise of level logsnr [N] damps Fourier features of frequencies [D, M].

    exp(-|frequency|^2 sigma_bar^2 / 2): a noised density has no finer detail, and undamped features would only make
    its chains unstable.
    """
    return (-torch.sigmoid(-logsnr)[:, None] * frequencies.square().sum(dim=0) / 2).exp()


def one_hot_classes(label: Tensor, num_classes: int) -> Tensor:
    """Class ids, -1 for the null class, as one-hot rows with the null class first: [N] -> [N, num_classes + 1]."""
    return F.one_hot(label + 1, num_classes + 1).float()


def distinct_conditions(logsnr: Tensor, label: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct pairs of noise level [N] and class id [N]: levels [M], classes [M], and the pair of each image, [N].

    A batch has few distinct levels but, for points, hundreds of rows, so whatever depends only on the condition is
    computed once per pair.
    """
    # Elsewhere to find the pairs would wait for the device, to which a few rows more are nothing.
    if logsnr.device.type != "cpu":
        return logsnr, label, torch.arange(len(logsnr), device=logsnr.device)
    # Three searches in one dimension: one over rows is many times slower.
    levels, level = torch.unique(logsnr, return_inverse=True)
    classes, class_ = torch.unique(label, return_inverse=True)
    pairs, index = torch.unique(level * len(classes) + class_, return_inverse=True)
    return levels[pairs // len(classes)], classes[pairs % len(classes)], index

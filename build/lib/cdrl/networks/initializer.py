"""The initializer (Appendix A.1): improved diffusion's U-Net at half size for grids, an MLP for 2-D points.

Both predict a correction that is added to their input x_{t+1}, and start as the identity. ``predicts`` says what the
output is: the mean of y_t, or the clean image or the noise, from which that mean follows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdrl.config import InitializerConfig, check_initializer_grid
from cdrl.networks.embedding import (
    distinct_conditions,
    fourier_features,
    noise_features,
    one_hot_classes,
    random_frequencies,
)
from cdrl.sampling.noise import ImageNoise

_dropout_noise: ContextVar[ImageNoise | None] = ContextVar("dropout_noise", default=None)


@contextmanager
def dropout_noise(noise: ImageNoise) -> Iterator[None]:
    """Have `ImageDropout` draw its masks from these streams, one an image of the batch, meanwhile."""
    token = _dropout_noise.set(noise)
    try:
        yield
    finally:
        _dropout_noise.reset(token)


class ImageDropout(nn.Module):
    """Dropout whose masks belong to images, as all randomness does: not to the batch or the process they are in.

    In training it needs the streams of `dropout_noise`, and raises a RuntimeError without; in evaluation it does
    nothing.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, h: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return h
        noise = _dropout_noise.get()
        if noise is None:
            raise RuntimeError("dropout in training needs streams of random numbers: call within dropout_noise(...)")
        return h * noise.kept(self.rate, h.shape[1:]) / (1 - self.rate)


def _zero(layer: nn.Conv2d | nn.Linear) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)


class ConditionEmbedding(nn.Module):
    """Embedding of noise level and class in one vector: [N], [N] -> [N, 4 x channels]."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.channels, self.num_classes = channels, num_classes
        self.dense1 = nn.Linear(channels, 4 * channels)
        self.dense2 = nn.Linear(4 * channels, 4 * channels)
        self.classes = nn.Linear(num_classes + 1, 4 * channels) if num_classes else None

    def forward(self, logsnr: Tensor, label: Tensor) -> Tensor:
        h = self.dense2(F.silu(self.dense1(noise_features(logsnr, self.channels))))
        if self.classes is not None:
            h = h + self.classes(one_hot_classes(label, self.num_classes).to(h.dtype))
        return h


class UNetBlock(nn.Module):
    """Residual block: GroupNorm, SiLU, resample, conv, scale-shift GroupNorm, SiLU, dropout, conv, + shortcut."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, resample: str = "none") -> None:
        super().__init__()
        self.resample = resample
        self.norm1, self.conv1 = _group_norm(inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = _group_norm(outputs), nn.Conv2d(outputs, outputs, 3, padding=1)
        self.condition = nn.Linear(embedding, 2 * outputs)
        self.dropout = ImageDropout(dropout)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()
        _zero(self.conv2)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv1(self._resampled(F.silu(self.norm1(x))))
        scale, shift = self.condition(condition)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.conv2(self.dropout(F.silu(h))) + self.shortcut(self._resampled(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention over the positions of the grid, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        _zero(self.out)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        n, c, h, w = x.shape
        # Contiguous, with a dimension for the one head: what the fused attention takes.
        qkv = self.qkv(self.norm(x)).reshape(n, 3, 1, c, h * w).transpose(3, 4).contiguous()
        query, key, value = qkv.unbind(dim=1)
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(attended.transpose(2, 3).reshape(n, c, h, w))


class Resolution(nn.Module):
    """The blocks of one resolution on one side of the U-Net, each followed by attention if ``attention``."""

    def __init__(self, blocks: list[UNetBlock], attention: bool, resample: UNetBlock | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        channels = [block.conv2.out_channels for block in blocks]
        self.attentions = nn.ModuleList(AttentionBlock(c) for c in channels) if attention else None
        self.resample = resample

    def step(self, index: int, h: Tensor, condition: Tensor) -> Tensor:
        """Apply block ``index`` and its attention."""
        h = self.blocks[index](h, condition)
        return h if self.attentions is None else self.attentions[index](h, condition)


class UNetInitializer(nn.Module):
    """U-Net initializer: (x_{t+1}, noise level lambda_{t+1}, class) -> mean of y_t, or what ``predicts`` says.

    Args:
        shape: shape of one grid, [C, H, W].
        num_classes: number of classes without the null class; 0 for an unconditional initializer.
    """

    def __init__(self, config: InitializerConfig, shape: Sequence[int], num_classes: int = 0) -> None:
        super().__init__()
        grid_channels, size, _ = shape
        width, levels = 4 * config.channels, len(config.multipliers)
        check_initializer_grid(size, config)

        def block(inputs: int, outputs: int, resample: str = "none") -> UNetBlock:
            return UNetBlock(inputs, outputs, width, config.dropout, resample)

        sizes = [size // 2**i for i in range(levels)]
        channels = [config.channels * m for m in config.multipliers]
        self.predicts = config.predicts
        self.embedding = ConditionEmbedding(config.channels, num_classes)
        self.stem = nn.Conv2d(grid_channels, config.channels, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        current, skips = config.channels, [config.channels]
        for level in range(levels):
            blocks = []
            for _ in range(config.num_blocks):
                blocks.append(block(current, channels[level]))
                current = channels[level]
                skips.append(current)
            resample = block(current, current, "down") if level < levels - 1 else None
            if resample is not None:
                skips.append(current)
            self.down.append(Resolution(blocks, sizes[level] in config.attention_resolutions, resample))
        self.middle1, self.middle_attention, self.middle2 = (
            block(current, current),
            AttentionBlock(current),
            block(current, current),
        )
        for level in reversed(range(levels)):
            blocks = []
            for _ in range(config.num_blocks + 1):
                blocks.append(block(current + skips.pop(), channels[level]))
                current = channels[level]
            resample = block(current, current, "up") if level else None
            self.up.append(Resolution(blocks, sizes[level] in config.attention_resolutions, resample))
        self.norm = _group_norm(current)
        self.out = nn.Conv2d(current, grid_channels, 3, padding=1)
        _zero(self.out)

    def forward(self, x_next: Tensor, logsnr: Tensor, label: Tensor) -> Tensor:
        """The prediction [N, C, H, W] from x_next [N, C, H, W] at logsnr [N] for class ids label [N] (-1: null)."""
        condition = F.silu(self.embedding(logsnr, label))
        h = self.stem(x_next)
        skips = [h]
        for resolution in cast("Iterable[Resolution]", self.down):
            for index in range(len(resolution.blocks)):
                h = resolution.step(index, h, condition)
                skips.append(h)
            if resolution.resample is not None:
                h = resolution.resample(h, condition)
                skips.append(h)
        h = self.middle2(self.middle_attention(self.middle1(h, condition), condition), condition)
        for resolution in cast("Iterable[Resolution]", self.up):
            for index in range(len(resolution.blocks)):
                h = resolution.step(index, torch.cat([h, skips.pop()], dim=1), condition)
            if resolution.resample is not None:
                h = resolution.resample(h, condition)
        return x_next + self.out(F.silu(self.norm(h)))


class PointBlock(nn.Module):
    """Residual block for points: SiLU, dense, + condition, SiLU, dense (zero at first), + input."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.dense1, self.dense2 = nn.Linear(width, width), nn.Linear(width, width)
        self.condition = nn.Linear(embedding, width)
        _zero(self.dense2)

    def forward(self, x: Tensor, condition: Tensor, index: Tensor) -> Tensor:
        """Apply to x [N, width]; row n has the condition number ``index[n]`` of ``condition`` [M, embedding]."""
        h = self.dense1(F.silu(x)) + self.condition(condition)[index]
        return x + self.dense2(F.silu(h))


class PointInitializer(nn.Module):
    """Initializer for 2-D points: a residual MLP with ``num_blocks`` blocks per multiplier."""

    frequencies: Tensor | None

    def __init__(self, config: InitializerConfig, shape: Sequence[int], num_classes: int = 0) -> None:
        super().__init__()
        (dimension,) = shape
        if set(config.multipliers) != {1}:
            raise ValueError("initializer.multipliers must all be 1 for 2-D points")
        self.predicts = config.predicts
        self.embedding = ConditionEmbedding(config.channels, num_classes)
        self.register_buffer("frequencies", random_frequencies(dimension, config.fourier_features))
        self.stem = nn.Linear(dimension + 2 * config.fourier_features, config.channels)
        count = len(config.multipliers) * config.num_blocks
        self.blocks = nn.ModuleList(PointBlock(config.channels, 4 * config.channels) for _ in range(count))
        self.out = nn.Linear(config.channels, dimension)
        _zero(self.out)

    def forward(self, x_next: Tensor, logsnr: Tensor, label: Tensor) -> Tensor:
        """The prediction [N, D] from x_next [N, D] at logsnr [N] for class ids label [N] (-1: null)."""
        logsnr, label, index = distinct_conditions(logsnr, label)
        condition = F.silu(self.embedding(logsnr, label))
        h = self.stem(x_next if self.frequencies is None else fourier_features(x_next, self.frequencies))
        for block in self.blocks:
            h = block(h, condition, index)
        return x_next + self.out(F.silu(h))

"""The energy network (Tables 5, 6): normalized layer, residual block, network, and folded form.

The network's parameters are folded (spectral norm divided out, each block's gain multiplied in) before they are
used. A fold with gradients serves the losses, a detached fold the Markov chains, which need no gradient of any
parameter: one piece of arithmetic, `FoldedEnergy`, whoever uses it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cdrl.config import EnergyConfig, check_energy_grid
from cdrl.networks.embedding import (
    distinct_conditions,
    fourier_features,
    noise_features,
    noised_amplitudes,
    one_hot_classes,
    random_frequencies,
)

SLOPE = 0.2


class Activation(NamedTuple):
    """A nonlinearity between layers; ``reusing`` may write its result where its argument lies."""

    fresh: Callable[[Tensor], Tensor]
    reusing: Callable[[Tensor], Tensor]


ACTIVATIONS = {
    "leaky_relu": Activation(
        functools.partial(F.leaky_relu, negative_slope=SLOPE), functools.partial(F.leaky_relu_, negative_slope=SLOPE)
    ),
    # Its backward pass needs the argument.
    "silu": Activation(F.silu, F.silu),
}


class Affine(NamedTuple):
    """A dense layer or a 3x3 convolution with its final weights: a pure function."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor, extra_bias: Tensor | None = None) -> Tensor:
        """Apply to [N, C] or [N, C, H, W]; ``extra_bias`` ([1, C'] or [N, C']) is added to the result."""
        bias = self.bias
        if extra_bias is not None and len(extra_bias) == 1:
            bias, extra_bias = extra_bias[0] if bias is None else bias + extra_bias[0], None
        if self.weight.ndim == 2:
            out = F.linear(x, self.weight, bias)
            return out if extra_bias is None else out.add_(extra_bias)
        out = F.conv2d(x, self.weight, bias, padding=1)
        return out if extra_bias is None else out.add_(extra_bias[:, :, None, None])


class NormalizedLayer(nn.Module):
    """A dense layer or 3x3 convolution, optionally with spectral normalization.

    The largest singular value is tracked by one power iteration a call of `power_iteration` (Miyato et al., 2018).
    """

    left: Tensor
    right: Tensor

    def __init__(self, inputs: int, outputs: int, *, convolution: bool = False, spectral_norm: bool) -> None:
        super().__init__()
        layer = nn.Conv2d(inputs, outputs, 3) if convolution else nn.Linear(inputs, outputs)
        assert layer.bias is not None
        self.weight, self.bias = layer.weight, layer.bias
        self.spectral_norm = spectral_norm
        if spectral_norm:
            self.register_buffer("left", F.normalize(torch.randn(outputs), dim=0))
            self.register_buffer("right", F.normalize(torch.randn(self.weight[0].numel()), dim=0))
            for _ in range(15 if self.weight.device.type != "meta" else 0):
                self.power_iteration()

    @torch.no_grad()
    def power_iteration(self) -> None:
        """Update the estimated singular vectors by one power iteration on the current weight."""
        if self.spectral_norm:
            matrix = self.weight.flatten(1)
            self.left.copy_(F.normalize(matrix @ self.right, dim=0, eps=1e-12))
            self.right.copy_(F.normalize(self.left @ matrix, dim=0, eps=1e-12))

    def forward(self, gain: Tensor | None = None) -> Affine:
        """Divide the weight by its spectral norm and multiply the outputs by ``gain`` ([C'], 1 if None).

        Gradients reach the weight through the norm too.
        """
        weight, bias, factor = self.weight, self.bias, gain
        if self.spectral_norm:
            # Cloned: the vectors are moved in place while an earlier fold may still await its backward pass.
            left, right = self.left.clone(), self.right.clone()
            scale = (left @ (weight.flatten(1) @ right)).reciprocal()
            factor = scale if gain is None else scale * gain
        if factor is not None:
            weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        if weight.ndim == 4:
            # Once here, or every convolution would do it again in its forward and in its backward pass.
            weight = weight.contiguous(memory_format=torch.channels_last)
        return Affine(weight, bias if gain is None else bias * gain)


class ResidualBlock(nn.Module):
    """Residual block: activation, layer, + condition, activation, layer, x gain, + shortcut (Table 5a)."""

    def __init__(self, inputs: int, outputs: int, embedding: int, *, convolution: bool, spectral_norm: bool) -> None:
        super().__init__()
        self.layer1 = NormalizedLayer(inputs, outputs, convolution=convolution, spectral_norm=spectral_norm)
        self.layer2 = NormalizedLayer(outputs, outputs, convolution=convolution, spectral_norm=spectral_norm)
        self.condition = NormalizedLayer(embedding, outputs, spectral_norm=spectral_norm)
        self.gain = nn.Parameter(torch.ones(outputs))
        self.shortcut = (
            NormalizedLayer(inputs, outputs, convolution=convolution, spectral_norm=spectral_norm)
            if inputs != outputs
            else None
        )

    def forward(self) -> FoldedBlock:
        return FoldedBlock(
            layer1=self.layer1(),
            layer2=self.layer2(self.gain),
            condition=self.condition(),
            shortcut=None if self.shortcut is None else self.shortcut(),
        )


class FoldedBlock(NamedTuple):
    """A residual block with its final weights: a pure function."""

    layer1: Affine
    layer2: Affine
    condition: Affine
    shortcut: Affine | None

    def __call__(self, x: Tensor, condition: Tensor, activation: Activation) -> Tensor:
        h = self.layer1(activation.fresh(x), condition)
        h = self.layer2(activation.reusing(h))
        return h.add_(x if self.shortcut is None else self.shortcut(x))


class EnergyCondition(NamedTuple):
    """Embedding of noise level and class as the blocks use it, computed once for a whole chain.

    The first dimension is N, or 1 where all images share level and class.
    """

    blocks: list[Tensor]
    head: Tensor
    amplitudes: Tensor | None
    """Of the Fourier features, [N or 1, M]; None without them."""


@dataclass(frozen=True)
class FoldedEnergy:
    """The energy as a pure function of an image and a condition."""

    embed1: Affine
    embed2: Affine
    classes: Affine | None
    frequencies: Tensor | None
    stem: Affine
    stages: list[list[FoldedBlock]]
    head: Affine
    activation: Activation
    output_scale: float
    dtype: torch.dtype = torch.float32
    recompute: bool = False
    """Whether a backward pass computes the inside of each block anew instead of finding it in memory."""

    def condition(self, logsnr: Tensor, label: Tensor) -> EnergyCondition:
        """Embed noise level [N] and class id [N] (-1: null) for all blocks."""
        logsnr, label, index = distinct_conditions(logsnr, label)
        h = self.embed1(noise_features(logsnr, self.embed1.weight.shape[1]))
        h = self.embed2(self.activation.reusing(h))
        if self.classes is not None:
            h = h + self.classes(one_hot_classes(label, self.classes.weight.shape[1] - 1).to(h.dtype))
        h = self.activation.fresh(h)
        blocks = [self.activation.reusing(block.condition(h)) for stage in self.stages for block in stage]
        amplitudes = None if self.frequencies is None else noised_amplitudes(logsnr, self.frequencies)

        def of_each(rows: Tensor) -> Tensor:
            return rows if len(logsnr) == 1 else rows[index]

        # Rounded last: going back, the gradients of all images that share a condition are summed before.
        return EnergyCondition(
            [of_each(bias).to(self.dtype) for bias in blocks],
            of_each(self.head(h)),
            None if amplitudes is None else of_each(amplitudes),
        )

    def __call__(self, y: Tensor, condition: EnergyCondition) -> Tensor:
        """f-hat of images [N, C, H, W] or points [N, D]: [N], in the precision of the head; higher is likelier."""
        if self.frequencies is not None:
            y = fourier_features(y, self.frequencies, condition.amplitudes)
        h = self.stem(y.to(self.dtype))
        if h.ndim == 4:
            # The chain of convolutions runs channels-last; with one input channel that layout is ambiguous before.
            h = h.contiguous(memory_format=torch.channels_last)
        biases = iter(condition.blocks)
        for index, stage in enumerate(self.stages):
            if index and h.ndim == 4:
                h = F.avg_pool2d(h, 2)
            for block in stage:
                arguments = (h, next(biases), self.activation)
                h = checkpoint(block.__call__, *arguments, use_reentrant=False) if self.recompute else block(*arguments)
        h = F.relu(h).to(condition.head.dtype)
        features = h.sum(dim=(2, 3)) if h.ndim == 4 else h
        return self.output_scale * (features * condition.head).sum(dim=1)

    def detach(self, dtype: torch.dtype | None = None) -> FoldedEnergy:
        """A copy without gradients for Markov chains, its main layers in ``dtype``, by default the network's own."""
        dtype = dtype or self.dtype
        folded = self._with_layers(
            main=lambda tensor: tensor.detach().to(dtype, copy=True),
            side=lambda tensor: tensor.detach().clone(),
            dtype=dtype,
        )
        return replace(folded, recompute=False)

    def rounded(self, dtype: torch.dtype) -> FoldedEnergy:
        """The same with its main layers in ``dtype``, through which gradients reach the weights."""
        return self._with_layers(main=lambda tensor: tensor.to(dtype), side=lambda tensor: tensor, dtype=dtype)

    def _with_layers(
        self, main: Callable[[Tensor], Tensor], side: Callable[[Tensor], Tensor], dtype: torch.dtype
    ) -> FoldedEnergy:
        """With ``main`` applied to all that works on images in ``dtype``, ``side`` to what embeds the condition."""

        def of(change: Callable[[Tensor], Tensor], layer: Affine) -> Affine:
            return Affine(change(layer.weight), None if layer.bias is None else change(layer.bias))

        return replace(
            self,
            embed1=of(side, self.embed1),
            embed2=of(side, self.embed2),
            classes=None if self.classes is None else of(side, self.classes),
            stem=of(main, self.stem),
            stages=[
                [
                    FoldedBlock(
                        of(main, block.layer1),
                        of(main, block.layer2),
                        of(side, block.condition),
                        None if block.shortcut is None else of(main, block.shortcut),
                    )
                    for block in stage
                ]
                for stage in self.stages
            ],
            head=of(side, self.head),
            dtype=dtype,
        )


class EnergyNetwork(nn.Module):
    """The energy network f-hat: (image or point, noise level, class) -> one number per image.

    Attributes:
        recompute: gradient checkpointing: the backward pass computes the inside of each block anew, for less memory.
        in_bfloat16: `forward` computes on images in bfloat16, `fold` does not; weights and gradients stay as they are.

    Args:
        shape: shape of one image, [C, H, W], or of one point, [D].
        num_classes: number of classes without the null class; 0 for an unconditional energy.
    """

    frequencies: Tensor | None

    def __init__(self, config: EnergyConfig, shape: Sequence[int], num_classes: int = 0) -> None:
        super().__init__()
        convolution, norm = len(shape) == 3, config.spectral_norm
        if convolution:
            check_energy_grid(min(shape[1:]), config)
        width = 4 * config.channels
        self.num_classes = num_classes
        self.activation = ACTIVATIONS[config.activation]
        self.output_scale = config.output_scale
        self.recompute = self.in_bfloat16 = False
        self.embed1 = NormalizedLayer(config.channels, width, spectral_norm=norm)
        self.embed2 = NormalizedLayer(width, width, spectral_norm=norm)
        self.classes = NormalizedLayer(num_classes + 1, width, spectral_norm=norm) if num_classes else None
        self.register_buffer("frequencies", random_frequencies(shape[0], config.fourier_features))
        inputs = shape[0] + 2 * config.fourier_features
        self.stem = NormalizedLayer(inputs, config.channels, convolution=convolution, spectral_norm=norm)
        self.stages = nn.ModuleList()
        inputs = config.channels
        for multiplier in config.multipliers:
            stage = nn.ModuleList()
            for _ in range(config.num_blocks):
                outputs = config.channels * multiplier
                stage.append(ResidualBlock(inputs, outputs, width, convolution=convolution, spectral_norm=norm))
                inputs = outputs
            self.stages.append(stage)
        self.head = nn.Linear(width, inputs, bias=False)

    def power_iteration(self) -> None:
        """Run one power iteration for every spectral norm: once per optimizer step, never within a chain."""
        for module in self.modules():
            if isinstance(module, NormalizedLayer):
                module.power_iteration()

    def fold(self) -> FoldedEnergy:
        """The network as a pure function, with gradients to the parameters."""
        return FoldedEnergy(
            embed1=self.embed1(),
            embed2=self.embed2(),
            classes=None if self.classes is None else self.classes(),
            frequencies=self.frequencies,
            stem=self.stem(),
            stages=[[block() for block in stage] for stage in cast("Iterable[Iterable[ResidualBlock]]", self.stages)],
            head=Affine(self.head.weight, None),
            activation=self.activation,
            output_scale=self.output_scale,
            dtype=self.head.weight.dtype,
            recompute=self.recompute,
        )

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor) -> Tensor:
        """f-hat [N] of y [N, *shape] at noise level logsnr [N] for class ids label [N] (-1: null)."""
        folded = self.fold()
        if self.in_bfloat16:
            folded = folded.rounded(torch.bfloat16)
        return folded(y, folded.condition(logsnr, label))

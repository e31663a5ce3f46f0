"""What the peers have in common: diffusers' U-Net at the size of our networks, and how its users train it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import UNet2DModel, __version__
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from benchmarks.peers.task import Task, count_parameters
from cdrl.sampling.noise import derive_seed

_STEP = 8
"""Channels come in multiples of the groups of GroupNorm."""
_WIDEST = 256


@dataclass(frozen=True)
class Optimization:
    """How a network is trained: AdamW and a cosine schedule, as in diffusers' example of unconditional training.

    That example's moving average, whose decay grows as 1 - (1 + n)^-0.75 up to 0.9999, suits trainings of any length.

    Attributes:
        warmup: share of the updates in which the learning rate grows from 0.
        clip: largest norm of a gradient.
    """

    batch_size: int = 64
    learning_rate: float = 2e-3
    betas: tuple[float, float] = (0.95, 0.999)
    weight_decay: float = 1e-6
    warmup: float = 0.05
    clip: float = 1.0


def unet(channels: int, task: Task) -> UNet2DModel:
    """DDPM's U-Net for images of a task: three resolutions, a block each, attention at the second."""
    inputs, size, _ = task.shape
    return UNet2DModel(
        sample_size=size,
        in_channels=inputs,
        out_channels=inputs,
        layers_per_block=1,
        block_out_channels=(channels, 2 * channels, 2 * channels),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=_STEP,
        num_class_embeds=task.num_classes,
    )


def like_sized_channels(task: Task) -> int:
    """The width at which the U-Net's number of parameters is nearest to that of the recipe's networks."""

    def error(channels: int) -> float:
        with torch.device("meta"):
            return abs(math.log(count_parameters(unet(channels, task)) / task.parameters))

    return min(range(_STEP, _WIDEST + 1, _STEP), key=error)


def new_unet(channels: int, task: Task) -> UNet2DModel:
    """The U-Net with the random weights of the task's seed."""
    torch.manual_seed(derive_seed(task.seed, "weights"))
    return unet(channels, task)


class Peer(ABC):
    """A network in training, `benchmarks.peers.budget.Learner`: batches, the loss of a method, AdamW, the average."""

    def __init__(self, task: Task, network: nn.Module, how: Optimization, updates: int) -> None:
        self.network, self.how = network.train(), how
        self._data = task.batches(how.batch_size)
        self._optimizer = torch.optim.AdamW(
            network.parameters(), how.learning_rate, how.betas, weight_decay=how.weight_decay, fused=True
        )
        self._schedule = get_cosine_schedule_with_warmup(self._optimizer, round(how.warmup * updates), updates)
        self._average = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True, power=0.75, foreach=True)
        self.noise = torch.Generator().manual_seed(derive_seed(task.seed, "train"))

    @abstractmethod
    def loss(self, images: Tensor, label: Tensor) -> Tensor:
        """The method's loss of images [N, C, H, W] in [-1, 1] and their class ids [N]: a scalar."""

    def update(self, step: int) -> None:
        """Make update ``step``."""
        self._optimizer.zero_grad(set_to_none=True)
        self.loss(*self._data.batch(step)).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.how.clip)
        self._optimizer.step()
        self._schedule.step()
        self._average.step(self.network.parameters())

    def schedules(self) -> list[LambdaLR]:
        """The learning rate as a function of the updates."""
        return [self._schedule]

    def averaged(self) -> Any:
        """The network with the average of its weights, to be sampled from."""
        self._average.copy_to(self.network.parameters())
        return self.network.eval().requires_grad_(False)

    def normal_like(self, images: Tensor) -> Tensor:
        """Standard normal noise in the shape of images."""
        return torch.randn(images.shape, generator=self.noise)


def optimization_settings(network: UNet2DModel, how: Optimization) -> dict[str, Any]:
    """What a record tells of a U-Net and its training."""
    return {"diffusers": __version__, "unet_channels": list(network.config.block_out_channels), **asdict(how)}


def start_noise(task: Task, label: Tensor, seed: int) -> tuple[Tensor, torch.Generator]:
    """Standard normal noise [N, C, H, W] to start from, and the generator that further noise is drawn from."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "samples"))
    return torch.randn(len(label), *task.shape, generator=generator), generator

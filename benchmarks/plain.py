"""The yardstick: CDRL's networks, chains and updates as a textbook writes them, and as the authors run them.

It shares no layer and no loop with the package, only configurations and the schedule's tables, so that a comparison is
one of two independent things. What makes it plain: every layer is divided by its spectral norm in every call; noise
level and class are embedded in every call; the whole of eq. 3 is differentiated in every Langevin step; the positive
and the negative pass of an update are apart; tensors have the layout that PyTorch begins with. What keeps it fair, as
in the authors' code: chains run with the energy in evaluation mode, so that no Langevin step makes a power iteration.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cdrl.config import EnergyConfig, InitializerConfig, TrainingConfig
from cdrl.schedule import NoiseSchedule

Normal = Callable[[], Tensor]
"""() -> standard normal noise in the shape of the batch."""


def sinusoids(logsnr: Tensor, width: int) -> Tensor:
    """Sinusoidal features of the noise level, [N] -> [N, width] (Appendix A.3)."""
    position = 1000 * torch.arctan(torch.exp(-logsnr / 2)) / (math.pi / 2)
    steps = torch.arange(width // 2, device=logsnr.device)
    frequencies = torch.exp(-math.log(10_000) / (width // 2 - 1) * steps)
    angles = position[:, None] * frequencies[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def one_hot(label: Tensor, num_classes: int) -> Tensor:
    """Class ids, -1 for the null class, which comes first: [N] -> [N, num_classes + 1]."""
    return F.one_hot(label + 1, num_classes + 1).float()


def over_images(values: Tensor) -> Tensor:
    """One value an image, [N], in the shape [N, 1, 1, 1]."""
    return values[:, None, None, None]


def _normalized(layer: nn.Module, spectral_norm: bool) -> nn.Module:
    return nn.utils.spectral_norm(layer) if spectral_norm else layer


class EnergyBlock(nn.Module):
    """The residual block of Table 5a."""

    def __init__(self, inputs: int, outputs: int, embedding: int, spectral_norm: bool) -> None:
        super().__init__()
        self.layer1 = _normalized(nn.Conv2d(inputs, outputs, 3, padding=1), spectral_norm)
        self.layer2 = _normalized(nn.Conv2d(outputs, outputs, 3, padding=1), spectral_norm)
        self.condition = _normalized(nn.Linear(embedding, outputs), spectral_norm)
        self.gain = nn.Parameter(torch.ones(outputs))
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = _normalized(nn.Conv2d(inputs, outputs, 3, padding=1), spectral_norm)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.layer1(F.leaky_relu(x, 0.2))
        h = h + F.leaky_relu(self.condition(F.leaky_relu(embedding, 0.2)), 0.2)[:, :, None, None]
        h = self.layer2(F.leaky_relu(h, 0.2)) * self.gain[None, :, None, None]
        return h + self.shortcut(x)


class PlainEnergy(nn.Module):
    """f-hat of images (Tables 5, 6): (grid [N, C, H, W], logsnr [N], label [N], -1 for null) -> [N]."""

    def __init__(self, config: EnergyConfig, shape: Sequence[int], num_classes: int = 0) -> None:
        super().__init__()
        if config.activation != "leaky_relu":
            raise ValueError(f"the plain energy has the paper's leaky_relu, not energy.activation={config.activation}")
        norm, width = config.spectral_norm, 4 * config.channels
        self.features, self.num_classes, self.output_scale = config.channels, num_classes, config.output_scale
        self.embed1 = _normalized(nn.Linear(config.channels, width), norm)
        self.embed2 = _normalized(nn.Linear(width, width), norm)
        self.classes = _normalized(nn.Linear(num_classes + 1, width), norm) if num_classes else None
        self.stem = _normalized(nn.Conv2d(shape[0], config.channels, 3, padding=1), norm)
        self.stages = nn.ModuleList()
        inputs = config.channels
        for multiplier in config.multipliers:
            stage = nn.ModuleList()
            for _ in range(config.num_blocks):
                stage.append(EnergyBlock(inputs, multiplier * config.channels, width, norm))
                inputs = multiplier * config.channels
            self.stages.append(stage)
        self.head = nn.Linear(width, inputs, bias=False)

    def forward(self, y: Tensor, logsnr: Tensor, label: Tensor) -> Tensor:
        embedding = self.embed2(F.leaky_relu(self.embed1(sinusoids(logsnr, self.features)), 0.2))
        if self.classes is not None:
            embedding = embedding + self.classes(one_hot(label, self.num_classes))
        h = self.stem(y)
        for index, stage in enumerate(self.stages):
            if index:
                h = F.avg_pool2d(h, 2)
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                h = block(h, embedding)
        h = F.relu(h).sum(dim=(2, 3))
        return self.output_scale * (h * self.head(F.leaky_relu(embedding, 0.2))).sum(dim=1)

    def take_weights(self, network: nn.Module) -> None:
        """Copy the weights and singular vectors of the package's energy, which names its layers alike."""
        names = {"weight": "weight_orig", "left": "weight_u", "right": "weight_v"}
        given, state = network.state_dict(), {}
        for key, value in given.items():
            layer, _, name = key.rpartition(".")
            state[f"{layer}.{names[name]}" if f"{layer}.left" in given and name in names else key] = value
        self.load_state_dict(state)


class ConditionEmbedding(nn.Module):
    """Noise level and class to one vector, [N], [N] -> [N, 4 x channels]."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.channels, self.num_classes = channels, num_classes
        self.dense1 = nn.Linear(channels, 4 * channels)
        self.dense2 = nn.Linear(4 * channels, 4 * channels)
        self.classes = nn.Linear(num_classes + 1, 4 * channels) if num_classes else None

    def forward(self, logsnr: Tensor, label: Tensor) -> Tensor:
        h = self.dense2(F.silu(self.dense1(sinusoids(logsnr, self.channels))))
        return h if self.classes is None else h + self.classes(one_hot(label, self.num_classes))


class UNetBlock(nn.Module):
    """The residual block of improved diffusion; ``resample`` is ``down``, ``up`` or nothing."""

    def __init__(self, inputs: int, outputs: int, embedding: int, dropout: float, resample: str = "") -> None:
        super().__init__()
        self.resample = resample
        self.norm1, self.norm2 = (nn.GroupNorm(math.gcd(32, c), c, eps=1e-6) for c in (inputs, outputs))
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.condition = nn.Linear(embedding, 2 * outputs)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.resample == "up" else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(self._resampled(F.silu(self.norm1(x))))
        scale, shift = self.condition(F.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.shortcut(self._resampled(x)) + self.conv2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Self-attention of one head over positions, + input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-6)
        self.qkv, self.out = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        weights = torch.softmax(torch.einsum("nci,ncj->nij", query, key) / math.sqrt(x.shape[1]), dim=2)
        return x + self.out(torch.einsum("nij,ncj->nci", weights, value).reshape(x.shape))


class Resolution(nn.Module):
    """The blocks of one resolution of the U-Net, each followed by attention where it is asked for."""

    def __init__(self, blocks: list[UNetBlock], attention: bool, resample: UNetBlock | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attentions = nn.ModuleList(Attention(b.conv2.out_channels) for b in blocks) if attention else None
        self.resample = resample

    def block(self, index: int, h: Tensor, embedding: Tensor) -> Tensor:
        """Apply one block and its attention."""
        h = self.blocks[index](h, embedding)
        return h if self.attentions is None else self.attentions[index](h)


class PlainInitializer(nn.Module):
    """g of images, the U-Net of improved diffusion: (x_{t+1} [N, C, H, W], logsnr [N], label [N]) -> mean of y_t."""

    def __init__(self, config: InitializerConfig, shape: Sequence[int], num_classes: int = 0) -> None:
        super().__init__()
        width, depth = 4 * config.channels, len(config.multipliers)
        sizes = [shape[1] // 2**level for level in range(depth)]
        attention = [size in config.attention_resolutions for size in sizes]
        self.embedding = ConditionEmbedding(config.channels, num_classes)
        self.stem = nn.Conv2d(shape[0], config.channels, 3, padding=1)
        current, skips = config.channels, [config.channels]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, multiplier in enumerate(config.multipliers):
            blocks, resample = [], None
            for _ in range(config.num_blocks):
                blocks.append(UNetBlock(current, multiplier * config.channels, width, config.dropout))
                current = multiplier * config.channels
                skips.append(current)
            if level < depth - 1:
                resample = UNetBlock(current, current, width, config.dropout, "down")
                skips.append(current)
            self.down.append(Resolution(blocks, attention[level], resample))
        self.middle1 = UNetBlock(current, current, width, config.dropout)
        self.middle_attention = Attention(current)
        self.middle2 = UNetBlock(current, current, width, config.dropout)
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            blocks = []
            for _ in range(config.num_blocks + 1):
                blocks.append(UNetBlock(current + skips.pop(), multiplier * config.channels, width, config.dropout))
                current = multiplier * config.channels
            resample = UNetBlock(current, current, width, config.dropout, "up") if level else None
            self.up.append(Resolution(blocks, attention[level], resample))
        self.norm = nn.GroupNorm(math.gcd(32, current), current, eps=1e-6)
        self.out = nn.Conv2d(current, shape[0], 3, padding=1)

    def forward(self, x_next: Tensor, logsnr: Tensor, label: Tensor) -> Tensor:
        embedding = self.embedding(logsnr, label)
        h = self.stem(x_next)
        skips = [h]
        for resolution in self.down:
            assert isinstance(resolution, Resolution)
            for index in range(len(resolution.blocks)):
                h = resolution.block(index, h, embedding)
                skips.append(h)
            if resolution.resample is not None:
                h = resolution.resample(h, embedding)
                skips.append(h)
        h = self.middle2(self.middle_attention(self.middle1(h, embedding)), embedding)
        for resolution in self.up:
            assert isinstance(resolution, Resolution)
            for index in range(len(resolution.blocks)):
                h = resolution.block(index, torch.cat([h, skips.pop()], dim=1), embedding)
            if resolution.resample is not None:
                h = resolution.resample(h, embedding)
        return x_next + self.out(F.silu(self.norm(h)))


class PlainCDRL(nn.Module):
    """The schedule's tables with both networks; ``level`` is int64 [N] throughout, ``label`` too (-1: null)."""

    def __init__(self, schedule: NoiseSchedule, energy: PlainEnergy, initializer: PlainInitializer) -> None:
        super().__init__()
        self.schedule, self.energy, self.initializer = schedule, energy, initializer

    def log_density(self, y: Tensor, level: Tensor, label: Tensor) -> Tensor:
        """f of eq. 1 up to a constant: [N]."""
        f = self.energy(y, self.schedule.logsnr[level], label) / self.schedule.temperature[level]
        if self.schedule.gaussian_reference:
            f = f - y.square().sum(dim=(1, 2, 3)) / (2 * self.schedule.alpha_y[level] ** 2)
        return f

    def propose(self, x_next: Tensor, level: Tensor, label: Tensor, normal: Normal) -> Tensor:
        """A draw from eq. 6."""
        mean = self.initializer(x_next, self.schedule.logsnr[level + 1], label)
        return mean + over_images(self.schedule.proposal_std[level]) * normal()

    def langevin_step(self, y: Tensor, x_next: Tensor, level: Tensor, label: Tensor, normal: Normal) -> Tensor:
        """One step of eq. 5, differentiating the whole of eq. 3."""
        y = y.detach().requires_grad_()
        squares = (y - x_next).square().sum(dim=(1, 2, 3))
        conditional = self.log_density(y, level, label) - self.schedule.precision[level] / 2 * squares
        (gradient,) = torch.autograd.grad(conditional.sum(), y)
        s = over_images(self.schedule.step_size[level])
        return (y + s**2 / 2 * gradient + s * normal()).detach()

    def refine(self, y: Tensor, x_next: Tensor, level: Tensor, label: Tensor, steps: int, normal: Normal) -> Tensor:
        """``steps`` Langevin steps with the energy in evaluation mode: its spectral norms stand still."""
        training = self.energy.training
        self.energy.eval()
        for _ in range(steps):
            y = self.langevin_step(y, x_next, level, label, normal)
        self.energy.train(training)
        return y

    def losses(self, x0: Tensor, level: Tensor, label: Tensor, steps: int, normal: Normal) -> tuple[Tensor, Tensor]:
        """The losses of the energy and of the initializer on a batch (Algorithm 1)."""
        schedule, epsilon = self.schedule, normal()
        x = over_images(schedule.alpha_bar[level]) * x0 + over_images(schedule.sigma_bar[level]) * epsilon
        y = over_images(schedule.alpha_y[level]) * x
        x_next = over_images(schedule.alpha_bar[level + 1]) * x0
        x_next = x_next + over_images(schedule.sigma_bar[level + 1]) * epsilon
        proposed = self.propose(x_next, level, label, normal)
        refined = self.refine(proposed.detach(), x_next, level, label, steps, normal)
        f_refined = self.energy(refined, schedule.logsnr[level], label)
        f_data = self.energy(y, schedule.logsnr[level], label)
        energy_loss = (schedule.loss_weight[level] * (f_refined - f_data)).mean()
        return energy_loss, (refined - proposed).square().sum(dim=(1, 2, 3)).mean()

    def sample(self, label: Tensor, steps: int, denoise: float, normal: Normal) -> Tensor:
        """Algorithm 2 with the last denoising step (eq. 18), in evaluation mode: [N, C, H, W]."""
        schedule, x = self.schedule, normal()
        level = torch.zeros_like(label)
        for t in reversed(range(schedule.num_levels)):
            level = torch.full_like(label, t)
            with torch.no_grad():
                y = self.propose(x, level, label, normal)
            x = self.refine(y, x, level, label, steps, normal) / over_images(schedule.alpha_y[level])
        x.requires_grad_()
        f = self.log_density(over_images(schedule.alpha_y[level]) * x, level, label)
        (gradient,) = torch.autograd.grad(f.sum(), x)
        x = x + denoise * over_images(schedule.sigma_bar[level]) ** 2 * gradient
        return (x / over_images(schedule.alpha_bar[level])).detach()


class PlainTrainer:
    """Algorithm 1's updates: clipping, Adam and a moving average for both networks, at constant learning rates."""

    def __init__(self, model: PlainCDRL, training: TrainingConfig) -> None:
        self.model, self.training, self.updates = model.train(), training, 0
        self.networks: list[nn.Module] = [model.energy, model.initializer]
        self.averages = copy.deepcopy(self.networks)
        rates = training.energy_lr, training.initializer_lr
        self.optimizers = [torch.optim.Adam(n.parameters(), lr=rate) for n, rate in zip(self.networks, rates)]

    def update(self, x0: Tensor, level: Tensor, label: Tensor, normal: Normal) -> tuple[Tensor, Tensor]:
        """Change the weights by one batch; the losses before the change, detached."""
        energy_loss, initializer_loss = self.model.losses(x0, level, label, self.training.langevin_steps, normal)
        self._descend(0, energy_loss)
        self._descend(1, initializer_loss)
        self.updates += 1
        return energy_loss.detach(), initializer_loss.detach()

    def _descend(self, index: int, loss: Tensor) -> None:
        network, optimizer = self.networks[index], self.optimizers[index]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), self.training.gradient_clip)
        optimizer.step()
        decay = min(self.training.ema, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            for mean, weight in zip(self.averages[index].parameters(), network.parameters(), strict=True):
                mean.sub_((1 - decay) * (mean - weight))

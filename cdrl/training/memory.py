"""Whether training can fit into memory, estimated before it takes any: networks run on torch's meta device."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from cdrl.config import Config, ConfigError
from cdrl.model import CDRL
from cdrl.training.engine import World, shared_stage
from cdrl.training.machine import computes_in_bfloat16

_CLEARLY = 2
"""Times the memory that is there at which training is refused: nothing but what is kept for backward passes is
counted, and counted roughly, while swapped-out memory may help a little."""
_GIB = 2**30


def expect_room_for_training(config: Config, shape: tuple[int, ...], num_classes: int, world: World) -> None:
    """Refuse a second stage whose networks, or whose batch, cannot fit into memory.

    Raises:
        ConfigError: it needs more than twice what is free; the message says what to lower.
    """
    advice = (
        f"training.batch_size={config.training.batch_size}: lower it, raise training.accumulation or lower "
        "energy.channels"
    )
    expect_room(*bytes_for_training(config, shape, num_classes, world), world, advice)


def bytes_for_training(config: Config, shape: tuple[int, ...], num_classes: int, world: World) -> tuple[int, int]:
    """Bytes that a process of the second stage needs for networks and optimizers, and for a batch on its way."""
    training = config.training
    model = CDRL.without_weights(config, shape, num_classes).eval()  # without masks of dropout, which are small
    model.energy.recompute = training.recompute_energy
    model.energy.in_bfloat16 = computes_in_bfloat16(training.learning_dtype, world.device)
    micro = training.batch_size // (world.size * training.accumulation)
    x, logsnr, label = _meta(micro, *shape), _meta(micro), _meta(micro).long()

    def update() -> list[Tensor]:
        # The initializer's pass waits for its backward pass while the energy sees refined and true samples at once.
        initial = [] if model.initializer is None else [model.initializer(x, logsnr, label)]
        at_once = 3 if training.classification_weight else 2
        return [*initial, model.energy(torch.cat([x] * at_once), logsnr.repeat(at_once), label.repeat(at_once))]

    state = state_bytes(model, training.optimizer, config.deepspeed.zero_stage, world)
    return state, kept_bytes(update, model)


def expect_room(state: int, kept: int, world: World, advice: str) -> None:
    """Raise ConfigError, with ``advice``, where these bytes are far more than are free for this process."""
    there = free_bytes(world.device)
    if world.device.type == "cpu":
        there //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if state + kept > _CLEARLY * there:
        raise ConfigError(
            f"{advice}: a process needs some {state / _GIB:.3g} GiB for networks and optimizers and "
            f"{kept / _GIB:.3g} GiB for a batch on its way, but {there / _GIB:.3g} GiB are free"
        )


def state_bytes(networks: nn.Module, optimizer: str, zero_stage: int, world: World) -> int:
    """Bytes at least that a process keeps of its networks: weights, gradients, average and the optimizer's moments."""
    weights = sum(parameter.nbytes for parameter in networks.parameters())
    zero_stage = shared_stage(zero_stage, world)
    whole = 3 if zero_stage < 2 else 1
    moments = 2 if optimizer == "adam" else 1
    return whole * weights + moments * weights // (world.size if zero_stage else 1)


def kept_bytes(compute: Callable[[], object], networks: nn.Module) -> int:
    """Bytes that ``compute``, run on the meta device, keeps for its backward pass beside the networks' weights."""
    weights = {parameter.untyped_storage()._cdata for parameter in networks.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, or another might get its number
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        compute()
    return sum(storage.nbytes() for storage in kept.values())


def free_bytes(device: torch.device) -> float:
    """Bytes of a device's memory that are free; infinity where this cannot be told."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_available(Path("/proc/meminfo")), _left_to_group(Path("/sys/fs/cgroup")))


def _available(meminfo: Path) -> float:
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, ValueError, KeyError):
        return math.inf  # not Linux


def _left_to_group(folder: Path) -> float:
    """What a container's limit leaves."""
    try:
        most, used = (int((folder / f"memory.{name}").read_text(encoding="ascii")) for name in ("max", "current"))
        return max(0, most - used)
    except (OSError, ValueError):
        return math.inf  # no limit, or another kind of system


def _meta(*shape: int) -> Tensor:
    return torch.zeros(*shape, device="meta")

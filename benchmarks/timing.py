"""What the benchmarks share: the sizes, timing in turn, counting arithmetic, the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.plain import PlainCDRL, PlainEnergy, PlainInitializer
from cdrl.config import Config
from cdrl.config_files import load_config
from cdrl.model import CDRL
from cdrl.training.machine import computes_in_bfloat16

Bfloat16 = Annotated[
    bool, typer.Option(help="Also in bfloat16  [default: where the processor has it]", show_default=False)
]
BUILT_IN = computes_in_bfloat16("auto", torch.device("cpu"))
"""Whether the processor has bfloat16."""


@dataclass(frozen=True)
class Size:
    """A model's size, and the batch it is timed with."""

    config: Config
    shape: tuple[int, ...]
    batch: int


class SizeName(StrEnum):
    """What can be timed."""

    cifar10 = "cifar10"
    faces64 = "faces64"


def _size(name: str, shape: tuple[int, ...], batch: int, spectral_norm: bool = True) -> Size:
    path = Path(__file__).parents[1] / "configs" / f"{name}.yaml"
    return Size(load_config(path, [f"energy.spectral_norm={spectral_norm}"]), shape, batch)


SIZES = {
    SizeName.cifar10: {"CIFAR-10 with spectral norm": _size("cifar10", (3, 32, 32), 4)},
    SizeName.faces64: {
        "faces64 with spectral norm": _size("faces64", (2, 8, 8), 16),
        "faces64 without spectral norm": _size("faces64", (2, 8, 8), 16, spectral_norm=False),
    },
}
"""Networks of the paper's pixels and of the latents of drawn faces; plain and package always have the same ones."""


def new_model(size: Size) -> CDRL:
    """A model with no parameter left at the 0 or 1 where some begin, so that a comparison sees all of them."""
    torch.manual_seed(0)
    model = CDRL.from_config(size.config, size.shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.01)
    return model


def plain_copy(config: Config, model: CDRL) -> PlainCDRL:
    """The plain model of ``config`` with the weights of the package's one."""
    assert config.initializer is not None
    assert model.initializer is not None
    energy = PlainEnergy(config.energy, model.shape, model.num_classes)
    initializer = PlainInitializer(config.initializer, model.shape, model.num_classes)
    energy.take_weights(model.energy)
    initializer.load_state_dict(model.initializer.state_dict())
    return PlainCDRL(model.schedule, energy, initializer)


def in_turn(runs: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """CPU milliseconds of every run in every round, the runs taking turns after one unmeasured round."""
    times: list[list[float]] = [[] for _ in runs]
    for round_index in range(rounds + 1):
        for run, measured in zip(runs, times, strict=True):
            start = time.process_time()
            run()
            if round_index:
                measured.append(1000 * (time.process_time() - start))
    return times


def table(names: Sequence[str], times: list[list[float]]) -> str:
    """Median CPU time of each, and the median over rounds of its ratio to the first."""
    lines = [f"{'':<28}{'CPU ms':>10}{'ratio':>8}"]
    for name, measured in zip(names, times, strict=True):
        ratio = statistics.median(own / plain for own, plain in zip(measured, times[0], strict=True))
        lines.append(f"{name:<28}{statistics.median(measured):>10.1f}{ratio:>8.3f}")
    return "\n".join(lines)


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest deviation in units of the largest expected number.

    Two roundings of one network differ by about 1e-6, but a deep one's gradient by up to some 1e-3 where a
    LeakyReLU's input is so near zero that they put it on different sides.
    """
    value, expected = value.detach(), expected.detach()
    return float((value - expected).abs().max() / expected.abs().max())


class Arithmetic(TorchDispatchMode):
    """Counts the multiplications and additions of matrix products and convolutions.

    As torch's own counter, which cannot be used within torch.autograd.grad.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out

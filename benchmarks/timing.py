"""What the benchmarks share: the sizes, timing in turn, the table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from cdrl.config import Config, parse_config


@dataclass(frozen=True)
class Size:
    """A model's size, and the batch it is timed with."""

    config: Config
    shape: tuple[int, ...]
    batch: int


def _size(shape: tuple[int, ...], batch: int, **sections: Any) -> Size:
    values = {"space": "pixel", "data": {"name": "faces"}, **sections}
    return Size(parse_config(values, source="benchmark"), shape, batch)


class SizeName(StrEnum):
    """What can be timed."""

    cifar10 = "cifar10"
    quickstart = "quickstart"


def _quickstart(spectral_norm: bool) -> Size:
    return _size(
        (4, 8, 8),
        32,
        energy={"channels": 64, "multipliers": [1, 2, 2], "num_blocks": 1, "spectral_norm": spectral_norm},
        initializer={"channels": 64, "multipliers": [1, 1], "num_blocks": 1, "attention_resolutions": [4]},
        training={"langevin_steps": 5},
    )


SIZES = {
    SizeName.cifar10: {"cifar10 with spectral norm": _size((3, 32, 32), 2)},
    SizeName.quickstart: {
        "quickstart with spectral norm": _quickstart(True),
        "quickstart without spectral norm": _quickstart(False),
    },
}
"""The networks of CIFAR-10 in the paper, and those of a small latent model; textbook and package are always alike."""


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
    """Largest deviation in units of the largest expected number."""
    return float((value - expected).abs().max() / expected.abs().max())

"""The chains never wait for their device: on torch's meta device, whose tensors have no values to look at.

There ``.item()``, ``bool()``, ``nonzero`` and ``unique`` fail, as on a GPU each would stop the host until all is done.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cdrl.config import SamplerSettings
from cdrl.networks.initializer import dropout_noise
from cdrl.sampling.noise import ImageNoise
from cdrl.sampling.sampler import sample
from cdrl.sampling.settings import plan_chains
from cdrl.training.objective import LossSettings, Networks, cooperative_losses, diagnose
from pipelines.composition import composed
from pipelines.guidance import guided
from tests.helpers import tiny_config, tiny_model

KINDS = ("plain", "guided", "composed")
KERNELS = ("langevin", "mala", "hmc")


class Copies(TorchDispatchMode):
    """Counts copies from the host to the device, and operations of which the size of the result is a value."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        devices = {value.device.type for value in (*args, out) if isinstance(value, torch.Tensor)}
        if devices == {"cpu", "meta"}:
            self.seen["copy"] += 1
        return out


def copies(kind: str, kernel: str, steps: int) -> int:
    """Copies that one batch costs with so many steps a level."""
    model = tiny_model(tiny_config(energy={"reference": "gaussian"})).to("meta")
    labels = torch.tensor([1, 2, 3], device="meta")
    if kind == "composed":
        propose, log_density = composed(model, [labels, labels], 1.0, 3)
    else:
        propose, log_density = guided(model, labels, 1.0 if kind == "guided" else 0.0)
    noise = ImageNoise([1, 2, 3], "meta")
    plan = plan_chains(SamplerSettings(steps=steps, kernel=kernel), steps, 2, steps)
    with Copies() as watch:
        x = sample(model.schedule, propose, log_density, noise, model.shape, plan)
    assert x.device.type == "meta"
    return watch.seen["copy"]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_longer_chain_copies_nothing_more_but_noise(kind: str, kernel: str) -> None:
    short, long = copies(kind, kernel, 2), copies(kind, kernel, 6)
    # Images this small get noise for 32 moves at a time; a kernel that accepts or rejects draws a number a move.
    decisions = 0 if kernel == "langevin" else 2 * (6 - 2)
    assert long - short <= decisions


@pytest.mark.parametrize("kind", KINDS)
def test_all_noise_of_langevin_chains_comes_in_one_copy(kind: str) -> None:
    """Of kinds with labels one copy more for each of them."""
    assert copies(kind, "langevin", 6) <= copies(kind, "langevin", 0)


def training_copies(steps: int) -> int:
    """Copies that the losses and diagnostics of one batch cost, whose draws were told to be expected."""
    model = tiny_model(tiny_config(initializer={"dropout": 0.1})).to("meta").train()
    schedule, settings = model.schedule.to("meta"), LossSettings(steps, label_dropout=0.1)
    x0, label = torch.zeros(3, *model.shape, device="meta"), torch.tensor([1, 2, 3], device="meta")
    networks = Networks(model.energy, model.initializer, model.energy.fold().detach())
    noise, dropout = ImageNoise([1, 2, 3], "meta"), ImageNoise([4, 5, 6], "meta")
    for expected in (False, True):
        if expected:
            draws = noise.draws, dropout.draws
            noise, dropout = ImageNoise([1, 2, 3], "meta"), ImageNoise([4, 5, 6], "meta")
            noise.expect(draws[0])
            dropout.expect(draws[1])
        with Copies() as watch, dropout_noise(dropout):
            losses = cooperative_losses(x0, label, noise, networks, schedule, settings)
            (losses.energy + losses.initializer).backward()
            diagnose(losses.chain, schedule, measure_acceptance=True)
    return watch.seen["copy"]


def test_a_training_batch_looks_at_no_value_and_copies_its_noise_in_groups() -> None:
    """Levels, dropped labels, normal numbers, dropout masks of each size: a copy for each kind, none a move."""
    few, many = training_copies(2), training_copies(15)
    assert few == many <= 8


def test_the_watch_sees_copies_and_values_are_refused() -> None:
    with Copies() as watch:
        torch.ones(3).to("meta")
    assert watch.seen["copy"] == 1
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones(3, device="meta").max().item()
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.unique(torch.ones(3, device="meta"))

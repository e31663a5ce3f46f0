"""The yardstick of the benchmarks computes what the package computes, and shares nothing with it that is timed."""

from __future__ import annotations

import ast
import dataclasses
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks import training_step
from benchmarks.langevin import our_step
from benchmarks.plain import PlainTrainer
from benchmarks.sampling import DENOISE, our_samples, shortened
from benchmarks.timing import SIZES, Size, SizeName, in_turn, new_model, plain_copy, table
from cdrl.data import TrainingSet
from cdrl.model import CDRL
from cdrl.sampling.noise import ImageNoise, derive_seed
from cdrl.training.engine import start
from cdrl.training.trainer import CooperativeTrainer
from tests.helpers import ROOT, scrambled, tiny_config

SHAPE = (3, 8, 8)
COUNT = 5
NETWORKS: dict[str, dict[str, Any]] = {
    "spectral norm": {},
    "no spectral norm, relative to a Gaussian": {
        "energy": {"spectral_norm": False, "reference": "gaussian", "output_scale": 3.0},
        "initializer": {"attention_resolutions": [8, 4]},
    },
}
CLASSES = [0, 4]


def size_of(**sections: Any) -> Size:
    defaults = {"schedule": {"num_levels": 3}, "initializer": {"dropout": 0.0, "multipliers": [1, 2]}}
    merged = {name: {**defaults.get(name, {}), **sections.get(name, {})} for name in {*defaults, *sections}}
    return Size(tiny_config(**merged), SHAPE, COUNT)


def model_of(size: Size, num_classes: int) -> CDRL:
    torch.manual_seed(0)
    return scrambled(CDRL.from_config(size.config, SHAPE, num_classes).eval())


@pytest.fixture(params=NETWORKS.values(), ids=NETWORKS)
def size(request: pytest.FixtureRequest) -> Size:
    return size_of(**request.param)


@pytest.mark.parametrize("num_classes", CLASSES)
def test_plain_and_package_compute_the_same(size: Size, num_classes: int) -> None:
    model = model_of(size, num_classes)
    plain = plain_copy(size.config, model).eval()
    y, x_next = torch.randn(2, COUNT, *SHAPE)
    level = torch.arange(COUNT) % 3
    label = torch.arange(COUNT) % (num_classes + 1) - 1

    y.requires_grad_()
    ours, theirs = model.log_density(y, level, label), plain.log_density(y, level, label)
    torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-4)
    gradients = [torch.autograd.grad(f.sum(), y)[0] for f in (ours, theirs)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4 * float(gradients[0].abs().max()))
    proposed = plain.propose(x_next, level, label, lambda: torch.zeros_like(y))
    torch.testing.assert_close(proposed, model.propose(x_next, level, label), rtol=1e-5, atol=1e-5)


def test_a_langevin_step_is_the_packages(size: Size) -> None:
    model = model_of(size, 0)
    plain = plain_copy(size.config, model).eval()
    y, x_next = torch.randn(2, COUNT, *SHAPE)
    noise = ImageNoise(range(COUNT))
    level, label = torch.full((COUNT,), 2), torch.full((COUNT,), -1)
    theirs = plain.langevin_step(y, x_next, level, label, lambda: noise.normal(SHAPE))
    torch.testing.assert_close(theirs, our_step(model, y, x_next, torch.float32)(), rtol=1e-5, atol=1e-5)


def test_samples_are_the_packages(size: Size) -> None:
    size = shortened(size, 2)
    assert (size.config.schedule.num_levels, size.batch) == (2, COUNT // 2)
    model = model_of(size, 0)
    plain = plain_copy(size.config, model).eval()
    noise = ImageNoise(range(size.batch))
    theirs = plain.sample(torch.full((size.batch,), -1), 3, DENOISE, lambda: noise.normal(SHAPE))
    torch.testing.assert_close(theirs, our_samples(model, size.batch, 3), rtol=1e-4, atol=1e-4)


def test_three_updates_have_the_trainers_losses() -> None:
    # Without spectral norm: the trainer makes one power iteration an update, the authors' loop one a training pass.
    size = size_of(energy={"spectral_norm": False}, training={"warmup_steps": 0, "label_dropout": 0.0})
    size = training_step.with_training(size, steps=2)
    data = TrainingSet(torch.randn(20, *SHAPE), COUNT, seed=0)
    trainer = CooperativeTrainer(size.config, data, 0, start())
    plain = PlainTrainer(plain_copy(size.config, trainer.averaged), size.config.training)
    for step in range(3):
        x0, label = data.batch(step)
        noise = ImageNoise([derive_seed(size.config.seed, "train", step, row) for row in range(COUNT)])
        level = noise.integers(3)
        noise.uniform()  # spent on dropping labels by the trainer
        theirs = torch.stack(plain.update(x0, level, label, partial(noise.normal, SHAPE)))
        losses = trainer.update(step).losses
        ours = torch.cat([losses["energy_loss"], losses["initializer_loss"]])
        torch.testing.assert_close(theirs, ours, rtol=1e-3, atol=1e-4)
    trainer.close()


def test_updates_are_timed_in_bfloat16_too_where_that_is_asked_for() -> None:
    size = training_step.with_training(size_of(), steps=2)
    assert training_step.in_bfloat16(size.config).training.learning_dtype == "bfloat16"
    for bfloat16, rows in ((True, 3), (False, 2)):
        lines = training_step.measure(size, 1, bfloat16).splitlines()[1:]
        assert len(lines) == rows
        assert ("bfloat16" in lines[-1]) == bfloat16


def test_only_training_passes_iterate_spectral_norms() -> None:
    size = size_of()
    plain = plain_copy(size.config, model_of(size, 0))
    level, label = torch.zeros(COUNT, dtype=torch.int64), torch.full((COUNT,), -1)
    x0 = torch.randn(COUNT, *SHAPE)

    def vectors() -> list[torch.Tensor]:
        return [buffer.clone() for name, buffer in plain.energy.named_buffers() if name.endswith("weight_u")]

    before = vectors()
    plain.refine(x0, x0, level, label, 3, lambda: torch.randn_like(x0))
    assert plain.energy.training
    assert all(torch.equal(*pair) for pair in zip(before, vectors(), strict=True))
    plain.losses(x0, level, label, 1, lambda: torch.randn_like(x0))
    assert not any(torch.equal(*pair) for pair in zip(before, vectors(), strict=True))


def test_the_yardstick_imports_no_code_of_the_package_that_is_timed() -> None:
    tree = ast.parse((ROOT / "benchmarks" / "plain.py").read_text(encoding="utf-8"))
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    own = {name for name in imported if name.split(".")[0] in ("cdrl", "autoencoder", "pipelines", "benchmarks")}
    assert own == {"cdrl.config", "cdrl.schedule"}


@pytest.mark.parametrize("name", SizeName)
def test_the_sizes_that_are_timed_can_be_copied(name: SizeName) -> None:
    for size in SIZES[name].values():
        small = size.config.energy.model_copy(update={"channels": 8, "num_blocks": 1})
        small_size = dataclasses.replace(size, config=size.config.model_copy(update={"energy": small}))
        plain_copy(small_size.config, new_model(small_size))


def test_ratios_are_to_the_first() -> None:
    assert table(["plain", "ours"], [[10.0, 10.0], [5.0, 8.0]]).splitlines()[2].split() == ["ours", "6.5", "0.650"]
    assert [len(times) for times in in_turn([lambda: None, lambda: None], 3)] == [3, 3]

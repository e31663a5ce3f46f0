"""Chains compiled, captured and fed ahead of time are the chains that they stand for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cdrl.config import Config
from cdrl.model import CDRL
from cdrl.networks.initializer import dropout_noise
from cdrl.sampling.noise import ImageNoise
from cdrl.training.chains import (
    CapturedChain,
    ChainEnd,
    ChainStart,
    CompiledChain,
    RunChain,
    chosen_chain,
    density_and_gradient,
    run_chain,
)
from cdrl.training.engine import start
from cdrl.training.memory import bytes_for_training
from cdrl.training.objective import Networks, cooperative_losses
from cdrl.training.trainer import BatchesAhead, CooperativeTrainer
from pipelines.jobs.training import stage_two_data
from tests.helpers import scrambled, tiny_config, tiny_model

STEPS = 3
COUNT = 6


def model_on(device: str, **energy: Any) -> CDRL:
    model = tiny_model(tiny_config(energy=energy)).to(device)
    model.schedule = model.schedule.to(device)
    return model


def chain_start(model: CDRL, seed: int = 0, dtype: torch.dtype = torch.float32) -> ChainStart:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    y, x_next = torch.randn(2, COUNT, *model.shape, generator=generator).to(device)
    level = torch.randint(model.schedule.num_levels, (COUNT,), generator=generator).to(device)
    label = torch.randint(-1, model.num_classes, (COUNT,), generator=generator).to(device)
    return ChainStart(model.energy.fold().detach(dtype), level, label, y, x_next)


def ends(chain: RunChain, model: CDRL, given: ChainStart, steps: int = STEPS) -> dict[str, Tensor]:
    """All that training reads of a chain."""
    noise = ImageNoise(range(COUNT), given.y.device)
    found: ChainEnd = chain(given, noise, model.schedule, steps)
    return {
        f"{name}'s {what}": getattr(position, what).clone()
        for name, position in found._asdict().items()
        for what in ("y", "log_density", "gradient")
    }


SMOOTH = {"activation": "silu", "output_scale": 0.1}
"""Its curvature would else make rounding grow along a chain."""


@pytest.fixture(params=[{"reference": "flat"}, {"reference": "gaussian"}, SMOOTH], ids=["flat", "gaussian", "smooth"])
def model(request: pytest.FixtureRequest) -> CDRL:
    return model_on("cpu", **request.param)


def test_the_compilers_gradient_is_that_of_automatic_differentiation(model: CDRL) -> None:
    given = chain_start(model)
    condition = given.energy.condition(model.schedule.logsnr[given.level], given.label)
    values, gradient = density_and_gradient(given.energy, condition, given.y, model.schedule, given.level)
    y = given.y.clone().requires_grad_()
    expected = model.log_density(y, given.level, given.label)
    torch.testing.assert_close(values, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), y)[0])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_compiled_gradient_step_is_one_graph_and_says_the_same(model: CDRL, backend: str) -> None:
    """``fullgraph`` makes a graph break an error, and so would recompilation for other weights be."""
    compiled = CompiledChain(backend)
    for seed in (0, 1):
        scrambled(model.energy, seed=seed)
        given = chain_start(model, seed)
        with torch.compiler.set_stance("fail_on_recompile" if seed else "default"):
            found = ends(compiled, model, given)
        for name, expected in ends(run_chain, model, given).items():
            # Sums of large terms that cancel are as exact as the terms: by float32, not by the sum.
            atol = max(1e-5, 1e-6 * expected.abs().max().item())
            torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=atol)


def test_a_chain_of_no_step_ends_where_it_starts(model: CDRL) -> None:
    given = chain_start(model)
    found = run_chain(given, ImageNoise(range(COUNT)), model.schedule, 0)
    assert found.before is found.end
    assert found.end.y is given.y


def test_without_a_gpu_nothing_is_captured() -> None:
    training = tiny_config(training={"cuda_graph": True}).training
    assert chosen_chain(training, torch.device("cpu")) is run_chain
    chosen = chosen_chain(training.model_copy(update={"compile": True}), torch.device("cpu"))
    assert isinstance(chosen, CompiledChain)
    assert isinstance(chosen_chain(training, torch.device("cuda")), CapturedChain)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_captured_chain_is_the_chain(dtype: torch.dtype, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = model_on("cuda")
    captured = CapturedChain(CompiledChain() if compiled else run_chain)
    bound = 1e-4 if dtype is torch.float32 else 5e-2
    for seed in (0, 1, 2):  # a replay has nothing left of the batch and the weights before
        scrambled(model.energy.cpu(), seed=seed).cuda()
        given = chain_start(model, seed, dtype)
        torch.testing.assert_close(ends(captured, model, given), ends(run_chain, model, given), rtol=bound, atol=bound)


def digits_trainer(**training: Any) -> CooperativeTrainer:
    return trainer_of(tiny_config(training=training))


def trainer_of(config: Config) -> CooperativeTrainer:
    return CooperativeTrainer(config, stage_two_data(config, Path("unused")).training_set, 10, start())


@pytest.fixture
def trainers() -> Iterator[list[CooperativeTrainer]]:
    made: list[CooperativeTrainer] = []
    yield made
    for trainer in made:
        trainer.close()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_batches_made_ahead_train_the_same_weights_bit_by_bit(
    trainers: list[CooperativeTrainer], accumulation: int
) -> None:
    usual, ahead = (digits_trainer(accumulation=accumulation) for _ in range(2))
    trainers += [usual, ahead]
    ahead._batches = BatchesAhead(ahead._prepare)
    for step in (0, 1, 2, 3):
        for trainer in (usual, ahead):
            trainer.update(step)
            trainer.measure(step)  # asks for a batch again, out of the order
    for one, other in zip(usual.averaged.parameters(), ahead.averaged.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_recomputed_energy_has_the_same_gradients_for_less_memory() -> None:
    model = model_on("cpu")
    given = chain_start(model)
    gradients = []
    for recompute in (False, True):
        model.energy.recompute = recompute
        model.zero_grad()
        model.energy(given.y, model.schedule.logsnr[given.level], given.label).sum().backward()
        gradients.append([parameter.grad for parameter in model.energy.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    config = tiny_config(energy={"num_blocks": 2}, initializer=None)
    kept = [
        bytes_for_training(config.model_copy(update={"training": training}), (1, 8, 8), 10, start())[1]
        for on in (False, True)
        for training in [config.training.model_copy(update={"recompute_energy": on})]
    ]
    assert kept[1] < 0.7 * kept[0]


def test_learning_in_bfloat16_is_for_the_energy_alone_and_keeps_less_in_memory(
    trainers: list[CooperativeTrainer],
) -> None:
    trainer = trainer_of(
        tiny_config(training={"learning_dtype": "bfloat16", "optimizer": "muon"}, deepspeed={"zero_stage": 0})
    )
    trainers.append(trainer)
    assert trainer.initializer is not None
    assert trainer.energy.module.in_bfloat16
    half = [trainee.settings.half_updates for trainee in (trainer.energy, trainer.initializer)]
    autocast = [trainee.settings.autocast for trainee in (trainer.energy, trainer.initializer)]
    assert (half, autocast) == ([True, False], [False, False])
    config = tiny_config(energy={"num_blocks": 2}, initializer=None)
    kept = [
        bytes_for_training(config.model_copy(update={"training": training}), (1, 8, 8), 10, start())[1]
        for dtype in ("float32", "bfloat16")
        for training in [config.training.model_copy(update={"learning_dtype": dtype})]
    ]
    assert kept[1] < 0.8 * kept[0]


@pytest.mark.gpu
def test_on_a_gpu_a_batch_has_the_losses_that_it_has_on_a_processor(trainers: list[CooperativeTrainer]) -> None:
    """The same draws and weights: what differs is rounding."""
    trainer = digits_trainer(tf32=False)
    trainers.append(trainer)
    model = copy.deepcopy(trainer.averaged).to("cpu").train()
    found = trainer.update(0).losses
    x0, label = trainer.data.batch(0)
    batch = trainer._prepare(0, trainer.rows[0])
    noise, dropout = (ImageNoise(range(0)) for _ in range(2))
    noise._generators, dropout._generators = batch.noise._generators, batch.dropout._generators
    networks = Networks(model.energy, model.initializer, model.energy.fold().detach())
    with dropout_noise(dropout):
        expected = cooperative_losses(x0, label, noise, networks, model.schedule, trainer.settings).values()
    for name, value in expected.items():
        torch.testing.assert_close(found[name][0].cpu(), value, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "settings", [{"cuda_graph": True}, {"cuda_graph": True, "chain_dtype": "bfloat16"}, {"tf32": True}]
)
def test_on_a_gpu_every_way_trains_alike(trainers: list[CooperativeTrainer], settings: dict[str, Any]) -> None:
    """What differs is rounding, of TF32 and bfloat16 by up to a tenth of the losses."""
    slow = {"energy_lr": 1e-5, "initializer_lr": 1e-5, "warmup_steps": 0, "tf32": False, "cuda_graph": False}
    found, expected = [], []
    for changes, losses in ((settings, found), ({}, expected)):
        trainer = digits_trainer(**{**slow, **changes})
        trainers.append(trainer)
        losses += [trainer.update(step).losses for step in range(4)]
    bound = 1e-3 if settings == {"cuda_graph": True} else 0.1
    torch.testing.assert_close(found, expected, rtol=bound, atol=bound)

"""Our three configurations are what they are called, and what their samplers cost is counted right."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.peers.budget import MOST_ERROR
from benchmarks.peers.cooperative import Cooperative, changed, drl, ours, paper, sampler, train_ours
from benchmarks.peers.task import RECIPES
from cdrl.config import Config
from cdrl.config_files import load_config
from cdrl.model import CDRL
from cdrl.training.engine import start
from cdrl.training.trainer import CooperativeTrainer
from pipelines.base import CDRLPipeline
from pipelines.decoding import PixelDecoder
from tests.benchmarks.peers.tasks import digits_task
from tests.helpers import ROOT

DIGITS = load_config(ROOT / "configs" / "digits.yaml")
OTHER = changed(
    DIGITS,
    {
        "schedule": {"logsnr_max": 3.0, "step_coefficient": 4.6e-2},
        "energy": {"reference": "gaussian", "activation": "silu"},
        "training": {
            "optimizer": "muon",
            "energy_lr": 2e-3,
            "decay_fraction": 0.3,
            "chain_dtype": "bfloat16",
            "learning_dtype": "bfloat16",
        },
        "sampling": {"steps": 12, "denoise": 1.5},
    },
)
"""A recipe that differs from the paper in all that one may differ in."""


def test_our_recipe_is_trained_as_it_stands() -> None:
    assert ours(DIGITS, 77) == load_config(ROOT / "configs" / "digits.yaml", ["training.num_steps=77"])


@pytest.mark.parametrize("recipe", [DIGITS, OTHER], ids=["digits", "other"])
def test_the_papers_settings_are_those_of_its_configuration_scaled_to_the_updates(recipe: Config) -> None:
    published = load_config(ROOT / "configs" / "cifar10.yaml")
    for updates in (400, 4000, 400_000):
        found = paper(recipe, updates)
        share = updates / published.training.num_steps
        assert found.schedule == published.schedule
        networks = {"channels", "multipliers", "num_blocks"}
        assert found.energy.model_dump(exclude=networks) == published.energy.model_dump(exclude=networks)
        assert found.sampling == published.sampling
        training, theirs = found.training, published.training
        for name in (
            "optimizer",
            "chain_dtype",
            "learning_dtype",
            "langevin_steps",
            "energy_lr",
            "initializer_lr",
            "decay_fraction",
            "gradient_clip",
            "pairs",
        ):
            assert getattr(training, name) == getattr(theirs, name), name
        assert training.warmup_steps == round(share * theirs.warmup_steps)
        assert training.initializer_head_start == round(share * theirs.initializer_head_start)
        assert (1 - training.ema) * share == pytest.approx(1 - theirs.ema)
        # The size is the recipe's.
        assert (found.energy.channels, training.batch_size) == (DIGITS.energy.channels, DIGITS.training.batch_size)


@pytest.mark.parametrize("recipe", [DIGITS, OTHER], ids=["digits", "other"])
def test_drl_has_its_own_chains(recipe: Config) -> None:
    published, found = load_config(ROOT / "configs" / "drl_cifar10.yaml"), drl(recipe, 100)
    assert found.initializer is None
    assert (found.schedule, found.sampling) == (published.schedule, published.sampling)
    assert found.energy.reference == "flat"
    for name in ("langevin_steps", "pairs", "optimizer", "chain_dtype", "learning_dtype"):
        assert getattr(found.training, name) == getattr(published.training, name), name
    assert found.training.energy_lr == 1e-3


@pytest.mark.parametrize(
    ("settings", "options", "expected"),
    [
        (ours, {}, (6, 6 * 15 + 1)),
        (ours, {"steps": "auto"}, (6, 29 + 1)),
        (paper, {}, (6, 6 * 15 + 1)),
        (drl, {}, (0, 6 * 30)),
    ],
    ids=["ours", "auto", "paper", "drl"],
)
def test_evaluations_are_those_that_are_made(settings: Any, options: Any, expected: tuple[int, int]) -> None:
    task = digits_task()
    config = settings(DIGITS, 100)
    torch.manual_seed(0)
    model = CDRL.from_config(config, task.shape, task.num_classes).eval()
    pipeline = CDRLPipeline(model, PixelDecoder(), config, task.class_names)
    made = sampler(pipeline, options)
    assert (made.forwards, made.gradients) == expected
    calls = {"initializer": 0, "energy": 0}

    def counting(name: str) -> Any:
        def count(*_: Any) -> None:
            calls[name] += 1

        return count

    if model.initializer is not None:
        model.initializer.register_forward_hook(counting("initializer"))
    folded = type(model.energy.fold())
    plain = folded.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folded, "__call__", lambda self, *given: (counting("energy")(), plain(self, *given))[1])
        images = made.draw(torch.arange(10), 0)
    assert images.shape == (10, 1, 8, 8)
    # A chain asks for the density at its beginning and after each move but needs no gradient after the last.
    assert calls == {"initializer": made.forwards, "energy": made.gradients}


def test_images_have_seeds_of_their_own() -> None:
    task = digits_task()
    model = CDRL.from_config(task.recipe, task.shape, task.num_classes).eval()
    made = sampler(CDRLPipeline(model, PixelDecoder(), task.recipe, task.class_names), {})
    first, second = made.draw(torch.arange(4), 0), made.draw(torch.arange(2, 4), 2)
    torch.testing.assert_close(first[2:], second)


def test_training_keeps_its_budget() -> None:
    trained = train_ours(digits_task(), 1.0)
    (spent,) = trained.spent
    assert spent.cpu_seconds == pytest.approx(1.0, rel=MOST_ERROR)
    assert list(trained.samplers) == ["the recipe's own steps", "steps auto"]


def test_the_clock_sets_the_learning_rates_of_both_networks() -> None:
    task = digits_task(training={"num_steps": 100, "decay_fraction": 1.0, "decay_floor": 0.0, "warmup_steps": 0})
    trainer = CooperativeTrainer(task.recipe, task.batches(8), task.num_classes, start())
    learner = Cooperative(trainer)
    rates = []
    for position in (0, 40, 90):
        for schedule in learner.schedules():
            schedule.last_epoch = position
        learner.update(position)
        rates.append([trainee.engine.optimizer.param_groups[0]["lr"] for trainee in trainer.trainees.values()])
    # As of the update after each.
    torch.testing.assert_close(torch.tensor(rates), torch.tensor([[99.0] * 2, [59.0] * 2, [9.0] * 2]) * 1e-5)
    trainer.close()


def test_every_data_set_has_a_recipe() -> None:
    for data, name in RECIPES.items():
        assert load_config(ROOT / "configs" / f"{name}.yaml", ["data.path=."]).data.name == data

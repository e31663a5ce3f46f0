"""Runs that go wrong are caught within 50 steps, with a whole checkpoint and a message; healthy ones are left alone."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autoencoder.latents import encode_images
from autoencoder.model import save_autoencoder
from cdrl.config import Config
from cdrl.data import DataError, GridSet, TrainingSet, check_batch, load_images
from cdrl.runs.run import Run, load_tensors, read_json
from cdrl.training.engine import Trainee
from cdrl.training.interruption import Interrupted
from cdrl.training.loop import MAX_ROLLBACKS
from cdrl.training.monitor import SIGNS, DivergenceError, DivergenceWatch
from cdrl.training.objective import Diagnostics, Measurements
from cdrl.training.trainer import CooperativeTrainer
from pipelines.jobs.training import run_stage_two
from tests.helpers import metrics, tiny_autoencoder, tiny_config, train_on

SMALL: dict[str, Any] = {
    "schedule": {"num_levels": 6, "step_coefficient": 1.2e-3},
    "energy": {"channels": 8, "multipliers": [1, 2], "num_blocks": 1, "spectral_norm": False, "output_scale": 6.0},
    "initializer": {"channels": 8, "multipliers": [1, 1], "num_blocks": 1, "dropout": 0.0},
}
"""A small relative of digits.yaml."""


def small_config(**sections: Any) -> Config:
    training = {"num_steps": 60, "batch_size": 16, "langevin_steps": 5, "checkpoint_every": 5, "log_every": 10}
    training |= {"energy_lr": 1e-3, "initializer_lr": 1.5e-3, "warmup_steps": 10}
    changes = {name: {**SMALL.get(name, {}), **sections.get(name, {})} for name in {*SMALL, *sections} - {"training"}}
    return tiny_config(**changes, training={**training, **sections.get("training", {})})


def inject(monkeypatch: pytest.MonkeyPatch, act: Callable[[CooperativeTrainer], None], at: int) -> None:
    """Have ``act`` change the trainer before update ``at`` (from 0)."""
    update = CooperativeTrainer.update

    def changed(self: CooperativeTrainer, step: int) -> Measurements:
        if step == at:
            act(self)
        return update(self, step)

    monkeypatch.setattr(CooperativeTrainer, "update", changed)


def caught(config: Config, run: Path, by: int) -> str:
    """The one line that the run ends with, at step ``by`` at the latest; its checkpoints are whole and finite."""
    with pytest.raises(DivergenceError) as error:
        run_stage_two(config, run)
    message = str(error.value)
    assert "\n" not in message
    match = re.search(r"diverged at step (\d+), level [0-5]: .*limit .*: (lower|set) .*; ", message)
    assert match, message
    step = int(match[1])
    assert step <= by
    last = Run(run).last_checkpoint()
    if last is None:
        assert message.endswith("there is no checkpoint before it")
    else:
        assert message.endswith(f"the checkpoint of step {last[0]} is kept")
        assert 0 < step - last[0] <= config.training.checkpoint_every
        for name in ("energy", "initializer"):
            tensors = load_tensors(last[1] / f"{name}_average.safetensors").values()
            assert all(tensor.isfinite().all() and tensor.abs().max() < 1e3 for tensor in tensors)
    return message


def longer_steps(trainer: CooperativeTrainer) -> None:
    trainer.schedule = dataclasses.replace(trainer.schedule, step_size=12 * trainer.schedule.step_size)


def test_langevin_steps_12_times_too_long_from_the_start(tmp_path: Path) -> None:
    config = small_config(schedule={"step_coefficient": 144 * 1.2e-3})
    assert "lower schedule.step_coefficient" in caught(config, tmp_path, by=5)


def test_langevin_steps_that_become_12_times_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, longer_steps, at=7)
    assert "lower schedule.step_coefficient" in caught(small_config(), tmp_path, by=10)
    assert Run(tmp_path).checkpoint_path(5).exists()


def test_learning_rates_30_times_too_high(tmp_path: Path) -> None:
    energy = {"channels": 32, "multipliers": [1, 2, 2]}
    config = small_config(energy=energy, training={"energy_lr": 30 * 1e-3, "initializer_lr": 30 * 1.5e-3})
    assert "training.energy_lr" in caught(config, tmp_path, by=50)


def higher_learning_rates(trainer: CooperativeTrainer) -> None:
    for trainee in trainer.trainees.values():
        scheduler = trainee.engine.lr_scheduler
        scheduler.base_lrs = [30 * rate for rate in scheduler.base_lrs]
        trainee.refresh_learning_rate()


def test_learning_rates_that_become_30_times_too_high(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, higher_learning_rates, at=12)
    energy = {"channels": 32, "multipliers": [1, 2, 2]}
    assert "training.energy_lr" in caught(small_config(energy=energy), tmp_path, by=12 + 50)
    assert Run(tmp_path).checkpoint_path(10).exists()


def test_a_large_network_without_spectral_norm_at_a_high_learning_rate(tmp_path: Path) -> None:
    energy = {"channels": 32, "multipliers": [1, 2, 2], "num_blocks": 3}
    config = small_config(energy=energy, training={"energy_lr": 1e-2, "initializer_lr": 1e-4, "warmup_steps": 0})
    message = caught(config, tmp_path, by=50)
    assert "training.energy_lr" in message


def digits(change: Callable[[Tensor, Tensor], None]) -> tuple[Tensor, Tensor]:
    """Training digits in [-1, 1] and their classes [N, 1], changed."""
    images = load_images(small_config().data, "train")
    assert images.labels is not None
    grids, labels = images.images / 127.5 - 1, images.labels[:, None].clone()
    change(grids, labels)
    return grids, labels


def test_a_sample_that_is_not_finite_is_named_when_data_are_loaded() -> None:
    def spoil(grids: Tensor, labels: Tensor) -> None:
        grids[17, 0, 3, 3] = float("nan")

    grids, labels = digits(spoil)
    message = "sample 17: expected finite numbers, found NaN or infinity"
    with pytest.raises(DataError, match=f"training data: {message}"):
        TrainingSet(grids, 16, 0, labels)
    with pytest.raises(DataError, match=f"grids: {message}"):
        GridSet(grids)


def test_an_image_whose_latent_is_not_finite_is_named_when_it_is_encoded(tmp_path: Path) -> None:
    autoencoder, device = tiny_autoencoder(), torch.device("cpu")
    save_autoencoder(tmp_path / "model", autoencoder)
    encode = autoencoder.encode

    def spoiled(images: Tensor) -> Any:
        latent = encode(images)
        latent.mean[3, 0, 0, 0] = float("inf")
        return latent

    autoencoder.encode = spoiled  # type: ignore[method-assign]
    images = GridSet(torch.zeros(5, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(DataError, match="sample 3 to be written: expected finite numbers, found NaN"):
        encode_images(
            autoencoder, tmp_path / "model", images, tmp_path / "latents", kind="sample", mirrors=False, device=device
        )
    assert not (tmp_path / "latents" / "index.json").exists()


@pytest.mark.parametrize("damage", ["nan", "label"])
def test_a_sample_that_is_spoiled_in_the_middle_ends_training_with_its_name(tmp_path: Path, damage: str) -> None:
    grids, labels = digits(lambda grids, labels: None)
    data, config = TrainingSet(grids, 16, 0, labels), small_config(training={"num_steps": 8})
    served = data.batch
    victim = int(data.elements(6, range(16))[5])

    def spoiled(step: int, rows: Any) -> tuple[Tensor, Tensor]:
        grids, label = served(step, rows)
        if step == 6:
            if damage == "nan":
                grids[5, 0, 2, 2] = float("nan")
            else:
                label[5] = 10
        return grids, label

    data.batch = spoiled  # type: ignore[method-assign]
    found = "finite numbers, found NaN or infinity" if damage == "nan" else "class ids -1 … 9, found 10"
    with pytest.raises(DataError, match=f"training data of step 7: sample {victim}: expected {found}"):
        train_on(data, config, tmp_path)
    last = Run(tmp_path).last_checkpoint()
    assert last is not None
    assert last[0] == 5


@pytest.mark.parametrize("label", [10, -1, 99])
def test_class_ids_out_of_range_end_training_before_it_starts(tmp_path: Path, label: int) -> None:
    def spoil(grids: Tensor, labels: Tensor) -> None:
        labels[40] = label

    grids, labels = digits(spoil)
    with pytest.raises(DataError, match=f"training data: sample 40: expected class ids 0 … 9, found {label}"):
        train_on(TrainingSet(grids, 16, 0, labels), small_config(), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_batch_may_hold_the_null_class_and_no_other_stranger() -> None:
    grids, samples = torch.zeros(3, 2), torch.tensor([7, 8, 9])
    check_batch(grids, torch.tensor([-1, 0, 4]), 5, samples)
    check_batch(grids, torch.full((3,), -1), 0, samples)
    for stranger in (5, -2):
        with pytest.raises(DataError, match=f"sample 9: expected class ids -1 … 4, found {stranger}"):
            check_batch(grids, torch.tensor([0, 0, stranger]), 5, samples)


def test_a_healthy_run_is_left_alone(tmp_path: Path) -> None:
    """100 steps from random weights; the signs stay far from their limits throughout."""
    training = {"num_steps": 100, "batch_size": 8, "checkpoint_every": 50, "log_every": 1}
    run_stage_two(small_config(training=training), tmp_path)
    lines = metrics(tmp_path)
    assert lines[-1]["step"] == 100
    for name, sign in SIGNS.items():
        seen = [abs(value) for line in lines for value in line[name] if value == value]
        assert max(seen) < sign.limit / 4, name


def measured(level: list[int], **signs: list[float]) -> Measurements:
    values = {f.name: torch.zeros(len(level)) for f in dataclasses.fields(Diagnostics)}
    values |= {name: torch.tensor(sign) for name, sign in signs.items()}
    return Measurements({"energy_loss": torch.zeros(1)}, Diagnostics(**{**values, "level": torch.tensor(level)}))


@pytest.mark.parametrize("name", SIGNS)
@pytest.mark.parametrize("value", ["beyond", "nan", "inf", "-inf"])
def test_every_sign_is_read_at_its_level_and_then_forgotten(name: str, value: str) -> None:
    watch, weights = DivergenceWatch(4, torch.device("cpu"), spectral_norm=True), [torch.ones(3)]
    limit = SIGNS[name].limit
    number = -1.01 * limit if value == "beyond" else float(value)
    watch.add(measured([0, 1, 2], **{name: [0.0, 0.99 * limit, 0.5 * limit]}))
    assert watch.verdict(weights) is None
    watch.add(measured([0, 1, 3, 3], **{name: [0.0, 0.99 * limit, number, 0.0]}))
    watch.add(measured([0, 3], **{name: [0.0, 0.0]}))
    verdict = watch.verdict(weights)
    assert verdict is not None
    assert verdict.startswith("level 3: ")
    assert f"({name} " in verdict
    assert verdict.endswith(SIGNS[name].advice)
    assert watch.verdict(weights) is None


@pytest.mark.parametrize("name", SIGNS)
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_the_spectral_norm_is_advised_where_it_is_off_and_helps(name: str, spectral_norm: bool) -> None:
    watch = DivergenceWatch(1, torch.device("cpu"), spectral_norm=spectral_norm)
    watch.add(measured([0], **{name: [2 * SIGNS[name].limit]}))
    advised = not spectral_norm and name not in ("displacement", "reach")
    assert ("energy.spectral_norm=true" in str(watch.verdict([torch.ones(1)]))) == advised
    assert ("energy.spectral_norm=true" in str(watch.verdict([torch.tensor([float("nan")])]))) == (not spectral_norm)


def test_losses_and_weights_must_be_finite() -> None:
    watch = DivergenceWatch(2, torch.device("cpu"), spectral_norm=True)
    for weights in ([torch.ones(2), torch.tensor([1.0, float("nan")])], [torch.tensor([float("inf")])]):
        assert "losses or weights are not finite" in str(watch.verdict(weights))
    watch.add(dataclasses.replace(measured([0]), losses={"initializer_loss": torch.tensor([0.0, float("inf")])}))
    assert "losses or weights are not finite" in str(watch.verdict([torch.ones(2)]))
    assert watch.verdict([torch.ones(2)]) is None


def test_no_checkpoint_is_written_of_a_state_that_would_be_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update before step 5's checkpoint ruins the weights: its own losses were still healthy."""
    update = Trainee.update

    def ruinous(self: Trainee, loss: Tensor) -> None:
        update(self, loss)
        if self.engine.global_steps == 5:
            with torch.no_grad():
                for parameter in self.module.parameters():
                    parameter *= 30

    monkeypatch.setattr(Trainee, "update", ruinous)
    with pytest.raises(DivergenceError, match=r"diverged at step 5, .*there is no checkpoint before it"):
        run_stage_two(small_config(), tmp_path)
    assert Run(tmp_path).last_checkpoint() is None
    assert not (tmp_path / "model").exists()


def diverging(monkeypatch: pytest.MonkeyPatch, at: int, rollbacks: int) -> list[tuple[int, int, float]]:
    """Have update ``at`` diverge until the run was rolled back so often; (step, rollbacks, energy's rate) of each."""
    update, seen = CooperativeTrainer.update, []

    def watched(self: CooperativeTrainer, step: int) -> Measurements:
        seen.append((step, self.rollbacks, self.energy.engine.get_lr()[0]))
        measured = update(self, step)
        if step == at and self.rollbacks < rollbacks:
            reach = torch.full_like(measured.diagnostics.reach, 1e9)
            ruined = dataclasses.replace(measured.diagnostics, reach=reach)
            measured = dataclasses.replace(measured, diagnostics=ruined)
        return measured

    monkeypatch.setattr(CooperativeTrainer, "update", watched)
    return seen


ROLLBACK = {"on_divergence": "rollback", "num_steps": 6, "checkpoint_every": 2, "warmup_steps": 0, "log_every": 1}


@pytest.mark.parametrize("stage", [1, 3])
def test_a_rollback_goes_on_from_the_last_checkpoint_at_half_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], stage: int
) -> None:
    monkeypatch.setattr("cdrl.training.engine.shared_stage", lambda zero_stage, world: zero_stage)
    seen = diverging(monkeypatch, at=3, rollbacks=2)
    run_stage_two(small_config(training=ROLLBACK, deepspeed={"zero_stage": stage}), tmp_path)
    full = [(step, 0, 1e-3) for step in range(4)]
    half, quarter = [(2, 1, 5e-4), (3, 1, 5e-4)], [(step, 2, 2.5e-4) for step in range(2, 6)]
    assert seen == [(*key, pytest.approx(rate)) for *key, rate in full + half + quarter]
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, 7))
    errors = [line for line in capfd.readouterr().err.splitlines() if "diverged" in line]
    assert [re.search(r"diverged at step 4, .*rollback (\d) of 3", line)[1] for line in errors] == ["1", "2"]  # type: ignore[index]
    last = Run(tmp_path).last_checkpoint()
    assert last is not None
    assert read_json(last[1] / "state.json")["rollbacks"] == 2


def test_without_a_checkpoint_a_rollback_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = diverging(monkeypatch, at=1, rollbacks=1)
    run_stage_two(small_config(training={**ROLLBACK, "num_steps": 3}), tmp_path)
    expected = [(0, 0, 1e-3), (1, 0, 1e-3), (0, 1, 5e-4), (1, 1, 5e-4), (2, 1, 5e-4)]
    assert seen == [(*key, pytest.approx(rate)) for *key, rate in expected]


def test_after_three_rollbacks_training_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = diverging(monkeypatch, at=3, rollbacks=99)
    with pytest.raises(DivergenceError, match=r"diverged at step 4, .*\(3 rollbacks did not help\)"):
        run_stage_two(small_config(training=ROLLBACK), tmp_path)
    assert [rollbacks for step, rollbacks, _ in seen if step == 3] == list(range(MAX_ROLLBACKS + 1))
    last = Run(tmp_path).last_checkpoint()
    assert last is not None
    assert last[0] == 2


@pytest.mark.parametrize("crash_after", [2, 4])
def test_a_rolled_back_run_that_is_taken_up_equals_an_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crash_after: int
) -> None:
    """Before the checkpoint that knows of the rollback, and after it."""
    diverging(monkeypatch, at=3, rollbacks=1)
    config = small_config(training=ROLLBACK)
    whole, crashed = tmp_path / "whole", tmp_path / "crashed"
    run_stage_two(config, whole)
    if crash_after == 4:
        shutil.copytree(whole, crashed)
        shutil.rmtree(crashed / "checkpoints" / "step_00000006")
    else:
        stop_after(monkeypatch, 2, config, crashed)
    run_stage_two(config, crashed)
    assert json.dumps(metrics(crashed)) == json.dumps(metrics(whole))
    for name in ("energy", "initializer"):
        ours, theirs = (load_tensors(run / "model" / f"{name}.safetensors") for run in (crashed, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, config: Config, run: Path) -> None:
    """What a stop at ``step`` leaves."""
    with monkeypatch.context() as patch:
        patch.setattr("cdrl.training.loop.any_process", lambda flag, world: True)
        for _ in range(step):
            with pytest.raises(Interrupted):
                run_stage_two(config, run)

"""Cooperative training: resumed bit for bit, the same over processes, never a broken checkpoint."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from torch import Tensor

from cdrl.config import Config
from cdrl.data import TrainingSet
from cdrl.runs.checksums import write_checksums
from cdrl.runs.lock import locked
from cdrl.runs.run import Run, load_tensors
from cdrl.training.engine import start
from cdrl.training.interruption import Interrupted
from cdrl.training.monitor import MONITORS, SUMS_FILE, DivergenceError
from cdrl.training.objective import Losses, LossSettings, cooperative_losses
from cdrl.training.trainer import CooperativeTrainer
from pipelines import CDRLPipeline
from pipelines.decoding import PixelDecoder
from pipelines.jobs.training import run_stage_two, stage_two_data
from tests.helpers import metrics, start_command, tiny_config, tiny_values, train_on, write_config


def weights(run: Path) -> dict[str, Tensor]:
    """The averaged weights of both networks of a finished run."""
    return {
        f"{network}.{name}": tensor
        for network in ("energy", "initializer")
        if (run / "model" / f"{network}.safetensors").exists()
        for name, tensor in load_tensors(run / "model" / f"{network}.safetensors").items()
    }


def assert_same_run(resumed: Path, expected: Path) -> None:
    """Bit for bit: weights, picture and every logged number but the times."""
    theirs = weights(expected)
    ours = weights(resumed)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert json.dumps(metrics(resumed)) == json.dumps(metrics(expected))
    for picture in (expected / "samples").iterdir():
        assert (resumed / "samples" / picture.name).read_bytes() == picture.read_bytes()


def checkpoint_names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def trainer_of(config: Config, data: TrainingSet | None = None) -> CooperativeTrainer:
    data = data or stage_two_data(config, Path("unused")).training_set
    return CooperativeTrainer(config, data, 10, start())


class Interfering(TrainingSet):
    """Digits, with something done before a step's batch is served."""

    def __init__(self, config: Config, act: Callable[[int, Tensor], None]) -> None:
        images = stage_two_data(config, Path("unused")).training_set
        grids = torch.cat([images.batch(step)[0] for step in range(10)])
        super().__init__(grids, config.training.batch_size, seed=0)
        self._act = act

    def batch(self, step: int, rows: slice | range = slice(None)) -> tuple[Tensor, Tensor]:
        grids, label = super().batch(step, rows)
        self._act(step, grids)
        return grids, label


def nothing(step: int, grids: Tensor) -> None:
    """No interference."""


SLOW_LEARNING = {"num_steps": 10, "checkpoint_every": 10, "energy_lr": 1e-4, "initializer_lr": 1e-4, "warmup_steps": 0}
"""Adam turns rounding noise into whole steps where a gradient is all but zero: short steps keep that out of sight."""


def assert_moved(config: Config, trained: dict[str, Tensor]) -> None:
    """Training has moved the weights by far more than two equal runs may differ."""
    begun = trainer_of(config)
    for network, trainee in (("energy", begun.energy), ("initializer", begun.initializer)):
        moved = [
            (trained[f"{network}.{name}"] - parameter).abs().max().item()
            for name, parameter in trainee.averaged.named_parameters()
        ]
        assert max(moved) > 2e-4
    begun.close()


@pytest.fixture(params=[0, 1, 2, 3, "3, all weights spread"])
def zero_stage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Each stage, of one process too; stage 3 once as it treats small weights, and once as it treats those of real
    networks."""
    monkeypatch.setattr("cdrl.training.engine.shared_stage", lambda zero_stage, world: zero_stage)
    if isinstance(request.param, int):
        return request.param
    initialize = deepspeed.initialize

    def spreading(*, config: dict[str, Any], **arguments: Any) -> Any:
        zero = {**config["zero_optimization"], "stage3_param_persistence_threshold": 0}
        return initialize(config={**config, "zero_optimization": zero}, **arguments)

    monkeypatch.setattr(deepspeed, "initialize", spreading)
    return 3


def test_a_run_taken_up_from_its_checkpoint_equals_an_uninterrupted_one(tmp_path: Path, zero_stage: int) -> None:
    """The copy is what a crash after step 3's checkpoint leaves: later log lines, and a half-written checkpoint."""
    config = tiny_config(deepspeed={"zero_stage": zero_stage}, training={"accumulation": 2})
    whole, crashed = tmp_path / "whole", tmp_path / "crashed"
    run_stage_two(config, whole)
    assert checkpoint_names(whole) == ["step_00000003", "step_00000006"]
    assert [line["step"] for line in metrics(whole)] == [1, 2, 3, 4, 5, 6]

    shutil.copytree(whole, crashed)
    shutil.rmtree(crashed / "model")
    shutil.rmtree(crashed / "samples")
    (crashed / "checkpoints" / "step_00000006").rename(crashed / "checkpoints" / ".partial-step_00000006")
    run_stage_two(config, crashed)
    assert_same_run(crashed, whole)
    assert checkpoint_names(crashed) == ["step_00000003", "step_00000006"]


def test_the_cost_of_training_is_kept_through_interruptions(tmp_path: Path) -> None:
    run_stage_two(tiny_config(), tmp_path)
    (tmp_path / "checkpoints" / "step_00000006").rename(tmp_path / "checkpoints" / ".gone")
    path = tmp_path / "checkpoints" / "step_00000003" / "state.json"
    state = json.loads(path.read_text())
    assert 0 < state["cpu_seconds"] < 60
    path.write_text(json.dumps({**state, "wall_seconds": 5000.0, "cpu_seconds": 3000.0}))
    write_checksums(path.parent)
    before = time.monotonic(), time.process_time()
    run_stage_two(tiny_config(), tmp_path)
    wall, cpu = time.monotonic() - before[0], time.process_time() - before[1]
    cost = json.loads((tmp_path / "model" / "config.json").read_text())
    assert 5000 < cost["wall_seconds"] <= 5000.01 + wall
    assert 3000 < cost["cpu_seconds"] <= 3000.01 + cpu


def test_a_model_is_exported_where_a_crash_came_before_it(tmp_path: Path) -> None:
    """The last checkpoint is whole, but the model is that of the one before."""
    run_stage_two(tiny_config(), tmp_path)
    finished = weights(tmp_path)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "step": 3}))
    (tmp_path / "model" / "energy.safetensors").unlink()
    run_stage_two(tiny_config(), tmp_path)
    assert json.loads(path.read_text())["step"] == 6
    assert all(torch.equal(tensor, finished[name]) for name, tensor in weights(tmp_path).items())


def test_a_run_without_initializer_trains_saves_and_resumes_the_energy_alone(tmp_path: Path) -> None:
    config = tiny_config(initializer=None, training={"pairs": "independent_noise"}, schedule={"kind": "drl"})
    whole, crashed = tmp_path / "whole", tmp_path / "crashed"
    run_stage_two(config, whole)
    assert not list(whole.rglob("*initializer*"))
    assert all("initializer_loss" not in line for line in metrics(whole))
    shutil.copytree(whole, crashed)
    shutil.rmtree(crashed / "model")
    shutil.rmtree(crashed / "samples")
    shutil.rmtree(crashed / "checkpoints" / "step_00000006")
    run_stage_two(config, crashed)
    assert_same_run(crashed, whole)


def test_the_settings_of_pairs_and_initializer_reach_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[LossSettings] = []

    def remember(*arguments: Any) -> Losses:
        seen.append(arguments[-1])
        return cooperative_losses(*arguments)

    monkeypatch.setattr("cdrl.training.trainer.cooperative_losses", remember)
    initializer = {"predicts": "epsilon", "target": "data"}
    trainer = trainer_of(
        tiny_config(initializer=initializer, training={"pairs": "independent_noise", "classification_weight": 0.5})
    )
    try:
        assert not trainer.update(0).diagnostics.acceptance.isnan().any()
        assert seen == [LossSettings(2, 0.1, "independent_noise", **initializer, classification_weight=0.5, answers=10)]
        assert trainer.update(1).diagnostics.acceptance.isnan().all()
    finally:
        trainer.close()


@pytest.fixture(scope="module")
def plain_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What stage 0 makes of `SLOW_LEARNING`."""
    run = tmp_path_factory.mktemp("plain")
    config = tiny_config(deepspeed={"zero_stage": 0}, training=SLOW_LEARNING)
    run_stage_two(config, run)
    assert_moved(config, weights(run))
    return weights(run)


def test_every_zero_stage_trains_the_same_weights(
    tmp_path: Path, zero_stage: int, plain_weights: dict[str, Tensor]
) -> None:
    run_stage_two(tiny_config(deepspeed={"zero_stage": zero_stage}, training=SLOW_LEARNING), tmp_path)
    for name, tensor in weights(tmp_path).items():
        torch.testing.assert_close(tensor, plain_weights[name], rtol=0, atol=1e-5)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    config = tiny_config(training={"num_steps": 3})
    run_stage_two(config, tmp_path)
    before = weights(tmp_path)
    run_stage_two(config, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path).items())
    assert [line["step"] for line in metrics(tmp_path)] == [1, 2, 3]


def test_a_finished_run_that_is_prolonged_equals_one_that_was_long_from_the_start(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole, prolonged = tmp_path / "whole", tmp_path / "prolonged"
    run_stage_two(tiny_config(), whole)
    run_stage_two(tiny_config(training={"num_steps": 3}), prolonged)
    capfd.readouterr()
    run_stage_two(tiny_config(training={"num_steps": 3}), prolonged)
    again = f"{prolonged}: was trained to its end before, step 3; to go on from there: training.num_steps=6, say"
    assert again in capfd.readouterr().err
    run_stage_two(tiny_config(), prolonged)
    assert_same_run(prolonged, whole)


def test_what_a_model_draws_by_default_follows_the_settings_of_a_finished_run(tmp_path: Path) -> None:
    run_stage_two(tiny_config(), tmp_path)
    before = weights(tmp_path)
    run_stage_two(tiny_config(sampling={"steps": 3}), tmp_path)
    assert CDRLPipeline.from_pretrained(tmp_path).config.sampling.steps == 3
    assert all(torch.equal(weight, before[name]) for name, weight in weights(tmp_path).items())


def test_a_finished_run_whose_model_was_lost_writes_it_again(tmp_path: Path) -> None:
    config = tiny_config(training={"num_steps": 3})
    run_stage_two(config, tmp_path)
    before = weights(tmp_path)
    shutil.rmtree(tmp_path / "model")
    run_stage_two(config, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path).items())


def test_two_processes_with_accumulation_equal_one(tmp_path: Path) -> None:
    """With dropout, whose masks belong to images too."""
    values = tiny_values(initializer={"dropout": 0.1}, training={**SLOW_LEARNING, "num_steps": 4})
    alone, together = tmp_path / "alone", tmp_path / "together"
    divided = write_config(tmp_path / "c.yaml", {**values, "training": {**values["training"], "accumulation": 2}})
    command = start_command("train", divided, "--run-folder", together, processes=2)
    run_stage_two(tiny_config(**values), alone)
    _, errors = command.communicate(timeout=240)
    assert command.returncode == 0, errors
    expected = weights(alone)
    assert_moved(tiny_config(**values), expected)
    ours = weights(together)
    assert ours.keys() == expected.keys()
    differences = torch.cat([(ours[name] - expected[name]).abs().flatten() for name in expected])
    # Rounding; a little more where Adam divides a gradient that is nothing but rounding by its own size.
    assert differences.max() < 3e-6
    assert (differences > 6e-7).float().mean() < 0.005
    for line, alone_line in zip(metrics(together), metrics(alone), strict=True):
        assert line.keys() == alone_line.keys()
        for name, value in line.items():
            assert value == pytest.approx(alone_line[name], rel=1e-3, abs=1e-4, nan_ok=True), name


@pytest.mark.parametrize("checkpoint_every", [3, 5])
def test_the_first_line_after_a_resumption_is_that_of_an_uncut_run(tmp_path: Path, checkpoint_every: int) -> None:
    """What is logged sums over updates from before the checkpoint too."""
    config = tiny_config(training={"num_steps": 8, "log_every": 4, "checkpoint_every": checkpoint_every})
    whole, crashed = tmp_path / "whole", tmp_path / "crashed"
    run_stage_two(config, whole)
    shutil.copytree(whole, crashed)
    for path in (crashed / "checkpoints").iterdir():
        if path.name != f"step_{checkpoint_every:08d}":
            shutil.rmtree(path)
    run_stage_two(config, crashed)
    assert [line["step"] for line in metrics(crashed)] == [4, 8]
    assert json.dumps(metrics(crashed)) == json.dumps(metrics(whole))


def test_a_checkpoint_without_running_sums_is_taken_up(tmp_path: Path) -> None:
    """As they were before: the means begin anew."""
    config = tiny_config(training={"log_every": 4})
    run_stage_two(config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000006")
    (tmp_path / "checkpoints" / "step_00000003" / SUMS_FILE).unlink()
    (tmp_path / "checkpoints" / "step_00000003" / "checksums.json").unlink()
    run_stage_two(config, tmp_path)
    assert [line["step"] for line in metrics(tmp_path)] == [4, 6]


def wait_for(condition: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < limit, f"timed out waiting for {what}"
        time.sleep(0.02)


def long_values() -> dict[str, Any]:
    return tiny_values(training={"num_steps": 60, "checkpoint_every": 10})


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", long_values())
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = start_command("train", config, "--run", killed)
    wait_for((killed / "checkpoints" / "step_00000010").exists, "the first checkpoint")
    command.kill()
    command.communicate()
    assert command.returncode == -signal.SIGKILL
    run_stage_two(tiny_config(**long_values()), killed)
    run_stage_two(tiny_config(**long_values()), whole)
    assert_same_run(killed, whole)


def test_processes_whose_launcher_is_killed_stop_in_order_and_let_the_run_go(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", tiny_values(training={"num_steps": 100_000, "checkpoint_every": 50_000}))
    run = tmp_path / "run"
    command = start_command("train", config, "--run-folder", run, processes=2)
    wait_for((run / "metrics.jsonl").exists, "the first steps")
    command.kill()
    wait_for(lambda: Run(run).last_checkpoint() is not None, "the checkpoint of a stop in order")
    wait_for(lambda: not (run / ".lock").exists(), "the lock to be let go")
    _, errors = command.communicate(timeout=120)
    assert "Traceback" not in errors
    last = Run(run).last_checkpoint()
    assert last is not None
    assert metrics(run)[-1]["step"] == last[0]
    with locked(run):
        pass


def test_ctrl_c_writes_a_checkpoint_and_exits_with_130(tmp_path: Path) -> None:
    values = tiny_values(training={"num_steps": 100_000, "checkpoint_every": 50_000})
    run = tmp_path / "run"
    command = start_command("train", write_config(tmp_path / "c.yaml", values), "--run", run)
    wait_for((run / "metrics.jsonl").exists, "the first steps")
    command.send_signal(signal.SIGINT)
    _, errors = command.communicate(timeout=120)
    assert command.returncode == 130, errors
    last = Run(run).last_checkpoint()
    assert last is not None
    assert f"stopped at step {last[0]} of 100000; the same command goes on from there" in errors
    assert "Traceback" not in errors
    assert metrics(run)[-1]["step"] == last[0]
    assert (run / "model" / "energy.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_ends_after_the_step_and_goes_on_exactly_there(
    tmp_path: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config()

    asked: list[int] = []

    def stop_at_4(step: int, grids: Tensor) -> None:
        if step == 4 and not asked:
            asked.append(number)
            os.kill(os.getpid(), number)

    previous = signal.getsignal(number)
    with pytest.raises(Interrupted, match="stopped at step 5 of 6"):
        train_on(Interfering(config, stop_at_4), config, tmp_path / "stopped")
    assert signal.getsignal(number) is previous
    assert checkpoint_names(tmp_path / "stopped") == ["step_00000003", "step_00000005"]

    assert "goes on from step" not in capfd.readouterr().err
    train_on(Interfering(config, nothing), config, tmp_path / "stopped")
    assert f"{tmp_path / 'stopped'}: goes on from step 5 of 6\n" in capfd.readouterr().err
    train_on(Interfering(config, nothing), config, tmp_path / "whole")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.parametrize(("log_every", "stage"), [(1, 1), (100, 0), (100, 3)])
def test_weights_that_are_not_finite_end_training_and_spare_the_earlier_checkpoint(
    tmp_path: Path, log_every: int, stage: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"num_steps": 20, "checkpoint_every": 2, "log_every": log_every}
    config = tiny_config(training=training, deepspeed={"zero_stage": stage})
    monkeypatch.setattr("cdrl.training.engine.shared_stage", lambda zero_stage, world: zero_stage)
    steps = 0

    def spoiled_at_step_4(*arguments: Any, **options: Any) -> Losses:
        nonlocal steps
        losses = cooperative_losses(*arguments, **options)
        steps += torch.is_grad_enabled()
        return dataclasses.replace(losses, energy=losses.energy * float("nan")) if steps == 4 else losses

    monkeypatch.setattr("cdrl.training.trainer.cooperative_losses", spoiled_at_step_4)
    message = r"diverged at step 4, .*: lower training\.energy_lr or .*; the checkpoint of step 2 is kept"
    with pytest.raises(DivergenceError, match=message):
        train_on(Interfering(config, nothing), config, tmp_path)
    last = Run(tmp_path).last_checkpoint()
    assert last is not None
    assert last[0] == 2
    for name in ("energy", "initializer"):
        stored = load_tensors(last[1] / f"{name}_average.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in stored.values())
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())


def test_the_log_holds_losses_monitors_and_images_a_step(tmp_path: Path) -> None:
    run_stage_two(tiny_config(training={"num_steps": 4, "log_every": 2}), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["images"]) for line in lines] == [(2, 16), (4, 32)]
    for line in lines:
        assert {"energy_loss", "initializer_loss", "images_per_second", *MONITORS} <= line.keys()
        assert all(len(line[name]) == 2 for name in MONITORS)
        assert line["initializer_loss"] > 0
        assert line["images_per_second"] > 0


def test_a_run_folder_holds_everything_when_training_is_done(tmp_path: Path) -> None:
    run_stage_two(tiny_config(training={"num_steps": 4, "sample_every": 2}), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "data.json",
        "metrics.jsonl",
        "model",
        "samples",
        "tensorboard",
    ]
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step_00000002.png", "step_00000004.png"]
    description = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (description["step"], description["images"], description["shape"]) == (4, 32, [1, 8, 8])


def test_the_first_update_moves_the_initializer_only() -> None:
    """Eq. 15: the energy's learning rate starts at 0, the initializer's ahead of it."""
    trainer = trainer_of(tiny_config(initializer={"dropout": 0.0}))
    try:

        def parameters(trainee: Any) -> list[Tensor]:
            return [parameter.detach().clone() for parameter in trainee.module.parameters()]

        before = parameters(trainer.energy), parameters(trainer.initializer)
        trainer.update(0)
        after = parameters(trainer.energy), parameters(trainer.initializer)
        assert all(torch.equal(*pair) for pair in zip(before[0], after[0], strict=True))
        assert not all(torch.equal(*pair) for pair in zip(before[1], after[1], strict=True))
        trainer.update(1)
        later = parameters(trainer.energy)
        assert not all(torch.equal(*pair) for pair in zip(after[0], later, strict=True))
    finally:
        trainer.close()


def test_the_average_warms_up_to_its_decay_and_takes_the_singular_vectors_as_they_are() -> None:
    trainer = trainer_of(tiny_config(training={"ema": 0.28, "warmup_steps": 0}, initializer={"dropout": 0.0}))
    try:
        history = []
        for step in range(3):
            trainer.update(step)
            history.append({name: tensor.clone() for name, tensor in trainer.energy.module.state_dict().items()})
        averaged = trainer.energy.averaged.state_dict()
        name = "stages.0.0.layer1.weight"
        # The average begins as the weights after the first update; then decay is 3 / 12, and 0.28, less than 4 / 13.
        expected = 0.28 * (3 / 12 * history[0][name] + 9 / 12 * history[1][name]) + 0.72 * history[2][name]
        torch.testing.assert_close(averaged[name], expected)
        for vector in ("stages.0.0.layer1.left", "stages.0.0.layer1.right"):
            assert torch.equal(averaged[vector], history[2][vector])
    finally:
        trainer.close()


def test_one_power_iteration_is_made_an_update_whatever_the_accumulation_and_the_chain() -> None:
    trainer = trainer_of(tiny_config(training={"accumulation": 4, "langevin_steps": 5}))
    try:
        network = trainer.energy.module
        calls = 0
        original = network.power_iteration

        def counted() -> None:
            nonlocal calls
            calls += 1
            original()

        network.power_iteration = counted
        vectors = []
        network.register_forward_hook(lambda *_: vectors.append(network.stem.left.clone()))
        trainer.update(0)
        assert calls == 1
        assert len(vectors) == 4
        assert all(torch.equal(vector, vectors[0]) for vector in vectors)
    finally:
        trainer.close()


def test_samples_shown_in_training_are_the_same_each_time() -> None:
    trainer = trainer_of(tiny_config())
    try:
        first, again = trainer.samples(12), trainer.samples(12)
        assert first.shape == (12, 1, 8, 8)
        assert torch.equal(first, again)
        torch.testing.assert_close(trainer.samples(5), first[:5], rtol=1e-4, atol=1e-5)
    finally:
        trainer.close()


def test_samples_shown_in_training_are_those_that_the_pipeline_draws() -> None:
    config = tiny_config(sampling={"steps": 8, "step_adjustment": True, "denoise": 1.0})
    trainer = trainer_of(config)
    try:
        pipeline = CDRLPipeline(trainer.averaged, PixelDecoder(), config, ())
        expected = pipeline(12, label=[index % 10 for index in range(12)]).grids
        torch.testing.assert_close(trainer.samples(12), expected, rtol=0, atol=1e-6)
    finally:
        trainer.close()


def test_pictures_that_are_not_finite_are_told_with_the_step_and_not_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CooperativeTrainer, "samples", lambda self, count: torch.full((count, 1, 8, 8), torch.nan))
    expected = r"the pictures of step 6: 64 of 64 images hold NaN or infinity: .*; the checkpoint of step 3 is kept$"
    with pytest.raises(ValueError, match=expected):
        run_stage_two(tiny_config(), tmp_path)
    assert not list(tmp_path.rglob("samples/*.png"))

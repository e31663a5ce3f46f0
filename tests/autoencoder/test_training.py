"""Stage one: taken up again it ends as if never stopped, and no checkpoint holds what is not finite."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autoencoder.model import Autoencoder
from autoencoder.reconstruction import mean_image_psnr
from autoencoder.training import StageOneTrainer, StageOneWatch
from cdrl.config import Config, DeepSpeedConfig, ReconstructionConfig, StageOneTrainingConfig
from cdrl.runs.checksums import write_checksums
from cdrl.runs.run import Run, RunError, load_tensors, read_json, write_json
from cdrl.training.interruption import Interrupted
from cdrl.training.monitor import DivergenceError
from pipelines.jobs.training import run_stage_one
from tests.helpers import metrics, tiny_config

LOGS_BY_STAGE: dict[int, list[dict[str, Any]]] = {}


def stage_one(**training: Any) -> Config:
    """A first stage of few weights on 8x8 digits, its last layers and its rate such that a step is felt."""
    schedule = {"num_steps": 6, "batch_size": 8, "learning_rate": 1e-3, "log_every": 1, "checkpoint_every": 2}
    architecture = {"channels": 32, "multipliers": [1], "num_blocks": 1, "pixel_unshuffle": 2}
    return tiny_config(space="latent", autoencoder={"architecture": architecture, "training": {**schedule, **training}})


def weights(run: Path) -> dict[str, Tensor]:
    return load_tensors(run / "autoencoder" / "model" / "autoencoder.safetensors")


def before_step(number: int, act: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have something done once, before update ``number``."""
    update, waiting = StageOneTrainer.update, [act]

    def interfered(self: StageOneTrainer, index: int) -> dict[str, Tensor]:
        if index == number and waiting:
            waiting.pop()(self)
        return update(self, index)

    monkeypatch.setattr(StageOneTrainer, "update", interfered)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run_stage_one(stage_one(), folder)
    return folder


def test_a_stopped_first_stage_goes_on_exactly_there(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before_step(4, lambda trainer: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    with pytest.raises(Interrupted, match="stopped at step 5 of 6; the same command goes on from there"):
        run_stage_one(stage_one(), tmp_path)
    partial = weights(tmp_path)
    assert "goes on from step" not in capfd.readouterr().err
    run_stage_one(stage_one(), tmp_path)
    assert f"{tmp_path / 'autoencoder'}: goes on from step 5 of 6\n" in capfd.readouterr().err
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(tmp_path)[name], tensor), name
    assert any(not torch.equal(partial[name], tensor) for name, tensor in weights(whole).items())
    assert metrics(tmp_path / "autoencoder") == metrics(whole / "autoencoder")


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_the_discriminator_joins_at_its_step_at_every_zero_stage(
    zero_stage: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdrl.training.engine.shared_stage", lambda zero_stage, world: zero_stage)
    plain = stage_one(num_steps=4, learning_rate=1e-8)
    stage = plain.autoencoder
    assert stage is not None
    objective = ReconstructionConfig(adversarial_weight=0.5, adversarial_start=2, perceptual="lite0")
    adversarial = plain.model_copy(
        update={
            "autoencoder": stage.model_copy(update={"objective": objective}),
            "deepspeed": DeepSpeedConfig(zero_stage=zero_stage),  # type: ignore[arg-type]
            "data": plain.data.model_copy(update={"image_size": 32, "num_train": 64}),
        }
    )
    run_stage_one(adversarial, tmp_path)
    lines = [line for line in metrics(tmp_path / "autoencoder") if "psnr" in line]
    assert ["adversarial" in line for line in lines] == [False, False, True, True]
    assert all(line["adaptive_weight"] > 0 and math.isfinite(line["discriminator"]) for line in lines[2:])
    # Not the weights: biases before a normalization have no gradient but rounding, which Adam makes steps of. They are
    # small here, so that no processor's rounding is seen in the logs.
    LOGS_BY_STAGE[zero_stage] = lines
    for line, first in zip(lines, next(iter(LOGS_BY_STAGE.values())), strict=True):
        assert line == pytest.approx(first, rel=1e-5)


def test_a_first_stage_starts_from_another_and_goes_on_without_it(
    whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start"
    shutil.copytree(whole, start)
    at_rest = {"num_steps": 1, "learning_rate": 1e-30, "init": str(start)}
    run_stage_one(stage_one(**at_rest), tmp_path)
    assert all(torch.equal(tensor, weights(tmp_path)[name]) for name, tensor in weights(whole).items())
    assert " tensors taken over" in capfd.readouterr().err
    shutil.rmtree(start)
    run_stage_one(stage_one(**{**at_rest, "num_steps": 2}), tmp_path)
    with pytest.raises(RunError, match="start: no trained first stage there"):
        run_stage_one(stage_one(**at_rest), tmp_path / "new")


def test_a_model_older_than_the_last_checkpoint_is_exported_anew(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash between the two."""
    with monkeypatch.context() as patched:
        patched.setattr("autoencoder.training.save_autoencoder", lambda folder, *_, **__: folder.mkdir())
        run_stage_one(stage_one(), tmp_path)
    assert [path.name for path in (tmp_path / "autoencoder" / "model").iterdir()] == ["checksums.json"]
    run_stage_one(stage_one(), tmp_path)
    assert all(torch.equal(tensor, weights(tmp_path)[name]) for name, tensor in weights(whole).items())


def test_the_cost_of_a_first_stage_is_kept_through_interruptions(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    checkpoints = tmp_path / "autoencoder" / "checkpoints"
    shutil.rmtree(checkpoints / "step_00000006")
    path = checkpoints / "step_00000004" / "state.json"
    state = read_json(path)
    assert 0 < state["cpu_seconds"] < 60
    write_json(path, {**state, "wall_seconds": 5000.0, "cpu_seconds": 3000.0})
    write_checksums(path.parent)
    before = time.monotonic(), time.process_time()
    run_stage_one(stage_one(), tmp_path)
    wall, cpu = time.monotonic() - before[0], time.process_time() - before[1]
    description = tmp_path / "autoencoder" / "model" / "autoencoder.json"
    cost = read_json(description)
    assert (cost["step"], cost["images"]) == (6, 48)
    assert 5000 < cost["wall_seconds"] <= 5000.01 + wall
    assert 3000 < cost["cpu_seconds"] <= 3000.01 + cpu
    # A run that is done costs nothing more.
    run_stage_one(stage_one(), tmp_path)
    assert read_json(description) == cost


def test_weights_that_are_not_finite_reach_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are told by themselves: the loss of the update that spoils them has been finite."""
    update = "autoencoder.training.Trainee.update"
    before_step(3, lambda trainer: monkeypatch.setattr(update, spoil), monkeypatch)

    def spoil(self: Any, loss: Tensor) -> None:
        next(iter(self.averaged.parameters())).data.fill_(float("nan"))

    with pytest.raises(
        DivergenceError,
        match=r"at step 4: .* not finite: lower autoencoder\.training\.learning_rate; the checkpoint of step 2 is kept",
    ):
        run_stage_one(stage_one(), tmp_path)
    last = Run(tmp_path / "autoencoder").last_checkpoint()
    assert last is not None
    assert last[0] == 2


def test_the_first_line_after_a_resumption_is_that_of_an_uncut_run(tmp_path: Path) -> None:
    config = stage_one(num_steps=8, log_every=4, checkpoint_every=3)
    run_stage_one(config, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "crashed")
    for step in (6, 8):
        shutil.rmtree(tmp_path / "crashed" / "autoencoder" / "checkpoints" / f"step_{step:08d}", ignore_errors=True)
    for path in (tmp_path / "crashed" / "autoencoder" / "checkpoints").iterdir():
        assert path.name == "step_00000003"
    run_stage_one(config, tmp_path / "crashed")
    ours, theirs = (metrics(tmp_path / run / "autoencoder") for run in ("crashed", "whole"))
    assert [line["step"] for line in ours if "psnr" in line] == [4, 8]
    assert json.dumps(ours) == json.dumps(theirs)


def watch(mean_image: float = 12.0, best: float | None = None, **training: Any) -> StageOneWatch:
    schedule = StageOneTrainingConfig(**{"num_steps": 5000, "learning_rate": 1e-2, "warmup_steps": 100, **training})
    return StageOneWatch(mean_image, schedule, best)


def verdict(watch: StageOneWatch, step: int, psnr: float, *, judged: bool = True) -> str | None:
    return watch.verdict(step, {"psnr": psnr, "reconstruction": 0.1}, [torch.ones(2)], judged=judged)


def test_a_first_stage_that_stays_at_the_mean_image_has_diverged() -> None:
    assert verdict(watch(), 899, 11.0) is None
    assert verdict(watch(), 900, 13.1) is None
    message = "reconstructions of 12.3 dB PSNR are hardly better than the mean of all images, 12.0 dB"
    assert verdict(watch(), 900, 12.3) == message
    # Small rates are given the time that they need.
    assert verdict(watch(learning_rate=1e-5), 50_000, 12.3) is None
    assert verdict(watch(learning_rate=1e-5), 50_100, 12.3) == message


def test_a_first_stage_that_gets_much_worse_has_diverged() -> None:
    watched = watch()
    assert [verdict(watched, step, psnr) for step, psnr in ((10, 15.0), (20, 25.0), (30, 19.5))] == [None] * 3
    assert verdict(watched, 40, 18.9) == "reconstructions have got worse, from 25.0 to 18.9 dB PSNR"
    # What was best is known after a resumption too; a part of a log line is not compared.
    assert verdict(watch(best=watched.best), 50, 18.9) is not None
    assert verdict(watched, 50, 5.0, judged=False) is None
    assert verdict(watched, 50, float("nan"), judged=False) == "the loss or the weights are not finite"


def test_a_first_stage_that_goes_bad_ends_and_names_what_to_lower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a rate a thousand times too high."""
    monkeypatch.setattr(StageOneWatch, "UPDATES", 10)
    with pytest.raises(
        DivergenceError,
        match=r"hardly better than the mean of all images.*: lower autoencoder\.training\.learning_rate;",
    ):
        run_stage_one(stage_one(num_steps=20, learning_rate=1.0, log_every=5), tmp_path)


def test_the_mean_image_of_equal_images_is_perfect() -> None:
    assert mean_image_psnr(torch.full((3, 1, 4, 4), 0.3)) >= 99
    images = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1).expand(2, 1, 4, 4)
    assert mean_image_psnr(images) == pytest.approx(6.02, abs=0.01)


def test_reconstructions_that_are_not_finite_are_told_with_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Autoencoder, "decode", lambda self, latents: torch.full((len(latents), 1, 8, 8), torch.nan))
    with pytest.raises(ValueError, match=r"the pictures of step 6: \d+ of 64 images hold NaN or infinity: "):
        run_stage_one(stage_one(), tmp_path)
    assert not list(tmp_path.rglob("reconstructions/*.png"))

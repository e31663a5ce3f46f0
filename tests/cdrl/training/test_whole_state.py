"""A checkpoint in whole tensors: taken up by any number of processes at any ZeRO stage."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cdrl.runs.run import Run, RunError, load_tensors, read_json, save_tensors
from cdrl.training.engine import Trainee, TraineeSettings, start
from cdrl.training.optimizer.whole_state import whole_optimizer_state
from pipelines.jobs.training import run_stage_two
from tests.helpers import ROOT, metrics, start_script, tiny_config

STAGES = (0, 1, 2, 3)


def share_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have one process work at each stage too."""
    monkeypatch.setattr("cdrl.training.engine.shared_stage", lambda zero_stage, world: zero_stage)


@pytest.fixture
def sharing_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    share_alone(monkeypatch)


@contextmanager
def trainee(stage: int, seed: int = 0) -> Iterator[Trainee]:
    """A small network in its engine; one of its parameters is never used."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(27, 5))
    module.register_parameter("unused", nn.Parameter(torch.ones(7)))
    falling = TraineeSettings(1e-2, lambda step: 1 / (1 + step), 1.0, batch_size=4, ema=0.9, zero_stage=stage)
    made = Trainee(module, start(), falling)
    try:
        yield made
    finally:
        made.close()


def train(made: Trainee, updates: range) -> None:
    for update in updates:
        images = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(update))
        made.update(made.engine(images).square().mean())


def weights(made: Trainee) -> dict[str, Tensor]:
    with made.whole() as module:
        return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


@pytest.mark.usefixtures("sharing_alone")
@pytest.mark.parametrize("there", STAGES)
@pytest.mark.parametrize("here", STAGES)
def test_what_one_stage_wrote_another_goes_on_with_bit_for_bit(there: int, here: int, tmp_path: Path) -> None:
    """Of one process; the learning rate, which falls at each update, goes on too."""
    with trainee(there) as first:
        train(first, range(3))
        first.save(tmp_path, "energy")
    with trainee(here, seed=1) as second:
        second.load(tmp_path, "energy")
        taken_up = whole_optimizer_state(second.engine)
        stored = load_tensors(tmp_path / "energy_optimizer.safetensors")
        assert all(torch.equal(taken_up[name], tensor) for name, tensor in stored.items())
        train(second, range(3, 6))
        with trainee(here) as uncut:
            train(uncut, range(6))
            expected = weights(uncut)
        ours = weights(second)
    if there == here:
        assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    for name, tensor in expected.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-7)


@pytest.mark.usefixtures("sharing_alone")
@pytest.mark.parametrize("stage", STAGES)
def test_before_the_first_update_there_is_nothing_to_remember(stage: int, tmp_path: Path) -> None:
    """As of a discriminator that joins later."""
    with trainee(stage) as first:
        first.save(tmp_path, "discriminator")
    assert load_tensors(tmp_path / "discriminator_optimizer.safetensors") == {}
    with trainee(stage, seed=1) as second, trainee(stage) as uncut:
        second.load(tmp_path, "discriminator")
        for each in (second, uncut):
            train(each, range(2))
        assert all(torch.equal(weights(second)[name], tensor) for name, tensor in weights(uncut).items())


@pytest.mark.usefixtures("sharing_alone")
def test_the_file_holds_each_parameters_moments_under_its_name(tmp_path: Path) -> None:
    with trainee(3) as made:
        train(made, range(2))
        made.save(tmp_path, "energy")
    stored = load_tensors(tmp_path / "energy_optimizer.safetensors")
    assert {key: tuple(tensor.shape) for key, tensor in stored.items() if key.startswith("0.weight")} == {
        "0.weight.step": (),
        "0.weight.exp_avg": (3, 1, 3, 3),
        "0.weight.exp_avg_sq": (3, 1, 3, 3),
    }
    assert stored["0.weight.step"] == 2


@pytest.mark.usefixtures("sharing_alone")
@pytest.mark.parametrize("stage", STAGES)
def test_a_state_of_another_network_is_refused(stage: int, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000002"
    with trainee(stage) as made:
        train(made, range(2))
        made.save(checkpoint, "energy")
    path = checkpoint / "energy_optimizer.safetensors"
    stored = load_tensors(path)
    save_tensors(path, {**stored, "0.weight.exp_avg": torch.zeros(2, 2)})
    message = (
        r"step_00000002/energy: not a whole checkpoint of this network \(.* of another network: 0\.weight\.exp_avg "
    )
    with trainee(stage) as made, pytest.raises(RunError, match=message):
        made.load(checkpoint, "energy")
    save_tensors(path, {**stored, "5.weight.step": torch.zeros(())})
    with trainee(stage) as made, pytest.raises(RunError, match=r"of another network: 5\.weight\.step .*; remove "):
        made.load(checkpoint, "energy")


def as_before(checkpoint: Path, made: Trainee, name: str) -> None:
    """What an earlier version wrote of a network: DeepSpeed's files, and the average."""
    made.engine.save_checkpoint(str(checkpoint), tag=name, save_latest=False)
    save_tensors(checkpoint / f"{name}_average.safetensors", made.average.state_dict())


@pytest.mark.usefixtures("sharing_alone")
@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_of_an_earlier_version_is_taken_up_bit_for_bit(stage: int, tmp_path: Path) -> None:
    with trainee(stage) as first:
        train(first, range(3))
        as_before(tmp_path, first, "energy")
        train(first, range(3, 6))
        expected = weights(first)
    with trainee(stage, seed=1) as second:
        second.load(tmp_path, "energy")
        train(second, range(3, 6))
        assert all(torch.equal(weights(second)[name], tensor) for name, tensor in expected.items())


@pytest.mark.usefixtures("sharing_alone")
@pytest.mark.parametrize(("there", "here"), [(0, 1), (1, 0), (1, 3), (3, 2), (3, 0)])
def test_a_checkpoint_of_an_earlier_version_at_another_stage_says_so(there: int, here: int, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000003"
    with trainee(there) as first:
        train(first, range(3))
        as_before(checkpoint, first, "energy")
    message = r"energy: .*by an earlier version.*the number of processes and deepspeed\.zero_stage must be those"
    with trainee(here) as second, pytest.raises(RunError, match=message):
        second.load(checkpoint, "energy")


@pytest.mark.parametrize("stage", STAGES)
def test_one_process_goes_on_with_what_an_earlier_version_of_it_wrote(stage: int, tmp_path: Path) -> None:
    """It then worked at the stage that is set, though it shared nothing."""
    with pytest.MonkeyPatch.context() as patch:
        share_alone(patch)
        with trainee(stage) as first:
            train(first, range(3))
            as_before(tmp_path, first, "energy")
            train(first, range(3, 6))
            expected = weights(first)
    with trainee(stage, seed=1) as second:
        assert second.zero_stage == 0
        second.load(tmp_path, "energy")
        train(second, range(3, 6))
        assert all(torch.equal(weights(second)[name], tensor) for name, tensor in expected.items())
        second.save(tmp_path / "new", "energy")
    with trainee(stage, seed=1) as third:
        third.load(tmp_path / "new", "energy")
        assert all(torch.equal(weights(third)[name], tensor) for name, tensor in expected.items())


@pytest.mark.usefixtures("sharing_alone")
def test_a_checkpoint_of_an_earlier_version_by_more_processes_says_so(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step_00000003"
    with trainee(1) as first:
        train(first, range(3))
        as_before(checkpoint, first, "energy")
    (slices,) = (checkpoint / "energy").glob("*_optim_states.pt")
    shutil.copy(slices, slices.with_name(slices.name.replace("rank_0_", "rank_1_")))
    with (
        trainee(1) as second,
        pytest.raises(RunError, match=r"shared the optimizer's state as 2 slices: the "),
    ):
        second.load(checkpoint, "energy")


TRAINING = {"num_steps": 6, "checkpoint_every": 3, "energy_lr": 1e-4, "initializer_lr": 1e-4, "warmup_steps": 0}


def sections(stage: int) -> dict[str, Any]:
    """With dropout, and slow learning: Adam makes whole steps of what is only rounding."""
    return {"initializer": {"dropout": 0.1}, "training": TRAINING, "deepspeed": {"zero_stage": stage}}


def train_together(size: int, jobs: list[tuple[dict[str, Any], Path]], listed: Path, kind: str = "float32") -> None:
    listed.write_text(json.dumps([[settings, str(folder)] for settings, folder in jobs]))
    script = ROOT / "tests" / "cdrl" / "training" / "together.py"
    process = start_script(script, kind, listed, processes=size)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors


def begun_by(whole: Path, folder: Path) -> Path:
    """A copy of a run as it was after its first checkpoint, in the middle."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "checkpoints" / "step_00000006")
    shutil.rmtree(folder / "model")
    return folder


def assert_same(ours: Path, expected: Path, tolerance: float = 1e-5) -> None:
    """Weights, and what was logged: of the acceptance rounding is seen a hundred times larger, divided by s_t^2."""
    for network in ("energy", "initializer"):
        theirs = load_tensors(expected / "model" / f"{network}.safetensors")
        for name, tensor in load_tensors(ours / "model" / f"{network}.safetensors").items():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=tolerance)
    for line, their_line in zip(metrics(ours), metrics(expected), strict=True):
        assert line.keys() == their_line.keys()
        for name, value in line.items():
            factor = 100 if name == "acceptance" else 1
            near = pytest.approx(their_line[name], rel=10 * factor * tolerance, abs=factor * tolerance, nan_ok=True)
            assert value == near, name


def check_that_it_makes_no_difference(sizes: list[int], stages: list[int], folder: Path) -> None:
    """Each number of processes trains the same; and goes on with what each other began, as if that had gone on."""
    whole = {(size, stage): folder / f"whole-{size}-{stage}" for size in sizes for stage in stages}
    for size in sizes:
        train_together(size, [(sections(stage), whole[size, stage]) for stage in stages], folder / "jobs.json")
    for (size, _), run in whole.items():
        assert read_json(Run(run).checkpoint_path(3) / "state.json")["processes"] == size
        assert_same(run, whole[sizes[0], stages[0]])
    for size in sizes:
        others = [(other, stage) for other in sizes if other != size for stage in stages]
        continued = {key: begun_by(whole[key], folder / f"{key}-by-{size}") for key in others}
        train_together(size, [(sections(stage), run) for (_, stage), run in continued.items()], folder / "jobs.json")
        for key, run in continued.items():
            assert read_json(Run(run).checkpoint_path(6) / "state.json")["processes"] == size
            assert_same(run, whole[key])


def test_one_process_and_two_go_on_with_each_others_checkpoints(tmp_path: Path) -> None:
    check_that_it_makes_no_difference([1, 2], [1, 3], tmp_path)


@pytest.mark.slow
def test_one_two_and_four_processes_go_on_with_each_others_checkpoints_at_every_stage(tmp_path: Path) -> None:
    check_that_it_makes_no_difference([1, 2, 4], list(STAGES), tmp_path)


@pytest.mark.slow
def test_in_double_precision_one_two_and_four_processes_train_the_same(tmp_path: Path) -> None:
    """With dropout, at a learning rate at which single precision's rounding is seen after a few updates."""
    fast = {**TRAINING, "num_steps": 20, "energy_lr": 1e-3, "initializer_lr": 1e-3}
    settings = {**sections(0), "training": fast, "data": {"labels": "none"}}
    for size in (1, 2, 4):
        train_together(size, [(settings, tmp_path / f"{size}")], tmp_path / "jobs.json", "float64")
    for size in (2, 4):
        assert_same(tmp_path / f"{size}", tmp_path / "1", tolerance=1e-11)


def test_a_run_goes_on_at_another_stage_with_another_accumulation(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    run_stage_two(tiny_config(**sections(1)), whole)
    other = {**sections(3), "training": {**TRAINING, "accumulation": 2}}
    run_stage_two(tiny_config(**other), begun_by(whole, tmp_path / "other"))
    assert_same(tmp_path / "other", whole)

"""Fine-tuning: a run that starts from another run's weights, as far as they fit."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cdrl.runs.run import RunError, load_tensors, save_tensors
from pipelines.jobs.training import run_stage_two
from tests.helpers import tiny_config

AT_REST = {"num_steps": 1, "energy_lr": 1e-30, "initializer_lr": 1e-30}
"""One update that moves no weight: what is exported is what training began with."""


def weights(run: Path) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name in ("energy", "initializer")
        for key, value in load_tensors(run / "model" / f"{name}.safetensors").items()
    }


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("earlier")
    run_stage_two(tiny_config(), run)
    return run


def test_a_run_starts_from_the_averaged_weights_of_another(
    earlier: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run_stage_two(tiny_config(seed=5, training={**AT_REST, "init": str(earlier)}), tmp_path)
    theirs, ours = weights(earlier), weights(tmp_path)
    moved = {name for name in theirs if not torch.equal(theirs[name], ours[name])}
    assert all(name.endswith((".left", ".right")) for name in moved), moved  # power iterations go on
    told = capfd.readouterr().err
    assert f"{earlier / 'model' / 'energy.safetensors'}: " in told
    count = len(load_tensors(earlier / "model" / "energy.safetensors"))
    assert f"{count} of {count} tensors taken over\n" in told


def test_what_does_not_fit_is_new_and_named(earlier: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    unconditional = tiny_config(data={"labels": "none"}, training={**AT_REST, "init": str(earlier)})
    run_stage_two(unconditional, tmp_path)
    ours, theirs = weights(tmp_path), weights(earlier)
    assert torch.equal(ours["energy/embed1.weight"], theirs["energy/embed1.weight"])
    told = capfd.readouterr().err
    assert "; not used: classes.bias, classes.left, classes.right, classes.weight\n" in told

    fewer = tiny_config(data={"name": "digits", "labels": "class"}, energy={"multipliers": [1, 3]}, training={})
    run_stage_two(fewer.model_copy(update={"training": unconditional.training}), tmp_path / "other")
    assert re.search(r"; new from scratch: stages\.1\.\S+ \[\S+\], there \[", capfd.readouterr().err)


def test_a_model_of_which_nothing_fits_is_refused(earlier: Path, tmp_path: Path) -> None:
    for tensors, message in (
        ({"else": torch.zeros(2)}, "none of its 1 tensors has a name and a shape"),
        (None, "no trained"),
    ):
        other, run = tmp_path / "other", tmp_path / "run"
        if tensors is not None:
            shutil.copytree(earlier / "model", other)
            (other / "checksums.json").unlink()
            save_tensors(other / "energy.safetensors", tensors)
        with pytest.raises(RunError, match=message):
            run_stage_two(tiny_config(training={**AT_REST, "init": str(other)}), run)
        assert not (run / "checkpoints").exists()
        shutil.rmtree(other, ignore_errors=True)


def test_a_run_that_goes_on_does_not_need_what_it_started_from(earlier: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(earlier, start)
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    run_stage_two(tiny_config(training={"init": str(start)}), whole)
    run_stage_two(tiny_config(training={"init": str(start), "num_steps": 3}), parted)
    shutil.rmtree(start)
    run_stage_two(tiny_config(training={"init": str(start)}), parted)
    ours, theirs = weights(parted), weights(whole)
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())

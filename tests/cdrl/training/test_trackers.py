"""Trackers of other programs get what metrics.jsonl gets, and go on with a run that goes on."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cdrl import ConfigError
from cdrl.runs.run import MetricsLog
from cdrl.training import trackers
from cdrl.training.trackers import check_trackers, opened_trackers
from pipelines.jobs.training import run_stage_one, run_stage_two
from tests.helpers import tiny_config

Record = list[tuple[str, int, Any]]
needs_mlflow, needs_wandb = (
    pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"needs the extra '{name}'")
    for name in ("mlflow", "wandb")
)


class Kept:
    """A tracker that keeps what it gets."""

    everything: Record = []  # noqa: RUF012

    def __init__(self, folder: Path, settings: Mapping[str, Any], identity: str | None) -> None:
        self.folder, self.identity = folder, identity or f"id of {folder.name}"
        self.everything.append(("opened", -1, identity))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.everything.append(("log", step, dict(values)))

    def picture(self, step: int, name: str, image: Tensor) -> None:
        self.everything.append(("picture", step, (name, image.dtype, image.ndim)))

    def close(self) -> None:
        self.everything.append(("closed", -1, None))


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Record:
    monkeypatch.setitem(trackers._TRACKERS, "wandb", Kept)
    monkeypatch.setattr(trackers, "check_trackers", lambda names: None)
    monkeypatch.setattr("pipelines.jobs.training.check_trackers", lambda names: None)
    Kept.everything = []
    return Kept.everything


def test_a_tracker_gets_the_lines_of_the_log_and_is_found_again(
    kept: list[tuple[str, int, Any]], tmp_path: Path
) -> None:
    short = {"num_steps": 2, "log_every": 1, "sample_every": 2, "trackers": ["wandb"]}
    config = tiny_config(training=short, data={"cache": str(tmp_path / "cache")})
    run_stage_two(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logged = [(step, values) for what, step, values in kept if what == "log"]
    assert [step for step, _ in logged] == [line["step"] for line in lines]
    for line, (_, values) in zip(lines, logged, strict=True):
        for name, value in line.items():
            if isinstance(value, list):
                found = [values[f"{name}/level_{level}"] for level in range(len(value))]
                np.testing.assert_array_equal(found, value)  # of which some are NaN: levels that were not drawn
            elif name != "step":
                np.testing.assert_array_equal(values[name], value)
    assert ("picture", 2, ("samples", torch.uint8, 3)) in kept
    assert [each[0] for each in kept].count("closed") == 1
    longer = tiny_config(training={**short, "num_steps": 3}, data={"cache": str(tmp_path / "cache")})
    run_stage_two(longer, tmp_path / "run")
    assert [identity for what, _, identity in kept if what == "opened"] == [None, "id of run"]


def test_the_first_stage_is_tracked_as_well_and_a_run_may_begin_to_be(
    kept: list[tuple[str, int, Any]], tmp_path: Path
) -> None:
    stage_one = {"num_steps": 2, "log_every": 1, "picture_every": 2, "batch_size": 2}
    values = {"space": "latent", "data": {"cache": str(tmp_path / "cache")}}
    architecture = {"channels": 32, "multipliers": [1], "num_blocks": 1, "pixel_unshuffle": 2}
    config = tiny_config(**values, autoencoder={"architecture": architecture, "training": stage_one})
    run_stage_one(config, tmp_path / "run")
    assert not kept
    going_on = {**stage_one, "num_steps": 3, "trackers": ["wandb"]}
    run_stage_one(
        tiny_config(**values, autoencoder={"architecture": architecture, "training": going_on}), tmp_path / "run"
    )
    assert any(what == "log" and "psnr" in values for what, _, values in kept if values)


def test_what_is_not_installed_is_told_before_data_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = tiny_config(training={"trackers": ["mlflow"]}, data={"name": "folder", "path": str(tmp_path / "nowhere")})
    with pytest.raises(ConfigError, match="trackers: mlflow is not installed; install it, or this project's"):
        run_stage_two(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def written(folder: Path, name: str, *, first: bool) -> None:
    """A log of one step, or of the next one."""
    with opened_trackers([name], folder, {"seed": 3}) as found:
        log = MetricsLog(folder, 0 if first else 1, found)
        log.write(1 if first else 2, {"loss": 0.5 if first else 0.25, "gap": [1.0, 2.0]})
        log.picture(1 if first else 2, "samples", torch.full((3, 4, 4), 7, dtype=torch.uint8))
        log.close()


@needs_mlflow
def test_mlflow_has_figures_pictures_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = tmp_path / "run"
    run.mkdir()
    written(run, "mlflow", first=True)
    written(run, "mlflow", first=False)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "cdrl"]
    (found,) = client.search_runs([experiment.experiment_id])
    assert [(m.step, m.value) for m in client.get_metric_history(found.info.run_id, "loss")] == [(1, 0.5), (2, 0.25)]
    assert found.data.metrics["gap/level_1"] == 2.0
    assert found.info.run_name == "run"
    names = {path.path for path in client.list_artifacts(found.info.run_id)}
    assert {"config.yaml", "images"} <= names


@needs_wandb
def test_weights_and_biases_keeps_one_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    run.mkdir()
    written(run, "wandb", first=True)
    written(run, "wandb", first=False)
    identity = json.loads((run / "trackers.json").read_text())["wandb"]
    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert folders
    assert {folder.name.rpartition("-")[2] for folder in folders} == {identity}
    content = b"".join(path.read_bytes() for folder in folders for path in folder.glob("run-*.wandb"))
    assert b"gap/level_1" in content
    assert list((run / "wandb").glob("offline-run-*/files/media/images/samples_*.png"))


def test_nothing_is_asked_for_nothing(tmp_path: Path) -> None:
    check_trackers(())
    with opened_trackers((), tmp_path, {}) as found:
        assert found == []
    assert not list(tmp_path.iterdir())

"""Runs whose prepared images lie elsewhere: every job reads them, as it does those of a folder here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cdrl.config import Config
from cdrl.data import DataError
from cdrl.runs.run import read_json
from pipelines.base import CDRLPipeline
from pipelines.detection.detect import detect
from pipelines.evaluation import referee
from pipelines.evaluation.evaluate import Comparison, evaluate_run
from pipelines.evaluation.referee import judge_run
from pipelines.jobs.preparing import run_preparation
from pipelines.jobs.training import run_encoding, run_stage_one, run_stage_two
from pipelines.report.page import neighbours_picture
from tests.data_server import DataServer, serving
from tests.helpers import metrics, tiny_config


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DataServer]:
    """One that gives away prepared digits, with failures."""
    list(run_preparation(tiny_config(data={"prepared": str(tmp_path / "prepared")})))
    with serving(tmp_path / "prepared", failing=0.2) as running:
        yield running


def config_of(place: str, tmp_path: Path, **sections: object) -> Config:
    return tiny_config(data={"prepared": place, "stream": True, "cache": str(tmp_path / "cache")}, **sections)


def test_a_run_learns_and_measures_what_it_does_from_a_folder_here(
    server: DataServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(referee, "judge_steps", lambda num_images: 3)
    figures = {}
    for name, place in {"here": str(tmp_path / "prepared"), "there": server.address}.items():
        run = tmp_path / name
        run_stage_two(config_of(place, tmp_path), run)
        figures[name] = {
            **evaluate_run(run, 20, Comparison(split="test", features="lite0", blocks=1)),
            "judge": judge_run(run, 20, 0),
            "detection": detect(CDRLPipeline.from_pretrained(run), ["noise"], num_images=20).inside.tolist(),
            "neighbours": neighbours_picture(run, 2)[1],
        }
    assert metrics(tmp_path / "there") == metrics(tmp_path / "here")
    assert read_json(tmp_path / "there" / "data.json") == read_json(tmp_path / "here" / "data.json")
    for each in figures.values():
        for figure in ("fd_lite0_20_test", "precision_lite0_20_test", "recall_lite0_20_test"):
            del each[figure]["images_per_second"]  # type: ignore[attr-defined]
    assert figures["there"] == figures["here"]
    shards = {path: count for path, count in server.asked.items() if path.endswith(".tar")}
    assert len(shards) == 3  # of two splits; each came once, failures aside
    assert server.trouble["failed"] > 0


def test_both_stages_of_a_latent_run_read_elsewhere(server: DataServer, tmp_path: Path) -> None:
    stage_one = {
        "autoencoder": {
            "architecture": {"channels": 32, "multipliers": [1], "num_blocks": 1, "pixel_unshuffle": 2},
            "training": {"num_steps": 2, "batch_size": 8, "log_every": 1},
        },
        "space": "latent",
    }
    for name, place in {"here": str(tmp_path / "prepared"), "there": server.address}.items():
        config = config_of(place, tmp_path, **stage_one)
        run_stage_one(config, tmp_path / name)
        run_encoding(config, tmp_path / name)
        run_stage_two(config, tmp_path / name)
    for split in ("train", "test"):
        one, other = (tmp_path / name / "latents" / split / "index.json" for name in ("here", "there"))
        assert read_json(one)["shards"] == read_json(other)["shards"]
    assert metrics(tmp_path / "there") == metrics(tmp_path / "here")


def test_nothing_is_prepared_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.prepared=s3://sets/digits: shards are read there"):
        list(run_preparation(config_of("s3://sets/digits", tmp_path)))

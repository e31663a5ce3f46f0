"""The guidance sweep: its figures against second ways to compute them, its pictures, its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from cdrl.config import Config
from cdrl.runs.run import RunError
from pipelines import CDRLPipeline
from pipelines.evaluation.judge import ClassJudge, JudgeNetwork
from pipelines.evaluation.referee import Referee
from pipelines.studies.guidance_sweep import (
    guidance_sweep,
    mean_distance_within,
    parse_weights,
    run_guidance_sweep,
    summary,
)
from tests.helpers import save_tiny_run, tiny_config


def referee() -> Referee:
    torch.manual_seed(0)
    judge = ClassJudge(JudgeNetwork(1, 8, 11).eval().requires_grad_(False))
    return Referee(judge, torch.randn(200, 128), {"accuracy_real_test": 0.9, "fd_judge_train_test": 1.0})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_tiny_run(folder)
    return folder


def test_distance_within_classes_is_the_mean_over_pairs() -> None:
    images = torch.tensor([[0.0, 0.0], [3.0, 4.0], [9.0, 9.0], [0.0, 1.0]]).view(4, 1, 1, 2)
    # Class 0: distances 5, 1 and sqrt(9 + 9); the only image of class 1 has no partner.
    expected = (5 + 1 + 18**0.5) / 3
    assert mean_distance_within(images, torch.tensor([0, 0, 1, 0])) == pytest.approx(expected, rel=1e-5)


def test_a_summary_is_mean_and_sample_deviation() -> None:
    assert summary([1.0, 3.0]) == {"mean": 2.0, "std": pytest.approx(2**0.5), "blocks": [1.0, 3.0]}
    assert summary([1.5])["std"] == 0


def test_every_block_and_weight_is_judged_on_its_own_samples(run: Path) -> None:
    pipeline, judged = CDRLPipeline.from_pretrained(run), referee()
    sweep = guidance_sweep(pipeline, judged, [0.0, 2.0], 20, 2, 5, steps=1)
    assert [point["weight"] for point in sweep.points] == [0.0, 2.0]
    seeds = list(range(25, 45))
    labels = [seed % 10 for seed in seeds]
    images = pipeline(20, seeds=seeds, label=labels, guidance=2.0, steps=1).tensors
    expected = judged.figures("samples", images, torch.tensor(labels))
    for name, value in expected.items():
        assert sweep.points[1][name]["blocks"][1] == pytest.approx(value, rel=1e-3), name


def test_pictures_and_figures_are_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Referee, "of", lambda data: referee())
    folder, sweep = run_guidance_sweep(run, [0.0, 1.0, 4.0], 20, blocks=1, steps=0)
    assert Image.open(folder / "samples.png").size == (3 * 66 + 2, 10 * 66 + 2 + 20)
    assert Image.open(folder / "curves.png").width > 600
    kept = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    assert kept["points"] == sweep.points
    assert kept["sampling"]["steps"] == 0
    assert sweep.table().splitlines()[2].startswith("| 0 | ")


def test_runs_without_classes_are_refused(tmp_path: Path) -> None:
    config: Config = tiny_config(data={"labels": "none"})
    save_tiny_run(tmp_path, config=config)
    with pytest.raises(RunError, match=r"this run has data\.labels=none"):
        run_guidance_sweep(tmp_path, [0.0], 20, blocks=1)


def test_weights_are_numbers_in_growing_order() -> None:
    assert parse_weights("1,0,0.25") == [0, 0.25, 1]


@pytest.mark.parametrize("text", ["", "0,,1", "a", "-1,0", "1,1", "0,inf", "nan"])
def test_other_weights_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="weights: expected different numbers of 0 or more"):
        parse_weights(text)

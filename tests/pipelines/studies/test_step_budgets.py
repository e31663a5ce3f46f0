"""Budgets of steps: what they cost, how far they go, and that a row is what sampling gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cdrl.runs.run import RunError, read_json
from cdrl.sampling.noise import ImageNoise
from cdrl.sampling.settings import effective
from pipelines import CDRLPipeline
from pipelines.base import ImageSource
from pipelines.studies.step_budgets import budget_table, budgets, compare_budgets, gradients, ruler_of
from tests.helpers import save_tiny_run, tiny_config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_tiny_run(tmp_path, config=tiny_config(schedule={"num_levels": 6}, sampling={"steps": 7, "temperature": 0.5}))
    return tmp_path


def test_the_paper_spends_90_gradients_and_auto_29_and_denoising_one(run: Path) -> None:
    pipeline = CDRLPipeline.from_pretrained(run)
    table, own = budgets(pipeline), pipeline.drawing().settings
    costs = {name: gradients(plan, own) for name, plan in table.items()}
    assert (costs["15"], costs["8"], costs["5"], costs["3"]) == (91, 49, 31, 19)
    assert (costs["auto"], costs["the run's own"]) == (30, 43)
    assert gradients(replace(table["15"], denoise=0.0), own) == 90


@pytest.mark.parametrize("kernel", ["langevin", "mala", "hmc"])
@pytest.mark.parametrize(("steps", "denoise"), [(3, 2.0), ("auto", 0.0), (0, 1.0)])
def test_the_cost_is_how_often_the_energy_is_asked(run: Path, kernel: str, steps: int | str, denoise: float) -> None:
    pipeline = CDRLPipeline.from_pretrained(run)
    asked: list[int] = []
    changes = {"kernel": kernel, "steps": steps, "denoise": denoise, "leapfrog_steps": 4}
    pipeline.config = tiny_config(schedule={"num_levels": 6}, sampling=changes)

    def source(rows: slice) -> ImageSource:
        def log_density(y: Tensor, level: int) -> Tensor:
            asked.append(level)
            return -y.square().flatten(1).sum(dim=1)

        return ImageSource(ImageNoise([1]), lambda x_next, level: x_next, log_density)

    how = pipeline.drawing()
    pipeline.draw(1, source, how)
    assert gradients(how.plan, how.settings) == len(asked)


def test_fewer_steps_are_longer_ones(run: Path) -> None:
    """Steps of size s spread a chain by s^2 each: Table 2's go as far as 15, auto's as far as the run's own."""
    table = budgets(CDRLPipeline.from_pretrained(run))
    for name, reach in {"15": 15, "8": 15, "5": 15, "3": 15, "auto": 7, "the run's own": 7}.items():
        assert table[name].steps[0] * table[name].step_scale ** 2 == pytest.approx(reach)
    assert [table[name].temperature for name in ("15", "auto at temperature 1", "auto")] == [1.0, 1.0, 0.5]


def test_rows_are_distances_of_the_samples_of_their_settings(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ruler(images: Tensor, labels: Tensor) -> float:
        return float((images.mean(dim=(1, 2, 3)) * (1 + labels)).sum())

    monkeypatch.setattr(
        "pipelines.studies.step_budgets.ruler_of", lambda pipeline, run, num_images: ("fd_of_means", ruler)
    )
    rows = {row["steps"]: row for row in compare_budgets(run, 5, [0, 2], batch_size=2)}
    pipeline = CDRLPipeline.from_pretrained(run)
    for name, options in {
        "the run's own": {},
        "auto": {"steps": "auto"},
        "15": {"steps": 15, "temperature": 1.0},
    }.items():
        blocks = []
        for seeds in (range(5), range(10, 15)):
            classes = [seed % 10 for seed in seeds]
            images = pipeline(5, seeds=seeds, label=classes, **options).tensors  # type: ignore[arg-type]
            blocks.append(ruler(images, torch.tensor(classes)))
        assert rows[name]["fd_of_means"] == pytest.approx(sum(blocks) / 2, abs=1e-4)
        assert rows[name]["half_range"] == pytest.approx(abs(blocks[0] - blocks[1]) / 2, abs=1e-4)
    kept = read_json(run / "steps.json")
    assert [row["steps"] for row in kept["rows"]] == list(rows)
    assert kept["sampling"] == effective(pipeline.drawing().settings)
    assert rows["auto at temperature 1"]["settings"] == {
        "steps": (5, 5, 5, 5, 5, 4),
        "step_scale": pytest.approx((7 / 5) ** 0.5),
        "temperature": 1.0,
        "denoise": 2.0,
    }
    assert "| auto | 30 |" in budget_table(list(rows.values()))


def test_points_have_no_such_distance(tmp_path: Path) -> None:
    points = tiny_config(
        space="point", data={"name": "checkerboard", "labels": "none"}, energy={"spectral_norm": False}
    )
    save_tiny_run(tmp_path)
    pipeline = CDRLPipeline.from_pretrained(tmp_path)
    pipeline.config = points
    with pytest.raises(RunError, match="this is a run of 2-D points"):
        ruler_of(pipeline, tmp_path, 10)

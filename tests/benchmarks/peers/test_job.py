"""One job: what it writes, what it leaves alone, what it refuses before time is spent."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from benchmarks.peers import measures
from benchmarks.peers.door import Data, Method, app
from benchmarks.peers.job import METHODS, PEER_PACKAGE, RECORD, SHEET, Job, drawn, run_job, trainer_of
from benchmarks.peers.task import RECIPES, Sampler, Task
from cdrl.config import ConfigError
from cdrl.runs.run import read_json
from tests.benchmarks.peers.tasks import digits_task, tiny_recipe
from tests.helpers import ROOT


@pytest.fixture(autouse=True)
def quick_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "judge_steps", lambda num_images: 20)


def check(folder: Path, method: str) -> dict[str, Any]:
    record = read_json(folder / RECORD)
    assert (record["data"], record["method"], record["seed"], record["class_conditional"]) == (
        "digits",
        method,
        3,
        True,
    )
    training = record["training"]
    assert training["parameters"] > 0
    assert all(count > 0 for count in training["updates"])
    for figures in record["samples"].values():
        assert figures["cpu_milliseconds_an_image"] > 0
        assert {name for name in figures if name.startswith(("fd_", "recall_"))} == {
            "fd_judge_200_test",
            "fd_lite0_200_test",
            "recall_judge_200_test",
            "recall_lite0_200_test",
        }
    with Image.open(folder / SHEET) as sheet:
        assert sheet.width > 600
    assert sorted(path.name for path in folder.iterdir()) == [RECORD, SHEET]
    return record


def test_a_job_leaves_a_record_and_a_sheet_and_is_done_once(tmp_path: Path) -> None:
    recipe, out = tiny_recipe(tmp_path), tmp_path / "out"
    words = ["run", "--data", "digits", "--method", "cdrl", "--seed", "3", "--seconds", "1", "--images", "200"]
    words += ["--recipe", str(recipe), "--out", str(out)]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    folder = out / "digits_cdrl_seed3_1s"
    record = check(folder, "cdrl")
    assert record["training"]["cpu_seconds"] == pytest.approx(1, rel=0.1)
    assert {path.name for path in out.iterdir()} == {"judges", folder.name}
    before = (folder / RECORD).stat().st_mtime_ns
    again = CliRunner().invoke(app, words)
    assert again.output == f"{folder}: done already\n"
    assert (folder / RECORD).stat().st_mtime_ns == before
    for other, line in (
        ([*words, "training.ema=0.5"], "made with overrides [], now ['training.ema=0.5']; name another folder"),
        ([*words[:-4], "--out", str(out)], "made with recipe 'tiny', now 'digits_minute'; name another folder"),
    ):
        refused = CliRunner().invoke(app, other)
        assert refused.exit_code == 2
        assert f"error: {folder}: {line}" in refused.output


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_does_its_job(method: str, tmp_path: Path) -> None:
    pytest.importorskip(PEER_PACKAGE)
    job = Job("digits", method, seed=3, seconds=4, images=200, recipe=tiny_recipe(tmp_path))
    record = check(run_job(job, tmp_path), method)
    assert record["training"]["cpu_seconds"] == pytest.approx(4, rel=0.1)


def test_a_missing_package_is_told_in_one_line_before_the_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == PEER_PACKAGE]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("diffusion", "flow", "energy_matching", "unet"):
        monkeypatch.delitem(sys.modules, f"benchmarks.peers.{name}", raising=False)
    known = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == PEER_PACKAGE:
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
        return known(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    job = Job("digits", "ddpm", 0, 60, 200, recipe=tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match=r"^diffusers is not installed; install it, or this project's extra 'peers'$"):
        run_job(job, tmp_path)
    assert trainer_of("cdrl")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"data": {"labels": "none"}}, "expected space: pixel and data.labels: class"),
        ({"space": "latent", "autoencoder": {"architecture": {"channels": 32}}}, "expected space: pixel"),
    ],
)
def test_a_recipe_that_not_all_methods_can_learn_is_refused(
    recipe: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        Task.of(tiny_recipe(tmp_path, **recipe), (), 0)


def test_a_recipe_of_other_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a configuration for digits, but the job is for fashion_mnist"):
        Job("fashion_mnist", "cdrl", 0, 1, 200, recipe=tiny_recipe(tmp_path)).task()


def test_settings_of_a_recipe_may_be_changed(tmp_path: Path) -> None:
    task = Task.of(ROOT / "configs" / f"{RECIPES['digits']}.yaml", (), 5)
    assert (task.recipe.seed, task.num_classes, task.shape, task.recipe.data.path) == (5, 10, (1, 8, 8), None)
    job = Job("digits", "cdrl", 0, 1, 200, tiny_recipe(tmp_path), (f"data.path={tmp_path}", "energy.channels=6"))
    recipe = job.task().recipe
    assert (recipe.data.path, recipe.energy.channels) == (tmp_path, 6)
    with pytest.raises(ConfigError, match="unknown key"):
        Task.of(tiny_recipe(tmp_path), ("energy.colour=6",), 0)


def test_samples_are_drawn_in_batches_under_seeds_that_do_not_meet() -> None:
    seen: list[tuple[int, int]] = []

    def draw(label: torch.Tensor, seed: int) -> torch.Tensor:
        seen.append((len(label), seed))
        return torch.full((len(label), 1, 2, 2), 1.5)

    images, seconds = drawn(Sampler(draw), torch.zeros(250, dtype=torch.int64), 2)
    assert seen == [(100, 2_000_000), (100, 2_000_100), (50, 2_000_200)]
    assert images.shape == (250, 1, 2, 2)
    assert bool((images == 255).all())
    assert 0 <= seconds < 5


def test_all_methods_have_the_same_batches_of_a_seed() -> None:
    task = digits_task()
    first, again = task.batches(8).batch(3), task.batches(8).batch(3)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_the_program_offers_all_methods_and_data_sets() -> None:
    assert list(Method) == list(METHODS)
    assert list(Data) == list(RECIPES)

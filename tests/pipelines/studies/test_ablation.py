"""Comparisons: equal budgets, figures as a second way computes them, nothing done twice, failures told."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cdrl.config import ConfigError
from cdrl.config_files import load_config
from cdrl.data import inside_squares
from cdrl.runs.checksums import write_checksums
from cdrl.runs.run import RunError, write_json
from cdrl.training.monitor import DivergenceError
from pipelines import CDRLPipeline
from pipelines.evaluation.judge import train_class_judge
from pipelines.evaluation.referee import Referee, judge_run, run_figures
from pipelines.jobs.training import run_stage_two
from pipelines.studies.ablation import Entry, compare, comparison, markdown, parse_seeds, planned
from tests.helpers import save_tiny_run, tiny_config, tiny_values, write_config

POINTS: dict[str, Any] = {"space": "point", "data": {"name": "checkerboard", "labels": "none"}}


def configs(folder: Path, **values: dict[str, Any]) -> list[Path]:
    """A config file for each name; its sections differ from the tiny ones as said."""
    return [write_config(folder / f"{name}.yaml", tiny_values(**sections)) for name, sections in values.items()]


def test_budgets_are_equal_whatever_the_batch(tmp_path: Path) -> None:
    paths = configs(tmp_path, a={}, b={"training": {"batch_size": 12}}, c={"training": {"batch_size": 16}})
    for images, expected in ((None, 48), (96, 96)):
        entries = planned(paths, tmp_path / "runs", [0, 5], images)
        budgets = {e.config.training.num_steps * e.config.training.batch_size for e in entries}
        assert budgets == {expected}
    assert [(e.name, e.seed) for e in entries] == [(name, seed) for seed in (0, 5) for name in "abc"]
    assert all(e.config.seed == e.seed and e.folder == tmp_path / "runs" / e.name / f"seed_{e.seed}" for e in entries)
    # Nothing else is changed.
    changed = load_config(paths[1], ["training.num_steps=8", "seed=5"])
    assert entries[4].config == changed


def test_a_budget_that_no_batches_make_up_is_refused_with_one_that_they_do(tmp_path: Path) -> None:
    paths = configs(tmp_path, a={}, b={"training": {"batch_size": 12}})
    with pytest.raises(ConfigError, match="images: 100 are no whole number of batches in every configuration; try 96"):
        planned(paths, tmp_path, [0], 100)
    assert len(planned(paths, tmp_path, [0], 96)) == 2
    with pytest.raises(ConfigError, match="try 24"):
        planned(paths, tmp_path, [0], 1)


def test_two_configurations_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    paths = [*configs(tmp_path, a={}), *configs(tmp_path / "other", a={})]
    with pytest.raises(ConfigError, match="two are called a"):
        compare(paths, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_seeds_are_whole_numbers_and_different() -> None:
    assert parse_seeds("0,1, 7") == [0, 1, 7]
    for text in ("a", "0,", "0,0", "-1", "1.5", ""):
        with pytest.raises(ConfigError, match=f"seeds: .* found '{text}'"):
            parse_seeds(text)


def finished(folder: Path, **figures: float) -> None:
    write_json(folder / "figures.json", {"num_samples": 50, "images": 960, **figures})


@pytest.fixture
def entries(tmp_path: Path) -> list[Entry]:
    """Three configurations of three seeds: one whole, one without an initializer, one that fails and is not done."""
    cost = {"wall_seconds": 10.0, "cpu_seconds": 2000.0}
    for seed, accuracy, distance in ((0, 0.5, 10.0), (1, 0.9, 40.0), (2, 0.55, 10.0)):
        figures = {"accuracy_samples": accuracy, "fd_judge_initializer_test": distance}
        finished(tmp_path / "whole" / f"seed_{seed}", **figures, **cost)
        finished(tmp_path / "bare" / f"seed_{seed}", accuracy_samples=0.25, **cost)
    finished(tmp_path / "wild" / "seed_1", accuracy_samples=0.75, **cost)
    config = tiny_config(training={"num_steps": 120})
    names = ("whole", "bare", "wild")
    return [Entry(n, seed, config, tmp_path / n / f"seed_{seed}") for seed in (0, 1, 2) for n in names]


def test_rows_are_means_and_half_ranges_over_seeds(entries: list[Entry]) -> None:
    failures = {entries[2].folder: "DivergenceError: not | finite"}
    whole, bare, wild = comparison(entries, 50, failures)
    assert whole["mean"] == {
        "accuracy_samples": pytest.approx(0.65),
        "fd_judge_initializer_test": 20.0,
        "wall_seconds": 10.0,
        "cpu_seconds": 2000.0,
    }
    assert whole["spread"]["accuracy_samples"] == pytest.approx(0.2)
    assert whole["spread"]["fd_judge_initializer_test"] == 15.0
    assert whole["by_seed"]["1"]["accuracy_samples"] == 0.9
    assert bare["mean"]["fd_judge_initializer_test"] is None
    assert bare["spread"]["fd_judge_initializer_test"] is None
    assert wild["mean"]["accuracy_samples"] == 0.75
    assert wild["spread"]["accuracy_samples"] is None
    assert wild["remarks"] == ["seed 0: DivergenceError: not | finite", "seed 2: not finished"]
    assert whole["remarks"] == bare["remarks"] == []


def test_the_table_says_all_of_it(entries: list[Entry]) -> None:
    rows = comparison(entries, 50, {entries[2].folder: "DivergenceError: not | finite"})
    assert markdown(rows, images=960, num_samples=50, seeds=[0, 1, 2]) == (
        "960 training images a run, mean ± half of the range over seeds 0, 1, 2. Figures of 50 samples; seconds of "
        "training, on one thread a run.\n"
        "\n"
        "| config | class right | fd_judge_test, initializer alone | wall seconds | CPU seconds | remarks |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| whole | 0.650 ± 0.200 | 20.00 ± 15.00 | 10 ± 0 | 2,000 ± 0 |  |\n"
        "| bare | 0.250 ± 0.000 | – | 10 ± 0 | 2,000 ± 0 |  |\n"
        "| wild | 0.750 | – | 10 | 2,000 | seed 0: DivergenceError: not \\| finite; seed 2: not finished |\n"
    )


def test_figures_of_another_number_of_samples_do_not_count(entries: list[Entry]) -> None:
    assert all(len(row["remarks"]) == 3 and not row["by_seed"] for row in comparison(entries, 60, {}))


def one_by_one(
    job: Callable[..., None], arguments: Sequence[tuple[Any, ...]], processes: int
) -> Iterator[tuple[int, str | None]]:
    """What `side_by_side` promises, in this process."""
    for index, given in enumerate(arguments):
        try:
            job(*given)
        except DivergenceError as error:
            yield index, f"DivergenceError: {error}"
        else:
            yield index, None


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """Comparisons in this process under a judge of few steps; what was trained is noted."""
    done: dict[str, list[Any]] = {"runs": [], "judges": []}

    def train_run(config: Any, folder: Path) -> None:
        done["runs"].append(folder.relative_to(folder.parent.parent).as_posix())
        if folder.parent.name == "wild":
            raise DivergenceError("not finite")
        run_stage_two(config, folder)

    def train_judge(*arguments: Any, **options: Any) -> Any:
        done["judges"].append(len(arguments[0]))
        return train_class_judge(*arguments, **options)

    monkeypatch.setattr("pipelines.evaluation.referee.judge_steps", lambda num_images: 3)
    monkeypatch.setattr("pipelines.studies.ablation.side_by_side", one_by_one)
    monkeypatch.setattr("pipelines.studies.ablation.run_stage_two", train_run)
    monkeypatch.setattr("pipelines.evaluation.referee.train_class_judge", train_judge)
    return done


def test_a_comparison_trains_judges_and_goes_on(tmp_path: Path, jobs: dict[str, list[Any]]) -> None:
    paths = configs(tmp_path, whole={}, wild={}, bare={"initializer": None})
    runs = tmp_path / "runs"
    table = compare(paths, runs, images=24, num_samples=20)
    assert jobs == {"runs": ["whole/seed_0", "wild/seed_0", "bare/seed_0"], "judges": [1297]}
    assert (runs / "comparison.md").read_text() == table
    assert "| wild | – | – | – | – | – | – | seed 0: DivergenceError: not finite |" in table
    told = json.loads((runs / "comparison.json").read_text())
    assert (told["images"], told["num_samples"], told["spread"]) == (24, 20, "half of the range over seeds")
    whole, _, bare = told["configs"]
    assert bare["mean"]["fd_judge_initializer_test"] is None
    # A judge trained anew for the run alone comes to the same.
    judged = judge_run(runs / "whole" / "seed_0", 20, 0)
    assert {name: whole["by_seed"]["0"][name] for name in judged} == pytest.approx(judged, rel=1e-4)
    cost = json.loads((runs / "whole" / "seed_0" / "model" / "config.json").read_text())
    assert whole["mean"]["cpu_seconds"] == cost["cpu_seconds"] > 0
    assert cost["images"] == 24

    # Again: only what failed is tried again; with other samples, runs are judged again and not trained again.
    jobs["runs"].clear()
    assert compare(paths, runs, images=24, num_samples=20) == table
    compare(paths[::2], runs, images=24, num_samples=25)
    assert jobs == {"runs": ["wild/seed_0"], "judges": [1297, 1297]}  # the second is that of judge_run

    with pytest.raises(RunError, match=r"whole/seed_0: holds a run with other settings \(training\.num_steps is 3"):
        compare(paths, runs, images=48)


def test_the_table_grows_with_each_finished_run(
    tmp_path: Path, jobs: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def looking(*arguments: Any, **options: Any) -> Iterator[tuple[int, str | None]]:
        for ended in one_by_one(*arguments, **options):
            yield ended
            told = json.loads((tmp_path / "runs" / "comparison.json").read_text())
            seen.append([sorted(row["by_seed"]) for row in told["configs"]])

    monkeypatch.setattr("pipelines.studies.ablation.side_by_side", looking)
    compare(configs(tmp_path, a=POINTS, b=POINTS), tmp_path / "runs", images=8, num_samples=20)
    assert seen == [[["0"], []], [["0"], ["0"]]]


def test_an_interrupted_run_goes_on_from_its_checkpoint(tmp_path: Path, jobs: dict[str, list[Any]]) -> None:
    """A run cut at step 3 of 6, whose cost so far is then that of both parts."""
    (path,) = configs(tmp_path, a=POINTS)
    (entry,) = planned([path], tmp_path / "runs", [0], None)
    run_stage_two(entry.config, entry.folder)
    (entry.folder / "checkpoints" / "step_00000006").rename(tmp_path / "later")
    state = entry.folder / "checkpoints" / "step_00000003" / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "wall_seconds": 700.0, "cpu_seconds": 600.0}))
    model = entry.folder / "model" / "config.json"
    model.write_text(json.dumps({**json.loads(model.read_text()), "step": 3}))
    for folder in (state.parent, model.parent):
        write_checksums(folder)
    compare([path], tmp_path / "runs", num_samples=20)
    (row,) = json.loads((tmp_path / "runs" / "comparison.json").read_text())["configs"]
    assert 700 < row["mean"]["wall_seconds"] < 800
    assert 600 < row["mean"]["cpu_seconds"] < 700
    samples = CDRLPipeline.from_pretrained(entry.folder)(20).grids
    assert row["mean"]["inside_samples"] == pytest.approx(inside_squares(samples).float().mean().item())


def test_a_kept_judge_is_the_one_that_was_trained(tmp_path: Path, jobs: dict[str, list[Any]]) -> None:
    data = tiny_config().data
    trained, kept, again = Referee.of(data), Referee.of(data, tmp_path), Referee.of(data, tmp_path)
    assert jobs["judges"] == [1297, 1297]
    assert trained.real == kept.real == again.real
    assert (trained.held_out - again.held_out).abs().max() == 0
    # Other data have a judge of their own, and a damaged file is named.
    Referee.of(data.model_copy(update={"image_size": 10}), tmp_path)
    assert len(jobs["judges"]) == 3
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"junk")
    with pytest.raises(RunError, match=r"digits_\w+\.safetensors: not a whole safetensors file"):
        Referee.of(data, tmp_path)


def test_images_without_classes_have_a_distance_of_lite0(tmp_path: Path) -> None:
    save_tiny_run(tmp_path, config=tiny_config(data={"labels": "none"}, initializer=None))
    figures = run_figures(tmp_path, 12, 0, tmp_path / "judges")
    assert list(figures) == ["fd_lite0_samples_test"]
    assert figures["fd_lite0_samples_test"] > 1
    assert not (tmp_path / "judges").exists()

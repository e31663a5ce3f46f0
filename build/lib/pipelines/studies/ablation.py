"""Comparison of configurations trained with the same budget over several seeds and evaluated alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from cdrl.config import Config, ConfigError
from cdrl.config_files import load_config
from cdrl.runs.lock import locked
from cdrl.runs.progress import progress_bar
from cdrl.runs.run import Run, read_json, write_json
from cdrl.runs.whole import written_whole
from cdrl.training.loop import trained_steps
from cdrl.training.processes import side_by_side
from pipelines.evaluation.referee import run_figures
from pipelines.jobs.training import run_stage_two

SPREAD = "half of the range over seeds"
COLUMNS = {
    "accuracy_samples": ("class right", 3),
    "accepted_samples": ("accepted", 3),
    "fd_judge_samples_test": ("fd_judge_test", 2),
    "fd_judge_initializer_test": ("fd_judge_test, initializer alone", 2),
    "fd_lite0_samples_test": ("fd_lite0_test", 1),
    "fd_lite0_initializer_test": ("fd_lite0_test, initializer alone", 1),
    "inside_samples": ("inside the squares", 3),
    "inside_initializer": ("inside the squares, initializer alone", 3),
    "wall_seconds": ("wall seconds", 0),
    "cpu_seconds": ("CPU seconds", 0),
}
"""Figures that the table shows, where there are any: heading and decimals."""
_FIGURES = "figures.json"
_JUDGES = "judges"


@dataclass(frozen=True)
class Entry:
    """One run of a comparison: its configuration with seed and number of steps, and its folder."""

    name: str
    seed: int
    config: Config
    folder: Path


def compare(
    configs: Sequence[Path],
    runs: Path,
    *,
    seeds: Sequence[int] = (0,),
    images: int | None = None,
    num_samples: int = 300,
    processes: int = 1,
) -> str:
    """Train and evaluate configurations; returns the table, also written to ``runs`` as comparison.md and JSON.

    Each run lies in ``runs``/NAME/seed_S. One that is finished and judged is left alone, one that was interrupted goes
    on from its last checkpoint. One that fails becomes a line of the table, and is tried again by the next call.

    Args:
        images: training images of every run; by default as many as the first configuration trains on.
        num_samples: samples a run that are judged, the same seeds for all.
        processes: runs at a time, each in a process of its own with one thread.

    Raises:
        ConfigError: a configuration cannot be used, two have the same name, or the images are no whole number of
            batches; nothing has been trained then.
        RunError: a folder holds a run of other settings, or another command writes there; nothing has been trained
            then.
        Interrupted: the runs have been asked to stop and have stopped in order.
    """
    entries = planned(configs, runs, seeds, images)
    with locked(runs):
        return _compare(entries, runs, num_samples, processes)


def _compare(entries: Sequence[Entry], runs: Path, num_samples: int, processes: int) -> str:
    for entry in entries:
        with locked(entry.folder):
            Run(entry.folder).open(entry.config, exactly=True)
    waiting = [entry for entry in entries if _figures(entry, num_samples) is None]
    failures: dict[Path, str] = {}
    bar = progress_bar(len(entries), "compare", initial=len(entries) - len(waiting), unit="run")
    jobs = [(entry, num_samples, runs / _JUDGES) for entry in waiting]
    table = write_comparison(runs, entries, num_samples, failures)
    with closing(bar):
        for index, failure in side_by_side(train_and_judge, jobs, processes):
            if failure is not None:
                failures[waiting[index].folder] = failure
            table = write_comparison(runs, entries, num_samples, failures)
            bar.update()
    return table


def parse_seeds(text: str) -> list[int]:
    """Parse seeds such as ``0,1,2``.

    Raises:
        ConfigError: they are no whole numbers, or one comes twice.
    """
    seeds = [int(part) if part.strip().isdecimal() else -1 for part in text.split(",")]
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds: expected different whole numbers such as 0,1,2, found '{text}'")
    return seeds


def planned(configs: Sequence[Path], runs: Path, seeds: Sequence[int], images: int | None) -> list[Entry]:
    """Runs of a comparison, seed by seed, each with the same number of training images."""
    names = [path.stem for path in configs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"configs: two are called {name}; every one needs a name of its own")
    loaded = [load_config(path) for path in configs]
    first = loaded[0].training
    budget = first.num_steps * first.batch_size if images is None else images
    common = math.lcm(*(config.training.batch_size for config in loaded))
    if not budget or budget % common:
        nearest = max(1, round(budget / common)) * common
        raise ConfigError(f"images: {budget} are no whole number of batches in every configuration; try {nearest}")

    def cut(config: Config, seed: int) -> Config:
        training = config.training.model_copy(update={"num_steps": budget // config.training.batch_size})
        return config.model_copy(update={"seed": seed, "training": training})

    return [
        Entry(name, seed, cut(config, seed), runs / name / f"seed_{seed}")
        for seed in seeds
        for name, config in zip(names, loaded, strict=True)
    ]


def train_and_judge(entry: Entry, num_samples: int, judges: Path) -> None:
    """Train one run to its end, evaluate it, and write its settings, cost and figures to figures.json."""
    model = Run(entry.folder).model
    if trained_steps(model) != entry.config.training.num_steps:
        run_stage_two(entry.config, entry.folder)
    cost = read_json(model / "config.json")
    figures = run_figures(entry.folder, num_samples, 0, judges)
    cost = {name: cost.get(name) for name in ("images", "wall_seconds", "cpu_seconds")}
    write_json(entry.folder / _FIGURES, {"num_samples": num_samples, **cost, **figures})


def write_comparison(runs: Path, entries: Sequence[Entry], num_samples: int, failures: Mapping[Path, str]) -> str:
    """Write comparison.json and comparison.md of the runs finished so far; returns the latter."""
    rows = comparison(entries, num_samples, failures)
    seeds = sorted({entry.seed for entry in entries})
    images = entries[0].config.training.num_steps * entries[0].config.training.batch_size
    facts = {"images": images, "num_samples": num_samples, "seeds": seeds, "spread": SPREAD}
    write_json(runs / "comparison.json", {**facts, "configs": rows})
    table = markdown(rows, images=images, num_samples=num_samples, seeds=seeds)
    with written_whole(runs / "comparison.md") as partial:
        partial.write_text(table, encoding="utf-8")
    return table


def comparison(entries: Sequence[Entry], num_samples: int, failures: Mapping[Path, str]) -> list[dict[str, Any]]:
    """One row per configuration: figures ``by_seed``, their ``mean`` and ``spread``, ``remarks`` on what is missing.

    A figure that a run does not have, such as that of an initializer, is None.
    """
    figures = {entry.folder: _figures(entry, num_samples) for entry in entries}
    columns = [name for name in COLUMNS if any(name in (found or ()) for found in figures.values())]
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(entry.name for entry in entries):
        ours = [entry for entry in entries if entry.name == name]
        finished = {entry.seed: found for entry in ours if (found := figures[entry.folder])}
        values = {
            column: [found[column] for found in finished.values() if found.get(column) is not None]
            for column in columns
        }
        remarks = [
            f"seed {entry.seed}: {failures.get(entry.folder, 'not finished')}"
            for entry in ours
            if entry.seed not in finished
        ]
        rows.append(
            {
                "name": name,
                "mean": {column: fmean(numbers) if numbers else None for column, numbers in values.items()},
                "spread": {column: _half_range(numbers) for column, numbers in values.items()},
                "by_seed": {str(seed): found for seed, found in finished.items()},
                "remarks": remarks,
            }
        )
    return rows


def markdown(rows: Sequence[Mapping[str, Any]], *, images: int, num_samples: int, seeds: Sequence[int]) -> str:
    """Format the comparison as a Markdown table."""
    columns = list(rows[0]["mean"])
    heading = ["config", *(COLUMNS[column][0] for column in columns)]
    body = [[row["name"], *(_cell(row, column) for column in columns)] for row in rows]
    if any(row["remarks"] for row in rows):
        heading.append("remarks")
        for line, row in zip(body, rows, strict=True):
            line.append("; ".join(row["remarks"]).replace("|", "\\|"))
    spread = f", mean ± {SPREAD} {', '.join(map(str, seeds))}" if len(seeds) > 1 else f", seed {seeds[0]}"
    lines = [
        f"{images:,} training images a run{spread}. Figures of {num_samples} samples; seconds of training, on one "
        "thread a run.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in [heading, ["---"] * len(heading), *body]),
    ]
    judged = [figures for row in rows for figures in row["by_seed"].values() if "fd_judge_train_test" in figures]
    real = {
        "Held-out images: class right {accuracy_real_test:.3f}, accepted {accepted_real_test:.3f}; fd_judge_test of "
        "training images {fd_judge_train_test:.2f}.".format(**figures)
        for figures in judged
    }
    if len(real) == 1:
        lines += ["", *real]
    return "\n".join(lines) + "\n"


def _figures(entry: Entry, num_samples: int) -> dict[str, Any] | None:
    """What a finished run's figures.json tells, if it is of so many samples."""
    path = entry.folder / _FIGURES
    figures = read_json(path) if path.exists() else {}
    return figures if figures.get("num_samples") == num_samples else None


def _half_range(numbers: Sequence[float]) -> float | None:
    return (max(numbers) - min(numbers)) / 2 if len(numbers) > 1 else None


def _cell(row: Mapping[str, Any], column: str) -> str:
    mean, spread, decimals = row["mean"][column], row["spread"][column], COLUMNS[column][1]
    if mean is None:
        return "–"
    return f"{mean:,.{decimals}f}" if spread is None else f"{mean:,.{decimals}f} ± {spread:,.{decimals}f}"

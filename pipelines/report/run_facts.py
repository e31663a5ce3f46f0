"""Contents of a run folder for the report, as far as present: settings, curves, figures, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from cdrl.names import counted
from cdrl.runs.run import DATA_FACTS, RunError, read_json, read_yaml
from pipelines.evaluation.evaluate import value_in_words

Points = list[tuple[float, float]]
"""Steps and values."""
Curve = dict[str, Points]
"""Lines by name: one a level, or a single one without a name."""

HEALTHY_GAP = 0.04
"""Energy gaps that stay within it on average are a sign of health."""
_LINES_TO_JUDGE = 5
"""Lines of the log whose mean gap says something; a single one is noise."""
_NOT_CURVES = ("step", "images")
_SETTINGS = ("num_images", "num_samples", "seed", "fresh", "level", "sampling")
"""What figures were asked under, which stands among them in the JSON files."""


@dataclass(frozen=True)
class Facts:
    """Contents of a run folder; what is missing is empty.

    Attributes:
        name: the folder's name, longer where two runs share it.
        model: config.json of the model; empty without one.
        stage_one: autoencoder.json of the run's own first stage; empty without one.
        config: the run's resolved configuration; empty if not recorded.
        curves: by name, in the order of the log.
        figures: by name, formatted as text.
        grids: sample grids by step.
        best: step and figure of the best model during training, as text; empty if none was measured.
    """

    folder: Path
    name: str
    model: dict[str, Any]
    stage_one: dict[str, Any]
    config: dict[str, Any]
    curves: dict[str, Curve]
    figures: dict[str, str]
    grids: dict[int, Path]
    best: str


def read_facts(run: Path, name: str) -> Facts:
    """Read the files of a run.

    Raises:
        RunError: there is no run, or a file of it is damaged.
    """
    config_file, model_file = run / "config.yaml", run / "model" / "config.json"
    if not config_file.exists() and not model_file.exists():
        raise RunError(f"{run}: no run there: it has neither config.yaml nor model/")
    model = read_json(model_file) if model_file.exists() else {}
    stage_one_file = run / "autoencoder" / "model" / "autoencoder.json"
    return Facts(
        folder=run,
        name=name,
        model=model,
        stage_one=read_json(stage_one_file) if stage_one_file.exists() else {},
        config=read_yaml(config_file) if config_file.exists() else model.get("config", {}),
        curves=read_curves(run / "metrics.jsonl"),
        figures=read_figures(run),
        grids={int(path.stem.removeprefix("step_")): path for path in sorted(run.glob("samples/step_*.png"))},
        best=_best(run),
    )


def newest_picture(facts: Facts) -> Path | None:
    """Samples that a command has drawn of the finished model; else those of training's last look."""
    drawn = [facts.folder / place for place in ("samples.png", "stages/samples.png", "generated/grid.png")]
    return next((path for path in drawn if path.exists()), facts.grids[max(facts.grids)] if facts.grids else None)


def read_curves(log: Path) -> dict[str, Curve]:
    """Read the curves of metrics.jsonl by name, one per level where a value has levels."""
    curves: dict[str, Curve] = {}
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue  # cut short by a crash
        for name, value in values.items():
            if name in _NOT_CURVES:
                continue
            levels = (
                {f"level {i}": number for i, number in enumerate(value)} if isinstance(value, list) else {"": value}
            )
            for level, number in levels.items():
                curves.setdefault(name, {}).setdefault(level, []).append((values["step"], number))
    return curves


def gaps_in_words(log: Path) -> str:
    """The energy gaps of each level, averaged over the last fifth of metrics.jsonl, and what is healthy; or nothing.

    Where a level's is not, a second line says which and what helps.
    """
    levels = [points[-max(1, len(points) // 5) :] for points in read_curves(log).get("energy_gap", {}).values()]
    known = [[value for _, value in points if isfinite(value)] for points in levels]
    means = [round(fmean(values), 3) if values else None for values in known]
    if not any(known):
        return ""
    told = ", ".join("none" if mean is None else f"{mean:+.3f}" for mean in means)
    line = f"energy gaps by level, over the last fifth of the log: {told} (healthy: within {HEALTHY_GAP:g} of 0)"
    if (lines := max(map(len, known))) < _LINES_TO_JUDGE:
        return f"{line}; from {counted(lines, 'line')}, too few to judge by"
    outside = [str(level) for level, mean in enumerate(means) if mean is not None and abs(mean) > HEALTHY_GAP]
    if not outside:
        return line
    which = f"level {outside[0]} is" if len(outside) == 1 else f"levels {', '.join(outside)} are"
    return (
        f"{line}\n{which} not there yet: more updates (a larger training.num_steps) usually help; where a gap keeps "
        "its sign and grows, a smaller training.energy_lr in a new run"
    )


def read_figures(run: Path) -> dict[str, str]:
    """Read the figures of the run's JSON files, and its outputs', by name; evaluation.json's with their spread."""
    figures: dict[str, str] = {}
    for path in sorted(run.glob("*.json")):
        if path.name == DATA_FACTS:
            continue
        values = read_json(path)
        if path.name == "evaluation.json":
            figures |= {name: value_in_words(figure) for name, figure in values.items()}
        else:
            figures |= {f"{path.stem}: {name}": f"{number:.4g}" for name, number in _numbers(values)}
    for path in sorted(run.glob("*/figures.json")):
        figures |= {f"{path.parent.name}: {name}": f"{number:.4g}" for name, number in _numbers(read_json(path))}
    return figures


def _numbers(values: Mapping[str, Any], above: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if name in _SETTINGS:
            continue
        if isinstance(value, dict):
            found += _numbers(value, f"{above}{name} / ")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((above + name, value))
    return found


def _best(run: Path) -> str:
    path = run / "best" / "config.json"
    if not path.exists():
        return ""
    description = read_json(path)
    measured = description["evaluation"]
    return f"step {description['step']}: {measured['name']} {measured['value']:.5g}"

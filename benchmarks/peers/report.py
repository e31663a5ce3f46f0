"""The jobs of a folder in one: a table, JSON beside it, curves of distance against compute, sheets of samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.peers.budget import MOST_ERROR
from benchmarks.peers.job import METHODS, RECORD, SHEET
from benchmarks.peers.task import RECIPES
from cdrl.runs.run import RunError, read_json, write_json
from cdrl.runs.whole import written_whole
from cdrl.training.interruption import save_picture
from pipelines.decoding import figure_picture, plt

RESULTS, TABLE, CURVES = "peers.json", "peers.md", "peers_curves.png"
_TITLES = {"digits": "digits, 8×8", "fashion_mnist": "Fashion-MNIST, 32×32", "cifar10": "CIFAR-10, 32×32"}
_FIGURES = {
    "fd_judge": ("fd_judge", 2),
    "fd_lite0": ("fd_lite0", 1),
    "accuracy": ("class right", 3),
    "recall_judge": ("recall", 3),
    "precision_judge": ("precision", 3),
}
"""Figures of a table by the beginning of their name: heading and decimals."""


@dataclass(frozen=True)
class Row:
    """The runs of one method with one sampler under one budget, one a seed.

    Attributes:
        title: the method, as tables call it.
        sampler: how samples were drawn.
        runs: the records of the seeds.
    """

    data: str
    method: str
    title: str
    sampler: str
    budget: float
    runs: tuple[Mapping[str, Any], ...]

    def values(self, read: Callable[[Mapping[str, Any], Mapping[str, Any]], float]) -> list[float]:
        """One value a seed, read from its training and its samples."""
        return [read(run["training"], run["samples"][self.sampler]) for run in self.runs]

    def mean(self, figure: str) -> float:
        """Mean over seeds of the figure whose name begins so."""
        return fmean(self.figures(figure))

    def figures(self, figure: str) -> list[float]:
        """The figure whose name begins so, one a seed."""
        return self.values(lambda training, samples: _beginning(samples, figure))


def _beginning(values: Mapping[str, Any], start: str) -> float:
    return next(float(value) for name, value in values.items() if name.startswith(start))


def read_records(folder: Path) -> list[dict[str, Any]]:
    """The records of all jobs in a folder.

    Raises:
        RunError: there are none, one is damaged, or jobs on one data set had another recipe or number of images.
    """
    records = [read_json(path) for path in sorted(folder.glob(f"*/{RECORD}"))]
    if not records:
        raise RunError(f"{folder}: no job has been done there: python -m benchmarks.peers run … --out {folder}")
    for data in {record["data"] for record in records}:
        for name in ("images", "recipe", "overrides"):
            found = sorted({str(record.get(name)) for record in records if record["data"] == data})
            if len(found) > 1:
                raise RunError(f"{folder}: jobs on {data} differ in {name}, {' and '.join(found)}: they do not compare")
    return records


def rows_of(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row for each method, sampler and budget."""
    groups: dict[tuple[str, str, str, float], list[Mapping[str, Any]]] = {}
    for record in records:
        for sampler in record["samples"]:
            key = (record["data"], record["method"], sampler, record["budget_seconds"])
            groups.setdefault(key, []).append(record)
    return [
        Row(data, method, METHODS[method][0], sampler, budget, tuple(runs))
        for (data, method, sampler, budget), runs in groups.items()
    ]


def markdown(records: Sequence[Mapping[str, Any]]) -> str:
    """For each data set a table of the largest budget, and one of all budgets."""
    rows, parts = rows_of(records), []
    for data in [name for name in RECIPES if any(row.data == name for row in rows)]:
        own = [row for row in rows if row.data == data]
        most = max(row.budget for row in own)
        whole = sorted((row for row in own if row.budget == most), key=lambda row: row.mean("fd_judge"))
        real = next(record["train_images"] for record in records if record["data"] == data)
        images = whole[0].runs[0]["images"]
        seeds = max(len(row.runs) for row in whole)
        parts.append(
            f"**{_TITLES[data]}**, {most:g} CPU seconds, {images} samples, "
            + ("one seed" if seeds == 1 else f"{seeds} seeds, mean ± half the range")
        )
        parts.append("\n".join([*_whole_table(whole), _real_line(real)]))
        if len({row.budget for row in own}) > 1:
            parts.append("\n".join(_budget_table(own, whole)))
    return "\n\n".join(parts) + "\n"


def _whole_table(rows: Sequence[Row]) -> list[str]:
    headings = [
        "",
        "sampler",
        *(heading for heading, _ in _FIGURES.values()),
        "evaluations (gradients)",
        "CPU ms an image",
        "MiB",
        "parameters",
        "updates",
        "CPU s trained",
    ]
    lines = [f"| {' | '.join(headings)} |", "|" + "---|" * len(headings)]
    for row in rows:
        samples, training = row.runs[0]["samples"][row.sampler], row.runs[0]["training"]
        cells = [
            row.title,
            row.sampler,
            *(_spread(row.figures(name), decimals) for name, (_, decimals) in _FIGURES.items()),
            f"{samples['forwards'] + samples['gradients']} ({samples['gradients']})",
            f"{fmean(row.values(lambda training, samples: samples['cpu_milliseconds_an_image'])):.3g}",
            f"{fmean(row.values(lambda training, samples: training['memory_mebibytes'])):.0f}",
            f"{training['parameters'] / 1e6:.2f} M",
            " + ".join(f"{count:,}" for count in training["updates"]),
            _trained(row),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _real_line(real: Mapping[str, float]) -> str:
    cells = [f"{_beginning(real, name):.{decimals}f}" for name, (_, decimals) in _FIGURES.items()]
    return f"| training images | – | {' | '.join(cells)} | | | | | | |"


def _trained(row: Row) -> str:
    """CPU seconds of training; what misses the budget is marked."""
    seconds = row.values(lambda training, samples: training["cpu_seconds"])
    missed = any(abs(each - row.budget) > MOST_ERROR * row.budget for each in seconds)
    return f"{fmean(seconds):.0f}" + (" (!)" if missed else "")


def _budget_table(rows: Sequence[Row], order: Sequence[Row]) -> list[str]:
    """fd_judge of every row of ``order`` under all budgets."""
    budgets = sorted({row.budget for row in rows})
    lines = [
        "| fd_judge after | sampler | " + " | ".join(f"{budget:g} s" for budget in budgets) + " |",
        "|" + "---|" * (len(budgets) + 2),
    ]
    for wanted in order:
        found = {row.budget: row for row in rows if (row.method, row.sampler) == (wanted.method, wanted.sampler)}
        cells = [_spread(found[budget].figures("fd_judge"), 2) if budget in found else "" for budget in budgets]
        lines.append(f"| {wanted.title} | {wanted.sampler} | {' | '.join(cells)} |")
    return lines


def _spread(values: Sequence[float], decimals: int) -> str:
    mean = f"{fmean(values):.{decimals}f}"
    return mean if len(values) == 1 else f"{mean} ± {(max(values) - min(values)) / 2:.{decimals}f}"


def curves(records: Sequence[Mapping[str, Any]]) -> Tensor:
    """Distance against CPU seconds for each data set, each method by its best sampler there: uint8 [3, H, W]."""
    rows = rows_of(records)
    shown = [name for name in RECIPES if any(row.data == name for row in rows)]
    figure, axes = plt.subplots(1, len(shown), figsize=(4.5 * len(shown), 3.6), dpi=110, squeeze=False)
    colours = {method: plt.get_cmap("tab10")(index) for index, method in enumerate(METHODS)}
    for axis, data in zip(axes[0], shown, strict=True):
        for method, (title, _) in METHODS.items():
            own = [row for row in rows if (row.data, row.method) == (data, method)]
            if not own:
                continue
            most = max(row.budget for row in own)
            best = min((row for row in own if row.budget == most), key=lambda row: row.mean("fd_judge")).sampler
            line = sorted((row for row in own if row.sampler == best), key=lambda row: row.budget)
            seconds = [fmean(row.values(lambda training, samples: training["cpu_seconds"])) for row in line]
            means = [row.mean("fd_judge") for row in line]
            axis.plot(seconds, means, "o-", color=colours[method], label=f"{title} ({best})")
            for second, row in zip(seconds, line, strict=True):
                each = row.figures("fd_judge")
                axis.plot([second, second], [min(each), max(each)], color=colours[method], linewidth=1)
        axis.set(xscale="log", yscale="log", title=_TITLES[data], xlabel="CPU seconds of training")
        axis.legend(fontsize=6)
    axes[0][0].set_ylabel("fd_judge to held-out images")
    figure.tight_layout()
    return figure_picture(figure)


def sheet(folder: Path, records: Sequence[Mapping[str, Any]], data: str) -> Tensor:
    """The sheets of all methods on one data set, of the largest budget and the first seed, below one another."""
    own = [record for record in records if record["data"] == data]
    most, seed = max(record["budget_seconds"] for record in own), min(record["seed"] for record in own)
    chosen = {
        record["method"]: path
        for path in sorted(folder.glob(f"*/{RECORD}"))
        for record in [read_json(path)]
        if (record["data"], record["budget_seconds"], record["seed"]) == (data, most, seed)
    }
    pictures = []
    for method in METHODS:
        if method in chosen:
            array = np.asarray(Image.open(chosen[method].with_name(SHEET)).convert("RGB"))
            pictures.append(torch.from_numpy(array.copy()).movedim(-1, 0))
    width = max(picture.shape[2] for picture in pictures)
    return torch.cat([F.pad(picture, (0, width - picture.shape[2]), value=255) for picture in pictures], dim=1)


def write_report(folder: Path, out: Path) -> str:
    """Put the jobs of a folder together in another one; returns the table.

    It gets peers.json, the records; peers.md, the tables; peers_curves.png; and peers_samples_DATA.png.

    Raises:
        RunError: as `read_records`.
    """
    records = read_records(folder)
    table = markdown(records)
    write_json(out / RESULTS, {"jobs": records})
    with written_whole(out / TABLE) as partial:
        partial.write_text(table, encoding="utf-8")
    save_picture(out / CURVES, curves(records))
    for data in {record["data"] for record in records}:
        save_picture(out / f"peers_samples_{data}.png", sheet(folder, records, data))
    return table

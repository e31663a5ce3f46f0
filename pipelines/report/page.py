"""Self-contained HTML page on one or several runs: figures, curves, samples, nearest neighbours, settings."""

from __future__ import annotations

import base64
import html
import io
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from cdrl.config import ConfigError
from cdrl.data import DataError, as_floats, training_images
from cdrl.installation import program
from cdrl.runs.lock import locked
from cdrl.runs.model_folder import find_model
from cdrl.runs.run import RunError
from cdrl.runs.whole import written_whole
from cdrl.training.engine import World
from pipelines.base import CDRLPipeline
from pipelines.decoding import grid_picture
from pipelines.evaluation.distances import some_of
from pipelines.evaluation.neighbours import nearest_images
from pipelines.evaluation.sample_store import SampleStore
from pipelines.generation import default_device
from pipelines.report.run_facts import Curve, Facts, Points, newest_picture, read_facts

Cell = Callable[[Facts], str]

MEANINGS = {
    "energy_loss": "w_t (f-hat of refined less of true samples), mean over images; near 0 where both agree",
    "initializer_loss": "squared error of the proposal to where its chain ends, summed over the grid",
    "energy_gap": "f-hat of refined less of true samples; healthy: 0 on average at every level",
    "gradient_norm": "s_t times the energy's gradient where the chain's last step began; the noise's is 1",
    "displacement": "how far a chain goes, in units of s_t",
    "magnitude": "|f-hat| of true samples; growth without bound is a sign of trouble",
    "reach": "largest absolute value of refined samples over that of true ones",
    "acceptance": "probability that Metropolis and Hastings would let the chain's last step pass",
    "initializer_share": "share of the way from x_{t+1} to the chain's end that the proposal has gone",
    "images_per_second": "training images a second",
}
MOST_POINTS = 300
MOST_GRIDS = 6
MOST_BYTES, MOST_PIXELS = 2**20, 1600
"""Of a picture that is put into the page as it is, and the side of one that is not."""
HELD_OUT = 100
NEAREST = 3

_STYLE = """
:root { --ink: #1b1b1b; --paper: #fff; --faint: #555; --line: #ddd; color-scheme: light dark }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #16181b; --faint: #a8adb3; --line: #3a3f45 } }
* { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; margin: clamp(.8rem, 3vw, 2rem); color: var(--ink);
  background: var(--paper); overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin-bottom: .2rem }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line) }
h3 { font-size: .95rem; margin: 1rem 0 .1rem } p.note { margin: 0 0 .3rem; color: var(--faint); font-size: .85rem }
.runs { display: grid; gap: 1.2rem; align-items: start }
.runs { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)) }
.runs.one { grid-template-columns: minmax(0, 70rem) }
.runs > div { min-width: 0 } .runs > div > b { font-size: .95rem; display: block }
img { max-width: 100%; height: auto; display: block } img.grid { image-rendering: pixelated }
img.curve { background: #fff; width: min(100%, 34rem) }
figure { margin: 0 0 .8rem; display: inline-block; vertical-align: top; max-width: 100% }
figcaption { color: var(--faint); font-size: .8rem }
.strip { display: flex; flex-wrap: wrap; gap: .8rem } .strip figure { width: 15rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem; overflow-wrap: normal }
td, th { padding: .15rem .7rem .15rem 0; text-align: left }
td.number { font-variant-numeric: tabular-nums; white-space: nowrap } tr { border-bottom: 1px solid var(--line) }
pre { font-size: .75rem; overflow-x: auto } summary { cursor: pointer }
"""


def write_report(runs: Sequence[Path], out: Path | None = None, *, neighbours: int = 8) -> Path:
    """Write one HTML page that shows some runs side by side; returns its path.

    Args:
        out: RUN/report.html by default, for several runs report.html beside the first.
        neighbours: number of samples to draw and show with their nearest training images; 0 for none.

    Raises:
        RunError: a folder holds no run.
    """
    facts = [read_facts(run, name) for run, name in zip(runs, _short_names(runs), strict=True)]
    path = out or (runs[0] / "report.html" if len(runs) == 1 else runs[0].parent / "report.html")
    sections = [("Samples", _row(facts, _samples_cell))]
    if any(_first_stage_pictures(f) for f in facts):
        sections.append(("First stage", _row(facts, _first_stage_cell)))
    sections += [
        ("Runs", _table(_overview(facts))),
        ("Figures", _table(_figures_table(facts)) if any(f.figures for f in facts) else "<p>None yet.</p>"),
        ("Curves", "".join(_curve_row(name, facts) for name in _union([list(f.curves) for f in facts]))),
        ("Samples over training", _row(facts, _grids_cell)),
    ]
    if neighbours:
        note = (
            "Left: samples of the first seeds. Right of each: the nearest training images, by the root mean square "
            "difference of their pixels (0 … 1). Held-out images show how near the truth comes by chance; samples "
            "much nearer would be copies, or blurred."
        )
        cells = _row(facts, lambda each: _neighbours_cell(each.folder, neighbours))
        sections.append(("Nearest training images", f'<p class="note">{note}</p>{cells}'))
    sections.append(("Configuration", _configuration(facts)))
    body = "".join(f"<h2>{title}</h2>{content}" for title, content in sections)
    title = html.escape(" and ".join(f.name for f in facts))
    command = html.escape(f"{program()} report {shlex.join(map(str, runs))}")
    made = f'<p class="note">{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, by: {command}</p>'
    page = (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>{title}</h1>{made}{body}</body></html>\n"
    )
    with locked(path.parent, path.name), written_whole(path) as partial:
        partial.write_text(page, encoding="utf-8")
    return path


def thinned(points: Points) -> Points:
    """Thin a curve to at most 300 points: means over equal numbers of consecutive values, ignoring NaN."""
    finite = np.array([point for point in points if math.isfinite(point[1])]).reshape(-1, 2)
    groups = np.array_split(finite, min(MOST_POINTS, max(1, len(finite))))
    return [(float(group[-1, 0]), float(group[:, 1].mean())) for group in groups if len(group)]


def _curve_row(name: str, facts: Sequence[Facts]) -> str:
    thin = [{line: thinned(points) for line, points in f.curves.get(name, {}).items()} for f in facts]
    values = [value for curve in thin for points in curve.values() for _, value in points]
    if not values:
        return ""
    scale, limits = _axis(values)
    note = f'<p class="note">{MEANINGS[name]}</p>' if name in MEANINGS else ""
    head = f"<h3>{html.escape(name)}</h3>{note}"
    if len(facts) > 1 and all(set(curve) <= {""} for curve in thin):
        together = {f.name: curve[""] for f, curve in zip(facts, thin, strict=True) if curve}
        return head + curve_picture(together, scale, limits)
    cells = [curve_picture(curve, scale, limits) if curve else "" for curve in thin]
    return head + _columns([(f.name, cell) for f, cell in zip(facts, cells, strict=True)])


def _axis(values: Sequence[float]) -> tuple[dict[str, Any], tuple[float, float]]:
    """Choose a scale that resolves most values, and limits shared by all runs."""
    low, high = min(values), max(values)
    typical = float(np.median(np.abs(values))) or 1.0
    if low > 0 and high > 30 * low:
        return {"value": "log"}, (low / 1.2, high * 1.2)
    margin = 0.05 * (high - low) or 1.0
    scale = {"value": "symlog", "linthresh": 3 * typical} if max(high, -low) > 30 * typical else {"value": "linear"}
    return scale, (low - margin, high + margin)


def curve_picture(curve: Curve, scale: dict[str, Any], limits: tuple[float, float]) -> str:
    """Plot curves over the steps as an <img>: levels, from dark (0, the cleanest) to light, or runs."""
    with matplotlib.rc_context({"svg.fonttype": "path", "font.size": 8, "svg.hashsalt": "report"}):
        figure = Figure(figsize=(5, 2.6), layout="constrained")
        axes = figure.subplots()
        colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, max(len(curve), 2)))
        for (line, points), color in zip(curve.items(), colors, strict=False):
            marker = "." if len(points) < 12 else ""
            axes.plot(*zip(*points, strict=True), color=color, label=line, linewidth=1, marker=marker)
        axes.set_yscale(**scale)
        axes.set_ylim(limits)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.25)
        if len(curve) > 1:
            axes.legend(fontsize=6, ncols=2)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _image(buffer.getvalue(), "svg+xml", "curve")


def _samples_cell(facts: Facts) -> str:
    picture = newest_picture(facts)
    if picture is None:
        return "<p>None.</p>"
    where = html.escape(str(picture.relative_to(facts.folder)))
    return f"<figure>{_picture(picture.read_bytes())}<figcaption>{where}</figcaption></figure>"


def _first_stage_pictures(facts: Facts) -> dict[Path, str]:
    """Pictures of the first stage, the newest of its training and the worst, with what they show."""
    newest = sorted(facts.folder.glob("autoencoder/reconstructions/step_*.png"))[-1:]
    worst = [path for place in ("worst.png", "stages/worst.png") if (path := facts.folder / place).exists()][:1]
    return {
        **dict.fromkeys(newest, "held-out images, each row above its reconstructions"),
        **dict.fromkeys(worst, "the held-out images that are reconstructed worst"),
    }


def _first_stage_cell(facts: Facts) -> str:
    figures = [
        f"<figure>{_picture(path.read_bytes())}<figcaption>{words}</figcaption></figure>"
        for path, words in _first_stage_pictures(facts).items()
    ]
    return "".join(figures) or "<p>None.</p>"


def _grids_cell(facts: Facts) -> str:
    steps = sorted(facts.grids)
    kept = sorted({steps[round(i * (len(steps) - 1) / (MOST_GRIDS - 1))] for i in range(MOST_GRIDS)}) if steps else []
    figures = [
        f"<figure>{_picture(facts.grids[step].read_bytes())}<figcaption>step {step}</figcaption></figure>"
        for step in kept
    ]
    return f'<div class="strip">{"".join(figures)}</div>' if figures else "<p>None.</p>"


def _neighbours_cell(run: Path, count: int) -> str:
    try:
        picture, words = neighbours_picture(run, count)
    except (ConfigError, DataError, RunError) as error:
        return f"<p>None: {html.escape(str(error))}</p>"
    return f"<figure>{_picture(_png(picture))}<figcaption>{words}</figcaption></figure>"


def neighbours_picture(run: Path, count: int) -> tuple[Tensor, str]:
    """Picture of samples beside their nearest training images, one row each, and a sentence on the distances.

    Raises:
        RunError: the run has no model or no images.
        DataError: its data set cannot be read.
    """
    device = default_device()
    pipeline = CDRLPipeline.from_pretrained(run, device)
    data = pipeline.config.data
    if pipeline.config.space == "point":
        raise RunError(f"{run}: a run of 2-D points")
    known, held_out = (training_images(data, split).grids for split in ("train", "test"))
    seeds = range(count)
    store = SampleStore(run, find_model(run), pipeline, progress=True)
    store.draw(seeds, World(0, 1, device))
    samples = store.read(seeds)[0][:]
    distances, images = nearest_images(samples, known, NEAREST, mirrored=data.flip)
    usual, _ = nearest_images(some_of(held_out, min(HELD_OUT, len(held_out))), known, mirrored=data.flip)
    gap = torch.full_like(samples, 255)
    rows = torch.cat([torch.stack([samples, gap], dim=1), images], dim=1).flatten(0, 1)
    words = (
        f"to the nearest training image: samples {distances[:, 0].mean():.4f} (nearest of all "
        f"{distances[:, 0].min():.4f}), {len(usual)} held-out images {usual.mean():.4f} ({usual.min():.4f})"
    )
    return grid_picture(as_floats(rows), columns=2 + images.shape[1]), words


def _overview(facts: Sequence[Facts]) -> list[list[str]]:
    first_stages = [f.stage_one for f in facts]
    return [
        ["", *(f.name for f in facts)],
        *_cost_rows([f.model for f in facts]),
        *(_cost_rows(first_stages, "first stage: ") if any("step" in each for each in first_stages) else []),
        ["training data", *(str(f.model.get("data", "")) for f in facts)],
        ["best in training", *(f.best for f in facts)],
    ]


def _cost_rows(models: Sequence[Mapping[str, Any]], before: str = "") -> list[list[str]]:
    titles = {
        "step": "steps",
        "images": "images seen",
        "wall_seconds": "wall seconds",
        "cpu_seconds": "CPU seconds",
    }
    return [
        [before + title, *(f"{model[key]:,}" if model.get(key) is not None else "" for model in models)]
        for key, title in titles.items()
    ]


def _figures_table(facts: Sequence[Facts]) -> list[list[str]]:
    names = _union([list(f.figures) for f in facts])
    return [["", *(f.name for f in facts)], *([name, *(f.figures.get(name, "") for f in facts)] for name in names)]


def _configuration(facts: Sequence[Facts]) -> str:
    flat = [_flat(f.config) for f in facts]
    names = _union([list(values) for values in flat])
    differing = [name for name in names if len({repr(values.get(name)) for values in flat}) > 1]
    table = [["", *(f.name for f in facts)], *([name, *(str(v.get(name, "")) for v in flat)] for name in differing)]
    differences = f"<h3>Where they differ</h3>{_table(table)}" if differing else ""

    def settings(each: Facts) -> str:
        text = html.escape(yaml.safe_dump(each.config, sort_keys=False))
        return f"<details><summary>all settings</summary><pre>{text}</pre></details>"

    return differences + _row(facts, settings)


def _flat(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {above + name: value}
    return flat


def _row(facts: Sequence[Facts], cell: Cell) -> str:
    return _columns([(f.name, cell(f)) for f in facts])


def _columns(cells: Sequence[tuple[str, str]]) -> str:
    named = [f"<div>{f'<b>{html.escape(name)}</b>' if len(cells) > 1 else ''}{cell}</div>" for name, cell in cells]
    return f'<div class="runs{" one" if len(cells) == 1 else ""}">{"".join(named)}</div>'


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    cells = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    lines = [f"<tr>{cells}</tr>"]
    for name, *values in body:
        numbers = "".join(f'<td class="number">{html.escape(value)}</td>' for value in values)
        lines.append(f"<tr><td>{html.escape(name)}</td>{numbers}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _image(content: bytes, kind: str, style: str = "") -> str:
    data = base64.b64encode(content).decode()
    return f'<img class="{style}" alt="" src="data:image/{kind};base64,{data}">'


def _picture(content: bytes) -> str:
    """A PNG file as an <img>; a large one smaller and as JPEG, or a page of many would have hundreds of megabytes."""
    if len(content) <= MOST_BYTES:
        return _image(content, "png", "grid")
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as picture:
        shown = picture.convert("RGB")
    shown.thumbnail((MOST_PIXELS, MOST_PIXELS))
    shown.save(buffer, format="jpeg", quality=88)
    return _image(buffer.getvalue(), "jpeg")


def _png(picture: Tensor) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture.movedim(0, -1).numpy()).save(buffer, format="png")
    return buffer.getvalue()


def _union(names: Sequence[Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(name for each in names for name in each))


def _short_names(runs: Sequence[Path]) -> list[str]:
    """Names of the folders, with their parents' names where needed to tell them apart."""
    names = [run.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run) for run in runs]

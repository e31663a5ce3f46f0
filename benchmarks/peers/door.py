"""The door: one job a process.

    python -m benchmarks.peers run --data digits --method ddpm --seed 0 --seconds 60 --out runs/peers
    python -m benchmarks.peers table runs/peers --out runs/peers/report

Each job trains on one thread for so many CPU seconds; neither the rehearsal that counts its updates, nor sampling, nor
measuring is part of these. Jobs know nothing of one another and may run side by side.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.peers.job import JUDGES, Job, run_job
from benchmarks.peers.measures import Ruler
from benchmarks.peers.report import write_report
from pipelines.verbs.common import clear_errors

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Generative models at equal compute, one job a process.",
)


class Data(StrEnum):
    """Data sets, the keys of `RECIPES`."""

    digits = "digits"
    fashion_mnist = "fashion_mnist"
    cifar10 = "cifar10"


class Method(StrEnum):
    """Methods, the keys of `METHODS`."""

    ddpm = "ddpm"
    flow_matching = "flow_matching"
    energy_matching = "energy_matching"
    drl = "drl"
    cdrl_paper = "cdrl_paper"
    cdrl = "cdrl"


DataOption = Annotated[Data, typer.Option(help="data set")]
RecipeOption = Annotated[
    Path | None, typer.Option(help="our configuration for it, by file or name  [default: that of the data set]")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="settings of it to change, e.g. data.path=data/cifar-10-batches-py data.check_sums=false"),
]
ImagesOption = Annotated[int, typer.Option(min=200, help="samples that are measured")]
OutOption = Annotated[Path, typer.Option(help="folder of all jobs")]


@app.command()
def run(
    data: DataOption,
    method: Annotated[Method, typer.Option(help="method")],
    seconds: Annotated[float, typer.Option(min=1, help="CPU seconds of training")],
    out: OutOption,
    seed: Annotated[int, typer.Option(min=0, help="of weights, batches, noise and samples")] = 0,
    images: ImagesOption = 1000,
    recipe: RecipeOption = None,
    overrides: Overrides = None,
) -> None:
    """Train, sample and measure one method; what has been done already is left alone."""
    with clear_errors():
        job = Job(data.value, method.value, seed, seconds, images, recipe, tuple(overrides or ()))
        if job.is_done(out):
            print(f"{out / job.name}: done already")
            return
        print(run_job(job, out))


@app.command()
def judge(data: DataOption, out: OutOption, recipe: RecipeOption = None, overrides: Overrides = None) -> None:
    """Train the judge of a data set, which the first of its jobs would do while the others wait."""
    with clear_errors():
        task = Job(data.value, "cdrl", 0, 1, 1, recipe, tuple(overrides or ())).task()
        print(f"{Ruler.of(task, out / JUDGES).judge_accuracy:.3f} of held-out images read as their class")


@app.command()
def table(
    folder: Annotated[Path, typer.Argument(help="folder of all jobs")],
    out: Annotated[Path, typer.Option(help="folder of tables, curves and sheets")],
) -> None:
    """Put all jobs together."""
    with clear_errors():
        print(write_report(folder, out))

"""Verbs that measure runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.verbs.common import RunFolder, app, clear_errors


@app.command("judge")
def judge(
    run: RunFolder,
    num_images: Annotated[int, typer.Option(min=10, help="samples to be judged")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="seed of the first image")] = 0,
) -> None:
    """Have a small classifier, trained on the run's real images, read samples: classes, junk, Fréchet distance.

    Example: python run.py judge runs/digits
    """
    with clear_errors():
        from pipelines.evaluation import judge_run

        for name, value in judge_run(run, num_images, seed).items():
            typer.echo(f"{name}: {value}")


@app.command("compare")
def compare(
    configs: Annotated[list[Path], typer.Argument(help="YAML files; the first says how many images by default")],
    seeds: Annotated[str, typer.Option(help="seeds of every configuration, e.g. 0,1,2")] = "0",
    images: Annotated[int | None, typer.Option(min=1, help="training images of every run, the same for all")] = None,
    samples: Annotated[int, typer.Option(min=10, help="samples of every run to be judged")] = 300,
    processes: Annotated[int, typer.Option(min=1, help="trainings side by side, each on one thread")] = 1,
    runs: Annotated[Path, typer.Option(help="folder of the runs and of comparison.md")] = Path("runs/comparison"),
) -> None:
    """Train configurations at an equal budget, judge them alike, and print one table.

    Examples:

    python run.py compare configs/ablation/*.yaml --seeds 0,1 --processes 2

    python run.py compare configs/drl_cifar10.yaml configs/cifar10.yaml --images 2560000 --runs runs/drl
    """
    with clear_errors():
        from pipelines.ablation import compare as compare_configs
        from pipelines.ablation import parse_seeds

        table = compare_configs(
            configs, runs, seeds=parse_seeds(seeds), images=images, num_samples=samples, processes=processes
        )
        typer.echo(table)
        typer.echo(f"written to {runs / 'comparison.md'} and {runs / 'comparison.json'}")


@app.command("density")
def density(
    run: RunFolder,
    num_samples: Annotated[int, typer.Option(min=100, help="samples to be compared with the truth")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="seed of the first sample")] = 0,
) -> None:
    """Compare what a run of 2-D points has learned with the true density, level by level, in figures and a picture.

    Example: python run.py density runs/checkerboard
    """
    with clear_errors():
        from pipelines.density import density_report, density_table

        typer.echo(density_table(density_report(run, num_samples, seed)))
        typer.echo(f"picture and figures in {run / 'density.png'} and {run / 'density.json'}")

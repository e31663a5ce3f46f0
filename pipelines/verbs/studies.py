"""Verbs that measure runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.verbs.common import LabelOption, Options, RunFolder, app, clear_errors, with_sampler_options


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


@app.command("evaluate")
@with_sampler_options()
def evaluate(
    run: RunFolder,
    num_images: Annotated[int, typer.Option(min=10, help="samples; the paper's figures are of 50000")] = 10_000,
    split: Annotated[Literal["train", "test"], typer.Option(help="real images to compare with")] = "train",
    reference_images: Annotated[
        int | None, typer.Option(min=10, help="so many of them, always the same ones; all by default")
    ] = None,
    statistics: Annotated[
        Path | None, typer.Option(help="published statistics to compare with instead: .npz with mu and sigma")
    ] = None,
    features: Annotated[
        Literal["inception", "lite0"],
        typer.Option(help="lite0 needs no download and gives fd_lite0 in place of FID"),
    ] = "inception",
    weights: Annotated[
        Path | None, typer.Option(help="file of Inception's weights; looked for in data.cache by default")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="seed of the first image; the next has the next seed")] = 0,
    label: LabelOption = None,
    guidance: Annotated[float, typer.Option(min=0, help="weight w of classifier-free guidance (eq. 11, 12)")] = 0.0,
    blocks: Annotated[int, typer.Option(min=1, help="parts of the seeds whose spread is told; 1 for none")] = 5,
    best: Annotated[bool, typer.Option("--best", help="the model that was best in training, not the last")] = False,
    *,
    options: Options,
) -> None:
    """Draw samples and compare them with real images: FID, KID, Inception Score, precision and recall.

    Samples are kept in RUN/evaluation, figures in RUN/evaluation.json. To resume, type the same command again.

    Examples:

    python run.py evaluate runs/digits --features lite0 --num-images 1000 --split test

    python run.py evaluate runs/cifar10 --num-images 50000 --weights weights-inception-2015-12-05-6726825d.pth

    torchrun --standalone --nproc_per_node 8 run.py evaluate runs/cifar10 --guidance 0.7 --batch-size 500
    """
    with clear_errors():
        from pipelines.measuring import evaluate_run, in_words

        figures = evaluate_run(
            run,
            num_images,
            split=split,
            reference_images=reference_images,
            statistics=statistics,
            features=features,
            weights=weights,
            seed=seed,
            label=label,
            guidance=guidance,
            blocks=blocks,
            best=best,
            **options,
        )
        if figures:
            typer.echo(in_words(figures))


@app.command("report")
def report(
    runs: Annotated[list[Path], typer.Argument(help="run folders; several are laid side by side")],
    neighbours: Annotated[
        int, typer.Option(min=0, help="samples shown with their nearest training images; 0 for none")
    ] = 8,
    out: Annotated[
        Path | None, typer.Option(help="the page; RUN/report.html by default, or report.html beside several runs")
    ] = None,
) -> None:
    """Make one HTML page of runs, which needs no other file: figures, curves, samples, nearest neighbours, settings.

    Examples:

    python run.py report runs/digits

    python run.py report runs/digits runs/longer --out digits.html
    """
    with clear_errors():
        from pipelines.report import write_report

        typer.echo(str(write_report(runs, out, neighbours=neighbours)))


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

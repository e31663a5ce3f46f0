"""Verbs that measure runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from pipelines.verbs.common import (
    LabelOption,
    Options,
    ProcessesOption,
    RunFolder,
    app,
    clear_errors,
    parse_label,
    tell,
    with_sampler_options,
    work_together,
)


@app.command("judge")
def judge(
    run: RunFolder,
    num_images: Annotated[int, typer.Option(min=10, help="samples to be judged")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="seed of the first image")] = 0,
) -> None:
    """Have a small classifier, trained on the run's real images, read samples: classes, junk, Fréchet distance.

    Example: python run.py judge runs/digits
    """
    with clear_errors(computes=True):
        from pipelines.evaluation.referee import judge_run

        for name, value in judge_run(run, num_images, seed).items():
            typer.echo(f"{name}: {value:.4g}")
        tell(f"figures in {run / 'judge.json'}", "report", run)


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
    processes: ProcessesOption = 1,
    *,
    options: Options,
) -> None:
    """Draw samples and compare them with real images: FID, KID, Inception Score, precision and recall.

    Samples are kept in RUN/evaluation, figures in RUN/evaluation.json. To resume, type the same command again.

    Examples:

    python run.py evaluate runs/digits --features lite0 --num-images 1000 --split test

    python run.py evaluate runs/cifar10 --num-images 50000 --weights weights-inception-2015-12-05-6726825d.pth

    python run.py evaluate runs/cifar10 --guidance 0.7 --batch-size 500 --processes 8
    """
    with clear_errors(computes=processes == 1):
        work_together(processes)
        from pipelines.evaluation.evaluate import Comparison, evaluate_run, figure_lines

        against = Comparison(split, reference_images, statistics, features, weights, blocks)
        figures = evaluate_run(
            run, num_images, against, seed=seed, label=label, guidance=guidance, best=best, **options
        )
        if figures:
            typer.echo(figure_lines(figures))
            tell(f"figures in {run / 'evaluation.json'}, samples below {run / 'evaluation'}", "report", run)


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
        from pipelines.report.page import write_report

        typer.echo(str(write_report(runs, out, neighbours=neighbours)))


@app.command("card")
def card(
    run: RunFolder,
    out: Annotated[Path | None, typer.Option(help="folder of the card; RUN/card by default")] = None,
) -> None:
    """Write the model card of a run, to be finished by hand: what it is, how it was made, from what, how good it is.

    With it go the newest samples and the settings; no path of this machine is among them. What export gives away has
    the card beside it.

    Example: python run.py card runs/digits
    """
    with clear_errors():
        from pipelines.report.card import write_card

        folder, unfinished = write_card(run, out)
        rest = "; finish what is marked there as to be written" if unfinished else ""
        tell(f"card in {folder / 'README.md'}{rest}", "export", run, f"{run.resolve().name}-weights")


@app.command("judge-composition")
@with_sampler_options()
def judge_composition(
    run: RunFolder,
    weights: Annotated[str, typer.Option(help="guidance weights w of eq. 14; 0 is eq. 13")] = "0,1",
    num_images: Annotated[int, typer.Option(min=8, help="images of each set of attributes and weight")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="seed of the first image")] = 0,
    *,
    options: Options,
) -> None:
    """Compose every two attributes, and all of them, and have a classifier of real images read what is drawn.

    The plain sum of the attributes' energies, without the negative term of eq. 13, is drawn and read beside.

    Example: python run.py judge-composition runs/faces_composition
    """
    with clear_errors(computes=True):
        from pipelines.evaluation.attributes import composition_lines, run_composition
        from pipelines.studies.guidance_sweep import parse_weights

        figures = run_composition(run, parse_weights(weights), num_images, seed=seed, **options)
        typer.echo(composition_lines(figures))
        typer.echo(f"figures and pictures in {run / 'composition'}")


@app.command("judge-stages")
def judge_stages(
    run: RunFolder,
    num_images: Annotated[int, typer.Option(min=10, help="images of each kind that are compared")] = 1000,
) -> None:
    """Measure what each stage of a latent run loses: reconstructions, samples, and the initializer alone.

    Example: python run.py judge-stages runs/quickstart
    """
    with clear_errors(computes=True):
        from pipelines.evaluation.stages import run_stages, stages_table

        typer.echo(stages_table(run_stages(run, num_images)))
        tell(f"figures and pictures in {run / 'stages'}", "report", run)


@app.command("sweep-guidance")
@with_sampler_options()
def sweep_guidance(
    run: RunFolder,
    weights: Annotated[str, typer.Option(help="guidance weights w of eq. 11, 12")] = "0,0.25,0.5,0.75,1,1.5,2,3",
    num_images: Annotated[int, typer.Option(min=10, help="samples of each weight and block")] = 300,
    blocks: Annotated[int, typer.Option(min=1, help="blocks of samples, each with seeds of its own")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="seed of the first image")] = 0,
    *,
    options: Options,
) -> None:
    """Draw the same noise under growing guidance: a picture, and curves of distance, accuracy and diversity.

    Examples:

    python run.py sweep-guidance runs/digits

    python run.py sweep-guidance runs/digits --weights 0,1,4 --num-images 100 --blocks 1
    """
    with clear_errors(computes=True):
        from pipelines.studies.guidance_sweep import parse_weights, run_guidance_sweep

        folder, sweep = run_guidance_sweep(run, parse_weights(weights), num_images, blocks=blocks, seed=seed, **options)
        typer.echo(sweep.table())
        typer.echo(f"pictures and figures in {folder}")


@app.command("roles")
@with_sampler_options()
def roles(
    run: RunFolder,
    num_images: Annotated[int, typer.Option(min=1, help="rows of the picture")] = 8,
    fresh: Annotated[int, typer.Option(min=1, help="images a row that have the proposals' noise in common")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="seed of the first row; the next has the next seed")] = 0,
    label: LabelOption = None,
    *,
    options: Options,
) -> None:
    """Show what initializer and energies contribute: the one alone, both, and both with chains drawn afresh.

    Examples:

    python run.py roles runs/digits

    python run.py roles runs/digits --steps 5 --label 3
    """
    with clear_errors(computes=True):
        from pipelines.studies.roles import run_roles

        picture, figures = run_roles(run, num_images, fresh=fresh, seed=seed, label=label, **options)
        for name, value in figures.items():
            typer.echo(f"{name}: {value:.3f}")
        typer.echo(f"{picture} and {picture.with_suffix('.json').name}")


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
        from pipelines.studies.ablation import compare as compare_configs
        from pipelines.studies.ablation import parse_seeds

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
    with clear_errors(computes=True):
        from pipelines.studies.density import density_report, density_table

        typer.echo(density_table(density_report(run, num_samples, seed)))
        typer.echo(f"picture and figures in {run / 'density.png'} and {run / 'density.json'}")


@app.command("detect")
def detect(
    run: RunFolder,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="set to be told from the in-distribution images, given once for each set: noise, "
            "constant, inverted, shuffled, interpolation or rotated are made of these images, train is the run's own "
            "training split, and a data set's NAME or NAME:PATH is its test split"
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="folder of pictures, each of which gets its scores, and its percentile among training images"
        ),
    ] = None,
    in_distribution: Annotated[
        str, typer.Option(help="test, train, or another data set as NAME or NAME:PATH; for --against")
    ] = "test",
    num_images: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="images of each set at most, chosen at random; with --images of training's  [default: 1000, or those "
            "whose densities lie with the weights]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of that choice, and of the sets that are made")] = 0,
    out: Annotated[list[str] | None, typer.Option(hidden=True)] = None,
) -> None:
    """Score pictures by the run's densities, or tell sets of images apart: AUROC, AUPR, FPR95, and histograms.

    Examples:

    python run.py detect runs/digits_unconditional --against noise --against inverted --against shuffled
    --against interpolation

    python run.py detect runs/digits_unconditional --against train --against fashion_mnist --against folder:photos

    python run.py detect runs/digits_unconditional --images photos

    The paper's Table 8: python run.py detect runs/cifar10 --num-images 10000
    --against interpolation --against cifar100:cifar-100-python --against celeba:celeba --against svhn:svhn
    --against dtd:dtd
    """
    with clear_errors(computes=True):
        from pipelines.detection.detect import detection_table, run_detection

        if out:
            raise ValueError("--out: sets are named by --against; elsewhere --out is a folder")
        if bool(against) == (images is not None):
            raise ValueError("expected either --against, to tell sets apart, or --images, to score pictures")
        if images is not None:
            if in_distribution != "test":
                raise ValueError("--in-distribution: is for --against; --images are compared with training images")
            from pipelines.detection.image_scores import run_image_scores

            file, read, table = run_image_scores(run, images, num_compared=num_images, seed=seed)
            tell(f"{read}\nscores, the least likely picture first, in {file}")
            typer.echo(table)
            tell(
                "log_density_0 and percentile_train_0 are those to go by: a percentile near 0 is unlike training images"
            )
            return
        count = 1000 if num_images is None else num_images
        detection = run_detection(run, against or (), in_distribution=in_distribution, num_images=count, seed=seed)
        typer.echo(detection_table(detection.report))
        typer.echo(f"picture and figures in {run / 'detection.png'} and {run / 'detection.json'}")


@app.command("compare-steps")
def compare_steps(
    run: RunFolder,
    num_images: Annotated[int, typer.Option(min=10, help="samples a seed")] = 300,
    seeds: Annotated[str, typer.Option(help="blocks of samples, e.g. 0,1,2")] = "0,1,2",
    batch_size: Annotated[int, typer.Option(min=1, help="images at a time; changes no image")] = 100,
) -> None:
    """What fewer steps cost: 15, 8, 5 and 3 a level, steps auto and the run's own, with distances and seconds.

    Example: python run.py compare-steps runs/digits
    """
    with clear_errors(computes=True):
        from pipelines.studies.ablation import parse_seeds
        from pipelines.studies.step_budgets import budget_table, compare_budgets

        typer.echo(budget_table(compare_budgets(run, num_images, parse_seeds(seeds), batch_size)))
        typer.echo(f"written to {run / 'steps.json'}")


@app.command("likelihood")
def likelihood(
    run: RunFolder,
    num_images: Annotated[int, typer.Option(min=2, help="held-out and training images at most, of each")] = 500,
    label: Annotated[
        Any,
        typer.Option(
            parser=parse_label, metavar="<id|name>", help="class that the density is conditioned on  [default: none]"
        ),
    ] = None,
    each_class: Annotated[
        bool, typer.Option("--each-class", help="a normalizer of each class, and their mixture; tells classes apart")
    ] = False,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            "--baseline",
            help="the same of a density fitted here, once for each: gaussian, mixture (of up to 100 Gaussians), flow",
            show_default=False,
        ),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against", help="set to be told from held-out images, once for each set: see detect", show_default=False
        ),
    ] = None,
    level: Annotated[int, typer.Option(min=0, help="noise level of the images; 0 has the least noise")] = 0,
    chains: Annotated[int, typer.Option(min=2, help="chains in each direction, of each class")] = 32,
    temperatures: Annotated[int, typer.Option(min=10, help="over the whole path: more make a narrower bracket")] = 1000,
    leapfrog_steps: Annotated[int, typer.Option(min=1, help="of a move of hybrid Monte Carlo; 1 is MALA")] = 4,
    equilibration: Annotated[int, typer.Option(min=0, help="moves at the level before chains go back")] = 100,
    integration: Annotated[
        int, typer.Option(min=0, help="moves at a temperature of thermodynamic integration, a check of log Z; 0: none")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="of all chains, of the noise and of the choice of images")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="chains at a time")] = 64,
    processes: ProcessesOption = 1,
) -> None:
    """Measure log-likelihoods of slightly noisy images, in nats and bits a dimension, with log Z in a bracket.

    What it will take is printed first. To resume, type the same command again.

    Examples:

    python run.py likelihood digits --level 1

    python run.py likelihood digits_density --each-class --baseline mixture --baseline flow

    python run.py likelihood checkerboard --temperatures 300 --chains 256
    """
    with clear_errors(computes=processes == 1):
        work_together(processes)
        from pipelines.likelihood.likelihood import PICTURE, RECORD, Question, likelihood_table, run_likelihood
        from pipelines.likelihood.normalizer import Effort

        effort = Effort(chains, temperatures, leapfrog_steps, equilibration, integration, seed, batch_size)
        question = Question(num_images, label, each_class, level, tuple(baseline or ()), tuple(against or ()))
        report = run_likelihood(run, question, effort)
        if report:
            typer.echo(likelihood_table(report))
            told = f"picture and figures in {run / PICTURE} and {run / RECORD}"
            tell(f"{told}; more temperatures make the bracket narrower, more chains the errors smaller")

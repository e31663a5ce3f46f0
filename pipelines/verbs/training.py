"""Verbs that train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cdrl.config import Config
from pipelines.verbs.common import (
    ConfigPath,
    InitOption,
    Overrides,
    ProcessesOption,
    RunOption,
    app,
    as_asked,
    clear_errors,
    run_folder,
    tell,
    with_init,
    work_together,
)


@app.command("quickstart")
def quickstart(
    config: Annotated[Path, typer.Option(help="configuration to run through")] = Path("configs/quickstart.yaml"),
    run: RunOption = None,
    short: Annotated[bool, typer.Option("--short", help="a minute's rehearsal: the pictures will be poor")] = False,
) -> None:
    """Both stages on drawn faces, end to end, with pictures and figures.

    Example: python run.py quickstart
    """
    with clear_errors():
        from pipelines.jobs.quickstart import run_quickstart

        folder = run_folder(config, run)
        run_quickstart(config, folder, short=short)
        tell(f"pictures and figures.json in {folder}, models in {folder / 'model'}", "report", folder)


@app.command("plan")
def plan(config: ConfigPath, overrides: Overrides = None, processes: ProcessesOption = 1) -> None:
    """Say what a training takes before anything is spent: parameters, memory, disk, and time by a few updates.

    Examples:

    python run.py plan configs/digits.yaml

    python run.py plan configs/cifar10.yaml training.batch_size=64 --processes 2
    """
    with clear_errors():
        work_together(processes)
        from cdrl.config_files import load_config
        from pipelines.jobs.planning import duration, plans

        settings = load_config(config, overrides or ())
        stages = plans(settings)
        lines = [line for stage in stages for line in stage.lines()]
        if len(stages) > 1:
            total = duration(sum(stage.total_seconds for stage in stages))
            lines.append(f"both stages: {total}, encoding the data set between them not counted")
        tell("\n".join(lines), verb_to_begin_with(settings), *as_asked(config, overrides))


def verb_to_begin_with(config: Config) -> str:
    """The verb with which a training of these settings begins."""
    from pipelines.jobs.training import verb_after_data

    return "prepare" if isinstance(config.data.prepared, Path) else verb_after_data(config)


@app.command("train-autoencoder")
def train_autoencoder(
    config: ConfigPath,
    overrides: Overrides = None,
    run: RunOption = None,
    init: InitOption = None,
    processes: ProcessesOption = 1,
) -> None:
    """Train the first stage of a latent run.

    Example: python run.py train-autoencoder configs/fashion_mnist_latent.yaml
    """
    with clear_errors():
        work_together(processes)
        from cdrl.config_files import load_config
        from pipelines.jobs.training import run_stage_one

        settings = load_config(config, with_init(overrides, "autoencoder.training.init", init))
        folder = run_stage_one(settings, run_folder(config, run))
        results = f"first stage trained to the end: {folder / 'model'}; reconstructions in {folder / 'reconstructions'}"
        tell(results, "encode", *as_asked(config, overrides, run))


@app.command("encode")
def encode(config: ConfigPath, overrides: Overrides = None, run: RunOption = None) -> None:
    """Turn the data set into latent shards with the trained first stage.

    Example: python run.py encode configs/fashion_mnist_latent.yaml
    """
    with clear_errors(computes=True):
        from cdrl.config_files import load_config
        from pipelines.jobs.training import run_encoding

        folder = run_folder(config, run)
        run_encoding(load_config(config, overrides or ()), folder)
        tell(f"latents of both splits in {folder / 'latents'}", "train", *as_asked(config, overrides, run))


@app.command("train")
def train(
    config: ConfigPath,
    overrides: Overrides = None,
    run: RunOption = None,
    init: InitOption = None,
    processes: ProcessesOption = 1,
) -> None:
    """Train the energies and their initializers on pixels, latents or points.

    Examples:

    python run.py train configs/digits.yaml

    python run.py train configs/digits.yaml training.num_steps=5000 --run runs/longer

    python run.py train configs/digits.yaml --processes 2

    python run.py train configs/digits.yaml --init digits --run runs/tuned
    """
    with clear_errors():
        work_together(processes)
        from cdrl.config_files import load_config
        from pipelines.jobs.training import run_stage_two
        from pipelines.report.run_facts import gaps_in_words

        settings = load_config(config, with_init(overrides, "training.init", init))
        folder = run_folder(config, run)
        run_stage_two(settings, folder)
        gaps = gaps_in_words(folder / "metrics.jsonl")
        results = f"{gaps}\ntrained to the end, step {settings.training.num_steps}: {folder / 'model'}".lstrip()
        tell(
            f"{results}; pictures in {folder / 'samples'}", "density" if settings.space == "point" else "sample", folder
        )

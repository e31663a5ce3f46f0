"""Verbs that train."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.verbs.common import ConfigPath, Overrides, RunOption, app, clear_errors, run_folder


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

        run_quickstart(config, run_folder(config, run), short=short)


@app.command("train-autoencoder")
def train_autoencoder(config: ConfigPath, overrides: Overrides = None, run: RunOption = None) -> None:
    """Train the first stage of a latent run.

    Example: python run.py train-autoencoder configs/fashion_mnist_latent.yaml
    """
    with clear_errors():
        from cdrl.config import load_config
        from pipelines.jobs.training import run_stage_one

        run_stage_one(load_config(config, overrides or ()), run_folder(config, run))


@app.command("encode")
def encode(config: ConfigPath, overrides: Overrides = None, run: RunOption = None) -> None:
    """Turn the data set into latent shards with the trained first stage.

    Example: python run.py encode configs/fashion_mnist_latent.yaml
    """
    with clear_errors():
        from cdrl.config import load_config
        from pipelines.jobs.training import run_encoding

        run_encoding(load_config(config, overrides or ()), run_folder(config, run))


@app.command("train")
def train(config: ConfigPath, overrides: Overrides = None, run: RunOption = None) -> None:
    """Train the energies and their initializers on pixels, latents or points.

    Examples:

    python run.py train configs/digits.yaml

    python run.py train configs/digits.yaml training.num_steps=5000 --run runs/longer

    torchrun --standalone --nproc_per_node 2 run.py train configs/digits.yaml
    """
    with clear_errors():
        from cdrl.config import load_config
        from pipelines.jobs.training import run_stage_two

        run_stage_two(load_config(config, overrides or ()), run_folder(config, run))

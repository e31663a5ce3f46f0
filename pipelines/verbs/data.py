"""Verbs that make data ready."""

from __future__ import annotations

import typer

from pipelines.verbs.common import ConfigPath, Overrides, app, clear_errors


@app.command("prepare")
def prepare(config: ConfigPath, overrides: Overrides = None) -> None:
    """Turn published files into shards in data.prepared, cropped and resized, which training then reads.

    Examples:

    python run.py prepare configs/imagenet32.yaml

    python run.py prepare configs/celeba64_composition.yaml data.crop=178 data.prepared=data/prepared/celeba178
    """
    with clear_errors():
        from cdrl.config import load_config
        from pipelines.jobs.preparing import run_preparation

        for line in run_preparation(load_config(config, overrides or ())):
            typer.echo(line)

"""The verb that proposes a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipelines.verbs.common import app, clear_errors, tell


@app.command("new")
def new(
    folder: Annotated[Path, typer.Argument(help="folder of pictures; sub-folders are classes")],
    size: Annotated[
        int | None, typer.Option(min=8, help="side in pixels  [default: by the pictures and the time]")
    ] = None,
    space: Annotated[
        Literal["pixel", "latent"] | None, typer.Option(help="what is modelled  [default: latent above 32 pixels]")
    ] = None,
    hours: Annotated[
        float, typer.Option(min=0.01, help="that both trainings may take on this machine, e.g. 0.5")
    ] = 2.0,
    out: Annotated[Path | None, typer.Option(help="the file; NAME-OF-THE-FOLDER.yaml by default")] = None,
) -> None:
    """Look at a folder of pictures and write a configuration for it, each choice with its reason.

    Example: python run.py new photos --hours 2
    """
    path = out or Path(f"{folder.resolve().name}.yaml")
    if path.exists():  # before libraries are opened, which takes seconds
        raise typer.BadParameter(f"{path} exists already; remove it, or name another file with --out")
    with clear_errors():
        from cdrl.config_files import load_config
        from pipelines.jobs.proposing import write_proposal
        from pipelines.jobs.training import verb_after_data

        lines = write_proposal(folder, size, space, hours, path)
        tell("\n".join([*lines, f"configuration in {path}"]), verb_after_data(load_config(path)), path)

"""Verbs that give trained weights away, and take them from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.verbs.common import RunFolder, app, clear_errors, tell

HalfOption = Annotated[bool, typer.Option("--half", help="store the weights in half precision: half the size")]
ImagesOption = Annotated[
    bool, typer.Option("--with-images", help="8 held-out images, and densities of 500 of either split, go along")
]
HubName = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="name on the Hugging Face Hub")]


@app.command("export")
def export(
    run: RunFolder,
    folder: Annotated[Path, typer.Argument(help="new folder for the weights")],
    half: HalfOption = False,
    with_images: ImagesOption = False,
) -> None:
    """Write the trained weights of a run into a folder to give away, which every verb and from_pretrained open.

    With images, whoever has the weights but not the data can fill in held-out images on the demo's page, and compare
    images of their own with the training images.

    Examples:

    python run.py export runs/digits digits-weights --half

    python run.py export runs/digits digits-weights --with-images
    """
    with clear_errors():
        from pipelines.jobs.exporting import export_model
        from pipelines.report.card import is_unfinished

        export_model(run, folder, half=half, with_images=with_images)
        rest = ", of which parts are still to be written" if is_unfinished(folder) else ""
        drawn = f"samples-of-{folder.resolve().name}"  # beside the folder that is to be given away, not in it
        tell(f"weights and their card, README.md{rest}, in {folder}", "sample", folder, "--out", drawn)


@app.command("push")
def push(
    run: RunFolder,
    name: HubName,
    half: HalfOption = False,
    with_images: ImagesOption = False,
    private: Annotated[bool, typer.Option("--private", help="for oneself alone, if the repository is new")] = False,
) -> None:
    """Export the trained weights of a run, with their card, to the Hugging Face Hub.

    It needs the extra 'hub' and a token: HF_TOKEN, or what 'hf auth login' has kept.

    Example: python run.py push runs/digits someone/digits --half
    """
    with clear_errors():
        from pipelines.jobs.sharing import push_run

        address = push_run(run, name, half=half, with_images=with_images, private=private)
        tell(f"weights and their card at {address}", "pull", name)


@app.command("pull")
def pull(
    name: HubName,
    run: Annotated[Path | None, typer.Argument(help="new run folder  [default: runs/NAME]")] = None,
) -> None:
    """Fetch weights of this project from the Hugging Face Hub into a run folder.

    It needs the extra 'hub'. Only weights in safetensors, descriptions and texts are fetched.

    Example: python run.py pull someone/digits
    """
    with clear_errors():
        from pipelines.jobs.sharing import pull_run

        folder = run or Path("runs") / name.rpartition("/")[2]
        pull_run(name, folder)
        tell(f"model of {name} in {folder / 'model'}", "sample", folder)

"""Verbs that take in what others have published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.verbs.common import app, clear_errors, tell


@app.command("import-cdrl")
def import_cdrl(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint as the paper's authors publish it, .pth.tar")],
    run: Annotated[Path, typer.Argument(help="run folder to make")],
    raw: Annotated[bool, typer.Option("--raw", help="take the raw weights, not their moving average")] = False,
    image_size: Annotated[
        int | None, typer.Option(help="side of the images; by default read off where attention begins")
    ] = None,
) -> None:
    """Turn published CDRL weights into a run.

    Example: python run.py import-cdrl cifar10.pth.tar runs/published && python run.py sample runs/published
    """
    with clear_errors():
        from pipelines.jobs.importing import import_cdrl as make_run

        make_run(checkpoint, run, average=not raw, image_size=image_size)
        tell(f"model of {checkpoint.name} in {run / 'model'}", "sample", run)


@app.command("import-autoencoder")
def import_autoencoder(
    path: Annotated[
        Path, typer.Argument(help="checkpoint of latent diffusion or taming (.ckpt, .safetensors), or diffusers folder")
    ],
    run: Annotated[Path, typer.Argument(help="run folder to make")],
    raw: Annotated[
        bool, typer.Option("--raw", help="take the raw weights where the checkpoint has a moving average too")
    ] = False,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="side of the images; by default what the checkpoint says, or else 256")
    ] = None,
) -> None:
    """Turn a published first stage (VQ or KL) into a run that encode and train use like one of yours.

    Examples:

    python run.py import-autoencoder vq-f4/model.ckpt runs/vq-f4

    python run.py import-autoencoder stable-diffusion/vae runs/kl-f8 --image-size 256

    python run.py encode configs/celebahq256_vq_f4.yaml autoencoder.run=runs/vq-f4
    """
    with clear_errors():
        from pipelines.jobs.importing import import_autoencoder as make_run

        first_stage = make_run(path, run, average=not raw, image_size=image_size)
        image = (first_stage.image_channels, first_stage.image_size, first_stage.image_size)
        latent = first_stage.latent_shape
        told = f"{run}: images {_shape(image)} to latents {_shape(latent)} ({first_stage.config.bottleneck})"
        tell(told, "encode", "CONFIG", f"autoencoder.run={run}")


def _shape(sizes: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in sizes)

"""Images a second of what a trained run is used for."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from pipelines import CDRLPipeline
from pipelines.composition import compose
from pipelines.detection.scores import read_levels
from pipelines.inpainting.fill import Hidden, fill
from pipelines.inpainting.masks import box


def jobs(pipeline: CDRLPipeline, batch: int) -> dict[str, Callable[[], object]]:
    """What each verb does with one batch; guidance and composition where the run has classes."""
    images = pipeline(batch, batch_size=batch).tensors
    hidden = Hidden(box("center", *images.shape[-2:]))
    conditioned = pipeline.model.conditioned(None)
    chosen: dict[str, Callable[[], object]] = {
        "sample": lambda: pipeline(batch, batch_size=batch),
        "sample --steps auto": lambda: pipeline(batch, batch_size=batch, steps="auto"),
        "inpaint --box center": lambda: fill(pipeline, images, hidden, batch_size=batch),
        "detect": lambda: read_levels(pipeline.model.schedule, conditioned.log_density, pipeline.grids_of(images)),
    }
    if pipeline.model.num_classes:
        chosen["sample --guidance 1"] = lambda: pipeline(batch, batch_size=batch, label=0, guidance=1.0)
        chosen["sample --with, two concepts"] = lambda: compose(pipeline, batch, [0, 1], guidance=1.0, batch_size=batch)
    return chosen


def main(
    runs: Annotated[list[Path], typer.Argument(help="folders of trained runs of images")],
    batch: Annotated[int, typer.Option(help="Images at a time.", min=1)] = 64,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.", min=1)] = 1,
) -> None:
    """Time every verb once, decoding included, after a first batch of samples."""
    torch.set_num_threads(threads)
    for run in runs:
        pipeline = CDRLPipeline.from_pretrained(run)
        print(f"{run}, {batch} at a time, {threads} threads: images a second of wall time, of CPU time")
        for name, job in jobs(pipeline, batch).items():
            wall, cpu = time.monotonic(), time.process_time()
            result = job()
            # Decoding happens when images are asked for.
            _ = getattr(result, "tensors", None)
            wall, cpu = time.monotonic() - wall, time.process_time() - cpu
            print(f"{name:30s} {batch / wall:8.1f} {batch / cpu:8.1f}", flush=True)


if __name__ == "__main__":
    typer.run(main)

"""Both stages on drawn faces, end to end, and the figures that say how well they did."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoencoder.model import DESCRIPTION
from cdrl.config import ConfigError
from cdrl.config_files import load_config
from cdrl.data import training_images
from cdrl.runs.lock import locked
from cdrl.runs.outputs import one_calls_output
from cdrl.runs.run import read_json
from cdrl.training.machine import idle_cores
from pipelines.evaluation.stages import stage_figures
from pipelines.jobs.training import run_encoding, run_stage_one, run_stage_two

COMPARED = 500
"""Images of each kind that the figures compare."""

SHORT = (
    "data.num_train=256",
    "data.num_test=64",
    "autoencoder.training.num_steps=20",
    "training.num_steps=20",
    "sampling.steps=2",
)
"""Overrides of the rehearsal."""


def run_quickstart(config_path: Path, run: Path, *, short: bool) -> None:
    """Stage one, latents, stage two, pictures and figures.json in ``run``.

    ``short`` rehearses every step in about a minute, on few images and for few updates. ``seconds`` in figures.json
    are, of the two trainings, what all of their calls together have taken; of the rest, what this call has.

    Raises:
        ConfigError: the configuration has no initializer, which the figures need.
        RunError: another command writes there, or the folder holds a run with other settings.
    """
    config = load_config(config_path, SHORT if short else ())
    if config.initializer is None:
        raise ConfigError(f"{config_path}: the quickstart's figures need an initializer, but initializer is null")
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        seconds[stage] = round(time.monotonic() - started, 1)

    with one_calls_output(run, "figures.json", alone=False) as output, locked(run):
        with timed("data"):
            for split in ("train", "test"):
                training_images(config.data, split)
        run_stage_one(config, run)
        with timed("encode"), idle_cores():
            run_encoding(config, run)
        run_stage_two(config, run)
        with timed("figures"), idle_cores():
            figures = stage_figures(run, output.folder, COMPARED, judged_after=20 if short else None)
        trained = {
            "stage_one": read_json(run / "autoencoder" / "model" / DESCRIPTION)["wall_seconds"],
            "stage_two": read_json(run / "model" / "config.json")["wall_seconds"],
        }
        output.record = {"seconds": {**seconds, **trained}, **figures}

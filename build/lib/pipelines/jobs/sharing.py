"""Runs given to, and taken from, the Hugging Face Hub."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from cdrl.runs.model_folder import load_model
from cdrl.runs.run import RunError
from cdrl.runs.whole import written_whole
from pipelines.hub import pulled, push_folder
from pipelines.jobs.exporting import export_model


def push_run(run: Path, name: str, *, half: bool, with_images: bool, private: bool) -> str:
    """Export a run, see `pipelines.jobs.exporting.export_model`, and push what came of it; returns its address."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / name.rpartition("/")[2]
        export_model(run, folder, half=half, with_images=with_images)
        return push_folder(folder, name, private=private)


def pull_run(name: str, run: Path) -> None:
    """Fetch a model of the Hub into the run folder ``run``, which must be new.

    Raises:
        RunError: the folder exists, the Hub does not give the model out, or it is none of this project.
    """
    if run.exists():
        raise RunError(f"{run}: exists already; name another folder")
    source = pulled(name)
    load_model(source)
    with written_whole(run) as partial:
        shutil.copytree(source, partial / "model")  # the Hub's cache holds links to the files; these are copies

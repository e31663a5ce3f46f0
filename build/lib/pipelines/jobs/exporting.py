"""Trained weights made into a folder that can be given away, and weights that ship made into a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from cdrl.config_files import without_absolute_paths
from cdrl.runs.checksums import CHECKSUMS, folder_with_checksums, verify_checksums
from cdrl.runs.model_folder import find_model
from cdrl.runs.pretrained import SHIPPED
from cdrl.runs.run import RunError, load_tensors, read_json, save_tensors, write_json
from pipelines.base import CDRLPipeline
from pipelines.detection.known_images import measured, save_known
from pipelines.report.card import copy_card

RUNS = Path("runs") / "pretrained"
"""Where results of weights that ship go."""


def export_model(run: Path, folder: Path, *, half: bool, with_images: bool = False) -> None:
    """Write the model of a run into a new folder: weights in safetensors, their descriptions, checksums.

    Of absolute paths in the configuration the last part is left. The run's model card goes with them.

    Args:
        half: store weights in half precision; they are computed with in single precision all the same.
        with_images: some held-out images, and densities of training and held-out images, go along, for whoever has
            the weights but not the data; see `pipelines.detection.known_images`.

    Raises:
        RunError: there is no trained model, or it is damaged; or ``folder`` exists; or a weight is beyond half
            precision; or images are asked for, but the run has none.
        DataError: the images cannot be read.
    """
    model = find_model(run)
    verify_checksums(model)
    if folder.exists():
        raise RunError(f"{folder}: exists already; name another folder")
    known = measured(CDRLPipeline.from_pretrained(run)) if with_images else None
    with folder_with_checksums(folder) as partial:
        for path in sorted(model.rglob("*")):
            target = partial / path.relative_to(model)
            if path.suffix == ".safetensors":
                save_tensors(target, {name: _stored(path, name, t, half) for name, t in load_tensors(path).items()})
            elif path.suffix == ".json" and path.name != CHECKSUMS:
                described = read_json(path)
                if "config" in described:
                    described["config"] = without_absolute_paths(described["config"])
                write_json(target, described)
        if known is not None:
            save_known(known, partial)
        copy_card(run, model, partial, folder.resolve().name)


def run_of_pretrained(name: str) -> Path:
    """A run folder below ``runs/pretrained`` with the weights that ship under ``name``, made where it is not there."""
    run, source = RUNS / name, SHIPPED / name
    if not _same(run / "model" / CHECKSUMS, source / CHECKSUMS):
        with folder_with_checksums(run / "model") as partial:
            shutil.copytree(source, partial, ignore=shutil.ignore_patterns("*.md", CHECKSUMS))
    return run


def _same(one: Path, other: Path) -> bool:
    return one.exists() and one.read_bytes() == other.read_bytes()


def _stored(path: Path, name: str, weights: torch.Tensor, half: bool) -> torch.Tensor:
    if not half or weights.dtype != torch.float32:
        return weights
    smaller = weights.half()
    if not torch.isfinite(smaller).all():
        raise RunError(f"{path}: '{name}' holds numbers beyond half precision: export without --half")
    return smaller

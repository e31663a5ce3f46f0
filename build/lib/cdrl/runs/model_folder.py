"""The result of a run: a folder ``model/`` of safetensors and config.json that opens with no other file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cdrl.config_files import parse_config
from cdrl.installation import program
from cdrl.model import CDRL
from cdrl.runs.archives import check_finite
from cdrl.runs.checksums import verify_checksums
from cdrl.runs.pretrained import pretrained_names, shipped_or
from cdrl.runs.records import ModelRecord, read_record
from cdrl.runs.run import RunError, load_tensors, save_tensors, write_json, written_whole

FORMAT = 1


def save_model(folder: Path, model: CDRL, description: dict[str, Any]) -> None:
    """Write the networks and what is needed to rebuild them into ``folder``.

    Args:
        description: must hold ``config``, the resolved configuration as plain values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / "energy.safetensors", model.energy.state_dict())
    if model.initializer is not None:
        save_tensors(folder / "initializer.safetensors", model.initializer.state_dict())
    shape = {"format": FORMAT, "shape": list(model.shape), "num_classes": model.num_classes}
    write_json(folder / "config.json", {**shape, **description})


def load_model(folder: Path) -> tuple[CDRL, ModelRecord]:
    """The model in evaluation mode and its description.

    Raises:
        RunError: a file is missing, damaged or of another model.
        ConfigError: the configuration in its description is not one.
    """
    verify_checksums(folder)
    path = folder / "config.json"
    record = read_record(path, ModelRecord)
    config = parse_config(record.config, source=str(path))
    if (len(record.shape) == 1) != (config.space == "point"):
        raise RunError(f"{path}: shape: {record.shape} is not that of space: {config.space}")
    try:
        model = CDRL.without_weights(config, record.shape, record.num_classes)
    except ValueError as error:
        raise RunError(f"{path}: {error}") from None
    load_weights(model.energy, folder / "energy.safetensors")
    if model.initializer is not None:
        load_weights(model.initializer, folder / "initializer.safetensors")
    return model.eval().requires_grad_(False), record


def find_model(folder: Path) -> Path:
    """The model folder of a run, or ``folder`` itself if it is one, or that of weights that ship under this name.

    Raises:
        RunError: there is none.
    """
    folder = shipped_or(folder)
    model = folder if (folder / "energy.safetensors").exists() else folder / "model"
    if not (model / "config.json").exists():
        names = ", ".join(pretrained_names())
        raise RunError(
            f"{folder}: no trained model there; train it with: {program()} train CONFIG; or name weights that ship: "
            f"{names or 'there are none here'}"
        )
    return model


@contextmanager
def replaced_model(folder: Path, weights: str) -> Iterator[Path]:
    """Write a model folder as a whole, in place of the model that may lie there.

    Args:
        weights: the file by which such a model is known.

    Raises:
        RunError: something else lies there, such as a run, which would be lost.
    """
    is_free = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_free and not (folder / weights).exists():
        raise RunError(f"{folder}: holds something else than a model, which would be lost: choose another folder")
    with written_whole(folder) as partial:
        yield partial


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file into a module whose weights it must match exactly.

    For a module on the meta device memory is asked for when the file's names and sizes are found to fit.

    Raises:
        RunError: the file is missing, damaged, or holds other names or shapes, or numbers that are not finite.
    """
    tensors, expected = load_tensors(path), module.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            raise RunError(f"{path}: of another model: it {'lacks' if name in expected else 'also holds'} '{name}'")
        if tensors[name].shape != expected[name].shape:
            raise RunError(
                f"{path}: of another model: '{name}' is {list(tensors[name].shape)}, "
                f"expected {list(expected[name].shape)}"
            )
        # Weights that were given away may be stored in half precision; they are computed with in single precision.
        is_half = tensors[name].dtype == torch.float16 and expected[name].dtype == torch.float32
        if tensors[name].dtype != expected[name].dtype and not is_half:
            raise RunError(f"{path}: '{name}' is of {tensors[name].dtype}, expected {expected[name].dtype}")
    check_finite(path, tensors)
    if any(value.is_meta for value in expected.values()):
        module.to_empty(device="cpu")
    module.load_state_dict(tensors)


def take_over(module: nn.Module, path: Path) -> str:
    """Copy those weights of a safetensors file that ``module`` has under the same names and in the same shapes.

    Returns:
        What was taken over and what was not, in one line.

    Raises:
        RunError: the file is missing or damaged, or none of its weights fit.
    """
    tensors, expected = load_tensors(path), module.state_dict()
    check_finite(path, tensors)
    fitting = {name for name, value in expected.items() if name in tensors and tensors[name].shape == value.shape}
    if not fitting:
        raise RunError(f"{path}: none of its {len(tensors)} tensors has a name and a shape of this network's")
    module.load_state_dict({name: tensors[name] for name in fitting}, strict=False)
    new = [
        f"{name} {list(value.shape)}" + (f", there {list(tensors[name].shape)}" if name in tensors else "")
        for name, value in expected.items()
        if name not in fitting
    ]
    left = sorted(tensors.keys() - expected.keys())
    told = [f"{path}: {len(fitting)} of {len(expected)} tensors taken over"]
    told += [f"new from scratch: {_first_few(new)}"] if new else []
    told += [f"not used: {_first_few(left)}"] if left else []
    return "; ".join(told)


def _first_few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

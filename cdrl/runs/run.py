"""Run folders: what a run keeps on disk, written whole or not at all.

config.yaml            the resolved configuration
metrics.jsonl          one line a logged step; tensorboard/ holds the same
samples/               pictures over training
checkpoints/step_…/    everything needed to go on, bit for bit
model/                 the result: safetensors and config.json
best/                  the same of the step that was best by the configuration's evaluation, if it has one
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from cdrl.config import Section, dump_config
from cdrl.foreign.files import open_file, read_file
from cdrl.foreign.values import load_json, load_yaml

LONGEST_TEXT = 2**26
"""Bytes of a JSON or YAML file of a run."""


class RunError(RuntimeError):
    """A run folder that cannot be used as asked; the message names the folder or file."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write a file or folder under a temporary name beside ``path``; it takes its name when complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    discard(partial)
    try:
        yield partial
        if partial.is_dir() and path.exists():
            # A folder cannot replace a full one in one move: the old one steps aside first, and goes last.
            old = path.with_name(f".old-{path.name}")
            discard(old)
            os.replace(path, old)
            os.replace(partial, path)
            discard(old)
        else:
            os.replace(partial, path)
    finally:
        discard(partial)


def discard(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` as indented JSON."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        values = load_json(read_file(path, LONGEST_TEXT).decode("utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RunError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(values, dict):
        raise RunError(f"{path}: expected a JSON object")
    return values


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the settings of a run.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        values = load_yaml(read_file(path, LONGEST_TEXT).decode("utf-8"))
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RunError(f"{path}: not a readable YAML file: {error}") from None
    if not isinstance(values, dict):
        raise RunError(f"{path}: damaged: expected the settings of a run")
    return values


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors."""
    with written_whole(path) as partial:
        # Not save_file: it makes files that their owner alone can read.
        partial.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        open_file(path).close()  # a pipe in its place would be waited for
        return load_file(path)
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    except SafetensorError as error:
        raise RunError(f"{path}: not a whole safetensors file ({error})") from None


class Run:
    """The folder of one run, created or taken up again."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie, one folder a step."""
        return self.folder / "checkpoints"

    @property
    def model(self) -> Path:
        """Where the result lies."""
        return self.folder / "model"

    @property
    def best(self) -> Path:
        """Where the best result so far lies, if training is evaluated."""
        return self.folder / "best"

    def open(self, config: Section) -> None:
        """Create the folder, or check that it was made with the same configuration.

        Raises:
            RunError: the folder holds a run with other settings; the message names them. Or its config.yaml is damaged.
        """
        path = self.folder / "config.yaml"
        if path.exists():
            stored = read_yaml(path)
            changed = _differences(stored, yaml.safe_load(dump_config(config)))
            if changed:
                raise RunError(
                    f"{self.folder}: holds a run with other settings ({'; '.join(changed)}): "
                    "name another folder, or remove this one"
                )
            return
        with written_whole(path) as partial:
            partial.write_text(dump_config(config), encoding="utf-8")

    def last_checkpoint(self) -> tuple[int, Path] | None:
        """Step and folder of the newest whole checkpoint."""
        found = sorted(self.checkpoints.glob("step_*"))
        return (int(found[-1].name.removeprefix("step_")), found[-1]) if found else None

    def last_checkpoint_in_words(self) -> str:
        """What there is to go back to."""
        last = self.last_checkpoint()
        return f"the checkpoint of step {last[0]} is kept" if last else "there is no checkpoint before it"

    def checkpoint_path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.checkpoints / f"step_{step:08d}"

    def prune_checkpoints(self, keep: int = 2) -> None:
        """Remove all but the newest checkpoints, and what an interrupted writing left."""
        for path in sorted(self.checkpoints.glob("step_*"))[:-keep]:
            discard(path)
        for path in self.checkpoints.glob(".*"):
            discard(path)


class MetricsLog:
    """metrics.jsonl and TensorBoard of a run; what was logged after ``from_step`` is forgotten on resuming."""

    def __init__(self, folder: Path, from_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= from_step]
            with written_whole(self._path) as partial:
                partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def write(self, step: int, values: Mapping[str, float | list[float]]) -> None:
        """Log numbers, or lists with one number a level, under ``step``."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            if isinstance(value, list):
                for level, number in enumerate(value):
                    self._board.add_scalar(f"{name}/level_{level}", number, step)
            else:
                self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: Tensor) -> None:
        """Show a uint8 picture [C, H, W] on the board."""
        self._board.add_image(name, image, step)

    def close(self) -> None:
        """Write out what is buffered."""
        self._board.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut short by a crash


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [d for key in keys for d in _differences(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))]
    return [] if old == new else [f"{where} is {old!r} there, {new!r} here"]

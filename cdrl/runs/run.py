"""Run folders: what a run keeps on disk, written whole or not at all.

config.yaml            the resolved configuration
data.json              what the data are, for training and for figures during it: how many, and checksums
metrics.jsonl          one line a logged step; tensorboard/ holds the same
samples/               pictures over training
checkpoints/step_…/    everything needed to go on, bit for bit, in whole tensors
model/                 the result: safetensors and config.json
best/                  the same of the step that was best by the configuration's evaluation, if it has one
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from cdrl.config import Section
from cdrl.config_files import dump_config
from cdrl.foreign.files import open_file, read_file
from cdrl.foreign.values import load_json, load_yaml
from cdrl.runs.changes import LENGTHS, changes, settings_changes
from cdrl.runs.whole import clear_all_leftovers, clear_leftovers, discard, file_named, written_whole

LONGEST_TEXT = 2**26
"""Bytes of a JSON or YAML file of a run."""


class RunError(RuntimeError):
    """A run folder that cannot be used as asked; the message names the folder or file."""


def os_error_in_words(error: OSError) -> str:
    """The file or folder and what went wrong there, in one line."""
    reason = error.strerror or str(error) or type(error).__name__
    if isinstance(error, FileExistsError | NotADirectoryError):
        reason = "a file lies where a folder is to be"
    # Of a file that was being written, the name that it was to take.
    return reason if error.filename is None else f"{error.filename}: {reason}".replace("/.partial-", "/")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write ``values`` as indented JSON."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system says of a file that cannot be read into a RunError that names it."""
    try:
        yield
    except FileNotFoundError:
        raise RunError(f"{path}: no such file") from None
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RunError: the file is missing or damaged.
    """
    try:
        with reading(path):
            values = load_json(read_file(path, LONGEST_TEXT).decode("utf-8"))
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
        with reading(path):
            values = load_yaml(read_file(path, LONGEST_TEXT).decode("utf-8"))
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


def load_tensors(path: Path, names: Iterable[str] = ()) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        names: what it must hold.

    Raises:
        RunError: the file is missing or damaged, or lacks one of them.
    """
    try:
        with reading(path):
            open_file(path).close()  # a pipe in its place would be waited for
            tensors = load_file(path)
    except SafetensorError as error:
        raise RunError(f"{path}: not a whole safetensors file ({error})") from None
    missing = [name for name in names if name not in tensors]
    if missing:
        raise RunError(f"{path}: damaged: it holds no '{missing[0]}'")
    return tensors


DATA_FACTS = "data.json"
MEASURED_ON = "measured_on"
_BEFORE_A_CHECKPOINT = (DATA_FACTS, "metrics.jsonl", "tensorboard", "samples", "reconstructions", "best")
"""What training may have written when there is no checkpoint yet."""


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

    def open(self, config: Section, *, exactly: bool = False) -> None:
        """Create the folder, or check that it was made with the same configuration; clear what a killed process left.

        A folder that holds neither a checkpoint nor a model binds nobody: it is taken over. What changes nothing of
        what is learned may have changed, and the length may have grown, see `cdrl.runs.changes`; a line says so.

        Args:
            exactly: refuse these changes as well, where runs are to be compared.

        Raises:
            RunError: the folder holds a run with other settings; the message names them. Or there is no checkpoint from
                which a longer run could go on. Or its config.yaml is damaged.
        """
        self._clear()
        path = self.folder / "config.yaml"
        bound = self.last_checkpoint() is not None or self.model.exists()
        if path.exists() and bound:
            changed = settings_changes(read_yaml(path), config)
            refused = [change for change in changed if exactly or not change.is_allowed]
            if (
                refused
                and not exactly
                and all(change.key in LENGTHS and change.here < change.there for change in refused)
            ):
                told = ", ".join(f"{change.key}={change.there}" for change in refused)
                raise RunError(
                    f"{self.folder}: is a longer run already ({'; '.join(map(str, refused))}): type {told}, or more, "
                    "behind the command or in its file; or name another folder"
                )
            if refused:
                raise RunError(
                    f"{self.folder}: holds a run with other settings ({'; '.join(map(str, refused))}): "
                    "name another folder, or remove this one"
                )
            if self.last_checkpoint() is None and any(change.key in LENGTHS for change in changed):
                raise RunError(f"{self.folder}: no checkpoint is left to go on from; train in another folder")
            if changed:
                told = ", ".join(f"{change.key} {change.there!r} -> {change.here!r}" for change in changed)
                print(f"{self.folder}: goes on with {told}", file=sys.stderr, flush=True)
                self._note(config)
            return
        if path.exists():  # otherwise what lies here may be anybody's
            for name in _BEFORE_A_CHECKPOINT:
                discard(self.folder / name)
        self._note(config)

    def _note(self, config: Section) -> None:
        with written_whole(self.folder / "config.yaml") as partial:
            partial.write_text(dump_config(config), encoding="utf-8")

    def bind_data(self, facts: Mapping[str, Any]) -> None:
        """Note what the data are, or check that they are what the run's last checkpoint has learned from.

        Args:
            facts: what `cdrl.data.data_facts` says; under `MEASURED_ON` the same of the images, if there are any
                others, that figures during training are measured on.

        Raises:
            RunError: they have changed; the message says what of them.
        """
        path = self.folder / DATA_FACTS
        noted: dict[str, Any] = {}
        if path.exists() and self.last_checkpoint() is not None:
            noted = read_json(path)
            # Of the images behind the figures runs may know nothing: those begun before these were noted, and those
            # that are not measured, or not this time.
            both = {key: value for key, value in facts.items() if key != MEASURED_ON or key in noted}
            known = {key: value for key, value in noted.items() if key != MEASURED_ON or key in facts}
            changed = changes(known, json.loads(json.dumps(both)))
            if changed:
                measured = all(change.key.startswith(MEASURED_ON) for change in changed)
                what = "the images that it is measured on" if measured else "its training data"
                raise RunError(
                    f"{self.folder}: {what} have changed since its last checkpoint ({'; '.join(map(str, changed))}): "
                    "bring them back, or train in another folder"
                )
            if facts.keys() <= noted.keys():
                return
            print(
                f"{path}: says nothing of the images that the run is measured on: whether they have changed is not "
                "checked this time",
                file=sys.stderr,
                flush=True,
            )
        write_json(path, {**noted, **facts})

    def last_checkpoint(self) -> tuple[int, Path] | None:
        """Step and folder of the newest whole checkpoint."""
        found = self._all_checkpoints()
        return found[-1] if found else None

    def last_checkpoint_in_words(self) -> str:
        """What there is to go back to."""
        last = self.last_checkpoint()
        return f"the checkpoint of step {last[0]} is kept" if last else "there is no checkpoint before it"

    def way_on_without(self, checkpoint: Path) -> str:
        """What to do about a checkpoint that is damaged."""
        before = [step for step, path in self._all_checkpoints() if path.name < checkpoint.name]
        onward = f"go on from step {before[-1]}" if before else "begin anew"
        return f"remove {checkpoint} to {onward}"

    def checkpoint_path(self, step: int) -> Path:
        """The folder of a step's checkpoint."""
        return self.checkpoints / f"step_{step:08d}"

    def prune_checkpoints(self, keep: int = 2) -> None:
        """Remove all but the newest checkpoints, and what an interrupted writing left."""
        clear_all_leftovers(self.checkpoints)
        for _, path in self._all_checkpoints()[:-keep]:
            discard(path)

    def _all_checkpoints(self) -> list[tuple[int, Path]]:
        """Step and folder of each, the oldest first; folders that were given other names are nobody's."""
        named = ((path.name.removeprefix("step_"), path) for path in self.checkpoints.glob("step_*"))
        return sorted((int(digits), path) for digits, path in named if digits.isdecimal())

    def _clear(self) -> None:
        """Remove what a process that was killed in this run left, of what training writes."""
        for name in ("config.yaml", "model", *_BEFORE_A_CHECKPOINT):
            clear_leftovers(self.folder / name)
        for folder in (self.checkpoints, self.folder / "samples", self.folder / "reconstructions"):
            clear_all_leftovers(folder)


def tell_where_it_goes_on(run: Run, step: int, key: str, num_steps: int) -> None:
    """Say in one line from which step a run goes on; of one that was trained to its end before, how it can go on."""
    if step >= num_steps:
        told = f"was trained to its end before, step {step}; to go on from there: {key}={2 * step}, say"
    elif step:
        told = f"goes on from step {step} of {num_steps}"
    else:
        return
    print(f"{run.folder}: {told}", file=sys.stderr, flush=True)


class Tracker(Protocol):
    """Another program's record of a run, see `cdrl.training.trackers`."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record numbers under ``step``."""
        ...

    def picture(self, step: int, name: str, image: Tensor) -> None:
        """Record a uint8 picture [C, H, W]."""
        ...


class MetricsLog:
    """metrics.jsonl and TensorBoard of a run; what was logged after ``from_step`` is forgotten on resuming.

    Args:
        trackers: get the same.
    """

    def __init__(self, folder: Path, from_step: int, trackers: Sequence[Tracker] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._trackers = folder / "metrics.jsonl", trackers
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= from_step]
            with written_whole(self._path) as partial:
                partial.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=from_step + 1)

    def write(self, step: int, values: Mapping[str, float | list[float]]) -> None:
        """Log numbers, or lists with one number a level, under ``step``."""
        with file_named(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
            file.flush()
            # A checkpoint that outlives a loss of power must not miss the lines before it.
            os.fsync(file.fileno())
        single: dict[str, float] = {}
        for name, value in values.items():
            if isinstance(value, list):
                single |= {f"{name}/level_{level}": number for level, number in enumerate(value)}
            else:
                single[name] = value
        for name, number in single.items():
            self._board.add_scalar(name, number, step)
        for tracker in self._trackers:
            tracker.log(step, single)

    def picture(self, step: int, name: str, image: Tensor) -> None:
        """Show a uint8 picture [C, H, W] on the board."""
        self._board.add_image(name, image, step)
        for tracker in self._trackers:
            tracker.picture(step, name, image)

    def close(self) -> None:
        """Write out what is buffered."""
        self._board.close()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut short by a crash

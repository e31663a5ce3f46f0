"""Weights & Biases and MLflow beside a run's own log: the same figures and pictures, under the same names.

Where they go is told by these programs' own settings: WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY and the rest;
MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME, without which MLflow writes into the run's folder, mlflow.db and mlruns.
A run that goes on, goes on there too: trackers.json keeps its names.
"""

from __future__ import annotations

import importlib.util
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from cdrl.config import ConfigError
from cdrl.runs.run import MetricsLog, Tracker, read_json, write_json

NAMES_KEPT = "trackers.json"
_PROJECT = "cdrl"


def check_trackers(names: Sequence[str]) -> None:
    """See that what ``trackers`` names is installed.

    Raises:
        ConfigError: something is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"trackers: {name} is not installed; install it, or this project's extra '{name}'")


@contextmanager
def opened_log(folder: Path, from_step: int, names: Sequence[str], settings: Mapping[str, Any]) -> Iterator[MetricsLog]:
    """The log of a run, open, and with it the trackers that get the same.

    Args:
        folder: of the run.
        from_step: the run goes on from there.
        names: of the trackers.
        settings: those of the run, for their record.
    """
    with opened_trackers(names, folder, settings) as trackers, closing(MetricsLog(folder, from_step, trackers)) as log:
        yield log


@contextmanager
def opened_trackers(names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> Iterator[list[Tracker]]:
    """The trackers of a run, open.

    Args:
        folder: of the run.
        settings: those of the run, for the record.
    """
    check_trackers(names)
    kept = read_json(folder / NAMES_KEPT) if (folder / NAMES_KEPT).exists() else {}
    with ExitStack() as stack:
        found: list[Tracker] = []
        for name in names:
            tracker = stack.enter_context(closing(_TRACKERS[name](folder, settings, kept.get(name))))
            kept[name] = tracker.identity
            found.append(tracker)
        if names:
            write_json(folder / NAMES_KEPT, kept)
        yield found


class WandbTracker:
    """A run of Weights & Biases; ``identity`` is its id."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], identity: str | None) -> None:
        import wandb

        self.identity = identity or uuid.uuid4().hex[:12]
        self._wandb = wandb
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=_title(folder),
            id=self.identity,
            resume="allow",
            dir=folder,
            config=dict(settings),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, image: Tensor) -> None:
        self._run.log({name: self._wandb.Image(image.movedim(0, -1).numpy())}, step=step)

    def close(self) -> None:
        self._run.finish()


class MlflowTracker:
    """A run of MLflow; ``identity`` is its id."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], identity: str | None) -> None:
        import mlflow

        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        self._client = mlflow.MlflowClient(tracking_uri=place)
        self.identity = identity or self._new_run(folder, settings)
        self._metric = mlflow.entities.Metric

    def _new_run(self, folder: Path, settings: Mapping[str, Any]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            local = None if os.environ.get("MLFLOW_TRACKING_URI") else (folder / "mlruns").resolve().as_uri()
            number = self._client.create_experiment(name, artifact_location=local)
        else:
            number = experiment.experiment_id
        identity = self._client.create_run(number, run_name=_title(folder)).info.run_id
        self._client.log_dict(identity, dict(settings), "config.yaml")
        return identity

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self.identity, [self._metric(name, value, now, step) for name, value in values.items()])

    def picture(self, step: int, name: str, image: Tensor) -> None:
        self._client.log_image(self.identity, image.movedim(0, -1).numpy(), key=name, step=step)

    def close(self) -> None:
        self._client.set_terminated(self.identity)


_TRACKERS: dict[str, type[WandbTracker] | type[MlflowTracker]] = {"wandb": WandbTracker, "mlflow": MlflowTracker}


def _title(folder: Path) -> str:
    """``digits`` of runs/digits; ``heads autoencoder`` of a first stage in its run's folder."""
    whole = folder.resolve()
    return f"{whole.parent.name} autoencoder" if whole.name == "autoencoder" else whole.name

"""The runs that the page offers, opened when they are first asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cdrl.runs.model_folder import find_model
from cdrl.runs.pretrained import pretrained_names
from cdrl.runs.records import ModelRecord, read_record
from cdrl.runs.run import RunError
from pipelines.base import CDRLPipeline
from pipelines.detection.known_images import KnownImages, measured, shipped_known
from pipelines.generation import default_device

_OPEN = 3
"""Models kept in memory."""
_COMPARED = 250
"""Images that are scored where the model brought no densities with it: a few seconds' work."""


@dataclass(frozen=True)
class Offer:
    """What the page asks for about a run before it is opened.

    Attributes:
        image_size: side of its images in pixels.
        class_names: classes to choose from; none for models of attributes.
        attributes: attributes that can be composed.
    """

    image_size: int
    class_names: tuple[str, ...]
    attributes: tuple[str, ...]


class DemoRuns:
    """Runs by the name under which the page offers them.

    Args:
        runs: run folders or names of weights that ship; all of the latter that have images where there is none.

    Raises:
        RunError: there is no trained model in one, or it has no images.
    """

    def __init__(self, runs: Sequence[Path]) -> None:
        self._folders: dict[str, Path] = {}
        self._offers: dict[str, Offer] = {}
        for run in runs or [Path(name) for name in pretrained_names()]:
            offer = _offer(run)
            if offer is not None:
                name = run.name if run.name not in self._folders else str(run)
                self._folders[name], self._offers[name] = run, offer
            elif runs:
                raise RunError(f"{run}: a run of 2-D points: the page shows images")
        if not self._folders:
            raise RunError("no weights ship with this installation: name a trained run, such as runs/quickstart")
        self._pipelines: OrderedDict[str, CDRLPipeline] = OrderedDict()
        self._known: dict[str, KnownImages] = {}

    @property
    def names(self) -> list[str]:
        """The names, that of the largest images first."""
        return sorted(self._folders, key=lambda name: -self._offers[name].image_size)

    def offer(self, name: str) -> Offer:
        """Classes and attributes of a run."""
        return self._offers[name]

    def pipeline(self, name: str) -> CDRLPipeline:
        """The run's model, which is read unless it is one of the last few."""
        if name not in self._pipelines:
            self._pipelines[name] = CDRLPipeline.from_pretrained(self._folders[name], default_device())
            if len(self._pipelines) > _OPEN:
                self._pipelines.popitem(last=False)
        self._pipelines.move_to_end(name)
        return self._pipelines[name]

    def known(self, name: str) -> KnownImages:
        """Held-out images and densities of a run: those that lie in it, or else its data are read.

        Raises:
            DataError: the data are not here.
        """
        if name not in self._known:
            pipeline = self.pipeline(name)
            found = shipped_known(self._folders[name], pipeline)
            self._known[name] = measured(pipeline, _COMPARED) if found is None else found
        return self._known[name]


def _offer(run: Path) -> Offer | None:
    """What a run offers; None for 2-D points."""
    path = find_model(run) / "config.json"
    record = read_record(path, ModelRecord)
    if len(record.shape) == 1:
        return None
    data = record.config["data"]
    attributes = tuple(data["attributes"]) if data.get("labels") == "attributes" else ()
    return Offer(data["image_size"], () if attributes else tuple(record.class_names or ()), attributes)

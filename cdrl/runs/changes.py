"""What of a run's settings may change when it goes on: what does not change what it learns, and its length."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import yaml
from pydantic import ValidationError

from cdrl.config import Section
from cdrl.config_files import dump_config

LENGTHS = ("training.num_steps", "autoencoder.training.num_steps")
"""They may grow."""
FREE = (
    "data.path",
    "data.prepared",
    "data.cache",
    "data.cache_gib",
    "data.check_sums",
    "autoencoder.run",
    "autoencoder.training.precision",
    "autoencoder.training.log_every",
    "autoencoder.training.trackers",
    "autoencoder.training.picture_every",
    "autoencoder.training.checkpoint_every",
    "training.log_every",
    "training.trackers",
    "training.sample_every",
    "training.checkpoint_every",
    "training.on_divergence",
    "training.compile",
    "training.cuda_graph",
    "training.recompute_energy",
    "training.chain_dtype",
    "training.learning_dtype",
    "training.accumulation",
    "deepspeed",
    "zero_stage",
    "threads",
    "sampling",
    "evaluation",
)
"""Settings, and whole sections, that change nothing of what is learned but its rounding. That data and first stage,
wherever they lie, are the same as before is checked by their contents."""


class Change(NamedTuple):
    """A setting of which a run has one value and a command another."""

    key: str
    there: Any
    here: Any

    def __str__(self) -> str:
        return f"{self.key} is {self.there!r} there, {self.here!r} here"

    @property
    def is_allowed(self) -> bool:
        """Whether the run can go on with it."""
        if self.key in LENGTHS:
            return self.here > self.there
        return any(f"{self.key}.".startswith(f"{free}.") for free in FREE)


def changes(there: Any, here: Any, where: str = "") -> list[Change]:
    """What differs between nested values, each under its whole name."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = list(dict.fromkeys([*there, *here]))
        return [c for key in keys for c in changes(there.get(key), here.get(key), f"{where}.{key}".lstrip("."))]
    return [] if there == here else [Change(where, there, here)]


def settings_changes(stored: dict[str, Any], config: Section) -> list[Change]:
    """What differs between the settings that a run holds and those that a command has.

    Settings that did not exist yet when the run began count as their defaults.
    """
    with suppress(ValidationError):  # of a version with other settings; each of these is a change
        stored = yaml.safe_load(dump_config(type(config).model_validate(stored)))
    return changes(stored, yaml.safe_load(dump_config(config)))

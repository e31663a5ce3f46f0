"""What the JSON files of our own runs must hold: kinds and bounds, checked in one place when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cdrl.foreign.files import read_file
from cdrl.runs.run import LONGEST_TEXT, RunError, reading

R = TypeVar("R", bound="Record")

Side = Annotated[int, Field(ge=1, le=65_536)]
Statistics = Annotated[list[float], Field(min_length=1, max_length=65_536)]
"""A number a channel."""
Deviations = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1, max_length=65_536)]


class Record(BaseModel):
    """Base of our JSON files: strict types, finite numbers; unknown keys are ignored."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False, extra="ignore")


class ModelRecord(Record):
    """config.json of a model folder; with ``latent_mean`` and ``latent_std`` that of a run on latents."""

    format: Literal[1]
    shape: Annotated[list[Side], Field(min_length=1, max_length=3)]
    num_classes: Annotated[int, Field(ge=0, le=1_000_000)]
    config: dict[str, Any]
    class_names: list[str] | None = None
    latent_mean: Statistics | None = None
    latent_std: Deviations | None = None
    step: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.shape) == 2:
            raise ValueError("shape: expected that of a point or of a grid [C, H, W]")
        return self


class CheckpointRecord(Record):
    """state.json of a checkpoint."""

    model_config = ConfigDict(extra="allow")

    step: Annotated[int, Field(ge=0)]
    images: Annotated[int, Field(ge=0)] = 0
    processes: Annotated[int, Field(ge=1)] = 1
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    rollbacks: Annotated[int, Field(ge=0, le=1000)] = 0
    wall_seconds: Annotated[float, Field(ge=0)] = 0.0
    cpu_seconds: Annotated[float, Field(ge=0)] = 0.0


def read_record(path: Path, kind: type[R]) -> R:
    """Read a JSON file of ours.

    Raises:
        RunError: the file is missing or damaged, or holds something of another kind; the message names what.
    """
    try:
        with reading(path):
            return kind.model_validate_json(read_file(path, LONGEST_TEXT))
    except ValidationError as error:
        raise RunError(f"{path}: {first_fault(error)}") from None
    except ValueError as error:
        raise RunError(f"{path}: {error}") from None


def read_checkpoint_record(path: Path, num_steps: int) -> dict[str, Any]:
    """state.json of a checkpoint of a training of ``num_steps``.

    Raises:
        RunError: as `read_record`; or it is of a step that this training does not have.
    """
    record = read_record(path, CheckpointRecord)
    if record.step > num_steps:
        raise RunError(f"{path}: step: expected {num_steps} at most, as the run's settings say, found {record.step}")
    return record.model_dump(exclude_unset=True)


def first_fault(error: ValidationError) -> str:
    """First validation error in one line, without the value itself, which may be long."""
    item = error.errors(include_url=False, include_input=False)[0]
    if item["type"] == "json_invalid":
        return f"not valid JSON ({item['msg'][:200]})"
    if item["type"] == "literal_error":
        item["msg"] = f"expected {item['ctx']['expected']}"
    where = ".".join(str(part)[:40] for part in item["loc"][:6])
    message = item["msg"].removeprefix("Value error, ")[:200]
    return f"it lacks '{where}'" if item["type"] == "missing" else f"{where + ': ' if where else ''}{message}"

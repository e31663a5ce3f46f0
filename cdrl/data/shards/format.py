"""Shards in webdataset's layout: tar files of `key.png` or `key.npy` with `key.cls` and `key.json` beside them.

Shards written here come with an `index.json` that says what they hold, and with `samples.safetensors`, where each
grid lies. The index appears last, so a folder without it is either somebody else's or half-written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

INDEX = "index.json"
TABLE = "samples.safetensors"
PARTIAL = ".partial"
FORMAT = "cdrl-shards"
VERSION = 1

_MOST = 2**40


class Sample(NamedTuple):
    """One grid to be written: uint8 [1 or 3, H, W] (an image) or float32 of any shape (a latent).

    ``label`` is a class id or None; ``attributes`` has one value for each attribute name of the set.
    """

    grid: Tensor
    label: int | None = None
    attributes: Sequence[bool] = ()


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # a file of the cache has it as its name


class Shard(_Record):
    """One tar file of a set."""

    name: str = Field(pattern=r"^[^/\\]+\.tar$")
    count: int = Field(ge=1, le=_MOST)
    sha256: _Sha256


_Side = Annotated[int, Field(ge=1, le=2**20)]


class Index(_Record):
    """What `index.json` says of a set."""

    format: str = Field(pattern=f"^{FORMAT}$")
    version: int = Field(ge=VERSION, le=VERSION)
    count: int = Field(ge=1, le=_MOST)
    shape: tuple[_Side, ...] = Field(min_length=1, max_length=8)
    dtype: str = Field(pattern="^(uint8|float32)$")
    label_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    shards: tuple[Shard, ...]
    table_sha256: _Sha256 | None = None  # sets written before there were tables have none
    metadata: dict[str, Any]

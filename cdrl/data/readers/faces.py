"""Drawn faces whose attributes are known: avatars by DiceBear, rendered once and kept as shards.

One seed is one face, at any resolution. The variants that a style chose for a face are read back, and say which
attributes are true of it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
import torch
from dicebear import Avatar, Style
from filelock import FileLock
from torch import Tensor

from cdrl.config import DataConfig
from cdrl.data.images.files import decode_image
from cdrl.data.images.sets import DataError, GridSet, Source, Split, source_of_grids
from cdrl.data.shards.format import Sample
from cdrl.data.shards.reading import has_index, read_index
from cdrl.data.shards.streaming import ShardGrids, stream_shards
from cdrl.data.shards.writing import write_shards
from cdrl.runs.progress import progress_bar

_CACHE_VERSION = "v1"
_FACES_PER_PROCESS = 500  # fewer are drawn faster than a process starts

_Job = tuple[str, str, int, float]  # style, seed, size, zoom
_Face = tuple[np.ndarray, list[bool]]  # uint8 [3, size, size], values of the attributes


@dataclass(frozen=True)
class FaceStyle:
    """How faces of one style are drawn, and which variants make an attribute true.

    Attributes:
        attributes: attribute -> (part of the face, its variants for which the attribute is true).
        options: what DiceBear is told, so that both values of each attribute are frequent.
    """

    attributes: dict[str, tuple[str, frozenset[str]]]
    options: dict[str, Any] = field(default_factory=dict)


_SMILES = frozenset(["default", "smile", "tongue", "twinkle"])
_OTHER_MOUTHS = frozenset(["concerned", "disbelief", "eating", "grimace", "sad", "screamOpen", "serious", "vomit"])
_CHIN_LONG_TOPS = ["bob", "curly", "fro", "froBand", "longButNotTooLong", "miaWallace", "shaggyMullet"]
_BREAST_LONG_TOPS = ["bigHair", "curvy", "dreads", "shavedSides", "straight01", "straight02", "straightAndStrand"]
_HATS = frozenset(["hat", "winterHat02", "winterHat03", "winterHat04", "winterHat1"])
_GLASSES = frozenset(["kurt", "prescription01", "prescription02", "round", "sunglasses", "wayfarers"])
_BEARDS = frozenset(["beardLight", "beardMajestic", "beardMedium"])

FACE_STYLES = {
    "avataaars": FaceStyle(
        attributes={
            # Mouths whose corners are up. An eating mouth is chewing, a grimace bares clenched teeth.
            "Smiling": ("mouth", _SMILES),
            # Sunglasses count, as they do in CelebA; a patch over one eye does not.
            "Eyeglasses": ("accessories", _GLASSES),
            # Hair that is seen below the chin: neither a bun nor what a headscarf hides.
            "Long_Hair": ("top", frozenset([*_CHIN_LONG_TOPS, *_BREAST_LONG_TOPS])),
            # A moustache alone is no beard.
            "Beard": ("facialHair", _BEARDS),
            # A headscarf, a turban and a wreath of flowers are no hats.
            "Wearing_Hat": ("top", _HATS),
        },
        options={
            "accessoriesProbability": 50,
            "facialHairProbability": 50,
            "mouthVariant": dict.fromkeys(sorted(_SMILES), 2) | dict.fromkeys(sorted(_OTHER_MOUTHS), 1),
        },
    ),
    # This style draws neither glasses nor hats.
    "toon-head": FaceStyle(
        attributes={
            "Smiling": ("mouth", frozenset({"laugh", "smile"})),
            # Hair that is seen below the chin: the variant `neckHigh` ends above it.
            "Long_Hair": ("rearHair", frozenset({"longStraight", "longWavy", "shoulderHigh"})),
            "Beard": ("beard", frozenset({"chin", "chinMoustache", "fullBeard", "longBeard"})),
        },
        options={
            "beardProbability": 40,
            "rearHairProbability": 60,
            # A smile is a thin line here, so laughs make most of the smiling half.
            "mouthVariant": {"laugh": 2, "smile": 1, "agape": 1, "angry": 1, "sad": 1},
        },
    ),
}


def open_faces(path: None, split: Split, data: DataConfig) -> Source:
    """The faces of `faces_on_disk` as a source, read a part at a time."""
    faces = faces_on_disk(split, data)
    return source_of_grids(faces, torch.arange(len(faces)))


def faces_on_disk(split: Split, data: DataConfig) -> GridSet:
    """The first ``data.num_train`` or ``data.num_test`` faces of a split, in the cache, where they are drawn at need.

    A face depends on style, zoom, split and its number only. Processes that ask at the same time wait for the first.

    Raises:
        DataError: the cached shards are damaged, or the cache cannot be written.
    """
    style, size, zoom = data.style, data.image_size, data.zoom
    num = data.num_train if split == "train" else data.num_test
    near = "" if zoom == 1 else f"-x{zoom:g}"
    folder = data.cache / "faces" / f"{style}-{size}{near}-{_CACHE_VERSION}" / split
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made to keep drawn faces there: {error.strerror}") from None
    with FileLock(folder.with_suffix(".lock")):
        if not has_index(folder) or read_index(folder).count < num:
            _render_to_cache(folder, style, split, num, size, zoom)
        faces = stream_shards(folder)
    assert isinstance(faces.grids, ShardGrids)
    assert faces.attributes is not None
    return GridSet(faces.grids.first(num), attributes=faces.attributes[:num], attribute_names=faces.attribute_names)


def render_face(style: str, seed: str, size: int, zoom: float = 1.0) -> tuple[Tensor, dict[str, bool]]:
    """The face that ``seed`` stands for: uint8 [3, size, size] on white, and the values of its attributes.

    It is drawn ``zoom`` times as large about the middle of the picture, whose edges cut it off.
    """
    options = {"seed": seed, "backgroundColor": ["ffffff"], "scale": zoom, **FACE_STYLES[style].options}
    drawing = Avatar(_load_style(style), options).to_json()
    chosen = drawing["options"]
    content = resvg_py.svg_to_bytes(svg_string=drawing["svg"], width=size, height=size, skip_system_fonts=True)
    # A part that is not drawn has no variant among the options.
    attributes = {
        name: chosen.get(f"{part}Variant") in variants
        for name, (part, variants) in FACE_STYLES[style].attributes.items()
    }
    return decode_image(bytes(content), f"{style} {seed}"), attributes


def _render_to_cache(folder: Path, style: str, split: Split, num: int, size: int, zoom: float) -> None:
    jobs = [(style, f"{split}-{number:06d}", size, zoom) for number in range(num)]
    metadata = {
        "style": style,
        "license": _read_definition(style)["meta"]["license"],
        "creator": _read_definition(style)["meta"]["creator"],
        "versions": {package: version(package) for package in ("dicebear-core", "dicebear-styles", "resvg-py")},
    }
    with progress_bar(num, f"drawing {split} faces", unit="face") as bar:

        def samples() -> Iterator[Sample]:
            for pixels, attributes in _render_all(jobs):
                yield Sample(torch.from_numpy(pixels), attributes=attributes)
                bar.update()

        write_shards(folder, samples(), metadata, attribute_names=tuple(FACE_STYLES[style].attributes))


def _render_all(jobs: list[_Job]) -> Iterator[_Face]:
    processes = min(os.cpu_count() or 1, len(jobs) // _FACES_PER_PROCESS)
    if processes < 2:
        yield from map(_render_job, jobs)
        return
    # Fresh processes: forked ones could inherit locks that threads of this process hold.
    with get_context("spawn").Pool(processes) as pool:
        yield from pool.imap(_render_job, jobs, chunksize=32)


def _render_job(job: _Job) -> _Face:
    image, attributes = render_face(*job)
    # As an array: tensors would go between processes by a file descriptor each.
    return image.numpy(), list(attributes.values())


@cache
def _load_style(style: str) -> Style:
    return Style(_read_definition(style))


def _read_definition(style: str) -> dict[str, Any]:
    definition: dict[str, Any] = json.loads(files("dicebear_styles").joinpath(f"{style}.json").read_text("utf-8"))
    return definition

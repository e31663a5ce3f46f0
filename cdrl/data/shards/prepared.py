"""Prepared shards: a published data set cropped and resized once, here or elsewhere, with a note of what was done."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from cdrl.config import DataConfig
from cdrl.data.images.census import tell
from cdrl.data.images.preparing import prepared_parts
from cdrl.data.images.sets import DataError, GridSet, Source, Split
from cdrl.data.shards.cache import ShardCache
from cdrl.data.shards.folders import Elsewhere
from cdrl.data.shards.format import Sample
from cdrl.data.shards.reading import has_index, read_index, read_shards
from cdrl.data.shards.streaming import stream_shards
from cdrl.data.shards.writing import discard_leftovers, is_whole, write_images_resumably
from cdrl.foreign.places import FILE, PIPE
from cdrl.installation import program
from cdrl.runs.progress import progress_bar
from cdrl.runs.records import Record, read_record
from cdrl.runs.run import write_json

_MAY_BE_TRANSPARENT = ("folder", "celebahq", "shards")


def preparation(data: DataConfig, split: Split) -> dict[str, Any]:
    """What is done to the pictures of a split; the metadata of prepared shards hold it."""
    crop = f"central {data.crop} x {data.crop} pixels" if data.name == "celeba" else "largest central square"
    padded = data.name == "fashion_mnist" and data.image_size == 32
    faces = {"style": data.style, "zoom": data.zoom, "num": data.num_train if split == "train" else data.num_test}
    return {
        "name": data.name,
        "split": split,
        **(faces if data.name == "faces" else {}),
        **({"background": data.background} if data.name in _MAY_BE_TRANSPARENT else {}),
        "channels": data.channels,
        "image_size": data.image_size,
        "crop": "none; 2 pixels of zeros on each side" if padded else crop,
        "resize": "bilinear, antialiased",
    }


def write_prepared(data: DataConfig, split: Split, source: Source) -> Path:
    """Write a split as shards below ``data.prepared``, or go on with it; returns their folder.

    A set that is there already, made of the same files, is left as it is, unless one of its own is damaged. The
    pictures pass through memory a part at a time.

    Raises:
        DataError: a picture is damaged (the shards before it stay for the next call), or the folder holds a set that
            was prepared otherwise, or made of other files than lie in ``data.path`` now; or it lies elsewhere.
    """
    folder = _folder(data, split)
    metadata = {"preparation": preparation(data, split)}
    # Beside the folder, so that the folder holds shards only.
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder.parent}: cannot be made to write shards there: {error.strerror}") from None
    with FileLock(folder.with_suffix(".lock")):
        if has_index(folder):
            index = read_index(folder)
            _check_preparation(data, split, index.metadata, str(folder))
            whole = is_whole(folder, index)
            _expect_same_files(data, split, source, look_inside=whole)
            if whole:
                discard_leftovers(folder)
                return folder
            print(f"{folder}: a file is missing or damaged: prepared anew", file=sys.stderr, flush=True)
        write_images_resumably(
            folder,
            lambda start: _samples(data, source, start),
            source,
            (data.channels, data.image_size, data.image_size),
            metadata,
        )
        index = read_index(folder)
        if data.path is not None:
            write_json(_origin_file(data, split), _origin(data.path, source, index.count).model_dump())
    tell(data, split, index.count, index.metadata)
    return folder


def read_prepared(data: DataConfig, split: Split, *, stream: bool) -> GridSet:
    """The prepared shards of a split: in memory, or with ``stream`` left on disk, or elsewhere.

    Raises:
        DataError: there are none, they are damaged, they cannot be fetched, or they were prepared otherwise than
            ``data`` says.
    """
    if isinstance(data.prepared, str):
        return _read_elsewhere(data, split, data.prepared, stream=stream)
    folder = _folder(data, split)
    if not has_index(folder):
        raise DataError(f"{folder}: no prepared shards there; make them with: {program()} prepare CONFIG")
    _check_preparation(data, split, read_index(folder).metadata, str(folder))
    origin = _noted_origin(data, split)
    if origin is not None and data.path is not None and origin.path != _resolved(data.path):
        raise DataError(
            f"{folder}: prepared from {origin.path}, but data.path is {data.path}: {program()} prepare CONFIG "
            "compares the two"
        )
    return stream_shards(folder) if stream else read_shards(folder)


def local_folder(data: DataConfig) -> Path:
    """``data.prepared``, a folder of this machine with both splits. Raises DataError where it is none."""
    if data.prepared is None:
        raise DataError("data.prepared: expected the folder in which prepared shards are to lie")
    if isinstance(data.prepared, str):
        raise DataError(
            f"data.prepared={data.prepared}: shards are read there, and written to folders of this machine alone: "
            "prepare into one, and copy it there"
        )
    return data.prepared


def _read_elsewhere(data: DataConfig, split: Split, place: str, *, stream: bool) -> GridSet:
    cache = ShardCache(data.cache / "elsewhere", int(data.cache_gib * 2**30))
    # A command has the name of the file somewhere in it.
    inside = place.replace(FILE, f"{split}/{FILE}") if place.startswith(PIPE) else f"{place}/{split}"
    folder = Elsewhere(inside, cache)
    shards = stream_shards(folder)
    _check_preparation(data, split, shards.metadata, inside)
    return shards if stream else replace(shards, grids=shards.grids[:])


def _folder(data: DataConfig, split: Split) -> Path:
    return local_folder(data) / split


def _check_preparation(data: DataConfig, split: Split, metadata: Mapping[str, Any], where: str) -> None:
    found, expected = metadata.get("preparation"), preparation(data, split)
    if not isinstance(found, dict):
        raise DataError(f"{where}: holds shards that were not written by: {program()} prepare CONFIG")
    for name in {**expected, **found}:
        if found.get(name) != expected.get(name):
            raise DataError(
                f"{where}: prepared otherwise ({name}: {found.get(name)} there, {expected.get(name)} here): name "
                "another folder in data.prepared, or remove this one"
            )


class _Origin(Record):
    """What prepared shards were made of: the folder or file, and `Source.fingerprint` of all that was read there."""

    path: str
    fingerprint: str


def _expect_same_files(data: DataConfig, split: Split, source: Source, *, look_inside: bool) -> None:
    """Raise DataError where the shards of a split were made of other files than ``data.path`` holds now.

    Only with ``look_inside``, which takes whole shards, their first pictures are compared.
    """
    if data.path is None:
        return  # drawn by this project
    folder, noted = _folder(data, split), _noted_origin(data, split)
    count = read_index(folder).count
    origin = _origin(data.path, source, count)
    # Sets that were prepared before origins were noted are known by their first pictures alone.
    same = source.count in (None, count) and (noted is None or noted.fingerprint == origin.fingerprint)
    if not same or (look_inside and not _first_pictures_are_there(data, split, source)):
        raise DataError(
            f"{folder}: prepared from other files than lie in {data.path} now: name another folder in data.prepared, "
            "or remove this one"
        )
    write_json(_origin_file(data, split), origin.model_dump())  # the files may have moved


def _first_pictures_are_there(data: DataConfig, split: Split, source: Source) -> bool:
    """Whether the first pictures are those of the shards: a fingerprint knows small files by name and size alone."""
    part = next(prepared_parts(source, data.image_size, data.channels, data.name))
    pictures = torch.as_tensor(part.pictures)
    return torch.equal(pictures, stream_shards(_folder(data, split)).grids[: len(pictures)])


def _origin(path: Path, source: Source, count: int) -> _Origin:
    return _Origin(path=_resolved(path), fingerprint=source.fingerprint(slice(0, count)))


def _noted_origin(data: DataConfig, split: Split) -> _Origin | None:
    path = _origin_file(data, split)
    return read_record(path, _Origin) if path.exists() else None


def _origin_file(data: DataConfig, split: Split) -> Path:
    # Beside the folder of shards: what runs are bound to is in that folder, and does not change where files are moved.
    return _folder(data, split).with_suffix(".origin.json")


def _resolved(path: Path) -> str:
    return str(path.resolve())


def _samples(data: DataConfig, source: Source, start: int) -> Iterator[Sample]:
    with progress_bar(source.count, f"preparing {data.name}", initial=start, unit="image") as bar:
        for part in prepared_parts(source, data.image_size, data.channels, data.name, start):
            for row, picture in enumerate(part.pictures):
                label = None if part.labels is None else int(part.labels[row])
                attributes = () if part.attributes is None else tuple(part.attributes[row].tolist())
                yield Sample(picture, label, attributes)
            bar.update(len(part.pictures))

"""Prepared shards: a published data set cropped and resized once, kept beside what was done to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from cdrl.config import DataConfig
from cdrl.data.images.census import tell
from cdrl.data.images.preparing import prepared_parts
from cdrl.data.images.sets import DataError, GridSet, Source, Split
from cdrl.data.shards.format import Sample
from cdrl.data.shards.reading import has_index, read_index, read_shards
from cdrl.data.shards.streaming import stream_shards
from cdrl.data.shards.writing import discard_leftovers, write_images_resumably
from cdrl.runs.progress import progress_bar

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

    A set that is there already is left as it is. The pictures pass through memory a part at a time.

    Raises:
        DataError: a picture is damaged (the shards before it stay for the next call), or the folder holds a set that
            was prepared otherwise, or shards of files that have changed since.
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
            _check_preparation(data, split)
            discard_leftovers(folder)
            return folder
        write_images_resumably(
            folder,
            lambda start: _samples(data, source, start),
            source,
            (data.channels, data.image_size, data.image_size),
            metadata,
        )
    index = read_index(folder)
    tell(data, split, index.count, index.metadata)
    return folder


def read_prepared(data: DataConfig, split: Split, *, stream: bool) -> GridSet:
    """The prepared shards of a split: in memory, or with ``stream`` left on disk.

    Raises:
        DataError: there are none, they are damaged, or they were prepared otherwise than ``data`` says.
    """
    folder = _folder(data, split)
    if not has_index(folder):
        raise DataError(f"{folder}: no prepared shards there; make them with: python run.py prepare CONFIG")
    _check_preparation(data, split)
    return stream_shards(folder) if stream else read_shards(folder)


def _folder(data: DataConfig, split: Split) -> Path:
    if data.prepared is None:
        raise DataError("data.prepared: expected the folder in which prepared shards are to lie")
    return data.prepared / split


def _check_preparation(data: DataConfig, split: Split) -> None:
    folder = _folder(data, split)
    found, expected = read_index(folder).metadata.get("preparation"), preparation(data, split)
    if not isinstance(found, dict):
        raise DataError(f"{folder}: holds shards that were not written by: python run.py prepare CONFIG")
    for name in {**expected, **found}:
        if found.get(name) != expected.get(name):
            raise DataError(
                f"{folder}: prepared otherwise ({name}: {found.get(name)} there, {expected.get(name)} here): name "
                "another folder in data.prepared, or remove this one"
            )


def _samples(data: DataConfig, source: Source, start: int) -> Iterator[Sample]:
    with progress_bar(source.count, f"preparing {data.name}", initial=start, unit="image") as bar:
        for part in prepared_parts(source, data.image_size, data.channels, data.name, start):
            for row, picture in enumerate(part.pictures):
                label = None if part.labels is None else int(part.labels[row])
                attributes = () if part.attributes is None else tuple(part.attributes[row].tolist())
                yield Sample(picture, label, attributes)
            bar.update(len(part.pictures))

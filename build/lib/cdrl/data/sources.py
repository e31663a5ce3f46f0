"""One door to all images: from the data section of a configuration to an `ImageSet`."""

from __future__ import annotations

from typing import Any

from cdrl.config import DataConfig
from cdrl.data.images.census import as_metadata, tell
from cdrl.data.images.preparing import read_source
from cdrl.data.images.sets import DataError, GridSet, ImageSet, Source, Split
from cdrl.data.readers.faces import faces_on_disk
from cdrl.data.shards.prepared import read_prepared
from cdrl.registry import DATA_SETS, registered

_WITHOUT_FILES = ("faces", "digits")  # there is nothing of the user's that could be left out


def load_images(data: DataConfig, split: Split) -> ImageSet:
    """The images of one split: uint8 [N, data.channels, data.image_size, data.image_size], in a fixed order.

    Raises:
        DataError: the data set is missing, damaged or differs from the published layout; the message names the file.
    """
    if data.prepared is not None:
        return read_prepared(data, split, stream=False).to_images()
    return _read_published(data, split)[0]


def training_images(data: DataConfig, split: Split = "train") -> GridSet:
    """The images of one split as grids: on disk with ``data.stream``, otherwise in memory as `load_images` has them.

    Raises:
        DataError: as `load_images`; or, of images on disk, when a damaged one is asked for.
    """
    if data.prepared is not None:
        return read_prepared(data, split, stream=data.stream)
    if data.stream:
        return faces_on_disk(split, data)  # drawn faces need not be prepared
    images, metadata = _read_published(data, split)
    return GridSet(
        images.images, images.labels, images.label_names, images.attributes, images.attribute_names, metadata
    )


def open_source(data: DataConfig, split: Split) -> Source:
    """One split as it was published, before any preparation.

    Raises:
        DataError: the data set is missing or differs from the published layout; the message names the file.
    """
    if data.name not in DATA_SETS:
        raise DataError(f"data.name={data.name}: holds no images to be read")
    return registered("data.name", data.name, DATA_SETS)(data.path, split, data)


def _read_published(data: DataConfig, split: Split) -> tuple[ImageSet, dict[str, Any]]:
    """The images of one split, and metadata that tell what was left out of the files that lie there."""
    source = open_source(data, split)
    images = read_source(source, data.image_size, data.channels, data.name)
    if data.name in _WITHOUT_FILES:
        return images, {}
    metadata = as_metadata(source.left_out)
    tell(data, split, len(images), metadata)
    return images, metadata

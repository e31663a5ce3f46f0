"""What readers return: images or grids, or how to get at them, with what is known about each of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from cdrl.data.images.census import LeftOut

Split = Literal["train", "test"]

_LARGE = 2**20  # bytes; pictures are smaller, and many
_END = 2**16
_PART = 64  # images that are read together


class DataError(ValueError):
    """Data that cannot be used; the message names the file or folder and what was expected there."""


@dataclass(frozen=True)
class ImageSet:
    """Images with their classes and attributes, where these are known.

    Attributes:
        images: uint8 [N, C, H, W] with 1 or 3 channels.
        labels: int64 [N], class ids 0 … len(label_names) - 1, or None.
        label_names: one name a class; empty if, and only if, ``labels`` is None.
        attributes: bool [N, A], or None.
        attribute_names: one name an attribute; empty if, and only if, ``attributes`` is None.

    Raises:
        DataError: shapes, types or label ids contradict each other.
    """

    images: Tensor
    labels: Tensor | None = None
    label_names: tuple[str, ...] = ()
    attributes: Tensor | None = None
    attribute_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.ndim != 4 or self.images.shape[1] not in (1, 3):
            raise DataError(f"images: expected uint8 [N, 1 or 3, H, W], found {_describe(self.images)}")
        _check_annotations(len(self.images), self.labels, self.label_names, self.attributes, self.attribute_names)

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Tensor | Sequence[int]) -> ImageSet:
        """The images at ``indices``, in that order."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return ImageSet(
            images=self.images[rows],
            labels=None if self.labels is None else self.labels[rows],
            label_names=self.label_names,
            attributes=None if self.attributes is None else self.attributes[rows],
            attribute_names=self.attribute_names,
        )


class Grids(Protocol):
    """Grids [N, *shape] read by index: a tensor, or shards on disk."""

    @property
    def shape(self) -> tuple[int, ...]:
        """N and the shape of one grid."""

    @property
    def dtype(self) -> torch.dtype:
        """The type of their numbers."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any) -> Tensor:
        """The grids of a slice, or of numbers int64 [n]."""


class SomeGrids:
    """Some grids of others, read where those are when they are asked for."""

    def __init__(self, grids: Grids, rows: Tensor) -> None:
        """
        Args:
            rows: their numbers, int64 [n].
        """
        self._grids, self._rows = grids, rows
        self.shape = (len(rows), *grids.shape[1:])
        self.dtype = grids.dtype

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> Tensor:
        """The grids of a slice, or of numbers int64 [n]."""
        return self._grids[self._rows[rows]]


@dataclass(frozen=True)
class GridSet:
    """Grids of any shape, as shards hold them; labels and attributes as in `ImageSet`.

    Attributes:
        grids: uint8 (images) or float32 (latents, points) [N, *shape]; finite.
        metadata: what the writer wanted to be remembered, as JSON holds it.
    """

    grids: Grids
    labels: Tensor | None = None
    label_names: tuple[str, ...] = ()
    attributes: Tensor | None = None
    attribute_names: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.grids.dtype not in (torch.uint8, torch.float32) or len(self.grids.shape) < 2:
            raise DataError(f"grids: expected uint8 or float32 [N, …], found {_describe(self.grids)}")
        broken = first_not_finite(self.grids)
        if broken is not None:
            raise DataError(f"grids: sample {broken}: expected finite numbers, found NaN or infinity")
        _check_annotations(len(self.grids), self.labels, self.label_names, self.attributes, self.attribute_names)

    def __len__(self) -> int:
        return len(self.grids)

    def to_images(self) -> ImageSet:
        """The same set as images in memory. Raises DataError when the grids are not uint8 [N, 1 or 3, H, W]."""
        return ImageSet(self.grids[:], self.labels, self.label_names, self.attributes, self.attribute_names)


class Part(NamedTuple):
    """Some consecutive pictures of a source, and what is known about them.

    ``pictures`` are uint8 [n, C, H, W], or n of [C, H, W] where they differ in shape; ``labels`` int64 [n] and
    ``attributes`` bool [n, A], or None.
    """

    pictures: Tensor | Sequence[Tensor]
    labels: Tensor | None = None
    attributes: Tensor | None = None


@dataclass(frozen=True)
class Source:
    """One split of a published data set, whose pictures are read when they are asked for.

    Attributes:
        parts: the pictures in a fixed order, from the one of the given number on.
        fingerprint: a hash of what some of the pictures come from, found without reading any: see `fingerprint_of`.
        count: how many there are; None where only reading tells.
        label_names, attribute_names: as in `ImageSet`.
        published_size: the side of the pictures, where all were published at one size.
        left_out: what lies there and is not read.
    """

    parts: Callable[[int], Iterator[Part]]
    fingerprint: Callable[[slice], str]
    count: int | None = None
    label_names: tuple[str, ...] = ()
    attribute_names: tuple[str, ...] = ()
    published_size: int | None = None
    left_out: tuple[LeftOut, ...] = ()


def source_in_memory(images: ImageSet, published_size: int | None = None, left_out: tuple[LeftOut, ...] = ()) -> Source:
    """A source of images that have been read already."""

    def parts(start: int) -> Iterator[Part]:
        labels = None if images.labels is None else images.labels[start:]
        yield Part(images.images[start:], labels, None if images.attributes is None else images.attributes[start:])

    def fingerprint(rows: slice) -> str:
        known = [tensor[rows] for tensor in (images.labels, images.attributes) if tensor is not None]
        return fingerprint_of((), images.images[rows], *known)

    return Source(parts, fingerprint, len(images), images.label_names, images.attribute_names, published_size, left_out)


def source_of_grids(images: GridSet, rows: Tensor) -> Source:
    """A source of some of the images, numbers int64 [n], that are read some at a time, from where they are."""
    chosen = SomeGrids(images.grids, rows)
    labels, attributes = (known if known is None else known[rows] for known in (images.labels, images.attributes))

    def parts(start: int) -> Iterator[Part]:
        for first in range(start, len(rows), _PART):
            part = slice(first, first + _PART)
            yield Part(
                chosen[part],
                None if labels is None else labels[part],
                None if attributes is None else attributes[part],
            )

    def fingerprint(part: slice) -> str:
        known = [tensor[part] for tensor in (labels, attributes) if tensor is not None]
        return fingerprint_of((), SomeGrids(images.grids, rows[part]), *known)

    return Source(parts, fingerprint, len(rows), images.label_names, images.attribute_names)


def fingerprint_of(files: Iterable[Path], *arrays: Grids) -> str:
    """A hash of the files' names and sizes, whatever folder they are in, and of the numbers of tensors or grids.

    Archives are often as large as others of their kind: of a large file both ends are looked at, too.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        size = file.stat().st_size if file.is_file() else 0
        digest.update(os.fsencode(file.name) + f"\0{size}\0".encode())
        if size >= _LARGE:
            with file.open("rb") as content:
                digest.update(content.read(_END))
                content.seek(size - _END)
                digest.update(content.read(_END))
    for array in arrays:
        for start in range(0, len(array), _PART):
            digest.update(array[start : start + _PART].contiguous().numpy().data)
    return digest.hexdigest()


def first_not_finite(grids: Grids) -> int | None:
    """The first of grids [N, …] in memory that holds NaN or infinity, if there is one."""
    # Grids on disk are looked at when they are read.
    if not isinstance(grids, Tensor) or not grids.is_floating_point() or bool(torch.isfinite(grids).all()):
        return None
    return int((~torch.isfinite(grids.flatten(1)).all(dim=1)).nonzero()[0])


def _check_annotations(
    count: int,
    labels: Tensor | None,
    label_names: tuple[str, ...],
    attributes: Tensor | None,
    attribute_names: tuple[str, ...],
) -> None:
    if (labels is None) != (not label_names):
        raise DataError("labels and label_names must be given together")
    if labels is not None:
        if labels.dtype != torch.int64 or labels.shape != (count,):
            raise DataError(f"labels: expected int64 [{count}], found {_describe(labels)}")
        outside = labels[(labels < 0) | (labels >= len(label_names))]
        if len(outside):
            raise DataError(f"labels: expected ids 0 … {len(label_names) - 1}, found {int(outside[0])}")
    if (attributes is None) != (not attribute_names):
        raise DataError("attributes and attribute_names must be given together")
    if attributes is not None and (attributes.dtype != torch.bool or attributes.shape != (count, len(attribute_names))):
        raise DataError(f"attributes: expected bool [{count}, {len(attribute_names)}], found {_describe(attributes)}")


def _describe(tensor: Grids) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"

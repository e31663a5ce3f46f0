"""Writing shards: whole or not at all, and, if asked for, going on where an earlier attempt was cut short."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor

from cdrl.data.images.census import as_metadata
from cdrl.data.images.files import read_bytes
from cdrl.data.images.sets import DataError, Source
from cdrl.data.shards.format import FORMAT, INDEX, PARTIAL, TABLE, VERSION, Index, Sample, Shard
from cdrl.data.shards.packing import pack, tabulate
from cdrl.data.shards.reading import has_foreign_shards, has_index, parse_npy, read_index
from cdrl.runs.whole import sync, sync_folder

SHARD_SIZE = 1000
_PLAN, _CLAIM = "plan.json", "claim"
_OBSERVED = 64
_WRITING = ".writing"


def write_shards(
    folder: str | Path,
    samples: Iterable[Sample],
    metadata: Mapping[str, Any],
    shard_size: int = SHARD_SIZE,
    label_names: tuple[str, ...] = (),
    attribute_names: tuple[str, ...] = (),
) -> None:
    """Write ``samples`` to `shard-000000.tar`, … and `index.json` in ``folder``, whole or not at all.

    A set that an earlier call wrote there stays as it is until the new one is complete. ``metadata`` must fit into
    JSON; it is read after the last sample, so it may be filled while the samples are drawn.

    Raises:
        DataError: there are no samples, they differ in shape, type or annotations, hold NaN, or the folder holds
            shards that were not written here.
    """
    folder = _prepare_folder(folder)
    _begin_anew(folder)
    layout = _Layout(folder, shard_size, label_names, attribute_names)
    _write(layout, samples, metadata, _Written([], [], []), _SampleCheck(layout))


def write_images_resumably(
    folder: str | Path,
    samples_from: Callable[[int], Iterable[Sample]],
    source: Source,
    shape: tuple[int, int, int],
    metadata: Mapping[str, Any],
) -> None:
    """As `write_shards` for images uint8 ``shape``; shards that an earlier call of the same kind completed are kept.

    The same bytes come of it, however often it was interrupted. ``samples_from(n)`` gives the samples from number
    ``n`` on, which are those of ``source``, prepared; ``metadata`` tells sets that differ apart. What the source has
    left out joins them in the index.

    Raises:
        DataError: as `write_shards`, or what ``samples_from`` raises; whole shards stay for the next call. Or they come
            from something else than the samples would now.
    """
    names = (source.label_names, source.attribute_names)
    plan = _Plan(json.dumps([shape, SHARD_SIZE, *names, dict(metadata)]), source.fingerprint)
    layout = _Layout(_prepare_folder(folder), SHARD_SIZE, *names, plan)
    noted = {**metadata, **as_metadata(source.left_out)}
    _write_resumably(layout, samples_from, noted, torch.empty(shape, dtype=torch.uint8))


def write_grids_resumably(
    folder: str | Path,
    samples_from: Callable[[int], Iterable[Sample]],
    shape: Sequence[int],
    metadata: Mapping[str, Any],
    *,
    observe: Callable[[Tensor], None],
    label_names: tuple[str, ...] = (),
    attribute_names: tuple[str, ...] = (),
) -> bool:
    """As `write_shards` for grids float32 ``shape``; full shards that an earlier call left are kept.

    A call goes on where another with the same arguments stopped, which ``metadata`` must make sure of: it names
    whatever the grids depend on. ``samples_from(n)`` gives the samples from number ``n`` on. ``observe`` is shown the
    grids [n, *shape], some at a time, of shards that were kept, too, and may add to ``metadata`` what it found.

    Returns:
        Whether there was anything to do: a set with the same metadata, none of whose files is missing or damaged, is
        left as it is.

    Raises:
        DataError: as `write_shards`, or what ``samples_from`` raises; whole shards stay for the next call. Or the index
            of the set that lies there is damaged.
    """
    folder = _prepare_folder(folder)
    there = read_index(folder) if has_index(folder) else None
    if there is not None and _holds(there, metadata) and is_whole(folder, there):
        discard_leftovers(folder)
        return False
    names = (label_names, attribute_names)
    plan = _Plan(json.dumps([list(shape), SHARD_SIZE, *names, dict(metadata)]), lambda _: "")
    layout = _Layout(folder, SHARD_SIZE, *names, plan, observe)
    _write_resumably(layout, samples_from, metadata, torch.empty(tuple(shape)))
    return True


def discard_leftovers(folder: Path, but: Path | None = None) -> None:
    """Remove what an interrupted writing left in a folder, ``but`` one file."""
    for leftover in {*folder.glob(f"*{PARTIAL}"), *folder.glob(f"*{_WRITING}")} - {but}:
        leftover.unlink()


def _begin_anew(folder: Path) -> None:
    """Remove what an interrupted writing left."""
    claim = folder / (_CLAIM + PARTIAL)
    if any(folder.glob("*.tar")) and not has_index(folder):
        # Some shards have their names already, and without a file that tells they would be taken for someone else's.
        _put(claim, b"")
    discard_leftovers(folder, but=claim)


def _holds(index: Index, metadata: Mapping[str, Any]) -> bool:
    # As JSON reads them again: a tuple has become a list.
    return json.loads(json.dumps(dict(metadata))).items() <= index.metadata.items()


def is_whole(folder: Path, index: Index, *, taking_names: bool = False) -> bool:
    """Whether every file of a set is there as the index says; with ``taking_names`` maybe under the name before."""
    files = {shard.name: shard.sha256 for shard in index.shards}
    if index.table_sha256 is not None:
        files[TABLE] = index.table_sha256
    for name, sha256 in files.items():
        partial = folder / (name + PARTIAL)
        path = partial if taking_names and partial.is_file() else folder / name
        if not path.is_file() or hashlib.sha256(read_bytes(path)).hexdigest() != sha256:
            return False
    return True


class _Origin(NamedTuple):
    """Of a full shard: what its samples come from, and its SHA-256, without which damage would become part of it."""

    fingerprint: str
    sha256: str


class _Plan(NamedTuple):
    """What tells later calls whose shards these are, by settings in ``words`` and by what full shards come from."""

    words: str
    fingerprint: Callable[[slice], str]

    def write(self, folder: Path, origins: Sequence[_Origin]) -> None:
        """Write the plan into ``folder``, with the origins of the shards completed so far."""
        _put(folder / (_PLAN + PARTIAL), json.dumps({"words": self.words, "origins": origins}).encode())

    def origins_of(self, folder: Path) -> list[_Origin] | None:
        """The origins of the full shards that a call with the same settings has left there; None without one."""
        path = folder / (_PLAN + PARTIAL)
        try:
            found = json.loads(read_bytes(path)) if path.is_file() else {}
            return [_Origin(*origin) for origin in found["origins"]] if found.get("words") == self.words else None
        except (ValueError, TypeError, KeyError, AttributeError):
            return None  # not whole, as after a loss of power, or of another version


class _Layout(NamedTuple):
    """``plan`` is there if later calls may go on, ``observe`` if someone is to see the float32 grids of each shard."""

    folder: Path
    shard_size: int
    label_names: tuple[str, ...]
    attribute_names: tuple[str, ...]
    plan: _Plan | None = None
    observe: Callable[[Tensor], None] | None = None


class _Written(NamedTuple):
    """Shards that are whole, each with its rows of the table of samples; and what the full ones of a plan come from."""

    shards: list[Shard]
    tables: list[dict[str, Tensor]]
    origins: list[_Origin]

    @property
    def num_samples(self) -> int:
        return sum(shard.count for shard in self.shards)


def _write_resumably(
    layout: _Layout, samples_from: Callable[[int], Iterable[Sample]], metadata: Mapping[str, Any], like: Tensor
) -> None:
    """Write samples whose grids have the shape and type of ``like``, or go on with them, as the layout's plan says."""
    folder, plan = layout.folder, layout.plan
    assert plan is not None
    origins = plan.origins_of(folder)
    if origins is None:
        _begin_anew(folder)
    elif (index := _unpublished(folder)) is not None:
        # It was cut short while the files took their names.
        _publish(folder, index)
        return
    written = _take_up(layout, plan, origins or [])
    check = _SampleCheck(layout, like, written.num_samples)
    _write(layout, samples_from(written.num_samples), metadata, written, check)


def _unpublished(folder: Path) -> Index | None:
    """The index of a set whose files are all there, but have not all got their names; None if there is none."""
    path = folder / (INDEX + PARTIAL)
    try:
        index = read_index(folder, path.name) if path.is_file() else None
    except DataError:
        index = None
    if index is not None and is_whole(folder, index, taking_names=True):
        return index
    path.unlink(missing_ok=True)
    return None


def _write(
    layout: _Layout, samples: Iterable[Sample], metadata: Mapping[str, Any], written: _Written, check: _SampleCheck
) -> None:
    folder, checked = layout.folder, map(check, samples)
    while _write_shard(layout, checked, written):
        pass
    if check.first is None or not written.shards:
        raise DataError(f"{folder}: there are no samples to write")
    table = save({key: torch.cat([part[key] for part in written.tables]) for key in written.tables[0]})
    _put(folder / (TABLE + PARTIAL), table)
    index = Index(
        format=FORMAT,
        version=VERSION,
        count=written.num_samples,
        shape=tuple(check.first.shape),
        dtype=str(check.first.dtype).removeprefix("torch."),
        label_names=layout.label_names,
        attribute_names=layout.attribute_names,
        shards=tuple(written.shards),
        table_sha256=hashlib.sha256(table).hexdigest(),
        metadata=dict(metadata),
    )
    _put(folder / (INDEX + PARTIAL), index.model_dump_json(indent=1).encode())
    _publish(folder, index)


def _write_shard(layout: _Layout, samples: Iterator[Sample], written: _Written) -> bool:
    """Write the next samples as one shard, of which alone anything is in memory; whether there may be more."""
    name = f"shard-{len(written.shards):06d}.tar"
    content, count = pack(name, itertools.islice(samples, layout.shard_size), layout.attribute_names)
    if not count:
        return False
    if layout.plan is not None:
        # Before the shard itself: none is taken up whose origin is not known. One that is not full is the last
        # and is always written again, since there may be more samples by then.
        if count == layout.shard_size:
            origin = layout.plan.fingerprint(slice(written.num_samples, written.num_samples + count))
            written.origins.append(_Origin(origin, hashlib.sha256(content).hexdigest()))
        layout.plan.write(layout.folder, written.origins)
    _put(layout.folder / (name + PARTIAL), content)
    _note(layout, name, content, written)
    return count == layout.shard_size


def _prepare_folder(folder: str | Path) -> Path:
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder}: cannot be made to write shards there: {error.strerror}") from None
    if has_foreign_shards(folder):
        raise DataError(f"{folder}: holds shards without {INDEX}, which will not be overwritten")
    return folder


def _take_up(layout: _Layout, plan: _Plan, origins: Sequence[_Origin]) -> _Written:
    """The whole and full shards that an earlier call left.

    Raises:
        DataError: what they come from has changed.
    """
    written = _Written([], [], [])
    for number, origin in enumerate(origins):
        path = layout.folder / f"shard-{number:06d}.tar{PARTIAL}"
        content = read_bytes(path) if path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != origin.sha256:
            break  # not there, or not whole after all, as after a loss of power: it is written again
        first = written.num_samples
        _note(layout, path.name.removesuffix(PARTIAL), content, written)
        if plan.fingerprint(slice(first, written.num_samples)) != origin.fingerprint:
            raise DataError(
                f"{layout.folder}: unfinished, and images {first} … {written.num_samples - 1} of it come from files "
                "that have changed since: bring the files back, or remove this folder to begin anew"
            )
        written.origins.append(origin)
    return written


def _note(layout: _Layout, name: str, content: bytes, written: _Written) -> None:
    """Note what a whole shard holds."""
    table = tabulate(name, content, layout.attribute_names)
    count = len(table["offset"])
    written.shards.append(Shard(name=name, count=count, sha256=hashlib.sha256(content).hexdigest()))
    written.tables.append(table)
    if layout.observe is not None:
        files = list(zip(table["offset"].tolist(), table["length"].tolist(), strict=True))
        for first in range(0, count, _OBSERVED):
            some = [parse_npy(content[at : at + size], name) for at, size in files[first : first + _OBSERVED]]
            layout.observe(torch.stack(some))


class _SampleCheck:
    """Passes samples through that are like the first one and whole; refuses all others."""

    def __init__(self, layout: _Layout, first: Tensor | None = None, written: int = 0) -> None:
        self.first = first
        self._folder, self._number = layout.folder, written - 1
        self._num_labels = len(layout.label_names)
        self._num_attributes = len(layout.attribute_names)

    def __call__(self, sample: Sample) -> Sample:
        grid = sample.grid
        self._number += 1
        if self.first is None:
            self.first = grid
            is_image = grid.dtype == torch.uint8 and grid.ndim == 3 and grid.shape[0] in (1, 3)
            if not is_image and grid.dtype != torch.float32:
                self._refuse(f"expected uint8 [1 or 3, H, W] or float32, found {grid.dtype} {list(grid.shape)}")
        if grid.shape != self.first.shape or grid.dtype != self.first.dtype:
            self._refuse(f"expected {list(self.first.shape)} like the first, found {list(grid.shape)}")
        if grid.dtype == torch.float32 and not torch.isfinite(grid).all():
            self._refuse("expected finite numbers, found NaN or infinity")
        if (sample.label is not None) != bool(self._num_labels):
            self._refuse("labels and label_names must be given together")
        if sample.label is not None and not 0 <= sample.label < self._num_labels:
            self._refuse(f"expected a label in 0 … {self._num_labels - 1}, found {sample.label}")
        if len(sample.attributes) != self._num_attributes:
            self._refuse(f"expected {self._num_attributes} attributes, found {len(sample.attributes)}")
        return sample

    def _refuse(self, reason: str) -> None:
        raise DataError(f"{self._folder}: sample {self._number} to be written: {reason}")


def _put(path: Path, content: bytes) -> None:
    """Write a file that is there whole or not at all."""
    writing = path.with_name(path.name + _WRITING)
    try:
        writing.write_bytes(content)
        sync(writing)
        os.replace(writing, path)
    except OSError as error:
        writing.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot be written: {error.strerror}") from None


def _publish(folder: Path, index: Index) -> None:
    """Replace the old set by the new one; if this is cut short, files left with the partial suffix tell."""
    if has_index(folder):
        outdated = read_index(folder)
        (folder / INDEX).unlink()
        for shard in outdated.shards:
            (folder / shard.name).unlink(missing_ok=True)
    for name in [*(shard.name for shard in index.shards), TABLE, INDEX]:
        partial = folder / (name + PARTIAL)
        if partial.is_file():
            os.replace(partial, folder / name)
    named = {shard.name for shard in index.shards}
    for path in folder.glob("shard-*.tar"):
        if path.name not in named:  # of a larger set that was cut short while it took its names
            path.unlink()
    sync_folder(folder)
    discard_leftovers(folder)

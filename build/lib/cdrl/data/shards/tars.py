"""What is inside webdataset's tar files: samples of `key.png`, `.jpg`, … or `.npy` with `key.cls` or `key.json`."""

from __future__ import annotations

import io
import json
import posixpath
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cdrl.data.images.census import Tally, printable
from cdrl.data.images.files import (
    Decoding,
    decode_image,
    load_array,
    open_regular,
    pixels_of_picture,
    read_in_groups,
)
from cdrl.data.images.sets import DataError
from cdrl.data.images.walking import PICTURE_ENDINGS

MAX_MEMBER_BYTES = 2**28
"""Of a file in a shard that is read; what claims more is refused before it takes memory."""
MAX_CLASSES = 100_000
"""Of a set of shards that others wrote, whose class ids alone say how many there are."""

_NOTE_BYTES = 2**20  # of a label or a json file
_SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")
_IMAGE_EXTENSIONS = (*(ending[1:] for ending in PICTURE_ENDINGS), "npy")
_COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


class Place(NamedTuple):
    """Where the content of a file lies in its shard; its name ends with ``extension``, in small letters."""

    extension: str
    offset: int
    size: int


class Group(NamedTuple):
    """The files of a sample: those beside each other whose names are alike up to the first dot."""

    key: str
    files: dict[str, Place]


class ForeignSample(NamedTuple):
    """What a shard that was not written here says of a sample; ``attributes`` is empty where it names none."""

    key: str
    label: int | None
    attributes: dict[str, bool]
    image: Place


def list_foreign_shard(path: Path, tally: Tally) -> list[ForeignSample]:
    """The samples of one shard: an image with `key.cls` or `key.json`, if there is any.

    A json file may hold ``label`` (a class id) and ``attributes`` (a mapping of names to true or false).

    Raises:
        DataError: the shard is cut or damaged, or a sample is not as it should be; the message names it.
    """
    with open_regular(path) as file:
        groups = list_tar(file, path, tally)
        samples = [_parse_sample(file, group, path) for group in groups]
    for group, sample in zip(groups, samples, strict=True):
        for extension in sorted(group.files.keys() - {sample.image.extension, "cls", "json"}):
            tally.add("files beside the images", f"{printable(path.name)}: {group.key}.{printable(extension)}")
    return samples


def read_foreign_images(path: Path, samples: Sequence[ForeignSample], decoding: Decoding) -> Iterator[list[Tensor]]:
    """The images of some samples of one shard, in that order, some at a time: pictures, or `key.npy` (uint8).

    Raises:
        DataError: the shard is not there, or an image is damaged or too large; the message names it.
    """

    def content(sample: ForeignSample) -> bytes:
        with open_regular(path) as file:
            return read_place(file, sample.image, f"{printable(path)}: sample {sample.key}")

    def pixels_of(sample: ForeignSample) -> int:
        return sample.image.size // 3 if sample.image.extension == "npy" else pixels_of_picture(content(sample))

    def read(sample: ForeignSample) -> Tensor:
        where = f"{printable(path)}: sample {sample.key}"
        if sample.image.extension == "npy":
            return _parse_array(content(sample), where)
        return decode_image(content(sample), where, decoding)

    return read_in_groups(samples, pixels_of, read)


def iterate_tar(content: bytes, path: Path) -> Iterator[dict[str, Any]]:
    """The samples of a tar file's bytes, each a mapping of extensions to bytes, with its ``__key__``."""
    file = io.BytesIO(content)
    for group in list_tar(file, path, Tally(path)):
        where = f"{printable(path)}: sample {group.key}"
        contents = {name: read_place(file, place, where) for name, place in group.files.items()}
        yield {"__key__": group.key, **contents}


def list_tar(file: BinaryIO, path: Path, tally: Tally) -> list[Group]:
    """The samples of an open tar file, or of several written one after the other; no content is read.

    Hard and symbolic links stand for the file that they lead to. Hidden files, folders of systems and members that
    are no files are left out, and noted in ``tally``.

    Raises:
        DataError: the file is cut, damaged or compressed, a link leads nowhere, a member claims too much or is
            sparse, or files of a sample lie apart or come twice; the message names file and member.
    """
    groups: dict[str, Group] = {}
    last = ""
    for member in _resolved(list(_members(file, path)), path):
        reason = _why_left_out(member)
        if member.isdir() and reason is None:
            continue
        if reason is not None:
            tally.add(reason, f"{printable(path.name)}: {printable(member.name)}")
            continue
        key, extension = _split_name(member.name)
        where = f"{printable(path)}: sample {printable(key)}"
        place = Place(extension, member.offset_data, member.size)
        if key != last and key in groups:
            raise DataError(f"{where}: expected its files side by side, found {printable(member.name)} apart from them")
        group = groups.setdefault(key, Group(printable(key), {}))
        if extension in group.files:
            raise DataError(f"{where}: expected one .{extension} file, found two")
        group.files[extension] = place
        last = key
    return list(groups.values())


def read_place(file: BinaryIO, place: Place, where: str) -> bytes:
    """The content of one file of an open shard. Raises DataError, starting with ``where``, if it claims too much."""
    most = MAX_MEMBER_BYTES if place.extension not in ("cls", "json") else _NOTE_BYTES
    if place.size > most:
        raise DataError(
            f"{where}: expected at most {most:,} bytes in its .{place.extension} file, found {place.size:,}"
        )
    file.seek(place.offset)
    content = file.read(place.size)
    if len(content) != place.size:
        raise DataError(f"{where}: damaged: the end of its .{place.extension} file is missing")
    return content


def parse_label(content: bytes, where: str) -> int:
    """The class id in a .cls file's bytes. Raises DataError starting with ``where``."""
    text = content.decode("ascii", errors="replace").strip()
    if not text.isdecimal():
        raise DataError(f"{where}: expected a class id in its .cls file, found {text[:40]!r}")
    return bounded_label(int(text) if len(text) < 20 else MAX_CLASSES, where)


def bounded_label(label: int, where: str) -> int:
    """The class id itself. Raises DataError, starting with ``where``, for one that no set has."""
    if not 0 <= label < MAX_CLASSES:
        raise DataError(f"{where}: expected a class id of 0 … {MAX_CLASSES - 1}, found another")
    return label


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """The object in a .json file's bytes. Raises DataError starting with ``where``."""
    try:
        notes = json.loads(content)
    except RecursionError:
        raise DataError(f"{where}: expected JSON, found one that is nested too deep") from None
    except ValueError as error:
        raise DataError(f"{where}: expected JSON: {error}") from None
    if not isinstance(notes, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(notes).__name__}")
    return notes


def _members(file: BinaryIO, path: Path) -> Iterator[tarfile.TarInfo]:
    """The members of all archives in a file; `cat a.tar b.tar` makes a file of two."""
    name = printable(path)
    end = file.seek(0, io.SEEK_END)
    start = 0
    while start < end:
        file.seek(start)
        if start == 0:
            _refuse_compressed(file.read(6), name)
            file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                count = 0
                for member in tar:
                    count += 1
                    if member.issparse():
                        raise DataError(f"{name}: {printable(member.name)}: expected whole files, found a sparse one")
                    if member.offset_data + (member.size if member.isreg() else 0) > end:
                        raise DataError(f"{name}: damaged: the end of {printable(member.name)} is missing")
                    yield member
                stopped = tar.offset
        except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{name}: damaged: expected a whole tar file: {error}") from None
        # tarfile stops without a word at the end that is marked by zeros, where the file ends and at a damaged head.
        following = _next_block(file, stopped)
        if following == stopped and (count == 0 or stopped < end):
            raise DataError(f"{name}: damaged: expected a whole tar file, found no head of a member at byte {stopped}")
        if following == stopped:
            raise DataError(f"{name}: damaged: expected a whole tar file, but its end is missing")
        start = following
    if end == 0:
        raise DataError(f"{name}: damaged: expected a whole tar file, found an empty file")


def _next_block(file: BinaryIO, start: int) -> int:
    """Where the first block from ``start`` on lies that is not all zeros; the file's end where there is none."""
    file.seek(start)
    while block := file.read(tarfile.BLOCKSIZE):
        if any(block):
            return start
        start += len(block)
    return start


def _refuse_compressed(head: bytes, name: str) -> None:
    for magic, tool in _COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(f"{name}: expected a tar file, found a compressed one: unpack it with {tool}")


def _resolved(members: Sequence[tarfile.TarInfo], path: Path) -> Iterator[tarfile.TarInfo]:
    """The members, with links in the place of what they lead to, under their own names."""
    by_name = {posixpath.normpath(member.name): member for member in members}
    for member in members:
        if not (member.islnk() or member.issym()) or _why_left_out(member) is not None:
            yield member
            continue
        target, seen = member, {member.name}
        while target.islnk() or target.issym():
            beside = posixpath.dirname(target.name) if target.issym() else ""
            name = posixpath.normpath(posixpath.join(beside, target.linkname))
            found = by_name.get(name)
            if found is None or found.name in seen:
                raise DataError(
                    f"{printable(path)}: {printable(member.name)}: a link to {printable(member.linkname)}, which is no "
                    "file of this shard"
                )
            target = found
            seen.add(target.name)
        copy = tarfile.TarInfo(member.name)
        copy.size, copy.offset_data, copy.type = target.size, target.offset_data, target.type
        yield copy


def _why_left_out(member: tarfile.TarInfo) -> str | None:
    folders, _, base = member.name.rpartition("/")
    if member.isdir():
        return None if _is_plain(member.name) else "hidden or system folders"
    if not (member.isreg() or member.islnk() or member.issym()):
        return "members that are no files"
    if base.startswith(".") or not _is_plain(folders):
        return "hidden or system files"
    if re.match(r"__[^/]*__($|/)", member.name):
        return "notes of webdataset"
    return None if "." in base else "files without an ending"


def _is_plain(folders: str) -> bool:
    return not any(
        name in _SYSTEM_FOLDERS or (name.startswith(".") and name not in (".", "..")) for name in folders.split("/")
    )


def _split_name(name: str) -> tuple[str, str]:
    """As webdataset does: the name up to the first dot after the folders, and what comes after it."""
    folders, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folders + slash + key, extension.lower()


def _parse_sample(file: BinaryIO, group: Group, path: Path) -> ForeignSample:
    where = f"{printable(path)}: sample {group.key}"
    files = group.files
    notes = parse_json(read_place(file, files["json"], where), where) if "json" in files else {}
    label = parse_label(read_place(file, files["cls"], where), where) if "cls" in files else notes.get("label")
    attributes = notes.get("attributes", {})
    if label is not None and (not isinstance(label, int) or isinstance(label, bool) or label < 0):
        raise DataError(f"{where}: expected a class id as label, found {str(label)[:40]!r}")
    if not isinstance(attributes, dict) or not all(isinstance(value, bool) for value in attributes.values()):
        raise DataError(f"{where}: expected attributes as a mapping of names to true or false")
    image = next((files[name] for name in _IMAGE_EXTENSIONS if name in files), None)
    if image is None:
        found = ", ".join(f".{printable(name)}" for name in files)
        raise DataError(f"{where}: expected a .png, .jpg or .npy file, found {found}")
    return ForeignSample(group.key, None if label is None else bounded_label(label, where), attributes, image)


def _parse_array(content: bytes, where: str) -> Tensor:
    array = load_array(content, where)
    if array.dtype == np.uint8 and array.ndim == 2:
        array = array[None]
    elif array.dtype == np.uint8 and array.ndim == 3 and array.shape[0] not in (1, 3):
        array = array.transpose(2, 0, 1)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] not in (1, 3):
        raise DataError(f"{where}: expected uint8 [H, W], [H, W, 3] or [3, H, W], found {array.dtype} {array.shape}")
    return torch.from_numpy(np.ascontiguousarray(array))

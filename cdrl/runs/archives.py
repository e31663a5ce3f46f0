"""PyTorch's files, as others publish them, read for their tensors alone.

Such a file is a zip archive: ``data.pkl``, a pickle of the object that was saved, and beside it a record of plain
bytes for each tensor storage. A pickle may name any function and have it called. Here the only names that mean
something are those that describe tensors; whatever else a file names (callbacks, settings, optimizers of a training
framework) becomes a `Foreign`, is never imported, and does nothing. Tensors stay in the file until asked for.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdrl.foreign.files import open_file, read_at_most, stand_in
from cdrl.foreign.unpickling import Foreign, Named, read_pickle
from cdrl.runs.run import RunError, reading

_LONGEST_DESCRIPTION = 2**26  # bytes of data.pkl; those of the largest models have a few million
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError)
"""By these the zip archive's own reader reports what is wrong: offsets before the file's beginning are an OSError."""


class StoredTensor(NamedTuple):
    """Where in an archive a tensor lies: `read_tensors` fetches it."""

    dtype: torch.dtype
    record: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_description(path: Path) -> Any:
    """The object that was saved in ``path``, with a `StoredTensor` for each tensor; nothing in it is executed.

    Files from before PyTorch 1.6 are no archives; their tensors come as such, and foreign names are refused there.

    Raises:
        RunError: the file is missing, damaged, or none of PyTorch's.
    """
    check_is_there(path)
    refusal = f"{path}: not a whole checkpoint that can be read without executing code"
    if not zipfile.is_zipfile(path):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception:
            # A damaged or hostile file may fail there in any way at all. Torch's own words advise to trust it.
            raise RunError(refusal) from None
    try:
        with _opened(path) as (archive, folder):
            content = _record(archive, f"{folder}/data.pkl", _LONGEST_DESCRIPTION)
        return read_pickle(content, _KNOWN, ignore_unknown=True, persistent=_storage)
    except _DAMAGE as error:
        raise RunError(f"{refusal} ({_in_words(error)})") from None


def read_tensors(path: Path, entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that ``entries`` of ``path``'s description stand for.

    Raises:
        RunError: an entry is no tensor of floating-point numbers, its record is missing or damaged, or it holds NaN or
            infinity.
    """
    if not zipfile.is_zipfile(path):
        tensors = {name: _checked(path, name, value, Tensor) for name, value in entries.items()}
    else:
        stored = {name: _checked(path, name, value, StoredTensor) for name, value in entries.items()}
        claimed = sum(math.prod(tensor.shape) * tensor.dtype.itemsize for tensor in stored.values())
        if claimed > 2 * path.stat().st_size:
            # Strides of 0, and many views of one record, claim any size.
            raise RunError(f"{path}: claims tensors of {claimed:,} bytes, which are not in it")
        with _opened(path) as (archive, folder):
            tensors = {name: _tensor(path, archive, folder, name, tensor) for name, tensor in stored.items()}
    check_finite(path, tensors)
    return tensors


def check_is_there(path: Path) -> None:
    """Check that a weights file can be opened and is not a pipe, a web page or a Git LFS pointer instead.

    Raises:
        RunError: it cannot, or is.
    """
    with reading(path):
        wrong = stand_in(path)
    if wrong is not None:
        raise RunError(f"{path}: {wrong}")


def check_finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Check that weights are finite.

    Raises:
        RunError: some are NaN or infinite; the message names the file and the first such tensor.
    """
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise RunError(f"{path}: '{name}' holds NaN or infinity: the weights are damaged, or their training failed")


def _tensor(path: Path, archive: zipfile.ZipFile, folder: str, name: str, stored: StoredTensor) -> Tensor:
    try:
        content = bytearray(_record(archive, f"{folder}/data/{stored.record}", path.stat().st_size))
        # Bytes first: asked for numbers that the bytes do not make up, frombuffer loses count of its buffers.
        flat = torch.frombuffer(content, dtype=torch.uint8).view(stored.dtype)
        return flat.as_strided(stored.shape, stored.stride, stored.offset).clone()
    except (*_DAMAGE, TypeError, OverflowError) as error:
        raise RunError(f"{path}: {name!r} is damaged ({_in_words(error)})") from None


def _checked(path: Path, name: str, value: Any, kind: type[Any]) -> Any:
    if not isinstance(value, kind) or not value.dtype.is_floating_point:
        raise RunError(f"{path}: {name!r} is not a tensor of floating-point numbers")
    return value


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, str]]:
    """The archive, and its one folder that holds a data.pkl."""
    with open_file(path) as file, zipfile.ZipFile(file) as archive:
        folders = [name.partition("/")[0] for name in archive.namelist() if name.partition("/")[2] == "data.pkl"]
        if len(folders) != 1:
            raise ValueError("expected a data.pkl in the archive")
        yield archive, folders[0]


def _record(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    try:
        member = archive.getinfo(name)
    except KeyError:
        raise ValueError(f"it holds no {name}") from None
    if member.file_size > most:
        # PyTorch packs nothing: no record is larger than the file.
        raise ValueError(f"{name} claims {member.file_size:,} bytes, expected {most:,} at most")
    with archive.open(member) as stream:
        return read_at_most(stream.read, member.file_size)


def _in_words(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


class _Storage(NamedTuple):
    dtype: torch.dtype
    record: str


def _describe_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: object) -> Any:
    if not isinstance(storage, _Storage):
        return Foreign()
    for sizes in (shape, stride, (offset,)):
        if not isinstance(sizes, tuple) or not all(type(size) is int and 0 <= size < 2**48 for size in sizes):
            raise ValueError("it has a tensor whose sizes are no whole numbers")
    if len(shape) != len(stride) or len(shape) > 8:
        raise ValueError("it has a tensor whose sizes and strides do not fit each other")
    return StoredTensor(*storage, offset, shape, stride)


def _describe_parameter(tensor: Any = None, *_: object) -> Any:
    return tensor


def _ordered(pairs: Any = (), *_: object) -> dict[Any, Any]:
    if not isinstance(pairs, list | tuple) or pairs:
        raise ValueError("it has an ordered dict in an old form")
    return {}


def _storage(pid: Any) -> Any:
    if not isinstance(pid, tuple) or len(pid) < 3:
        raise ValueError("it has a storage without a name")
    _, kind, record, *_ = pid  # "storage", its type, its record's name, its device, its length
    known = isinstance(kind, Named) and isinstance(kind.value, torch.dtype) and isinstance(record, str)
    return _Storage(kind.value, record) if known else Foreign()


_KNOWN: Mapping[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered,
    ("torch._utils", "_rebuild_tensor_v2"): _describe_tensor,
    ("torch._utils", "_rebuild_parameter"): _describe_parameter,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "HalfStorage"): torch.float16,
}


@contextlib.contextmanager
def weights_only_unpickling() -> Iterator[None]:
    """Have torch.load read tensors and plain values only, also where other people's code calls it."""
    previous = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        if previous is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = previous

"""PyTorch's files, as others publish them, read for their tensors alone.

Such a file is a zip archive: ``data.pkl``, a pickle of the object that was saved, and beside it a record of plain
bytes for each tensor storage. A pickle may name any function and have it called. Here the only names that mean
something are those that describe tensors; whatever else a file names (callbacks, settings, optimizers of a training
framework) becomes a `Foreign`, is never imported, and does nothing. Tensors stay in the file until asked for.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from cdrl.runs.run import RunError


class Foreign:
    """Stands for anything that a pickle names: it takes all that pickles do to objects, and keeps none of it."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __call__(self, *_: object, **__: object) -> Foreign:
        return self

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, item: object) -> None: ...

    def extend(self, items: object) -> None: ...

    def add(self, item: object) -> None: ...


class StoredTensor(NamedTuple):
    """Where in an archive a tensor lies: `read_tensors` fetches it."""

    dtype: torch.dtype
    record: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def read_description(path: Path) -> Any:
    """The object that was saved in ``path``, with a `StoredTensor` for each tensor; nothing in it is executed.

    Files from before PyTorch 1.6 are no archives; their tensors come as such, and foreign names are refused there.

    Raises:
        RunError: the file is missing, damaged, or none of PyTorch's.
    """
    if not path.is_file():
        raise RunError(f"{path}: no such file")
    refusal = f"{path}: not a whole checkpoint that can be read without executing code"
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _TensorUnpickler(io.BytesIO(archive.read(f"{_top_folder(archive)}/data.pkl"))).load()
    except Exception as error:
        # A damaged or hostile file may fail in any way at all.
        raise RunError(f"{refusal} ({' '.join(str(error).split())})") from None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise RunError(refusal) from None  # torch's own words are many, and advise to trust the file


def read_tensors(path: Path, entries: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that ``entries`` of ``path``'s description stand for.

    Raises:
        RunError: an entry is no tensor of floating-point numbers, or its record is missing or damaged.
    """
    if not zipfile.is_zipfile(path):
        return {name: _checked(path, name, value, Tensor) for name, value in entries.items()}
    tensors = {}
    with zipfile.ZipFile(path) as archive:
        folder = _top_folder(archive)
        for name, value in entries.items():
            stored = _checked(path, name, value, StoredTensor)
            try:
                content = bytearray(archive.read(f"{folder}/data/{stored.record}"))
                # Bytes first: asked for numbers that the bytes do not make up, frombuffer loses count of its buffers.
                flat = torch.frombuffer(content, dtype=torch.uint8).view(stored.dtype)
                tensors[name] = flat.as_strided(stored.size, stored.stride, stored.offset).clone()
            except Exception as error:
                raise RunError(f"{path}: {name!r} is damaged ({' '.join(str(error).split())})") from None
    return tensors


def _checked(path: Path, name: str, value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise RunError(f"{path}: {name!r} is not a tensor of floating-point numbers")
    return value


def _top_folder(archive: zipfile.ZipFile) -> str:
    folders = [name.partition("/")[0] for name in archive.namelist() if name.partition("/")[2] == "data.pkl"]
    if len(folders) != 1:
        raise ValueError("expected a data.pkl in the archive")
    return folders[0]


class _Storage(NamedTuple):
    dtype: torch.dtype
    record: str


def _describe_tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Any:
    return StoredTensor(*storage, offset, size, stride) if isinstance(storage, _Storage) else Foreign()


def _describe_parameter(tensor: Any, *_: object) -> Any:
    return tensor


class _TensorUnpickler(pickle.Unpickler):
    """Builds dicts, lists, strings, numbers and descriptions of floating-point tensors; the rest is `Foreign`."""

    _known: ClassVar[dict[tuple[str, str], Any]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _describe_tensor,
        ("torch._utils", "_rebuild_parameter"): _describe_parameter,
        ("torch", "BFloat16Storage"): torch.bfloat16,
        ("torch", "DoubleStorage"): torch.float64,
        ("torch", "FloatStorage"): torch.float32,
        ("torch", "HalfStorage"): torch.float16,
    }

    def find_class(self, module: str, name: str) -> Any:
        return self._known.get((module, name), Foreign)

    def persistent_load(self, pid: Any) -> Any:
        _, dtype, record, *_ = pid  # "storage", its type, its record's name, its device, its length
        return _Storage(dtype, str(record)) if isinstance(dtype, torch.dtype) else Foreign()

"""PyTorch's files: the tensors are those that were saved, and nothing that a file names is run or imported."""

from __future__ import annotations

import collections
import enum
import functools
import pathlib
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdrl.foreign.unpickling import Foreign
from cdrl.runs.archives import StoredTensor, read_description, read_tensors
from cdrl.runs.run import RunError
from tests.published import Touch


class Level(enum.Enum):
    HIGH = 1


class Settings(dict):  # type: ignore[type-arg]
    """A dict of another class, as training frameworks have them."""


class Stack(list):  # type: ignore[type-arg]
    """A list of another class."""


def saved(path: Path, entries: Any, **options: Any) -> Path:
    torch.save(entries, path, **options)
    return path


def test_tensors_of_every_kind_come_back_as_they_were(tmp_path: Path) -> None:
    base = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    tensors = {
        "plain": base,
        "turned": base.T,
        "part": base[1:, 2:4],
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "double": base.double(),
        "number": torch.tensor(3.5),
        "parameter": torch.nn.Parameter(base + 1),
    }
    path = saved(tmp_path / "x.ckpt", {"state_dict": collections.OrderedDict(tensors), "epoch": 3, "version": "1.4"})
    description = read_description(path)
    assert (description["epoch"], description["version"]) == (3, "1.4")
    assert all(isinstance(value, StoredTensor) for value in description["state_dict"].values())
    read = read_tensors(path, description["state_dict"])
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


def test_a_file_from_before_archives_is_read_too(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3)}
    path = saved(tmp_path / "x.pt", tensors, _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(path, read_description(path))["a"], tensors["a"])


def test_everything_foreign_turns_into_nothing(tmp_path: Path) -> None:
    module = types.ModuleType("vanished_framework")
    callback = type("Callback", (), {"__module__": "vanished_framework"})
    module.Callback = callback  # type: ignore[attr-defined]
    sys.modules["vanished_framework"] = module
    instance = callback()
    instance.best = torch.ones(2)
    foreign = {
        "class": callback,
        "object": instance,
        "dict": Settings(resolution=64, nested=Settings(a=1)),
        "list": Stack([1, 2]),
        "deque": collections.deque([1, 2]),
        "default": collections.defaultdict(list, a=[1]),
        "set": {1, 2},
        "partial": functools.partial(print, 1, sep=""),
        "method": "text".upper,
        "path": pathlib.PurePosixPath("/tmp"),
        "enum": Level.HIGH,
        "numpy": np.float64(3.0),
        "array": np.arange(3),
        "dtype": torch.float32,
        "whole numbers": torch.arange(3),
    }
    try:
        path = saved(tmp_path / "x.ckpt", {"callbacks": {callback: {"best": 1}}, **foreign, "kept": {"a": [1, "b"]}})
    finally:
        del sys.modules["vanished_framework"]
    description = read_description(path)
    assert description.keys() == {"callbacks", "kept", *foreign}
    assert description["kept"] == {"a": [1, "b"]}
    for name in foreign:
        assert description[name] is Foreign or isinstance(description[name], Foreign), name
    assert not vars(description["object"])
    assert "vanished_framework" not in sys.modules


@pytest.mark.parametrize("place", ["beside", "within", "key", "deep", "whole", "attributes"])
@pytest.mark.parametrize("archive", [True, False])
def test_what_a_hostile_file_calls_is_not_called(place: str, archive: bool, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    hostile, weights = Touch(trace), collections.OrderedDict(a=torch.ones(2))
    if place == "attributes":
        weights._metadata = hostile  # type: ignore[attr-defined]
    entries: Any = {
        "beside": {"callbacks": hostile, "state_dict": weights},
        "within": {"state_dict": {**weights, "evil": hostile}},
        "key": {(hostile, 1): 2, "state_dict": weights},
        "deep": {"state_dict": weights, "loops": Settings(x=Stack([{"y": (hostile,)}]))},
        "whole": hostile,
        "attributes": {"state_dict": weights},
    }[place]
    path = saved(tmp_path / "x.ckpt", entries, _use_new_zipfile_serialization=archive)
    if archive:
        description = read_description(path)
        if isinstance(description, dict):
            assert torch.equal(read_tensors(path, {"a": description["state_dict"]["a"]})["a"], torch.ones(2))
    else:
        with pytest.raises(RunError, match="without executing code"):
            read_description(path)
    assert not trace.exists()
    # The file means what it says: a reader that trusts it makes the trace.
    torch.load(path, weights_only=False)
    assert trace.exists()


def test_a_module_that_a_file_names_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hostile_module.py").write_text("class Callback: ...\nraise SystemExit", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "x.ckpt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}X\x01\x00\x00\x00achostile_module\nCallback\n)\x81s.")
    with pytest.raises(SystemExit):
        pickle.loads(zipfile.ZipFile(path).read("x/data.pkl"))
    assert isinstance(read_description(path)["a"], Foreign)
    assert "hostile_module" not in sys.modules


def test_an_entry_that_is_no_tensor_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.ckpt", {"a": torch.arange(3), "b": "text"})
    for name in ("a", "b"):
        with pytest.raises(RunError, match=f"x.ckpt: '{name}' is not a tensor of floating-point numbers"):
            read_tensors(path, {name: read_description(path)[name]})


def test_damage_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.ckpt", {"a": torch.arange(1000.0)})
    description, whole = read_description(path), path.read_bytes()
    at = whole.index(torch.arange(1000.0).numpy().tobytes()) + 40
    path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    with pytest.raises(RunError, match=r"x\.ckpt: 'a' is damaged \(Bad CRC"):
        read_tensors(path, description)
    for content, message in (
        (b"", "is empty"),
        (b"junk", "not a whole checkpoint"),
        (whole[:-100], "is cut short"),
        (whole[:500], "is cut short"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
    ):
        path.write_bytes(content)
        with pytest.raises(RunError, match=rf"x\.ckpt: {message}"):
            read_description(path)
    with pytest.raises(RunError, match="no such file"):
        read_description(tmp_path / "missing.ckpt")


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model.ckpt", b"")
    with pytest.raises(RunError, match=r"expected a data\.pkl in the archive"):
        read_description(path)


def test_a_tensor_that_reaches_beyond_its_record_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.ckpt", {"a": torch.ones(4)})
    stored = read_description(path)["a"]
    with pytest.raises(RunError, match="'a' is damaged"):
        read_tensors(path, {"a": stored._replace(shape=(5,))})
    with pytest.raises(RunError, match="'a' is damaged"):
        read_tensors(path, {"a": stored._replace(record="7")})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/data/cut", b"123")
    with pytest.raises(RunError, match="'a' is damaged"):
        read_tensors(path, {"a": stored._replace(record="cut")})


def test_records_that_unfold_to_more_than_the_file_holds_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.ckpt", {"a": torch.zeros(10**6)})
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert path.stat().st_size < 20_000
    with pytest.raises(RunError, match=r"x\.ckpt: claims tensors of 4,000,000 bytes"):
        read_tensors(path, read_description(path))
    small = {"a": read_description(path)["a"]._replace(shape=(10,))}
    with pytest.raises(RunError, match=r"'a' is damaged \(.* claims 4,000,000 bytes"):
        read_tensors(path, small)


def test_strides_and_shared_records_claim_no_memory(tmp_path: Path) -> None:
    path = saved(tmp_path / "x.ckpt", {"a": torch.zeros(4).expand(10**9, 4)})
    with pytest.raises(RunError, match="claims tensors of 16,000,000,000 bytes, which are not in it"):
        read_tensors(path, read_description(path))
    stored = read_description(path)["a"]._replace(shape=(4,), stride=(1,))
    with pytest.raises(RunError, match="claims tensors"):
        read_tensors(path, {str(number): stored for number in range(10_000)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("archive", [True, False])
def test_numbers_that_are_not_finite_are_refused(value: float, archive: bool, tmp_path: Path) -> None:
    path = saved(
        tmp_path / "x.pt", {"a": torch.ones(2), "b": torch.tensor(value)}, _use_new_zipfile_serialization=archive
    )
    description = read_description(path)
    assert torch.equal(read_tensors(path, {"a": description["a"]})["a"], torch.ones(2))
    with pytest.raises(RunError, match=r"x\.pt: 'b' holds NaN or infinity"):
        read_tensors(path, description)

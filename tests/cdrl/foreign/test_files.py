"""Pipes are not waited for, and what lies in a file's place is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autoencoder.importing import load_published_autoencoder
from cdrl.config import ConfigError
from cdrl.config_files import load_config
from cdrl.data import DataError
from cdrl.data.images.files import read_bytes
from cdrl.foreign.files import open_file, read_file, stand_in
from cdrl.runs.published import load_published
from cdrl.runs.run import RunError, load_tensors, read_json
from pipelines.evaluation.distances import read_statistics


@pytest.mark.parametrize(
    ("read", "name", "error"),
    [
        (read_bytes, "x.png", DataError),
        (load_tensors, "x.safetensors", RunError),
        (load_published, "x.pth.tar", RunError),
        (load_published_autoencoder, "x.ckpt", RunError),
        (load_published_autoencoder, "x.safetensors", RunError),
        (read_statistics, "x.npz", RunError),
        (read_json, "x.json", RunError),
        (load_config, "x.yaml", ConfigError),
    ],
)
def test_a_named_pipe_is_refused_and_not_waited_for(
    read: object, name: str, error: type[Exception], tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(error, match=rf"{name}: .*found a named pipe or a device"):
        read(tmp_path / name)  # type: ignore[operator]


def test_files_are_opened_and_bounded(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert open_file(tmp_path / "x").read() == b"12345"
    assert read_file(tmp_path / "x", 5) == b"12345"
    with pytest.raises(ValueError, match="has 5 bytes, expected 4 at most"):
        read_file(tmp_path / "x", 4)
    with pytest.raises(IsADirectoryError):
        open_file(tmp_path)
    for name in ("y", "x\0"):
        with pytest.raises(FileNotFoundError):
            open_file(tmp_path / name)
    assert stand_in(tmp_path / "x") is None

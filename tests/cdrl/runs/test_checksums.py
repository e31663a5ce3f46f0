"""Damage that looks whole is found when a folder is read, and named."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoencoder.model import load_autoencoder, save_autoencoder
from cdrl.runs.checksums import folder_with_checksums, verify_checksums, write_checksums
from cdrl.runs.model_folder import load_model
from cdrl.runs.run import RunError, read_json
from tests.helpers import save_tiny_run, tiny_autoencoder


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["energy.safetensors", "config.json", "autoencoder/autoencoder.safetensors"])
def test_a_flipped_bit_in_a_model_is_found(file: str, tmp_path: Path) -> None:
    save_tiny_run(tmp_path, latent=True)
    load_model(tmp_path / "model")  # one of before there were checksums
    write_checksums(tmp_path / "model")
    load_model(tmp_path / "model")
    flip_last_bit(tmp_path / "model" / file)
    with pytest.raises(RunError, match=rf"{file}: damaged or edited: its SHA-256 differs"):
        load_model(tmp_path / "model")


def test_a_flipped_bit_in_a_first_stage_is_found(tmp_path: Path) -> None:
    with folder_with_checksums(tmp_path / "model") as folder:
        save_autoencoder(folder, tiny_autoencoder())
    load_autoencoder(tmp_path / "model")
    flip_last_bit(tmp_path / "model" / "autoencoder.safetensors")
    with pytest.raises(RunError, match=r"autoencoder\.safetensors: damaged or edited"):
        load_autoencoder(tmp_path / "model")


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("x")
    write_checksums(tmp_path)
    assert list(read_json(tmp_path / "checksums.json")) == ["a/b"]
    verify_checksums(tmp_path)
    (tmp_path / "a" / "b").unlink()
    with pytest.raises(RunError, match=r"a/b: missing"):
        verify_checksums(tmp_path)

"""A first stage kept in a folder and opened from wherever it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from autoencoder import Autoencoder
from autoencoder.model import save_autoencoder
from cdrl.runs.run import RunError
from tests.helpers import save_tiny_run, tiny_autoencoder


def test_a_first_stage_comes_back_the_same_to_the_bit(tmp_path: Path) -> None:
    network = tiny_autoencoder()
    network.save_pretrained(tmp_path / "kept")
    network.save_pretrained(str(tmp_path / "kept"))  # in place of the one that lies there
    again = Autoencoder.from_pretrained(tmp_path / "kept")
    images = torch.rand(2, 1, 8, 8) * 2 - 1
    assert torch.equal(again.encode(images).mean, network.encode(images).mean)
    assert torch.equal(again.decode(torch.ones(1, 3, 4, 4)), network.decode(torch.ones(1, 3, 4, 4)))
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert next(Autoencoder.from_pretrained(str(tmp_path / "kept"), "meta").parameters()).device.type == "meta"


def test_it_is_found_in_runs_of_either_stage(tmp_path: Path) -> None:
    save_autoencoder(tmp_path / "first" / "model", tiny_autoencoder())
    save_autoencoder(tmp_path / "both" / "autoencoder" / "model", tiny_autoencoder())
    save_tiny_run(tmp_path / "second", latent=True)
    weights = tiny_autoencoder().state_dict()
    for place in ("first", "first/model", "both", "both/autoencoder", "second", "second/model"):
        found = Autoencoder.from_pretrained(tmp_path / place).state_dict()
        assert all(torch.equal(found[name], weights[name]) for name in weights), place


def test_where_there_is_none_it_says_how_to_train_one(tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    with pytest.raises(RunError, match=r"no trained first stage there; .* python run\.py train-autoencoder"):
        Autoencoder.from_pretrained(tmp_path)


def test_it_is_not_kept_in_place_of_something_else(tmp_path: Path) -> None:
    save_tiny_run(tmp_path / "run", latent=True)
    with pytest.raises(RunError, match="holds something else than a model, which would be lost"):
        tiny_autoencoder().save_pretrained(tmp_path / "run")
    assert (tmp_path / "run" / "model" / "energy.safetensors").exists()


def test_a_folder_or_a_device_that_cannot_be_is_refused(tmp_path: Path) -> None:
    wrong: Any
    for wrong in (None, 3):
        for ask in (Autoencoder.from_pretrained, tiny_autoencoder().save_pretrained):
            with pytest.raises(TypeError, match=f"^folder: expected a folder, found {wrong}"):
                ask(wrong)
    for wrong in ("gpu", 0, None):
        with pytest.raises((TypeError, ValueError), match=r"^device: expected cpu, .*found "):
            Autoencoder.from_pretrained(tmp_path, wrong)

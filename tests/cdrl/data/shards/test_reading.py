"""Shards: that they come back equal, that they appear whole, and that damage is named."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset

from cdrl.data import DataError, Sample, read_shards, write_shards
from cdrl.data.shards.reading import has_foreign_shards


def image_samples(count: int, channels: int = 3) -> list[Sample]:
    pixels = torch.randint(256, (count, channels, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return [Sample(image, row % 3, (row % 2 == 0, True)) for row, image in enumerate(pixels)]


def write_images(folder: Path, count: int = 7) -> list[Sample]:
    samples = image_samples(count)
    write_shards(folder, samples, {"source": "test"}, 3, ("a", "b", "c"), ("even", "all"))
    return samples


@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_back_equal(tmp_path: Path, channels: int) -> None:
    samples = image_samples(7, channels)
    write_shards(tmp_path, samples, {"license": "CC0"}, 3, ("a", "b", "c"), ("even", "all"))
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "index.json", "samples.safetensors", "shard-000000.tar", "shard-000001.tar", "shard-000002.tar",
    ]  # fmt: skip
    grids = read_shards(tmp_path)
    assert torch.equal(grids.grids, torch.stack([sample.grid for sample in samples]))
    assert grids.labels is not None
    assert grids.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert grids.attributes is not None
    assert grids.attributes.tolist() == [[row % 2 == 0, True] for row in range(7)]
    assert (grids.label_names, grids.attribute_names) == (("a", "b", "c"), ("even", "all"))
    assert grids.metadata == {"license": "CC0"}


def test_latents_come_back_bit_by_bit_with_metadata_known_last(tmp_path: Path) -> None:
    latents = torch.randn(5, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 1e-3
    metadata: dict[str, Any] = {"mirrors": True}

    def samples() -> Iterator[Sample]:
        yield from map(Sample, latents)
        metadata["mean"] = [0.5]

    write_shards(tmp_path, samples(), metadata, shard_size=2)
    grids = read_shards(tmp_path)
    assert torch.equal(grids.grids, latents)
    assert (grids.labels, grids.attributes) == (None, None)
    assert grids.metadata == {"mirrors": True, "mean": [0.5]}


def test_webdataset_itself_reads_them(tmp_path: Path) -> None:
    samples = write_images(tmp_path, count=3)
    dataset = webdataset.WebDataset(str(tmp_path / "shard-000000.tar"), shardshuffle=False).decode("rgb8")
    for sample, read in zip(samples, dataset, strict=True):
        assert np.array_equal(read["png"], sample.grid.permute(1, 2, 0).numpy())
        assert read["cls"] == sample.label
        assert read["json"] == {"attributes": {"even": sample.attributes[0], "all": True}}


def test_equal_samples_make_equal_files(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_images(tmp_path / name)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_an_interrupted_set_is_recognised_and_written_anew(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Sample]:
        yield from image_samples(4)
        raise KeyboardInterrupt

    arguments: tuple[Any, ...] = ({}, 3, ("a", "b", "c"), ("even", "all"))
    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, interrupted(), *arguments)
    assert not list(tmp_path.glob("*.tar"))
    with pytest.raises(DataError, match="half-written"):
        read_shards(tmp_path)
    write_images(tmp_path)
    # An older set stays until a new one is complete; then none of its files is left.
    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, interrupted(), *arguments)
    assert len(read_shards(tmp_path)) == 7
    write_images(tmp_path, count=2)
    assert len(read_shards(tmp_path)) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == ["index.json", "samples.safetensors", "shard-000000.tar"]


def test_cut_at_the_very_end_it_is_still_recognised(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "index.json").rename(tmp_path / "index.json.partial")
    assert not has_foreign_shards(tmp_path)
    with pytest.raises(DataError, match="half-written"):
        read_shards(tmp_path)


def test_shards_of_others_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "shard-000000.tar").write_bytes(b"somebody's")
    with pytest.raises(DataError, match="will not be overwritten"):
        write_images(tmp_path)
    assert (tmp_path / "shard-000000.tar").read_bytes() == b"somebody's"


ONE = torch.zeros(1, 2, 2)


@pytest.mark.parametrize(
    ("samples", "names", "message"),
    [
        ([], {}, "no samples"),
        ([Sample(ONE), Sample(torch.zeros(1, 2, 3))], {}, "like the first"),
        ([Sample(ONE), Sample(ONE.byte())], {}, "like the first"),
        ([Sample(ONE / 0)], {}, "found NaN"),
        ([Sample(ONE.double())], {}, "expected uint8"),
        ([Sample(torch.zeros(2, 2, 2, dtype=torch.uint8))], {}, "expected uint8"),
        ([Sample(ONE, 0)], {}, "labels and label_names"),
        ([Sample(ONE, 2)], {"label_names": ("a", "b")}, "label in 0 … 1, found 2"),
        ([Sample(ONE)], {"attribute_names": ("x",)}, "expected 1 attributes, found 0"),
    ],
)
def test_wrong_samples_are_refused_and_nothing_is_published(
    tmp_path: Path, samples: list[Sample], names: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        write_shards(tmp_path, samples, {}, **names)
    assert not list(tmp_path.glob("*.tar")) + list(tmp_path.glob("*.json"))


def edit_index(folder: Path, **changes: Any) -> None:
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({**index, **changes}))


def replace_shard(folder: Path, content: bytes) -> None:
    """Put other content into the second shard, with a checksum that fits it."""
    (folder / "shard-000001.tar").write_bytes(content)
    shards = json.loads((folder / "index.json").read_text())["shards"]
    shards[1]["sha256"] = hashlib.sha256(content).hexdigest()
    edit_index(folder, shards=shards)


def tar_of(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return content.getvalue()


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


LATENT = {"0.npy": npy(np.zeros((1, 2, 2), np.float32)), "0.cls": b"1", "0.json": b'{"attributes": {"x": true}}'}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({**LATENT, "0.npy": npy(np.zeros((1, 2, 3), np.float32))}, "sample 0: expected float32 .1, 2, 2., found"),
        ({**LATENT, "0.npy": npy(np.zeros((1, 2, 2)))}, "sample 0: expected float32 numbers, found float64"),
        ({**LATENT, "0.npy": npy(np.full((1, 2, 2), np.nan, np.float32))}, "sample 0: expected finite numbers"),
        ({**LATENT, "0.npy": LATENT["0.npy"][:-4]}, "sample 0: expected a whole .npy"),
        ({"0.cls": b"1"}, "sample 0: expected a .npy file"),
        ({**LATENT, "0.cls": b"2"}, "sample 0: expected a label in 0 … 1, found 2"),
        ({**LATENT, "0.cls": b"one"}, "sample 0: expected a class id"),
        ({**LATENT, "0.json": b"{"}, "sample 0: expected JSON"),
        ({**LATENT, "0.json": b"[]"}, "sample 0: expected a JSON object"),
        ({**LATENT, "0.json": b'{"attributes": {}}'}, "sample 0: expected a .json file with attributes x"),
        ({**LATENT, **{name.replace("0", "1"): data for name, data in LATENT.items()}}, "expected 1 sample, found 2"),
    ],
)
def test_wrong_content_is_named_with_its_shard(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    write_shards(tmp_path, [Sample(ONE, 0, [True])] * 3, {}, 1, ("a", "b"), ("x",))
    replace_shard(tmp_path, tar_of(LATENT))
    assert len(read_shards(tmp_path)) == 3
    replace_shard(tmp_path, tar_of(files))
    with pytest.raises(DataError, match=f"shard-000001.tar: {message}"):
        read_shards(tmp_path)


def cut_file(folder: Path) -> None:
    content = (folder / "shard-000001.tar").read_bytes()
    (folder / "shard-000001.tar").write_bytes(content[: len(content) // 2])


def flip_bit(folder: Path) -> None:
    content = bytearray((folder / "shard-000001.tar").read_bytes())
    content[600] ^= 1
    (folder / "shard-000001.tar").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_file, "shard-000001.tar: damaged: its SHA-256"),
        (flip_bit, "shard-000001.tar: damaged: its SHA-256"),
        (lambda folder: (folder / "shard-000001.tar").unlink(), "shard-000001.tar: cannot be read"),
        (lambda folder: replace_shard(folder, b""), "shard-000001.tar: damaged: expected a whole tar"),
        (lambda folder: replace_shard(folder, b"\1" * 512 + bytes(512)), "shard-000001.tar: damaged"),
        # The first of its samples, and nothing after it: the archive's end is missing.
        (lambda folder: replace_shard(folder, (folder / "shard-000001.tar").read_bytes()[:3072]), "its end is missing"),
        (lambda folder: (folder / "index.json").unlink(), "index.json: cannot be read"),
        (lambda folder: (folder / "index.json").write_text("{"), "index.json: expected the index of shards"),
        (lambda folder: edit_index(folder, version=2), "index.json: expected the index of shards .version"),
        (lambda folder: edit_index(folder, count=8), "index.json: expected shards of 8 samples, found 7"),
        (lambda folder: edit_index(folder, count=5), "shard-000001.tar: expected 3 samples"),
        (lambda folder: edit_index(folder, dtype="float32"), "shard-000000.tar: sample .*: expected a .npy file"),
        (lambda folder: edit_index(folder, shape=[3, 4, 4]), "shard-000000.tar: sample .*: expected uint8"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    write_images(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=message):
        read_shards(tmp_path)


def test_an_index_cannot_point_elsewhere(tmp_path: Path) -> None:
    write_images(tmp_path)
    shards = json.loads((tmp_path / "index.json").read_text())["shards"]
    edit_index(tmp_path, shards=[{**shards[0], "name": "../elsewhere.tar"}, *shards[1:]])
    with pytest.raises(DataError, match=r"index.json: expected the index"):
        read_shards(tmp_path)

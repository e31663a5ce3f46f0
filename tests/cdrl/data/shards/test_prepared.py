"""Preparing: the same bytes however often it is interrupted, what the metadata say, and what is refused."""

import errno
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl.config import DataConfig
from cdrl.data import DataError, load_images, open_source, read_prepared, training_images, write_prepared
from cdrl.data.images.preparing import prepare_images
from cdrl.data.shards import writing

COUNT = 110


def save_picture(path: Path, seed: int, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(path, quality=95)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two classes in two splits."""
    root = tmp_path_factory.mktemp("pictures")
    for number in range(COUNT):
        save_picture(root / "train" / ("cat" if number % 2 else "dog") / f"{number:04d}.jpg", number, (30, 40))
    for number in range(3):
        save_picture(root / "test" / "cat" / f"{number}.png", number, (20, 20))
    return root


def config(pictures: Path, prepared: Path, **fields: Any) -> DataConfig:
    values = {"name": "folder", "path": pictures, "image_size": 16, "prepared": prepared, **fields}
    return DataConfig(**values)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def prepare(data: DataConfig) -> dict[str, bytes]:
    for split in ("train", "test"):
        write_prepared(data, split, open_source(data, split))  # type: ignore[arg-type]
    assert data.prepared is not None
    return contents(data.prepared)


def test_prepared_images_are_those_of_the_published_files(pictures: Path, tmp_path: Path) -> None:
    data = config(pictures, tmp_path / "prepared")
    files = prepare(data)
    assert set(files) == {
        *(f"{split}/{name}" for split in ("train", "test") for name in ("index.json", "samples.safetensors")),
        *("train/shard-000000.tar", "test/shard-000000.tar", "train.lock", "test.lock"),
        *("train.origin.json", "test.origin.json"),
    }
    raw = data.model_copy(update={"prepared": None})
    for split in ("train", "test"):
        expected = load_images(raw, split)  # type: ignore[arg-type]
        streamed = training_images(data.model_copy(update={"stream": True}), split)  # type: ignore[arg-type]
        assert not isinstance(streamed.grids, torch.Tensor)
        for found in (load_images(data, split), streamed.to_images()):  # type: ignore[arg-type]
            assert torch.equal(found.images, expected.images)
            assert found.labels is not None
            assert expected.labels is not None
            assert torch.equal(found.labels, expected.labels)
            assert found.label_names == expected.label_names == ("cat", "dog")


def test_the_metadata_say_what_was_done(tmp_path: Path) -> None:
    names = [f"{number + 1:06d}.jpg" for number in range(3)]
    for number, name in enumerate(names):
        save_picture(tmp_path / "img_align_celeba" / name, number, (178, 218))
    rows = [f"{name} {'1 ' * 20}{'-1 ' * 20}" for name in names]
    (tmp_path / "list_attr_celeba.txt").write_text("\n".join(["3", " ".join(f"A{n}" for n in range(40)), *rows]))
    (tmp_path / "list_eval_partition.txt").write_text("\n".join(f"{name} {n}" for name, n in zip(names, (0, 0, 2))))
    found = {}
    for crop in (140, 178):
        fields = {"name": "celeba", "crop": crop, "check_sums": False, "image_size": 64}
        data = config(tmp_path, tmp_path / f"prepared{crop}", **fields)
        prepare(data)
        index = json.loads((tmp_path / f"prepared{crop}" / "train" / "index.json").read_text())
        assert index["metadata"]["preparation"] == {
            "name": "celeba",
            "split": "train",
            "channels": 3,
            "image_size": 64,
            "crop": f"central {crop} x {crop} pixels",
            "resize": "bilinear, antialiased",
        }
        assert (index["count"], index["shape"]) == (2, [3, 64, 64])
        found[crop] = load_images(data, "train")
        assert found[crop].attributes is not None
        assert found[crop].attributes.sum(dim=1).tolist() == [20, 20]
        # The same crop by Pillow, from the published file.
        edge = (218 - crop) // 2, (178 - crop) // 2
        with Image.open(tmp_path / "img_align_celeba" / names[1]) as picture:
            box = (edge[1], edge[0], edge[1] + crop, edge[0] + crop)
            square = torch.from_numpy(np.array(picture.crop(box))).permute(2, 0, 1)
        assert torch.equal(found[crop].images[1], prepare_images(square[None], 64, 3)[0])
    # The wider crop shows the same face smaller.
    assert not torch.equal(found[140].images, found[178].images)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A crash at the ``count``-th replacement of a file: of a shard, of the index, or while they take their names."""
    replace, calls = os.replace, iter(range(count))

    def crashing(source: Path, target: Path) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(writing.os, "replace", crashing)


def test_wherever_it_is_cut_short_the_same_bytes_come_of_it(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "SHARD_SIZE", 50)
    whole = prepare(config(pictures, tmp_path / "whole"))
    assert sum(name.startswith("train/shard") for name in whole) == 3
    # Three shards, the plan before each, table and index; then five of them take their names.
    for count in range(13):
        data = config(pictures, tmp_path / str(count))
        with monkeypatch.context() as patch:
            interrupt_after(patch, count)
            with pytest.raises(KeyboardInterrupt):
                prepare(data)
        with pytest.raises(DataError, match="no prepared shards there"):
            load_images(data, "train")
        assert prepare(data) == whole, count


def test_shards_before_the_interruption_are_not_made_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "SHARD_SIZE", 50)
    data = config(pictures, tmp_path / "prepared")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)  # two shards, the plan before each
        with pytest.raises(KeyboardInterrupt):
            prepare(data)
    source, starts = open_source(data, "train"), []

    def parts(start: int) -> Any:
        starts.append(start)
        return source.parts(start)

    write_prepared(data, "train", replace(source, parts=parts))
    assert starts == [100]
    # A set that is complete is not touched, and only its first pictures are compared.
    write_prepared(data, "train", replace(source, parts=parts))
    assert starts == [100, 0]
    # Nor is anything left of the first attempt, should it have been cut short between its very last two moves.
    leftover = tmp_path / "prepared" / "train" / "plan.json.partial"
    leftover.write_text("[]")
    write_prepared(data, "train", source)
    assert not leftover.exists()


def copied(pictures: Path, folder: Path) -> Path:
    for file in pictures.rglob("*.*"):
        target = folder / file.relative_to(pictures)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return folder


def left_unfinished(data: DataConfig, monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(patch, moves)
        with pytest.raises(KeyboardInterrupt):
            prepare(data)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: save_picture(folder / "cat" / "0001.jpg", 999, (30, 60)),
        lambda folder: (folder / "cat" / "0001.jpg").unlink(),
        lambda folder: save_picture(folder / "cat" / "0000.jpg", 999, (30, 40)),
        lambda folder: (folder / "cat" / "0003.jpg").rename(folder / "cat" / "0200.jpg"),
        lambda folder: (folder / "dog" / "0040.jpg").rename(folder / "cat" / "0040.jpg"),
    ],
    ids=["another size", "one less", "one more", "another name", "another class"],
)
def test_shards_of_files_that_have_changed_are_not_gone_on_with(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(writing, "SHARD_SIZE", 50)
    folder, original = (copied(pictures, tmp_path / name) for name in ("pictures", "original"))
    data = config(folder, tmp_path / "prepared")
    left_unfinished(data, monkeypatch, 2)  # the plan and a shard of the cats
    before = contents(tmp_path / "prepared")
    change(folder / "train")
    unfinished = tmp_path / "prepared" / "train"
    with pytest.raises(DataError, match=rf"^{unfinished}: unfinished, and images 0 … 49 of it .* remove this folder"):
        prepare(data)
    assert contents(tmp_path / "prepared") == before
    # Brought back, they are gone on with; or all begins anew.
    shutil.rmtree(folder)
    original.rename(folder)
    finished = prepare(data)
    change(folder / "train")
    shutil.rmtree(unfinished)
    assert prepare(data) == prepare(config(folder, tmp_path / "anew")) != finished


@pytest.mark.parametrize("moves", [4, 6, 7])
def test_pictures_that_come_after_those_of_the_shards_may_change(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    """Cut short after two shards, after the third, which is not full, or before the index."""
    monkeypatch.setattr(writing, "SHARD_SIZE", 50)
    folder = copied(pictures, tmp_path / "pictures")
    data = config(folder, tmp_path / "prepared")
    left_unfinished(data, monkeypatch, moves)
    for number in range(110, 110 + moves):
        save_picture(folder / "train" / "dog" / f"{number:04d}.jpg", number, (30, 40))
    assert prepare(data) == prepare(config(folder, tmp_path / "anew"))


def test_a_full_disk_is_named_and_the_next_call_goes_on(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    data = config(pictures, tmp_path / "prepared")
    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "replace", full)
        with pytest.raises(DataError, match=r"plan.json.partial: cannot be written: No space left on device"):
            prepare(data)
    assert [file.name for file in (tmp_path / "prepared").rglob("*") if file.is_file()] == ["train.lock"]
    prepare(data)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="file: cannot be made to write shards there"):
        prepare(config(pictures, tmp_path / "file"))


@pytest.mark.parametrize("damage", [lambda content: content[:-700], lambda content: bytes(len(content))])
def test_a_shard_that_lost_its_end_is_made_again(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Any
) -> None:
    monkeypatch.setattr(writing, "SHARD_SIZE", 50)
    whole = prepare(config(pictures, tmp_path / "whole"))
    data = config(pictures, tmp_path / "prepared")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            prepare(data)
    shard = tmp_path / "prepared" / "train" / "shard-000001.tar.partial"
    shard.write_bytes(damage(shard.read_bytes()))
    assert prepare(data) == whole


@pytest.mark.parametrize("name", ["shard-000000.tar", "samples.safetensors"])
@pytest.mark.parametrize("damage", [lambda content: content[:-1] + b"x", None])
def test_a_whole_set_that_was_damaged_is_prepared_anew(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, name: str
) -> None:
    data = config(pictures, tmp_path / "prepared")
    whole = prepare(data)
    capsys.readouterr()
    file = tmp_path / "prepared" / "train" / name
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    assert prepare(data) == whole
    assert f"{file.parent}: a file is missing or damaged: prepared anew" in capsys.readouterr().err
    prepare(data)
    assert "prepared anew" not in capsys.readouterr().err


def test_a_damaged_picture_is_named_and_mending_it_is_enough(pictures: Path, tmp_path: Path) -> None:
    folder = copied(pictures, tmp_path / "pictures")
    broken = folder / "train" / "dog" / "0100.jpg"
    content = broken.read_bytes()
    broken.write_bytes(content[:90])
    data = config(folder, tmp_path / "prepared")
    with pytest.raises(DataError, match=r"dog/0100.jpg: expected a whole picture"):
        prepare(data)
    assert not list((tmp_path / "prepared").rglob("*.tar")) + list((tmp_path / "prepared").rglob("index.json"))
    broken.write_bytes(content)
    prepare(data)
    assert len(load_images(data, "train")) == COUNT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 8}, "prepared otherwise .image_size: 16 there, 8 here."),
        ({"channels": 1}, "prepared otherwise .channels: 3 there, 1 here."),
        ({"name": "celebahq"}, "prepared otherwise .name: folder there, celebahq here."),
    ],
)
def test_a_set_that_was_prepared_otherwise_is_neither_read_nor_replaced(
    pictures: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    data = config(pictures, tmp_path)
    before = prepare(data)
    other = config(pictures, tmp_path, **changes)
    for attempt in (lambda: load_images(other, "train"), lambda: prepare(other)):
        with pytest.raises(DataError, match=message):
            attempt()
    assert contents(tmp_path) == before


def test_a_set_that_prepare_did_not_write_is_refused(pictures: Path, tmp_path: Path) -> None:
    data = config(pictures, tmp_path)
    samples = [writing.Sample(torch.zeros(3, 16, 16, dtype=torch.uint8))]
    writing.write_shards(tmp_path / "train", samples, {})
    with pytest.raises(DataError, match="holds shards that were not written by"):
        load_images(data, "train")


def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9, when some shards are there, then the same again."""
    monkeypatch.setattr(writing, "SHARD_SIZE", 20)
    data, whole = config(pictures, tmp_path / "killed"), config(pictures, tmp_path / "whole")
    for number in (1, 3):
        process = get_context("fork").Process(target=prepare, args=(data,))
        process.start()
        while process.is_alive() and not (tmp_path / f"killed/train/shard-{number:06d}.tar.partial").exists():
            time.sleep(0.001)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (tmp_path / "killed/train/index.json").exists()
    assert prepare(data) == prepare(whole)
    assert len(load_images(whole, "train")) == COUNT


def recoloured(pictures: Path, folder: Path) -> Path:
    """Files of the same names and sizes with other pictures."""
    copy = copied(pictures, folder)
    for path in copy.rglob("*.*"):
        picture, size = Image.open(path), path.stat().st_size
        Image.new(picture.mode, picture.size, (200, 0, 0)).save(path, quality=60)
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    return copy


def test_a_whole_set_is_kept_for_the_files_that_it_was_made_of_alone(pictures: Path, tmp_path: Path) -> None:
    first = copied(pictures, tmp_path / "first")
    data = config(first, tmp_path / "prepared")
    made = prepare(data)
    assert prepare(data) == made
    # Training asks for the same folder; moved files are the same once `prepare` has compared them.
    moved = data.model_copy(update={"path": first.rename(tmp_path / "moved")})
    with pytest.raises(DataError, match=r"prepared from .*first, but data.path is .*moved"):
        read_prepared(moved, "train", stream=True)
    prepare(moved)
    assert len(read_prepared(moved, "train", stream=True)) > 0
    others = recoloured(pictures, tmp_path / "others")
    grown = copied(pictures, tmp_path / "grown")
    last = sorted((grown / "train" / "dog").iterdir())[-1]
    last.with_name("zzz.jpg").write_bytes(last.read_bytes())
    for path in (others, grown):
        with pytest.raises(DataError, match=rf"prepared from other files than lie in {path} now: name another folder"):
            prepare(data.model_copy(update={"path": path}))
        assert len(read_prepared(moved, "train", stream=True)) > 0
    # A set from before origins were noted is compared by its first pictures, and noted.
    for split in ("train", "test"):
        (tmp_path / "prepared" / f"{split}.origin.json").unlink()
    with pytest.raises(DataError, match="prepared from other files"):
        prepare(data.model_copy(update={"path": others}))
    assert "train.origin.json" in prepare(moved)

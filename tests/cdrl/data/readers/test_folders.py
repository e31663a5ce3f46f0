"""Folders of pictures and of shards that others wrote: classes, splits and what is refused."""

import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from cdrl.config import DataConfig
from cdrl.data import DataError, ImageSet, Sample, Split, load_images, open_source, write_shards
from cdrl.data.readers.folders import belongs_to


def save_picture(path: Path, value: int, size: tuple[int, int] = (6, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def load(path: Path, split: Split = "train", name: str = "folder", **fields: Any) -> ImageSet:
    data = DataConfig.model_validate({"name": name, "path": path, "image_size": 4, "channels": 3, **fields})
    return load_images(data, split)


def values(images: ImageSet) -> list[int]:
    """The brightness of each image, which tells which one it is."""
    return images.images[:, 0, 0, 0].tolist()


def test_without_splits_one_in_ten_is_held_out_by_its_name(tmp_path: Path) -> None:
    for number in range(200):
        save_picture(tmp_path / f"{number:03d}.png", number)
    train, test = load(tmp_path, "train"), load(tmp_path, "test")
    assert sorted(values(train) + values(test)) == list(range(200))
    assert 8 <= len(test) <= 35
    assert train.images.shape[1:] == (3, 4, 4)
    assert train.labels is None
    # Other pictures change nothing for those that were there.
    save_picture(tmp_path / "another.jpg", 250)
    assert set(values(load(tmp_path, "test"))) - {250} == set(values(test))


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    for number in range(30):
        save_picture(tmp_path / ("cat" if number % 3 else "dog") / "deep" / f"{number}.JPG", number * 8, (9, 7))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("no picture")
    images = load(tmp_path)
    assert images.label_names == ("cat", "dog")
    assert images.labels is not None
    assert [value // 8 % 3 == 0 for value in values(images)] == images.labels.bool().tolist()


@pytest.mark.parametrize(
    ("train_name", "test_name"),
    [
        *(("train", name) for name in ("test", "val", "valid", "validation")),
        ("Train", "Test"),
        ("training", "testing"),
        ("TRAIN", "Val"),
    ],
)
def test_split_folders_are_the_splits(tmp_path: Path, train_name: str, test_name: str) -> None:
    for number, (split, name) in enumerate([(train_name, "a"), (train_name, "b"), (train_name, "c"), (test_name, "c")]):
        save_picture(tmp_path / split / name / "x.png", number)
    train, test = load(tmp_path, "train"), load(tmp_path, "test")
    assert (values(train), values(test)) == ([0, 1, 2], [3])
    assert train.label_names == test.label_names == ("a", "b", "c")
    assert test.labels is not None
    assert test.labels.tolist() == [2]


def make_mixed(path: Path) -> None:
    save_picture(path / "a.png", 0)
    save_picture(path / "b" / "b.png", 0)


def make_unknown_class(path: Path) -> None:
    save_picture(path / "train" / "a" / "a.png", 0)
    save_picture(path / "test" / "b" / "b.png", 0)


def make_masks(path: Path) -> None:
    save_picture(path / "CelebA-HQ-img" / "0.png", 0)
    save_picture(path / "CelebAMask-HQ-mask-anno" / "0" / "0.png", 0)


def make_folder_above(path: Path) -> None:
    for split in ("Train", "test"):
        save_picture(path / "unpacked" / split / "a" / "0.png", 0)


def make_two_of_a_split(path: Path) -> None:
    for split in ("train", "training", "test"):
        save_picture(path / split / "0.png", 0)


def make_damaged(path: Path) -> None:
    save_picture(path / "test" / "a.png", 0)
    save_picture(path / "train" / "a.png", 0)
    content = (path / "test" / "a.png").read_bytes()
    (path / "test" / "a.png").write_bytes(content[:45])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.rmdir(), "no such folder of pictures"),
        (lambda path: None, "expected pictures .* of the test split, found none"),
        (make_mixed, "pictures both directly"),
        (
            lambda path: save_picture(path / "train" / "a.png", 0),
            "expected one of test, .*validation beside it",
        ),
        (make_unknown_class, "test: expected the classes of .*train only, found b"),
        (make_damaged, "test/a.png: expected a whole picture"),
        (make_masks, "holds the masks of CelebAMask-HQ"),
        (make_folder_above, "expected a folder a class, but unpacked holds test/ and train/: data.path must name it"),
        (make_two_of_a_split, "expected one of train/ and training/, found both"),
        (lambda path: save_picture(path / "val" / "a.png", 0), "holds val/, expected train/ beside it"),
    ],
)
def test_wrong_folders_are_named(tmp_path: Path, make: Callable[[Path], None], message: str) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    make(folder)
    with pytest.raises(DataError, match=f"{folder}.*{message}"):
        load(folder, "test")


def test_test_pictures_without_class_folders_serve_where_no_classes_are_asked_for(tmp_path: Path) -> None:
    for name in ("train/cat/0.png", "train/dog/0.png", "test/0.png"):
        save_picture(tmp_path / name, 7)
    assert load(tmp_path, "train").label_names == ("cat", "dog")
    assert load(tmp_path, "test").labels is None
    assert load(tmp_path, "train", labels="class").label_names == ("cat", "dog")
    with pytest.raises(DataError, match=r"test: expected the class folders of .*train, found pictures without"):
        load(tmp_path, "test", labels="class")


def test_a_class_without_a_picture_to_train_on_is_refused(tmp_path: Path) -> None:
    for number in range(40):
        save_picture(tmp_path / f"person{number:02d}" / "a.jpg", number)
    assert len(load(tmp_path)) < 40
    with pytest.raises(DataError, match=r"no picture of class person.. is left to train on, nor of . others"):
        load(tmp_path, labels="class")


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def write_foreign(path: Path, samples: dict[str, dict[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as writer:
        for key, files in samples.items():
            writer.write({"__key__": key, **files})


def grey(value: int) -> bytes:
    return npy(np.full((4, 4), value, np.uint8))


def test_foreign_shards_with_classes(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (9, 7), (3, 3, 3)).save(picture, format="JPEG")
    plain = {
        "0": {"npy": grey(0), "cls": b"2"},
        "1": {"npy": npy(np.full((4, 4, 3), 1, np.uint8)), "cls": b"0"},
        "2": {"npy": npy(np.full((3, 4, 4), 2, np.uint8)), "json": b'{"label": 1}'},
        "3": {"jpg": picture.getvalue(), "cls": b"1\n"},
    }
    write_foreign(tmp_path / "train-0.tar", plain)
    write_foreign(tmp_path / "val-0.tar", {"9": plain["0"]})
    images = load(tmp_path, "train", "shards")
    assert values(images) == [0, 1, 2, 3]
    assert images.labels is not None
    assert images.labels.tolist() == [2, 0, 1, 1]
    assert images.label_names == ("0", "1", "2")
    assert len(load(tmp_path, "test", "shards")) == 1


def test_foreign_shards_are_told_by_those_that_hold_the_images(tmp_path: Path) -> None:
    def fingerprints() -> list[str]:
        source = open_source(DataConfig(name="shards", path=tmp_path, image_size=4), "train")
        return [source.fingerprint(slice(*rows)) for rows in ((0, 3), (2, 3), (2, 4), (3, 5))]

    for shard in range(2):
        keys = [str(3 * shard + place) for place in range(3 - shard)]
        write_foreign(tmp_path / f"train-{shard}.tar", {key: {"npy": grey(7), "cls": b"1"} for key in keys})
    write_foreign(tmp_path / "val-0.tar", {"9": {"npy": grey(7), "cls": b"1"}})
    before = fingerprints()
    larger = npy(np.zeros((90, 90), np.uint8))
    write_foreign(tmp_path / "train-1.tar", {key: {"npy": larger, "cls": b"1"} for key in ("3", "4")})
    after = fingerprints()
    assert [first == second for first, second in zip(before, after, strict=True)] == [True, True, False, False]


def test_foreign_shards_with_attributes_in_split_folders(tmp_path: Path) -> None:
    note = b'{"attributes": {"Smiling": %s, "Beard": true}}'
    write_foreign(tmp_path / "train" / "x.tar", {"0": {"npy": grey(5), "json": note % b"false"}})
    write_foreign(tmp_path / "test" / "x.tar", {"0": {"npy": grey(6), "json": note % b"true"}})
    train, test = load(tmp_path, "train", "shards"), load(tmp_path, "test", "shards")
    assert (values(train), values(test)) == ([5], [6])
    assert train.attribute_names == ("Smiling", "Beard")
    assert train.attributes is not None
    assert train.attributes.tolist() == [[False, True]]
    assert train.labels is None


def test_foreign_and_own_shards_without_splits(tmp_path: Path) -> None:
    write_foreign(tmp_path / "foreign" / "x.tar", {str(number): {"npy": grey(number)} for number in range(100)})
    pixels = torch.arange(100, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)
    write_shards(tmp_path / "own", map(Sample, pixels), {})
    held_out = [number for number in range(100) if belongs_to("test", str(number))]
    for folder in ("foreign", "own"):
        assert values(load(tmp_path / folder, "test", "shards")) == held_out
        assert len(load(tmp_path / folder, "train", "shards")) == 100 - len(held_out)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"0": {"txt": b"x"}}, "x.tar: sample 0: expected a .png, .jpg or .npy"),
        ({"0": {"npy": npy(np.zeros((4, 4)))}}, "x.tar: sample 0: expected uint8"),
        ({"0": {"npy": grey(0), "cls": b"-1"}}, "x.tar: sample 0: expected a class id"),
        ({"0": {"npy": grey(0), "json": b'{"label": "cat"}'}}, "x.tar: sample 0: expected a class id"),
        ({"0": {"npy": grey(0), "json": b'{"attributes": {"a": 1}}'}}, "x.tar: sample 0: expected attributes"),
        ({"0": {"npy": grey(0), "cls": b"1"}, "1": {"npy": grey(0)}}, "sample 1 has none"),
        ({"0": {"npy": grey(0), "json": b'{"attributes": {"a": true}}'}, "1": {"npy": grey(0)}}, "sample 1: expected"),
    ],
)
def test_wrong_foreign_samples_are_named(tmp_path: Path, samples: dict[str, dict[str, bytes]], message: str) -> None:
    write_foreign(tmp_path / "train" / "x.tar", samples)
    with pytest.raises(DataError, match=message):
        load(tmp_path, "train", "shards")


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content))


def test_links_in_a_shard_stand_for_their_files(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with tarfile.open(tmp_path / "train" / "x.tar", "w") as tar:
        add(tar, "a/0.npy", grey(5))
        add(tar, "1.npy", grey(6))
        add(tar, "2.npy", type=tarfile.LNKTYPE, linkname="a/0.npy")
        add(tar, "a/3.npy", type=tarfile.SYMTYPE, linkname="../4.npy")
        add(tar, "4.npy", type=tarfile.SYMTYPE, linkname="1.npy")
    assert values(load(tmp_path, "train", "shards")) == [5, 6, 5, 6, 6]


def test_archives_one_after_the_other_are_all_read(tmp_path: Path) -> None:
    for number in range(3):
        write_foreign(tmp_path / f"{number}.tar", {str(number): {"npy": grey(number)}})
    (tmp_path / "set" / "train").mkdir(parents=True)
    both = b"".join((tmp_path / f"{number}.tar").read_bytes() for number in range(3))
    (tmp_path / "set" / "train" / "x.tar").write_bytes(both)
    assert values(load(tmp_path / "set", "train", "shards")) == [0, 1, 2]
    # A head that is damaged ends no archive silently.
    (tmp_path / "set" / "train" / "x.tar").write_bytes(both[:-20480] + b"x" + both[-20479:])
    with pytest.raises(DataError, match=r"x.tar: damaged: .* found no head of a member at byte"):
        load(tmp_path / "set", "train", "shards")


def test_hidden_files_in_a_shard_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with tarfile.open(tmp_path / "train" / "x.tar", "w") as tar:
        for name in ("./A/._0.NPY", "./A/0.NPY", "__MACOSX/0.npy", "./A/0.txt", "./A/0.CLS"):
            add(tar, name, b"1" if name.endswith("CLS") else grey(7))
        add(tar, "pipe.npy", type=tarfile.FIFOTYPE)
    source = open_source(DataConfig(name="shards", path=tmp_path, image_size=4), "train")
    assert source.count == 1
    assert {each.reason: each.count for each in source.left_out} == {
        "hidden or system files": 2,
        "members that are no files": 1,
        "files beside the images": 1,
    }


def write_members(*members: tuple[str, bytes, dict[str, Any]]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        with tarfile.open(path / "x.tar", "w") as tar:
            for name, content, fields in members:
                add(tar, name, content, **fields)

    return write


def write_huge(path: Path) -> None:
    picture = io.BytesIO()
    Image.new("1", (9000, 9000)).save(picture, format="PNG")
    write_members(("0.png", picture.getvalue(), {}))(path)


def write_claim(path: Path) -> None:
    """A member that claims 300 MB, in a file that has as many and takes no place on the disk."""
    head = tarfile.TarInfo("0.npy")
    head.size = 300 * 2**20
    with (path / "x.tar").open("wb") as file:
        file.write(head.tobuf())
        file.truncate(head.size + 4096)


def write_sparse(path: Path) -> None:
    head = tarfile.TarInfo("0.png")
    head.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(head.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"%011o\0" % (100 * 2**30)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (path / "x.tar").write_bytes(bytes(block) + bytes(10240 - 512))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_members(*((f"{key}.npy", grey(0), {}) for key in "010")), "sample 0: expected its files side by side"),
        (write_members(("0.npy", b"", {}), ("0.npy", b"", {})), "sample 0: expected one .npy file, found two"),
        (write_members(("0.npy", b"", {"type": tarfile.SYMTYPE, "linkname": "../x.npy"})), "0.npy: a link to"),
        (write_members(("0.npy", b"", {"type": tarfile.SYMTYPE, "linkname": "0.npy"})), "0.npy: a link to 0.npy"),
        (write_members(("0.npy", grey(0), {}), ("0.cls", b"100000000", {})), "sample 0: expected a class id of 0"),
        (write_members(("0.npy", grey(0), {}), ("0.cls", b"1" * 5000, {})), "sample 0: expected a class id of 0"),
        (write_members(("0.npy", grey(0), {}), ("0.json", b"[" * 10**5, {})), "sample 0: expected JSON"),
        (write_members(("0.npy", grey(0), {}), ("0.json", b'{"label": true}', {})), "sample 0: expected a class id"),
        (write_huge, "sample 0: 9000 x 9000 pixels are more than data.max_pixels"),
        (write_claim, "sample 0: expected at most 268,435,456 bytes in its .npy file, found 314,572,800"),
        (write_sparse, "0.png: expected whole files, found a sparse one"),
        (lambda path: (path / "x.tar").write_bytes(gzip.compress(b"x")), "x.tar: .* compressed one: .* gunzip"),
        (lambda path: (path / "1.tar.gz").write_bytes(b""), "1.tar.gz: expected tar files, found 1 compressed"),
        (lambda path: os.mkfifo(path / "x.tar"), "x.tar: cannot be read: expected a file, found a named pipe"),
        (lambda path: write_foreign(path / "deep" / "x.tar", {"0": {"npy": grey(0)}}), "found them in sub-folders"),
    ],
)
def test_shards_that_cannot_be_right_are_refused(tmp_path: Path, write: Callable[[Path], None], message: str) -> None:
    (tmp_path / "train").mkdir()
    write(tmp_path / "train")
    with pytest.raises(DataError, match=message):
        load(tmp_path, "train", "shards")


def test_cut_foreign_shards_are_named(tmp_path: Path) -> None:
    path = tmp_path / "train" / "x.tar"
    write_foreign(path, {str(number): {"npy": grey(number)} for number in range(4)})
    content = path.read_bytes()
    for length in (0, 700, 1024, 2000, 2048):  # inside a header, inside a file, and just between two files
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"x.tar: .*damaged"):
            load(tmp_path, "train", "shards")


def test_folders_that_hold_no_image_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index.json: cannot be read"):
        load(tmp_path, "train", "shards")
    with pytest.raises(DataError, match="no such folder of shards"):
        load(tmp_path / "nothing", "train", "shards")
    write_shards(tmp_path, [Sample(torch.zeros(1, 4, 4))], {})
    with pytest.raises(DataError, match="found float32 grids"):
        load(tmp_path, "train", "shards")


def test_a_link_back_to_the_root_is_no_class(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            save_picture(tmp_path / split / name / "0.png", 1)
        (tmp_path / split / "loop").symlink_to(tmp_path / split)
        (tmp_path / split / "up").symlink_to(tmp_path)
    images = load(tmp_path)
    assert (len(images), images.label_names) == (2, ("a", "b"))

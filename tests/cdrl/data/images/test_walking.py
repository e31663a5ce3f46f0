"""What is listed of a folder of pictures, and what is left out and told."""

import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from cdrl.config import DataConfig
from cdrl.data import DataError, load_images, open_source, training_images, write_prepared
from cdrl.data.images.census import SINGULAR, LeftOut, Tally, data_in_words, left_out_in_words, printable
from cdrl.data.images.walking import pictures_below
from tests.helpers import ROOT


def save(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (value,) * 3).save(path, format="JPEG" if path.suffix == ".jfif" else None)
    return path


def walked(folder: Path) -> tuple[list[str], dict[str, tuple[int, str]]]:
    tally = Tally(folder)
    found = [path.relative_to(folder).as_posix() for path in pictures_below(folder, tally)]
    return found, {each.reason: (each.count, each.first) for each in tally.left_out}


def test_hidden_and_system_folders_and_files_are_left_out(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    for name in (".ipynb_checkpoints/b.png", "__MACOSX/a.png", "@eaDir/a.png", ".thumbnails/a.png", "._a.png"):
        save(tmp_path / name)
    (tmp_path / "Thumbs.db").write_bytes(b"")
    (tmp_path / "notes.txt").write_bytes(b"")
    (tmp_path / "phone.HEIC").write_bytes(b"")
    found, left_out = walked(tmp_path)
    assert found == ["a.png"]
    assert left_out == {
        "hidden or system folders": (4, ".ipynb_checkpoints"),
        "hidden or system files": (2, "._a.png"),
        "files that are no pictures by their endings": (1, "notes.txt"),
        "pictures of formats that are not read": (1, "phone.HEIC"),
    }


def test_all_endings_that_pillow_reads_are_pictures(tmp_path: Path) -> None:
    names = ["a.tif", "b.TIFF", "c.jfif", "d.webp", "e.bmp", "f.gif", "g.JPG"]
    for name in names:
        save(tmp_path / name)
    assert walked(tmp_path) == (names, {})


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    save(tmp_path / "elsewhere" / "deep" / "0.png")
    save(tmp_path / "set" / "1.png")
    (tmp_path / "set" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "file.png").symlink_to(tmp_path / "elsewhere" / "deep" / "0.png")
    (tmp_path / "set" / "gone.png").symlink_to("/nowhere/at/all")
    (tmp_path / "set" / "around").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "up").symlink_to(tmp_path)
    (tmp_path / "set" / "self").symlink_to(tmp_path / "set" / "self")
    found, left_out = walked(tmp_path / "set")
    assert found == ["1.png", "file.png", "linked/deep/0.png"]
    assert left_out == {
        "links that lead nowhere": (2, "gone.png"),
        "links back to a folder above them": (2, "around"),
    }


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert walked(tmp_path) == (["a.png"], {"pipes or devices named like pictures": (1, "b.png")})


def test_names_that_are_no_utf8_are_read_and_printed(tmp_path: Path) -> None:
    for split in ("train", "test"):
        save(tmp_path / split / "gar\udce7on" / "caf\udce9.png", 7)
    data = DataConfig(name="folder", path=tmp_path, image_size=4, prepared=tmp_path / "prepared")
    write_prepared(data, "train", open_source(data, "train"))
    assert load_images(data, "train").label_names == (r"gar\xe7on",)
    assert printable("caf\udce9") == r"caf\xe9"
    flat = tmp_path / "flat"
    for number in range(30):
        save(flat / f"caf\udce9{number}.png", 7)
    data = DataConfig(name="folder", path=flat, image_size=4)
    assert len(load_images(data, "train")) + len(load_images(data, "test")) == 30


def test_what_is_left_out_is_told_once_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "test"):
        save(tmp_path / "set" / split / "a.png")
    save(tmp_path / "set" / "train" / ".cache" / "b.png")
    data = DataConfig(name="folder", path=tmp_path / "set", image_size=4)
    line = "train split: 1 image read; left out: 1 hidden or system folder (first: train/.cache)"
    images = training_images(data)
    load_images(data, "train")
    assert capsys.readouterr().err == f"folder in {tmp_path}/set, {line}\n"
    assert data_in_words("folder", "train", 1, images.metadata) == f"folder, {line}"
    prepared = data.model_copy(update={"prepared": tmp_path / "prepared"})
    write_prepared(prepared, "train", open_source(prepared, "train"))
    index = json.loads((tmp_path / "prepared" / "train" / "index.json").read_text())
    left_out = {"reason": "hidden or system folders", "count": 1, "first": "train/.cache"}
    assert index["metadata"]["left_out"] == [left_out]
    assert open_source(data, "train").left_out == (LeftOut(**left_out),)


def test_folders_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing: cannot be read: No such file"):
        pictures_below(tmp_path / "nothing", Tally(tmp_path))


def test_what_is_left_out_is_counted_in_the_singular_and_the_plural() -> None:
    one, many = ([LeftOut(reason, count, "x")] for count in (1, 2000) for reason in ["links that lead nowhere"])
    assert left_out_in_words(one) == "1 link that leads nowhere (first: x)"
    assert left_out_in_words(many) == "2,000 links that lead nowhere (first: x)"
    assert data_in_words("digits", "train", 1, {}) == "digits, train split: 1 image read"


def test_every_reason_has_a_singular() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "cdrl" / "data").rglob("*.py"))
    reasons = set(re.findall(r'tally\.add\(\s*"([^"]*)"', sources)) - {"of the validation part"}
    assert len(reasons) >= 5
    assert reasons <= SINGULAR.keys()


def test_a_very_long_name_is_cut_in_the_middle() -> None:
    assert printable("a/b.png") == "a/b.png"
    shown = printable(f"data/{'[' * 3000}/1.png")
    assert len(shown) < 300
    assert shown.startswith("data/[[")
    assert shown.endswith("[/1.png")

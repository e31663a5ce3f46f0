"""CelebA and CelebA-HQ: the published layouts in small, and damaged text files."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl.config import DataConfig
from cdrl.data import DataError, ImageSet, load_images, open_source

NAMES = [f"Attribute_{number}" for number in range(38)] + ["Smiling", "Young"]


def row(file: str, number: int) -> str:
    """A line of attributes as published: any run of spaces; here attribute a is true where a <= number."""
    return f"{file}  " + "".join(" 1 " if attribute <= number else "-1 " for attribute in range(40))


def save_picture(path: Path, value: int, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path, quality=95)


def write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def celeba(tmp_path: Path) -> Path:
    """Six pictures: 0 to 2 for training, 3 for validation, 4 and 5 for test."""
    files = [f"{number + 1:06d}.jpg" for number in range(6)]
    for number, file in enumerate(files):
        save_picture(tmp_path / "img_align_celeba" / file, 40 * number, (178, 218))
    rows = [row(file, number) for number, file in enumerate(files)]
    write_lines(tmp_path / "list_attr_celeba.txt", ["6", " ".join(NAMES) + " ", *rows])
    write_lines(tmp_path / "list_eval_partition.txt", [f"{file} {part}" for file, part in zip(files, "000122")])
    return tmp_path


def load(path: Path, split: str = "train", name: str = "celeba") -> ImageSet:
    return load_images(DataConfig(name=name, path=path, image_size=16, check_sums=False), split)  # type: ignore[arg-type]


def check_faces(images: ImageSet, numbers: list[int]) -> None:
    brightness = images.images.float().mean(dim=(1, 2, 3))
    assert torch.allclose(brightness, 40.0 * torch.tensor(numbers), atol=2)
    assert images.attributes is not None
    assert images.attributes.sum(dim=1).tolist() == [number + 1 for number in numbers]
    assert images.attribute_names == tuple(NAMES)
    assert images.labels is None


def test_celeba(celeba: Path) -> None:
    check_faces(load(celeba, "train"), [0, 1, 2])
    check_faces(load(celeba, "test"), [4, 5])


def test_celeba_is_cropped_to_140_pixels(celeba: Path) -> None:
    picture = np.full((218, 178, 3), 255, np.uint8)
    picture[39:179, 19:159] = 0
    Image.fromarray(picture).save(celeba / "img_align_celeba" / "000001.jpg", format="PNG")
    assert load(celeba).images[0].max() == 0


ATTRIBUTES, PARTITION = "list_attr_celeba.txt", "list_eval_partition.txt"


@pytest.mark.parametrize(
    ("file", "line", "text", "message"),
    [
        (ATTRIBUTES, 0, "many", "expected the number of images in line 1"),
        (ATTRIBUTES, 0, "7", "expected 7 images as line 1 says, found 6"),
        (ATTRIBUTES, 1, "Smiling Young", "line 3: expected a file's name and 2 values"),
        (ATTRIBUTES, 4, row("000003.jpg", 2)[:-3], "line 5: expected a file's name and 40 values 1 or -1"),
        (ATTRIBUTES, 4, row("000003.jpg", 2).replace("-1", "0"), "line 5: expected a file's name and 40 values"),
        (ATTRIBUTES, 4, "", "line 5: expected a file's name and 40 values"),
        (ATTRIBUTES, 4, row("other.jpg", 2), "expected a line for 000003.jpg"),
        (PARTITION, 1, "000002.jpg 3", "line 2: expected a file's name and 0, 1 or 2"),
        (PARTITION, 1, "000002.jpg", "line 2: expected a file's name and 0, 1 or 2"),
    ],
)
def test_wrong_lines_are_named(celeba: Path, file: str, line: int, text: str, message: str) -> None:
    lines = (celeba / file).read_text().splitlines()
    lines[line] = text
    write_lines(celeba / file, lines)
    with pytest.raises(DataError, match=f"{file}: {message}"):
        load(celeba)


def test_wrong_pictures_are_named(celeba: Path) -> None:
    picture = celeba / "img_align_celeba" / "000002.jpg"
    save_picture(picture, 0, (64, 64))
    with pytest.raises(DataError, match=r"000002.jpg: expected a picture \[3, 218, 178\], found \[3, 64, 64\]"):
        load(celeba)
    picture.write_bytes(picture.read_bytes()[:100])
    with pytest.raises(DataError, match=r"000002.jpg: expected a whole picture"):
        load(celeba)
    picture.unlink()
    with pytest.raises(DataError, match=r"000002.jpg: cannot be read"):
        load(celeba)
    (celeba / PARTITION).unlink()
    with pytest.raises(DataError, match=r"list_eval_partition.txt: cannot be read"):
        load(celeba)


def move_down(folder: Path) -> None:
    (folder / "img_align_celeba").rename(folder / "pictures")
    (folder / "img_align_celeba").mkdir()
    (folder / "pictures").rename(folder / "img_align_celeba" / "img_align_celeba")


def pack(folder: Path) -> None:
    shutil.rmtree(folder / "img_align_celeba")
    (folder / "img_align_celeba.zip").write_bytes(b"PK")


def separate(folder: Path) -> None:
    (folder / "Eval").mkdir()
    (folder / PARTITION).rename(folder / "Eval" / PARTITION)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (move_down, "img_align_celeba: expected the pictures, found another folder img_align_celeba in it"),
        (pack, "img_align_celeba: not there; found .*img_align_celeba.zip: unpack it"),
        (separate, "list_eval_partition.txt: not there; found .*Eval/list_eval_partition.txt: move it there"),
        (
            lambda folder: (folder / PARTITION).rename(folder / "list_eval_partition.csv"),
            "list_eval_partition.txt: not there; found .*list_eval_partition.csv: a list of Kaggle's edition",
        ),
        (
            lambda folder: (folder / PARTITION).write_text("image_id,partition\n"),
            "line 1: expected .* found commas: a list of Kaggle's edition",
        ),
    ],
)
def test_other_editions_are_named_when_they_are_met(
    celeba: Path, change: Callable[[Path], object], message: str
) -> None:
    change(celeba)
    with pytest.raises(DataError, match=message):
        load(celeba)


def test_lists_that_begin_with_a_mark_are_read(celeba: Path) -> None:
    for name in (ATTRIBUTES, PARTITION):
        (celeba / name).write_bytes(b"\xef\xbb\xbf" + (celeba / name).read_bytes().replace(b"\n", b"\r\n"))
    check_faces(load(celeba, "train"), [0, 1, 2])


def test_what_no_split_uses_is_told(celeba: Path) -> None:
    save_picture(celeba / "img_align_celeba" / "extra.jpg", 0, (8, 8))
    source = open_source(DataConfig(name="celeba", path=celeba, check_sums=False), "train")
    assert [(each.reason, each.count, each.first) for each in source.left_out] == [
        ("of the validation part", 1, "000004.jpg"),
        ("pictures that list_eval_partition.txt does not name", 1, "img_align_celeba/extra.jpg"),
    ]


def test_masks_are_never_taken_for_pictures(mask_hq: Path) -> None:
    save_picture(mask_hq / "CelebAMask-HQ-mask-anno" / "0" / "00000_hair.png", 255, (8, 8))
    with pytest.raises(DataError, match=f"expected CelebAMask-HQ's files, found them in {mask_hq.name}/"):
        load(mask_hq.parent, "train", "celebahq")
    (mask_hq / "CelebAMask-HQ-attribute-anno.txt").unlink()
    with pytest.raises(DataError, match=r"CelebAMask-HQ-attribute-anno.txt: not there, beside the other files"):
        load(mask_hq, "train", "celebahq")
    with pytest.raises(DataError, match="holds the masks of CelebAMask-HQ"):
        load(mask_hq, "train", "folder")


@pytest.fixture
def mask_hq(celeba: Path) -> Path:
    """CelebAMask-HQ's files beside CelebA's partition; its picture n is CelebA's picture 5 - n."""
    for number in range(6):
        save_picture(celeba / "CelebA-HQ-img" / f"{number}.jpg", 40 * number, (40, 40))
    rows = [row(f"{number}.jpg", number) for number in range(6)]
    write_lines(celeba / "CelebAMask-HQ-attribute-anno.txt", ["6", " ".join(NAMES), *rows])
    mapping = [f"{number:<8} {5 - number:<12} {6 - number:06d}.jpg" for number in range(6)]
    write_lines(celeba / "CelebA-HQ-to-CelebA-mapping.txt", ["idx     orig_idx    orig_file", *mapping])
    return celeba


def test_mask_hq_follows_celebas_split(mask_hq: Path) -> None:
    check_faces(load(mask_hq, "train", "celebahq"), [3, 4, 5])
    check_faces(load(mask_hq, "test", "celebahq"), [0, 1])


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (2, "1 4", "CelebA-HQ-to-CelebA-mapping.txt: line 3: expected three columns"),
        (2, "1 4 other.jpg", "list_eval_partition.txt: expected a line for other.jpg"),
        (4, "17 2 000003.jpg", "CelebAMask-HQ-attribute-anno.txt: expected a line for 17.jpg"),
    ],
)
def test_wrong_mappings_are_named(mask_hq: Path, line: int, text: str, message: str) -> None:
    file = mask_hq / "CelebA-HQ-to-CelebA-mapping.txt"
    lines = file.read_text().splitlines()
    lines[line] = text
    write_lines(file, lines)
    with pytest.raises(DataError, match=message):
        load(mask_hq, "train", "celebahq")


def test_celebahq_as_arrays(tmp_path: Path) -> None:
    for number in range(3):
        np.save(tmp_path / f"imgHQ{number:05d}.npy", np.full((1, 3, 32, 32), number, np.uint8))
    write_lines(tmp_path / "celebahqtrain.txt", ["imgHQ00000.npy", "imgHQ00002.npy"])
    write_lines(tmp_path / "celebahqvalidation.txt", ["imgHQ00001.npy"])
    assert load(tmp_path, "train", "celebahq").images[:, 0, 0, 0].tolist() == [0, 2]
    assert load(tmp_path, "test", "celebahq").images[:, 0, 0, 0].tolist() == [1]
    np.save(tmp_path / "imgHQ00001.npy", np.zeros((3, 32, 32), np.uint8))
    with pytest.raises(DataError, match=r"imgHQ00001.npy: expected uint8 \(1, 3, H, W\)"):
        load(tmp_path, "test", "celebahq")


def test_celebahq_as_a_folder(tmp_path: Path) -> None:
    save_picture(tmp_path / "train" / "0.png", 7, (20, 20))
    assert load(tmp_path, "train", "celebahq").images.unique().tolist() == [7]

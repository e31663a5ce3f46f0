"""DTD: the published folders and lists in small, and wrong ones."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cdrl.config import DataConfig
from cdrl.data import DataError, ImageSet, load_images

PICTURES = {"banded": ("banded_0002.jpg", "banded_0004.jpg"), "zigzagged": ("zigzagged_0001.jpg",)}


@pytest.fixture
def dtd(tmp_path: Path) -> Path:
    """Three pictures of different sizes in two classes; one of them in the test list of split 1."""
    (tmp_path / "dtd" / "labels").mkdir(parents=True)
    for number, (name, files) in enumerate(PICTURES.items()):
        (tmp_path / "dtd" / "images" / name).mkdir(parents=True)
        for file in files:
            value = 40 * number + 10
            Image.new("RGB", (60 + number, 50), (value, value, value)).save(
                tmp_path / "dtd" / "images" / name / file, quality=95
            )
    write(tmp_path, "train1", ["zigzagged/zigzagged_0001.jpg", "banded/banded_0004.jpg"])
    write(tmp_path, "test1", ["banded/banded_0002.jpg"])
    write(tmp_path, "test2", ["zigzagged/zigzagged_0001.jpg"])
    return tmp_path


def write(root: Path, name: str, lines: list[str]) -> None:
    (root / "dtd" / "labels" / f"{name}.txt").write_text("".join(line + "\n" for line in lines))


def load(path: Path, split: str = "train") -> ImageSet:
    return load_images(DataConfig(name="dtd", path=path, image_size=32), split)  # type: ignore[arg-type]


def test_the_first_official_split_is_read_in_the_order_of_its_lists(dtd: Path) -> None:
    for path in (dtd, dtd / "dtd"):
        train, test = load(path), load(path, "test")
        assert train.images.shape == (2, 3, 32, 32)
        assert [round(float(image.float().mean()) / 40) for image in train.images] == [1, 0]
        assert train.labels is not None
        assert train.labels.tolist() == [1, 0]
        assert train.label_names == test.label_names == ("banded", "zigzagged")
        assert len(test) == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: write(root, "train1", ["dotted/dotted_0001.jpg"]), r"train1.txt: line 1: expected CLASS/FILE"),
        (lambda root: write(root, "train1", ["banded/../../secret.jpg"]), r"train1.txt: line 1: expected CLASS/FILE"),
        (lambda root: write(root, "train1", ["banded/banded_0002.jpg", "banded"]), r"train1.txt: line 2"),
        (lambda root: write(root, "train1", []), r"train1.txt: expected lines CLASS/FILE, found none"),
        (lambda root: write(root, "train1", ["banded/none.jpg"]), r"banded/none.jpg: cannot be read"),
        (lambda root: (root / "dtd" / "labels" / "train1.txt").unlink(), r"train1.txt: cannot be read"),
        (lambda root: (root / "dtd" / "images").rename(root / "elsewhere"), r"images: no such folder of textures"),
    ],
)
def test_wrong_lists_are_named(dtd: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(dtd)
    with pytest.raises(DataError, match=message):
        load(dtd)

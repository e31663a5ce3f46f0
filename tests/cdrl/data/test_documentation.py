"""The table of docs/data.md: every row is put together in small as it says, and read by its line."""

from __future__ import annotations

import itertools
import re
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from cdrl.config import DataConfig
from cdrl.data import Split, load_images
from cdrl.registry import DATA_SETS
from tests import layouts
from tests.helpers import ROOT

MAKERS: dict[str, list[Callable[[Path], None]]] = {
    "Drawn faces": [],
    "Handwritten digits (8×8)": [],
    "Fashion-MNIST": [layouts.fashion_mnist_compressed, layouts.fashion_mnist],
    "CIFAR-10": [layouts.cifar10_archive, layouts.cifar10],
    "CIFAR-100": [layouts.cifar100_archive, layouts.cifar100],
    "SVHN": [layouts.svhn],
    "DTD": [layouts.dtd],
    "ImageNet32": [layouts.imagenet32_pickles, layouts.imagenet32],
    "CelebA": [layouts.celeba],
    "CelebAMask-HQ": [layouts.mask_hq],
    "CelebA-HQ as arrays": [layouts.celebahq_arrays],
    "Pictures of your own": [layouts.folder],
    "webdataset shards": [layouts.foreign_shards],
}
"""The layouts that a row allows."""


class Row(NamedTuple):
    """A line of the table, with the files that it wants and the section that it gives."""

    files: list[str]
    section: str


def table() -> dict[str, Row]:
    lines = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").splitlines()
    first = itertools.dropwhile(lambda line: not line.startswith("|"), lines)
    rows = [line.strip("|").split("|") for line in itertools.takewhile(lambda line: line.startswith("|"), first)][2:]
    found = {}
    for name, _, where, section in rows:
        files: list[str] = re.findall(r"`(data/.*?)`", where)
        title = re.sub(r"\[(.*?)\]\(.*?\)", r"\1", name).strip()
        found[title] = Row([one for file in files for one in expanded(file)], section.strip(" `"))
    return found


def expanded(name: str) -> Iterator[str]:
    """The names that braces stand for."""
    braces = re.search(r"{(.*?)}", name)
    if braces is None:
        yield name.rstrip("/")
        return
    for choice in braces[1].split(","):
        yield from expanded(name[: braces.start()] + choice + name[braces.end() :])


def test_the_table_speaks_of_every_data_set() -> None:
    rows = table()
    assert list(rows) == list(MAKERS)
    names = {yaml.safe_load(row.section)["data"]["name"] for row in rows.values()}
    assert names == set(DATA_SETS)


@pytest.mark.parametrize("title", MAKERS)
@pytest.mark.filterwarnings("ignore:.* are resized to")
def test_what_a_row_says_works(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, seen = table()[title], set()
    for number, make in enumerate(MAKERS[title] or [lambda data: None]):
        place = tmp_path / str(number)
        place.mkdir()
        monkeypatch.chdir(place)
        section = yaml.safe_load(row.section)["data"]
        # The files in small have other checksums than the published ones; and few faces are drawn faster.
        data = DataConfig(**section, check_sums=False, num_train=2, num_test=2)
        if data.path is not None:
            data.path.mkdir(parents=True)
            make(data.path)
        for split in typing.get_args(Split):
            images = load_images(data, split)
            assert len(images)
            assert images.images.shape[1:] == (data.channels, data.image_size, data.image_size)
        seen |= {file for file in row.files if any(place.glob(file))}
    assert seen == set(row.files)


def test_it_has_the_key_of_a_sentence() -> None:
    """Keys that the text tells about exist."""
    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    keys = re.findall(r"`(\w+): ", text.partition("## Splits")[2])
    assert {"labels", "attributes", "check_sums", "crop", "image_size", "stream"} <= set(keys)
    assert set(keys) <= set(DataConfig.model_fields)

"""The Describable Textures Dataset as published: pictures in a folder a class, and lists of its first split."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from cdrl.config import DataConfig
from cdrl.data.images.census import Tally
from cdrl.data.images.files import Decoding, picture_files, read_lines, read_picture
from cdrl.data.images.sets import DataError, Source, Split
from cdrl.data.images.walking import files_beside, list_folder

_OTHER = {"train": "test", "test": "train"}


def open_dtd(path: Path, split: Split, data: DataConfig) -> Source:
    """DTD's 47 textures from the folder `dtd` or the one above it, in the first of its ten official splits.

    Raises:
        DataError: a list or a picture is missing, or a line names no picture of a class.
    """
    folder = path / "dtd" if (path / "dtd").is_dir() else path
    if not (folder / "images").is_dir():
        raise DataError(f"{folder / 'images'}: no such folder of textures")
    tally = Tally(folder)
    folders, _ = list_folder(folder / "images", tally)
    classes = tuple(item.name for item in folders)
    file = folder / "labels" / f"{split}1.txt"
    names = read_lines(file)
    labels = []
    for number, name in enumerate(names, start=1):
        label, _, picture = name.partition("/")
        if label not in classes or not picture or Path(picture).name != picture:
            raise DataError(f"{file}: line {number}: expected CLASS/FILE with a class of {folder / 'images'}")
        labels.append(classes.index(label))
    if not names:
        raise DataError(f"{file}: expected lines CLASS/FILE, found none")
    files = [folder / "images" / name for name in names]
    listed = set(names).union(*(read_lines(each) for each in (folder / "labels").glob(f"{_OTHER[split]}1.txt")))
    for each in folders:
        inside = {Path(name).name for name in listed if name.startswith(f"{each.name}/")}
        files_beside(each, inside, tally, "pictures that neither list of the two splits names")
    read = partial(read_picture, decoding=Decoding.of(data))
    ids = torch.tensor(labels)
    return picture_files(files, read, ids, classes, left_out=tally.left_out)

"""The Describable Textures Dataset as published: pictures in a folder a class, and lists of its first split."""

from __future__ import annotations

from pathlib import Path

import torch

from cdrl.data.images.files import picture_files, read_lines
from cdrl.data.images.sets import DataError, Source, Split


def open_dtd(path: Path, split: Split) -> Source:
    """DTD's 47 textures from the folder `dtd` or the one above it, in the first of its ten official splits.

    Raises:
        DataError: a list or a picture is missing, or a line names no picture of a class.
    """
    folder = path / "dtd" if (path / "dtd").is_dir() else path
    if not (folder / "images").is_dir():
        raise DataError(f"{folder / 'images'}: no such folder of textures")
    classes = tuple(sorted(item.name for item in (folder / "images").iterdir() if item.is_dir()))
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
    return picture_files(files, labels=torch.tensor(labels), label_names=classes)

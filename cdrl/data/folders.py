"""Folders: pictures with or without a sub-folder a class, and shards, with their split into train and test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from cdrl.data.preparing import prepare_images, prepare_mixed, read_pictures
from cdrl.data.sets import DataError, ImageSet
from cdrl.data.shards import has_foreign_shards, read_shards
from cdrl.data.tars import ForeignSample, read_foreign_shard
from cdrl.noise import derive_seed

Split = Literal["train", "test"]

_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_TEST_NAMES = ("test", "val", "valid")
_HELD_OUT = 10  # without splits of its own, one in this many of a set is held out


def load_folder(path: Path, split: Split, size: int, channels: int) -> ImageSet:
    """Pictures below ``path``; each sub-folder is a class, unless the pictures lie directly in the folder.

    Sub-folders `train` and `test` (or `val`, `valid`) are the splits; otherwise a tenth, chosen by a hash of
    each picture's name, is held out for ``test``.

    Raises:
        DataError: the folder holds no pictures, or pictures both directly and in sub-folders, or a damaged one.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder of pictures")
    root, classes = path, _list_classes(path / "train" if (path / "train").is_dir() else path)
    if (path / "train").is_dir():
        root = path / "train" if split == "train" else _find_test_folder(path)
        # The training split numbers the classes, so that ids mean the same in both.
        unknown = sorted(set(_list_classes(root)) - set(classes))
        if unknown:
            raise DataError(f"{root}: expected the classes of {path / 'train'} only, found {', '.join(unknown)}")
        files = _list_pictures(root, classes)
    else:
        files = _list_pictures(root, classes)
        names = [file.relative_to(root).as_posix() for file in files]
        files = [file for file, name in zip(files, names, strict=True) if belongs_to(split, name)]
    if not files:
        raise DataError(f"{root}: expected pictures ({', '.join(_EXTENSIONS)}) of the {split} split, found none")
    images = read_pictures(files, size, channels, path.name)
    if not classes:
        return ImageSet(images)
    return ImageSet(images, torch.tensor([classes.index(file.relative_to(root).parts[0]) for file in files]), classes)


def load_shards(path: Path, split: Split, size: int, channels: int) -> ImageSet:
    """Images in webdataset shards, written by `write_shards` or by others.

    The splits are sub-folders, or shards named `train…` and `test…` (or `val…`), or as in `load_folder`.

    Raises:
        DataError: the folder holds no shards, or shards of latents, or a damaged one.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder of shards")
    root, held_out = path, True
    if (path / "train").is_dir():
        root, held_out = (path / "train" if split == "train" else _find_test_folder(path)), False
    if not has_foreign_shards(root):
        # Half-written and empty folders go this way too: the reader says what is missing.
        return _load_own_shards(root, split, held_out, size, channels)
    shards = sorted(root.glob("*.tar"))
    test_shards = [shard for shard in shards if shard.name.startswith(_TEST_NAMES)]
    if held_out and test_shards:
        shards = test_shards if split == "test" else [shard for shard in shards if shard not in test_shards]
        held_out = False
    return _load_foreign_shards(root, shards, split, held_out, size, channels)


def belongs_to(split: Split, name: str) -> bool:
    """Whether a set without splits of its own has the image called ``name`` in ``split``: one in ten is held out."""
    return (derive_seed("held out", name) % _HELD_OUT == 0) == (split == "test")


def _find_test_folder(path: Path) -> Path:
    for name in _TEST_NAMES:
        if (path / name).is_dir():
            return path / name
    raise DataError(f"{path}: holds train/, expected one of {', '.join(_TEST_NAMES)} beside it")


def _list_classes(root: Path) -> tuple[str, ...]:
    """The sub-folders that hold pictures, unless pictures lie in ``root`` itself."""
    classes = tuple(
        sorted(item.name for item in root.iterdir() if item.is_dir() and any(map(_is_picture, item.rglob("*"))))
    )
    direct = [item for item in root.iterdir() if _is_picture(item)]
    if classes and direct:
        raise DataError(f"{root}: holds pictures both directly ({direct[0].name}) and in sub-folders ({classes[0]})")
    return classes


def _list_pictures(root: Path, classes: tuple[str, ...]) -> list[Path]:
    if classes:
        return [file for name in classes for file in _pictures_below(root / name)]
    return sorted(item for item in root.iterdir() if _is_picture(item))


def _pictures_below(folder: Path) -> list[Path]:
    return sorted(item for item in folder.rglob("*") if _is_picture(item))


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _EXTENSIONS and not path.name.startswith(".") and path.is_file()


def _load_own_shards(root: Path, split: Split, held_out: bool, size: int, channels: int) -> ImageSet:
    grids = read_shards(root)
    if grids.grids.dtype != torch.uint8:
        raise DataError(f"{root}: expected shards of images, found float32 grids (latents)")
    rows = [row for row in range(len(grids)) if not held_out or belongs_to(split, str(row))]
    if not rows:
        raise DataError(
            f"{root}: none of its {len(grids)} images falls into the {split} split; make train/ and test/ folders"
        )
    images = grids.to_images().select(rows)
    return ImageSet(
        prepare_images(images.images, size, channels),
        images.labels,
        images.label_names,
        images.attributes,
        images.attribute_names,
    )


def _load_foreign_shards(
    root: Path, shards: Sequence[Path], split: Split, held_out: bool, size: int, channels: int
) -> ImageSet:
    pixels: list[Tensor] = []
    notes: list[ForeignSample] = []
    num_classes = 0
    for shard in tqdm(shards, desc=f"reading {root.name}", unit="shard", disable=None):
        samples = list(read_foreign_shard(shard))
        num_classes = max(num_classes, *(1 + sample.label for sample in samples if sample.label is not None), 0)
        samples = [sample for sample in samples if not held_out or belongs_to(split, sample.key)]
        pixels.append(prepare_mixed([sample.image for sample in samples], size, channels))
        # The pictures at their own size are not kept.
        notes += [sample._replace(image=torch.empty(0)) for sample in samples]
    if not notes:
        raise DataError(f"{root}: none of its images falls into the {split} split; make train/ and test/ folders")
    return ImageSet(
        torch.cat(pixels),
        _join_labels(notes, root),
        tuple(map(str, range(num_classes))),
        *_join_attributes(notes, root),
    )


def _join_labels(samples: Sequence[ForeignSample], root: Path) -> Tensor | None:
    labels = [sample.label for sample in samples if sample.label is not None]
    if labels and len(labels) != len(samples):
        missing = next(sample.key for sample in samples if sample.label is None)
        raise DataError(f"{root}: expected a label for every sample or for none, sample {missing} has none")
    return torch.tensor(labels) if labels else None


def _join_attributes(samples: Sequence[ForeignSample], root: Path) -> tuple[Tensor | None, tuple[str, ...]]:
    names = tuple(samples[0].attributes)
    for sample in samples:
        if set(sample.attributes) != set(names):
            raise DataError(f"{root}: sample {sample.key}: expected the attributes {', '.join(names) or '(none)'}")
    if not names:
        return None, ()
    return torch.tensor([[sample.attributes[name] for name in names] for sample in samples]), names

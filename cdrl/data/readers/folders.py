"""Folders: pictures with or without a sub-folder a class, and shards, with their split into train and test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from cdrl.data.images.files import picture_files
from cdrl.data.images.sets import DataError, Part, Source, Split, fingerprint_of, source_in_memory
from cdrl.data.shards.reading import has_foreign_shards, read_shards
from cdrl.data.shards.tars import ForeignSample, list_foreign_shard, read_foreign_images
from cdrl.runs.progress import progress_bar
from cdrl.sampling.noise import derive_seed

_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_TEST_NAMES = ("test", "val", "valid")
_HELD_OUT = 10  # without splits of its own, one in this many of a set is held out


def open_folder(path: Path, split: Split) -> Source:
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
    if not classes:
        return picture_files(files)
    labels = torch.tensor([classes.index(file.relative_to(root).parts[0]) for file in files])
    return picture_files(files, labels=labels, label_names=classes)


def open_shard_folder(path: Path, split: Split) -> Source:
    """Images in webdataset shards, written by `write_shards` or by others.

    The splits are sub-folders, or shards named `train…` and `test…` (or `val…`), or as in `open_folder`.

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
        return _open_own_shards(root, split, held_out)
    shards = sorted(root.glob("*.tar"))
    test_shards = [shard for shard in shards if shard.name.startswith(_TEST_NAMES)]
    if held_out and test_shards:
        shards = test_shards if split == "test" else [shard for shard in shards if shard not in test_shards]
        held_out = False
    return _open_foreign_shards(root, shards, split, held_out)


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


def _open_own_shards(root: Path, split: Split, held_out: bool) -> Source:
    grids = read_shards(root)
    if grids.grids.dtype != torch.uint8:
        raise DataError(f"{root}: expected shards of images, found float32 grids (latents)")
    rows = [row for row in range(len(grids)) if not held_out or belongs_to(split, str(row))]
    if not rows:
        raise DataError(
            f"{root}: none of its {len(grids)} images falls into the {split} split; make train/ and test/ folders"
        )
    images = grids.to_images()
    return source_in_memory(images if len(rows) == len(images) else images.select(rows))


def _open_foreign_shards(root: Path, shards: Sequence[Path], split: Split, held_out: bool) -> Source:
    """Shards are read twice: for what is known about their samples, and for the images."""
    chosen: list[list[ForeignSample]] = []
    num_classes = 0
    with progress_bar(len(shards), f"listing {root.name}", unit="shard") as bar:
        for shard in shards:
            samples = list(list_foreign_shard(shard))
            num_classes = max(num_classes, *(1 + sample.label for sample in samples if sample.label is not None), 0)
            chosen.append([sample for sample in samples if not held_out or belongs_to(split, sample.key)])
            bar.update()
    everything = [sample for samples in chosen for sample in samples]
    if not everything:
        raise DataError(f"{root}: none of its images falls into the {split} split; make train/ and test/ folders")
    labels = _join_labels(everything, root)
    attributes, attribute_names = _join_attributes(everything, root)

    def parts(start: int) -> Iterator[Part]:
        first = 0
        for shard, samples in zip(shards, chosen, strict=True):
            rows = slice(max(start, first), first + len(samples))
            if rows.start < rows.stop:
                yield Part(
                    read_foreign_images(shard, [sample.key for sample in samples[rows.start - first :]]),
                    None if labels is None else labels[rows],
                    None if attributes is None else attributes[rows],
                )
            first = rows.stop

    ends = list(itertools.accumulate(map(len, chosen)))

    def fingerprint(rows: slice) -> str:
        read = [
            shard
            for shard, samples, end in zip(shards, chosen, ends, strict=True)
            if rows.start < end and end - len(samples) < rows.stop
        ]
        return fingerprint_of(read, *(known[rows] for known in (labels, attributes) if known is not None))

    return Source(parts, fingerprint, len(everything), tuple(map(str, range(num_classes))), attribute_names)


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

"""Folders: pictures with or without a sub-folder a class, and shards, with their split into train and test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from cdrl.config import DataConfig
from cdrl.data.images.census import Tally, left_out_in_words, printable
from cdrl.data.images.files import Decoding, picture_files, read_picture
from cdrl.data.images.preparing import read_source
from cdrl.data.images.sets import DataError, Part, Source, Split, fingerprint_of, source_of_grids
from cdrl.data.images.walking import PICTURE_ENDINGS, list_folder, pictures_below
from cdrl.data.shards.reading import has_foreign_shards, has_index, read_index, read_shards
from cdrl.data.shards.streaming import stream_shards
from cdrl.data.shards.tars import ForeignSample, list_foreign_shard, read_foreign_images
from cdrl.names import counted
from cdrl.runs.progress import progress_bar
from cdrl.sampling.noise import derive_seed

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation")
_HELD_OUT = 10  # without splits of its own, one in this many of a set is held out
_MASKS = "CelebAMask-HQ-mask-anno"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def open_folder(path: Path, split: Split, data: DataConfig) -> Source:
    """Pictures below ``path``; each sub-folder is a class, unless the pictures lie directly in the folder.

    Sub-folders `train` or `training` and `test`, `testing`, `val`, `valid` or `validation`, in small or capital
    letters, are the splits; otherwise a tenth, chosen by a hash of each picture's name, is held out for ``test``.

    Raises:
        DataError: the folder holds no pictures, or pictures both directly and in sub-folders, or what is no set of
            pictures, or no picture of a class to be trained on.
    """
    if not path.is_dir():
        raise DataError(f"{printable(path)}: no such folder of pictures")
    tally = Tally(path)
    root = _split_folder(path, split, tally)
    if root is None:
        classes, files = _list_set(path, tally)
        if data.labels == "class":
            _check_training_classes(path, classes, files)
        files = [file for file in files if belongs_to(split, _name_below(path, file))]
        return _source_of(path, split, classes, files, tally, data)
    classes, files = _list_set(root, tally)
    if split == "test":
        classes = _classes_of_training(path, root, classes, bool(files), data)
    return _source_of(root, split, classes, files, tally, data)


class Pictures(NamedTuple):
    """Pictures below a folder, without classes and splits.

    Attributes:
        names: of each, below the folder.
        images: uint8 [N, channels, size, size].
        told: how many were read, and what was left out, in one line.
    """

    names: list[str]
    images: Tensor
    told: str


def pictures_in(folder: Path, size: int, channels: int, decoding: Decoding) -> Pictures:
    """All pictures in a folder and its sub-folders, prepared as for training.

    Raises:
        DataError: there is no such folder, no picture in it, or one cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{printable(folder)}: no such folder of pictures")
    tally = Tally(folder)
    files = pictures_below(folder, tally)
    if not files:
        left = left_out_in_words(tally.left_out)
        raise DataError(f"{printable(folder)}: no picture there{f'; left out: {left}' if left else ''}")
    source = picture_files(files, partial(read_picture, decoding=decoding))
    images = read_source(source, size, channels, folder.name).images
    names = [printable(file.relative_to(folder)) for file in files]
    told = f"{counted(len(files), 'picture')} read; left out: {left_out_in_words(tally.left_out) or 'nothing'}"
    return Pictures(names, images, told)


def open_shard_folder(path: Path, split: Split, data: DataConfig) -> Source:
    """Images in webdataset shards, written by `write_shards` or by others.

    The splits are sub-folders, or shards named `train…` and `test…` (or `val…`), or as in `open_folder`.

    Raises:
        DataError: the folder holds no shards, or compressed ones, or shards of latents, or a damaged one.
    """
    if not path.is_dir():
        raise DataError(f"{printable(path)}: no such folder of shards")
    tally = Tally(path)
    found = _split_folder(path, split, tally)
    root, held_out = found or path, found is None
    _refuse_unread_shards(root)
    if not has_foreign_shards(root):
        # Half-written and empty folders go this way too: the reader says what is missing.
        return _open_own_shards(root, split, held_out)
    for file in sorted(root.iterdir()):
        if file.suffix != ".tar":
            tally.add("files or folders that are no shards", file)
    shards = sorted(root.glob("*.tar"))
    test_shards = [shard for shard in shards if shard.name.lower().startswith(TEST_NAMES)]
    if held_out and test_shards:
        shards = test_shards if split == "test" else [shard for shard in shards if shard not in test_shards]
        held_out = False
    return _open_foreign_shards(root, shards, split, held_out, tally, Decoding.of(data))


def belongs_to(split: Split, name: str) -> bool:
    """Whether a set without splits of its own has the image called ``name`` in ``split``: one in ten is held out."""
    return (derive_seed("held out", name) % _HELD_OUT == 0) == (split == "test")


def class_folders(root: Path, tally: Tally) -> tuple[dict[str, list[Path]], list[Path]]:
    """The pictures of each sub-folder that holds any, by the sub-folder's name, and those in ``root`` itself.

    Raises:
        DataError: a folder cannot be read, or is no class but another data set.
    """
    folders, direct = list_folder(root, tally)
    classes: dict[str, list[Path]] = {}
    for place in (root, *folders):
        if (place / _MASKS).is_dir() or place.name == _MASKS:
            raise DataError(
                f"{printable(place)}: holds the masks of CelebAMask-HQ, which are no pictures to learn: data.path must "
                "name the folder of its attribute list, with data.name=celebahq"
            )
    for folder in folders:
        if not folder.is_symlink() or not root.resolve().is_relative_to(folder.resolve()):
            _refuse_data_set(folder)
        pictures = pictures_below(folder, tally, root)
        if pictures:
            classes[folder.name] = pictures
        else:
            tally.add("folders without a picture", folder)
    return classes, direct


def _refuse_data_set(folder: Path) -> None:
    """Make sure that a folder is not a whole data set, whose test pictures would be trained on."""
    names = {name.lower() for name in os.listdir(folder) if name.lower() in (*TRAIN_NAMES, *TEST_NAMES)}
    if names & set(TRAIN_NAMES) and names & set(TEST_NAMES):
        raise DataError(
            f"{printable(folder.parent)}: expected a folder a class, but {printable(folder.name)} holds {min(names)}/ "
            f"and {max(names)}/: data.path must name it"
        )


def _list_set(root: Path, tally: Tally) -> tuple[tuple[str, ...], list[Path]]:
    """The names of the classes, if there are any, and all pictures, class by class."""
    classes, direct = class_folders(root, tally)
    if classes and direct:
        raise DataError(
            f"{printable(root)}: holds pictures both directly ({printable(direct[0].name)}) and in sub-folders "
            f"({printable(next(iter(classes)))})"
        )
    return tuple(classes), [*direct, *itertools.chain.from_iterable(classes.values())]


def _split_folder(path: Path, split: Split, tally: Tally | None = None) -> Path | None:
    """The sub-folder of a split, whatever else lies beside it; None where a set has no such folders.

    Raises:
        DataError: there is one for the one split only, or there are two of a name.
    """
    tally = tally or Tally(path)
    beside = Tally(path)
    folders, pictures = list_folder(path, beside)
    train = _named(folders, TRAIN_NAMES)
    test = _named(folders, TEST_NAMES)
    if not train and folders and len(test) == len(folders) and not pictures:
        raise DataError(f"{printable(path)}: holds {printable(test[0].name)}/, expected train/ beside it")
    if not train:
        return None
    for found in (train, [each for each in test if each.name.lower() == test[0].name.lower()]):
        if len(found) > 1:
            raise DataError(f"{printable(path)}: expected one of {found[0].name}/ and {found[1].name}/, found both")
    if split == "test" and not test:
        raise DataError(f"{printable(path)}: holds {train[0].name}/, expected one of {', '.join(TEST_NAMES)} beside it")
    for each in [*folders, *pictures]:
        if each not in (train[0], *test[:1]):
            tally.add("folders or pictures beside those of the splits", each)
    return (train if split == "train" else test)[0]


def _named(folders: Sequence[Path], names: Sequence[str]) -> list[Path]:
    """Those of the folders that have one of the names, in the names' order."""
    return [folder for name in names for folder in folders if folder.name.lower() == name]


def _classes_of_training(
    path: Path, root: Path, found: tuple[str, ...], any_pictures: bool, data: DataConfig
) -> tuple[str, ...]:
    """The classes of the training split, which numbers them for both; none where the test pictures have none.

    Raises:
        DataError: the test pictures have classes that the training pictures have not, or lack those that are needed.
    """
    train = _split_folder(path, "train")
    assert train is not None
    classes, _ = _list_set(train, Tally(path))
    unknown = sorted(set(found) - set(classes))
    if unknown:
        names = ", ".join(map(printable, unknown))
        raise DataError(f"{printable(root)}: expected the classes of {printable(train)} only, found {names}")
    if found or not classes or not any_pictures:
        return classes
    if data.labels == "class":
        raise DataError(
            f"{printable(root)}: expected the class folders of {printable(train)}, found pictures without: their "
            "classes are not known, so that they serve data.labels=none only"
        )
    return ()


def _check_training_classes(root: Path, classes: Sequence[str], files: Sequence[Path]) -> None:
    """Make sure that a set without splits of its own leaves a picture of each class to training."""
    left = {_class_of(file, root) for file in files if belongs_to("train", _name_below(root, file))}
    missing = [name for name in classes if name not in left]
    if missing:
        raise DataError(
            f"{printable(root)}: no picture of class {printable(missing[0])} is left to train on, nor of "
            f"{len(missing) - 1} others, since a tenth is held out: make folders train/ and test/"
        )


def _name_below(root: Path, file: Path) -> str:
    return printable(file.relative_to(root).as_posix())


def _class_of(file: Path, root: Path) -> str:
    return file.relative_to(root).parts[0]


def _source_of(
    root: Path, split: Split, classes: tuple[str, ...], files: list[Path], tally: Tally, data: DataConfig
) -> Source:
    if not files:
        left = left_out_in_words(tally.left_out)
        raise DataError(
            f"{printable(root)}: expected pictures ({', '.join(PICTURE_ENDINGS)}) of the {split} split, found none"
            f"{f'; left out: {left}' if left else ''}"
        )
    read = partial(read_picture, decoding=Decoding.of(data))
    if not classes:
        return picture_files(files, read, left_out=tally.left_out)
    ids = {name: number for number, name in enumerate(classes)}
    labels = torch.tensor([ids[_class_of(file, root)] for file in files])
    names = tuple(map(printable, classes))
    return picture_files(files, read, labels=labels, label_names=names, left_out=tally.left_out)


def _open_own_shards(root: Path, split: Split, held_out: bool) -> Source:
    # Sets that were written before there were tables can be read as a whole alone.
    grids = read_shards(root) if read_index(root).table_sha256 is None else stream_shards(root)
    if grids.grids.dtype != torch.uint8:
        raise DataError(f"{root}: expected shards of images, found float32 grids (latents)")
    rows = torch.tensor([row for row in range(len(grids)) if not held_out or belongs_to(split, str(row))])
    if not len(rows):
        raise DataError(
            f"{root}: none of its {len(grids)} images falls into the {split} split; make train/ and test/ folders"
        )
    return source_of_grids(grids, rows)


def _refuse_unread_shards(root: Path) -> None:
    """Make sure that no shard is overlooked for being compressed, or in a sub-folder."""
    names = sorted(file.name for file in root.iterdir())
    packed = [name for name in names if name.lower().endswith(_COMPRESSED) and not name.startswith(".")]
    if packed:
        raise DataError(
            f"{printable(root / packed[0])}: expected tar files, found {len(packed)} compressed: unpack them, for "
            "example with gunzip"
        )
    deeper = next(iter(sorted(root.glob("*/*.tar"))), None)
    if deeper is not None and not any(root.glob("*.tar")) and not has_index(root):
        raise DataError(
            f"{printable(root)}: expected .tar files there, found them in sub-folders ({deeper.parent.name}/)"
        )


def _open_foreign_shards(
    root: Path, shards: Sequence[Path], split: Split, held_out: bool, tally: Tally, decoding: Decoding
) -> Source:
    """Shards are read twice: for what is known about their samples, and for the images."""
    chosen: list[list[ForeignSample]] = []
    num_classes = 0
    with progress_bar(len(shards), f"listing {root.name}", unit="shard") as bar:
        for shard in shards:
            samples = list_foreign_shard(shard, tally)
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
            begin = max(start, first)
            wanted = samples[begin - first :] if begin < first + len(samples) else []
            for pictures in read_foreign_images(shard, wanted, decoding):
                rows = slice(begin, begin + len(pictures))
                yield Part(
                    pictures,
                    None if labels is None else labels[rows],
                    None if attributes is None else attributes[rows],
                )
                begin = rows.stop
            first += len(samples)

    ends = list(itertools.accumulate(map(len, chosen)))

    def fingerprint(rows: slice) -> str:
        read = [
            shard
            for shard, samples, end in zip(shards, chosen, ends, strict=True)
            if rows.start < end and end - len(samples) < rows.stop
        ]
        return fingerprint_of(read, *(known[rows] for known in (labels, attributes) if known is not None))

    names = tuple(map(str, range(num_classes)))
    return Source(parts, fingerprint, len(everything), names, attribute_names, left_out=tally.left_out)


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

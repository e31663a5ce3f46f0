"""CelebA and CelebA-HQ as published: pictures with text files of attributes and of the split."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cdrl.config import DataConfig
from cdrl.data.images.census import Tally
from cdrl.data.images.files import Decoding, load_array, picture_files, read_bytes, read_lines, read_picture
from cdrl.data.images.preparing import crop_center
from cdrl.data.images.sets import DataError, Source, Split
from cdrl.data.images.walking import files_beside
from cdrl.data.readers.checksums import check_published
from cdrl.data.readers.folders import open_folder

_ATTRIBUTES = "list_attr_celeba.txt"
_PARTITION_FILE = "list_eval_partition.txt"
_PICTURES = "img_align_celeba"
_PARTITIONS = {"train": 0, "test": 2}
_VALIDATION = 1  # which is not used
_CELEBA_SHAPE = (3, 218, 178)
_MASK_HQ_ATTRIBUTES = "CelebAMask-HQ-attribute-anno.txt"
_MASK_HQ_MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
_MASK_HQ_PICTURES = "CelebA-HQ-img"
# What to do about editions that are not the published one, by their endings.
_ADVICE = {
    ".csv": "a list of Kaggle's edition: take the published .txt",
    ".zip": "unpack it",
    ".txt": "move it there, or let data.path name the folder that holds all of them",
}
# The lists of latent-diffusion beside its `.npy` files.
_ARRAY_LISTS = {"train": "celebahqtrain.txt", "test": "celebahqvalidation.txt"}


def open_celeba(path: Path, split: Split, data: DataConfig) -> Source:
    """CelebA's aligned faces with 40 attributes: the central ``data.crop`` by ``data.crop`` pixels of each.

    Raises:
        DataError: a file is missing, damaged, or says something else than published; the message names what was
            found in its place.
    """
    partition = _read_partition(path, data.check_sums)
    names = [name for name, part in partition.items() if part == _PARTITIONS[split]]
    list_file = _expect(path, _ATTRIBUTES)
    if data.check_sums:
        check_published(read_bytes(list_file), f"celeba/{_ATTRIBUTES}", str(list_file))
    attribute_names, attributes = _read_attributes(list_file)
    chosen = _attributes_of(names, attributes, list_file)
    if not names:
        raise DataError(f"{path / _PARTITION_FILE}: expected images of partition {_PARTITIONS[split]}, found none")
    folder = _expect(path, _PICTURES)
    if (folder / _PICTURES).is_dir():
        raise DataError(f"{folder}: expected the pictures, found another folder {_PICTURES} in it: move them up")
    tally = Tally(path)
    for name, part in partition.items():
        if part == _VALIDATION:
            tally.add("of the validation part", name)
    files_beside(folder, set(partition), tally, f"pictures that {_PARTITION_FILE} does not name")
    read = partial(_read_aligned, crop=data.crop)
    files = [folder / name for name in names]
    return picture_files(files, read, attributes=chosen, attribute_names=attribute_names, left_out=tally.left_out)


def open_celebahq(path: Path, split: Split, data: DataConfig) -> Source:
    """CelebA-HQ in one of three layouts, told apart by their text files.

    CelebAMask-HQ (with 40 attributes, and CelebA's `list_eval_partition.txt` put beside them for the official
    split); the `.npy` files of latent-diffusion with its two lists; or any folder of pictures.

    Raises:
        DataError: a file is missing, damaged, or says something else than published; or it is CelebAMask-HQ without
            its list of attributes, or the folder above it, whose masks would be taken for pictures.
    """
    if (path / _MASK_HQ_ATTRIBUTES).is_file():
        return _open_mask_hq(path, split, data)
    for place in sorted({path, *(file.parent for file in path.glob("*/CelebA*"))}):
        if any((place / name).exists() for name in (_MASK_HQ_PICTURES, _MASK_HQ_MAPPING, _MASK_HQ_ATTRIBUTES)):
            if (place / _MASK_HQ_ATTRIBUTES).is_file():
                raise DataError(
                    f"{path}: expected CelebAMask-HQ's files, found them in {place.name}/: name that folder"
                )
            raise DataError(f"{place / _MASK_HQ_ATTRIBUTES}: not there, beside the other files of CelebAMask-HQ")
    if (path / _ARRAY_LISTS["train"]).is_file():
        names = [line.strip() for line in read_lines(path / _ARRAY_LISTS[split]) if line.strip()]
        files = [path / name for name in names]
        if not files:
            raise DataError(f"{path / _ARRAY_LISTS[split]}: expected paths of .npy files, one a line")
        tally = Tally(path)
        listed = {name.strip() for each in _ARRAY_LISTS.values() for name in _lines_if_there(path / each)}
        files_beside(path, listed, tally, "arrays that neither list names")
        return picture_files(files, _read_array, left_out=tally.left_out)
    return open_folder(path, split, data)


def _open_mask_hq(path: Path, split: Split, data: DataConfig) -> Source:
    attribute_names, attributes = _read_attributes(path / _MASK_HQ_ATTRIBUTES)
    partition = _read_partition(path, data.check_sums)
    tally = Tally(path)
    numbers, known = [], set()
    for number, original in _read_mapping(path / _MASK_HQ_MAPPING):
        if original not in partition:
            raise DataError(f"{path / _PARTITION_FILE}: expected a line for {original}, which {_MASK_HQ_MAPPING} names")
        known.add(f"{number}.jpg")
        if partition[original] == _PARTITIONS[split]:
            numbers.append(number)
        elif partition[original] == _VALIDATION:
            tally.add("of the validation part", f"{number}.jpg")
    if not numbers:
        raise DataError(f"{path / _MASK_HQ_MAPPING}: expected images of the {split} split, found none")
    names = [f"{number}.jpg" for number in numbers]
    chosen = _attributes_of(names, attributes, path / _MASK_HQ_ATTRIBUTES)
    folder = _expect(path, _MASK_HQ_PICTURES)
    files_beside(folder, known, tally, f"pictures that {_MASK_HQ_MAPPING} does not name")
    read = partial(read_picture, decoding=Decoding.of(data))
    return picture_files(
        [folder / name for name in names],
        read,
        attributes=chosen,
        attribute_names=attribute_names,
        left_out=tally.left_out,
    )


def _expect(folder: Path, name: str) -> Path:
    """A file or folder of the published layout.

    Raises:
        DataError: it is not there, but another edition of it, or it lies elsewhere; the message names that.
    """
    place = folder / name
    if place.exists():
        return place
    stem = Path(name).stem
    others = [folder / f"{stem}.csv", folder / f"{stem}.zip", folder / f"{stem}_png"]
    found = [other for other in (*others, *sorted(folder.glob(f"*/{name}")), folder.parent / name) if other.exists()]
    if found:
        raise DataError(f"{place}: not there; found {found[0]}: {_ADVICE.get(found[0].suffix, 'see docs/data.md')}")
    return place


def _lines_if_there(path: Path) -> list[str]:
    return read_lines(path) if path.is_file() else []


def _read_aligned(path: Path, crop: int) -> Tensor:
    picture = read_picture(path)
    if tuple(picture.shape) != _CELEBA_SHAPE:
        raise DataError(f"{path}: expected a picture {list(_CELEBA_SHAPE)}, found {list(picture.shape)}")
    return crop_center(picture, crop)


def _read_array(path: Path) -> Tensor:
    array = load_array(read_bytes(path), str(path))
    if array.dtype != "uint8" or array.ndim != 4 or array.shape[:2] != (1, 3):
        raise DataError(f"{path}: expected uint8 (1, 3, H, W), found {array.dtype} {array.shape}")
    return torch.from_numpy(array[0].copy())


def _read_attributes(path: Path) -> tuple[tuple[str, ...], dict[str, list[bool]]]:
    """Names of the attributes, and for each file its values: a count, the names, then `file ±1 ±1 …`."""
    lines = read_lines(path)
    if len(lines) < 2 or not lines[0].strip().isdecimal():
        comment = _if_csv(lines[0]) if lines else ""
        raise DataError(f"{path}: expected the number of images in line 1 and the attributes' names in line 2{comment}")
    names = tuple(lines[1].split())
    values: dict[str, list[bool]] = {}
    for number, line in enumerate(lines[2:], start=3):
        file, *signs = line.split() or [""]
        if len(signs) != len(names) or not set(signs) <= {"1", "-1"}:
            raise DataError(f"{path}: line {number}: expected a file's name and {len(names)} values 1 or -1")
        values[file] = [sign == "1" for sign in signs]
    if len(values) != int(lines[0]):
        raise DataError(f"{path}: expected {int(lines[0])} images as line 1 says, found {len(values)}")
    return names, values


def _if_csv(line: str) -> str:
    return f"; found commas: {_ADVICE['.csv']}" if "," in line else ""


def _attributes_of(names: list[str], attributes: dict[str, list[bool]], path: Path) -> Tensor:
    missing = next((name for name in names if name not in attributes), None)
    if missing is not None:
        raise DataError(f"{path}: expected a line for {missing}")
    return torch.tensor([attributes[name] for name in names], dtype=torch.bool)


def _read_partition(folder: Path, check_sums: bool) -> dict[str, int]:
    """For each file its part: lines `file 0`, 0 for training, 1 for validation, 2 for test."""
    path = _expect(folder, _PARTITION_FILE)
    if check_sums:
        check_published(read_bytes(path), f"celeba/{_PARTITION_FILE}", str(path))
    partition: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        words = line.split()
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise DataError(f"{path}: line {number}: expected a file's name and 0, 1 or 2{_if_csv(line)}")
        partition[words[0]] = int(words[1])
    return partition


def _read_mapping(path: Path) -> list[tuple[int, str]]:
    """Number in CelebA-HQ and file in CelebA: a line of headings, then `idx orig_idx orig_file`."""
    mapping = []
    for number, line in enumerate(read_lines(path)[1:], start=2):
        words = line.split()
        if len(words) != 3 or not words[0].isdecimal():
            raise DataError(f"{path}: line {number}: expected three columns: idx orig_idx orig_file")
        mapping.append((int(words[0]), words[2]))
    return mapping

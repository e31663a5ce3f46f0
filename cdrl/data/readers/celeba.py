"""CelebA and CelebA-HQ as published: pictures with text files of attributes and of the split."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from cdrl.data.images.files import load_array, picture_files, read_bytes, read_lines, read_picture
from cdrl.data.images.preparing import crop_center
from cdrl.data.images.sets import DataError, Source, Split
from cdrl.data.readers.checksums import check_published
from cdrl.data.readers.folders import open_folder

_ATTRIBUTES = "list_attr_celeba.txt"
_PARTITION_FILE = "list_eval_partition.txt"
_PARTITIONS = {"train": 0, "test": 2}  # 1 is the validation set, which is not used
_CELEBA_SHAPE = (3, 218, 178)
_MASK_HQ_ATTRIBUTES = "CelebAMask-HQ-attribute-anno.txt"
_MASK_HQ_MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
# The lists of latent-diffusion beside its `.npy` files.
_ARRAY_LISTS = {"train": "celebahqtrain.txt", "test": "celebahqvalidation.txt"}


def open_celeba(path: Path, split: Split, crop: int, check_sums: bool) -> Source:
    """CelebA's aligned faces with 40 attributes: the central ``crop`` by ``crop`` pixels of each.

    Raises:
        DataError: a file is missing, damaged, or says something else than published.
    """
    partition = _read_partition(path, check_sums)
    names = [name for name, part in partition.items() if part == _PARTITIONS[split]]
    if check_sums:
        check_published(read_bytes(path / _ATTRIBUTES), f"celeba/{_ATTRIBUTES}", str(path / _ATTRIBUTES))
    attribute_names, attributes = _read_attributes(path / _ATTRIBUTES)
    chosen = _attributes_of(names, attributes, path / _ATTRIBUTES)
    if not names:
        raise DataError(f"{path / _PARTITION_FILE}: expected images of partition {_PARTITIONS[split]}, found none")
    files = [path / "img_align_celeba" / name for name in names]
    read = partial(_read_aligned, crop=crop)
    return picture_files(files, read, attributes=chosen, attribute_names=attribute_names)


def open_celebahq(path: Path, split: Split, check_sums: bool) -> Source:
    """CelebA-HQ in one of three layouts, told apart by their text files.

    CelebAMask-HQ (with 40 attributes, and CelebA's `list_eval_partition.txt` put beside them for the official
    split); the `.npy` files of latent-diffusion with its two lists; or any folder of pictures.

    Raises:
        DataError: a file is missing, damaged, or says something else than published.
    """
    if (path / _MASK_HQ_ATTRIBUTES).is_file():
        return _open_mask_hq(path, split, check_sums)
    if (path / _ARRAY_LISTS["train"]).is_file():
        names = [line for line in read_lines(path / _ARRAY_LISTS[split]) if line.strip()]
        files = [path / name.strip() for name in names]
        if not files:
            raise DataError(f"{path / _ARRAY_LISTS[split]}: expected paths of .npy files, one a line")
        return picture_files(files, _read_array)
    return open_folder(path, split)


def _open_mask_hq(path: Path, split: Split, check_sums: bool) -> Source:
    attribute_names, attributes = _read_attributes(path / _MASK_HQ_ATTRIBUTES)
    partition = _read_partition(path, check_sums)
    numbers = []
    for number, original in _read_mapping(path / _MASK_HQ_MAPPING):
        if original not in partition:
            raise DataError(f"{path / _PARTITION_FILE}: expected a line for {original}, which {_MASK_HQ_MAPPING} names")
        if partition[original] == _PARTITIONS[split]:
            numbers.append(number)
    if not numbers:
        raise DataError(f"{path / _MASK_HQ_MAPPING}: expected images of the {split} split, found none")
    names = [f"{number}.jpg" for number in numbers]
    chosen = _attributes_of(names, attributes, path / _MASK_HQ_ATTRIBUTES)
    files = [path / "CelebA-HQ-img" / name for name in names]
    return picture_files(files, attributes=chosen, attribute_names=attribute_names)


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
        raise DataError(f"{path}: expected the number of images in line 1 and the attributes' names in line 2")
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


def _attributes_of(names: list[str], attributes: dict[str, list[bool]], path: Path) -> Tensor:
    missing = next((name for name in names if name not in attributes), None)
    if missing is not None:
        raise DataError(f"{path}: expected a line for {missing}")
    return torch.tensor([attributes[name] for name in names], dtype=torch.bool)


def _read_partition(folder: Path, check_sums: bool) -> dict[str, int]:
    """For each file its part: lines `file 0`, 0 for training, 1 for validation, 2 for test."""
    path = folder / _PARTITION_FILE
    if check_sums:
        check_published(read_bytes(path), f"celeba/{_PARTITION_FILE}", str(path))
    partition: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        words = line.split()
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise DataError(f"{path}: line {number}: expected a file's name and 0, 1 or 2")
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

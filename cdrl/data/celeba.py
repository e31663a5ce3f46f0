"""CelebA and CelebA-HQ as published: pictures with text files of attributes and of the split."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cdrl.data.folders import Split, load_folder
from cdrl.data.preparing import crop_center, load_array, read_bytes, read_lines, read_picture, read_pictures
from cdrl.data.sets import DataError, ImageSet

_PARTITION_FILE = "list_eval_partition.txt"
_PARTITIONS = {"train": 0, "test": 2}  # 1 is the validation set, which is not used
_CELEBA_SHAPE = (3, 218, 178)
_CELEBA_CROP = 140
_MASK_HQ_ATTRIBUTES = "CelebAMask-HQ-attribute-anno.txt"
_MASK_HQ_MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"
# The lists of latent-diffusion beside its `.npy` files.
_ARRAY_LISTS = {"train": "celebahqtrain.txt", "test": "celebahqvalidation.txt"}


def load_celeba(path: Path, split: Split, size: int, channels: int) -> ImageSet:
    """CelebA's aligned faces with 40 attributes: the central 140 by 140 pixels, resized.

    Raises:
        DataError: a file is missing, damaged, or says something else than published.
    """
    partition = _read_partition(path / _PARTITION_FILE)
    names = [name for name, part in partition.items() if part == _PARTITIONS[split]]
    attribute_names, attributes = _read_attributes(path / "list_attr_celeba.txt")
    chosen = _attributes_of(names, attributes, path / "list_attr_celeba.txt")
    if not names:
        raise DataError(f"{path / _PARTITION_FILE}: expected images of partition {_PARTITIONS[split]}, found none")
    files = [path / "img_align_celeba" / name for name in names]
    images = read_pictures(files, size, channels, "celeba", _read_aligned)
    return ImageSet(images, attributes=chosen, attribute_names=attribute_names)


def load_celebahq(path: Path, split: Split, size: int, channels: int) -> ImageSet:
    """CelebA-HQ in one of three layouts, told apart by their text files.

    CelebAMask-HQ (with 40 attributes, and CelebA's `list_eval_partition.txt` put beside them for the official
    split); the `.npy` files of latent-diffusion with its two lists; or any folder of pictures.

    Raises:
        DataError: a file is missing, damaged, or says something else than published.
    """
    if (path / _MASK_HQ_ATTRIBUTES).is_file():
        return _load_mask_hq(path, split, size, channels)
    if (path / _ARRAY_LISTS["train"]).is_file():
        names = [line for line in read_lines(path / _ARRAY_LISTS[split]) if line.strip()]
        files = [path / name.strip() for name in names]
        if not files:
            raise DataError(f"{path / _ARRAY_LISTS[split]}: expected paths of .npy files, one a line")
        return ImageSet(read_pictures(files, size, channels, "celebahq", _read_array))
    return load_folder(path, split, size, channels)


def _load_mask_hq(path: Path, split: Split, size: int, channels: int) -> ImageSet:
    attribute_names, attributes = _read_attributes(path / _MASK_HQ_ATTRIBUTES)
    partition = _read_partition(path / _PARTITION_FILE)
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
    images = read_pictures([path / "CelebA-HQ-img" / name for name in names], size, channels, "celebahq")
    return ImageSet(images, attributes=chosen, attribute_names=attribute_names)


def _read_aligned(path: Path) -> Tensor:
    picture = read_picture(path)
    if tuple(picture.shape) != _CELEBA_SHAPE:
        raise DataError(f"{path}: expected a picture {list(_CELEBA_SHAPE)}, found {list(picture.shape)}")
    return crop_center(picture, _CELEBA_CROP)


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


def _read_partition(path: Path) -> dict[str, int]:
    """For each file its part: lines `file 0`, 0 for training, 1 for validation, 2 for test."""
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

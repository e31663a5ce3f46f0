"""Files of pictures and arrays: read, decoded, refused with the file's name where they are damaged."""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError
from torch import Tensor

from cdrl.config import DataConfig
from cdrl.data.images.census import LeftOut, printable
from cdrl.data.images.sets import DataError, Part, Source, fingerprint_of
from cdrl.foreign.arrays import parse_npy
from cdrl.foreign.files import open_file

_Item = TypeVar("_Item")

_CHUNK = 64  # pictures that are decoded together at most,
_CHUNK_PIXELS = 2**25  # and the pixels of all of them, unless one alone has more
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
_REDUCIBLE = ("JPEG", "MPO")
_REDUCTIONS = (2, 4, 8)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TEXT_BYTES = 2**28  # of a list, far above the largest published one

# Pictures are measured here before they are decoded, and refused by a bound that the configuration names.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# A broken tag beside the orientation says nothing of the picture, and the warning does not name the file.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")


@dataclass(frozen=True)
class Decoding:
    """How pictures are decoded.

    Attributes:
        background: what is seen through transparent pixels, 0 … 255 for red, green and blue.
        max_pixels: of a picture; larger ones are refused before they take memory.
        least_side: a JPEG with more pixels may be decoded at a half, a quarter or an eighth of its size, as long as
            both sides stay as long as this; None for never.
    """

    background: tuple[int, ...] = (255, 255, 255)
    max_pixels: int = DataConfig.model_fields["max_pixels"].default
    least_side: int | None = None

    @classmethod
    def of(cls, data: DataConfig, *, reduced: bool = True) -> Decoding:
        """Decoding as configured; with ``reduced``, large JPEGs are decoded at a smaller size instead of refused."""
        background = ImageColor.getrgb(data.background)
        return cls(background, data.max_pixels, data.image_size if reduced else None)

    @property
    def max_bytes(self) -> int:
        """Largest file size: above that of the largest allowed picture without compression at 16 bits a channel."""
        return 2**24 + 8 * self.max_pixels


def decode_image(content: bytes, source: str, decoding: Decoding | None = None) -> Tensor:
    """A PNG, JPEG, … file's bytes -> uint8 [C, H, W], grey pictures with one channel, all others with three.

    Transparent pixels show the background; of several frames or pages the first is taken; pictures are turned as
    their EXIF says.

    Raises:
        DataError: it is no whole picture of 8 bits a channel, or it has too many pixels; the message starts with
            ``source``.
    """
    array = _decode(content, source, decoding or Decoding())
    planes = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.array(planes, order="C"))


def _decode(content: bytes, source: str, decoding: Decoding) -> np.ndarray:
    """A picture as uint8 [H, W] or [H, W, 3]; nothing of Pillow's stays in memory."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            _bound(picture, decoding, source)
            upright = _upright(picture)
            if upright.mode in _DEEP_MODES:
                raise DataError(f"{source}: expected 8 bits a channel, found mode {upright.mode}")
            return np.asarray(_opaque(upright, decoding.background))
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise _too_large(source, _claimed_size(content), decoding) from error
    except UnidentifiedImageError:
        raise DataError(f"{source}: expected a whole picture (PNG, JPEG, …): {_describe_content(content)}") from None
    except Exception as error:
        # Pillow reports damage by a dozen types of exception.
        reason = re.sub(r"<_io\.\w+[^>]*>", "it", str(error)) or type(error).__name__
        raise DataError(f"{source}: expected a whole picture (PNG, JPEG, …): {reason}") from None


def load_array(content: bytes, source: str) -> np.ndarray:
    """A .npy file's bytes -> its array; never runs a pickle. Raises DataError naming ``source``."""
    try:
        return parse_npy(content)
    except ValueError as error:
        raise DataError(f"{source}: expected a whole .npy array of numbers: {error}") from None


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading. Raises DataError for a folder or a pipe, without waiting for the pipe."""
    name = printable(path)
    try:
        with open_file(path) as file:
            yield file
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from None


def read_bytes(path: Path, most: int | None = None) -> bytes:
    """Read a file. Raises DataError naming a file that cannot be read, is not regular, or exceeds ``most`` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if most is not None and size > most:
            raise DataError(f"{printable(path)}: cannot be read: expected at most {most:,} bytes, found {size:,}")
        return file.read()


def read_lines(path: Path) -> list[str]:
    """The text file's lines. Raises DataError naming a file that cannot be read as text."""
    try:
        # Windows' editors put a mark before the first line.
        return read_bytes(path, _TEXT_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{printable(path)}: expected a text file in UTF-8") from None


def read_picture(path: Path, decoding: Decoding | None = None) -> Tensor:
    """A picture file -> uint8 [C, H, W], as `decode_image`. Raises DataError naming the file."""
    decoding = decoding or Decoding()
    return decode_image(read_bytes(path, decoding.max_bytes), printable(path), decoding)


def picture_files(
    paths: Sequence[Path],
    read: Callable[[Path], Tensor] = read_picture,
    labels: Tensor | None = None,
    label_names: tuple[str, ...] = (),
    attributes: Tensor | None = None,
    attribute_names: tuple[str, ...] = (),
    left_out: tuple[LeftOut, ...] = (),
) -> Source:
    """A source of picture files of any sizes, decoded by threads, in the order of ``paths``.

    ``read`` turns a path into uint8 [C, H, W].
    """

    def parts(start: int) -> Iterator[Part]:
        for pictures in read_in_groups(paths[start:], _pixels_of_file, read):
            rows = slice(start, start + len(pictures))
            yield Part(
                pictures,
                None if labels is None else labels[rows],
                None if attributes is None else attributes[rows],
            )
            start = rows.stop

    def fingerprint(rows: slice) -> str:
        return fingerprint_of(paths[rows], *(known[rows] for known in (labels, attributes) if known is not None))

    return Source(parts, fingerprint, len(paths), label_names, attribute_names, left_out=left_out)


def read_in_groups(
    items: Sequence[_Item], pixels_of: Callable[[_Item], int], read: Callable[[_Item], Tensor]
) -> Iterator[list[Tensor]]:
    """Read pictures uint8 [C, H, W] with several threads, in order and in groups of bounded size.

    As many are decoded together as have 2^25 pixels, for decoded ones may be far larger than the prepared ones.
    ``pixels_of`` tells how many an item has, without decoding it; 0 where nothing can be told.
    """
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for first in range(0, len(items), _CHUNK):
            chunk = items[first : first + _CHUNK]
            begin = total = 0
            for place, pixels in enumerate(list(pool.map(pixels_of, chunk))):
                if place > begin and total + pixels > _CHUNK_PIXELS:
                    yield list(pool.map(read, chunk[begin:place]))
                    begin, total = place, 0
                total += pixels
            yield list(pool.map(read, chunk[begin:]))


def pixels_of_picture(content: bytes) -> int:
    """Number of pixels that a picture's header claims; 0 where the header does not say."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            return picture.width * picture.height
    except Exception:
        return 0  # reading it tells what is wrong


def _pixels_of_file(path: Path) -> int:
    try:
        size = path.stat()
        if not stat.S_ISREG(size.st_mode):
            return 0
        if path.suffix == ".npy":
            return size.st_size // 3
        with Image.open(path) as picture:
            return picture.width * picture.height
    except Exception:
        return 0  # reading it tells what is wrong


def _bound(picture: Image.Image, decoding: Decoding, source: str) -> None:
    """Refuse a picture of too many pixels, or have it decoded at a smaller size."""
    width, height = picture.size
    if width * height <= decoding.max_pixels:
        return
    if decoding.least_side is not None and picture.format in _REDUCIBLE:
        for reduction in _REDUCTIONS:
            small = (width // reduction, height // reduction)
            if min(small) >= decoding.least_side and small[0] * small[1] <= decoding.max_pixels:
                picture.draft(picture.mode, small)
                return
    raise _too_large(source, picture.size, decoding)


def _too_large(source: str, size: tuple[int, int], decoding: Decoding) -> DataError:
    width, height = size
    return DataError(
        f"{source}: {width} x {height} pixels are more than data.max_pixels={decoding.max_pixels}: make it smaller, or "
        "that larger"
    )


def _claimed_size(content: bytes) -> tuple[int, int]:
    """Width and height that the header of a picture claims which Pillow refuses to open for its size."""
    for opened, accepts in Image.OPEN.values():
        if accepts is None or accepts(content[:16]) is True:
            try:
                return opened(io.BytesIO(content), "").size
            except Exception:
                continue  # another format
    return 0, 0


def _upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF says."""
    # Pillow's own function writes the EXIF anew, which fails for what some telephones put there.
    picture.load()
    method = _UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    return picture if method is None else picture.transpose(method)


def _opaque(picture: Image.Image, background: tuple[int, ...]) -> Image.Image:
    """The picture in mode L or RGB; what is transparent shows the background."""
    if not picture.has_transparency_data:
        return picture if picture.mode == "L" else picture.convert("RGB")
    layers = picture.convert("RGBA")
    canvas = Image.new("RGB", picture.size, background)
    canvas.paste(layers, mask=layers.getchannel("A"))
    return canvas


def _describe_content(content: bytes) -> str:
    """What a file holds that is no picture."""
    if not content:
        return "found an empty file"
    if content.startswith(b"version https://git-lfs"):
        return "found a pointer of Git LFS: fetch the file itself with: git lfs pull"
    if content[:512].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "found a web page or another text in its place"
    return "found no format that is known, or the head of a file that was cut"

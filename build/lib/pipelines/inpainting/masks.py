"""Which pixels of an image are hidden: bool [H, W], true where something is to be filled in."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cdrl.arguments import check_kind, whole_number
from cdrl.data import DataError, Decoding, prepare_images, read_picture
from cdrl.installation import program

_BOXES: dict[str, Callable[[int, int], tuple[int, int, int, int]]] = {
    "center": lambda height, width: (height // 4, width // 4, height // 2, width // 2),
    "left": lambda height, width: (0, 0, height, width // 2),
    "right": lambda height, width: (0, width // 2, height, width - width // 2),
    "top": lambda height, width: (0, 0, height // 2, width),
    "bottom": lambda height, width: (height // 2, 0, height - height // 2, width),
}
# Of free-form strokes: the share of the image that they hide at least, and their least and greatest width.
_COVERED = 0.3
_WIDTHS = (0.08, 0.16)


def box(text: str, height: int, width: int) -> Tensor:
    """A hidden rectangle: center (half of each side), left, right, top or bottom, or "top,left,height,width" in pixels.

    Raises:
        TypeError: the box is no text, or a side no number.
        ValueError: there is no such box in an image of this size, or it hides all or nothing of it.
    """
    check_kind("box", text, str, f"{', '.join(_BOXES)} or 'TOP,LEFT,HEIGHT,WIDTH' in pixels")
    height, width = whole_number("height", height, least=1), whole_number("width", width, least=1)
    if text in _BOXES:
        top, left, rows, columns = _BOXES[text](height, width)
    else:
        try:
            top, left, rows, columns = (int(part) for part in text.split(","))
        except ValueError:
            known = ", ".join(_BOXES)
            raise ValueError(f"box: expected {known} or TOP,LEFT,HEIGHT,WIDTH in pixels, found '{text}'") from None
        inside = 0 <= top < height and 0 <= left < width and top + rows <= height and left + columns <= width
        if not inside or rows < 1 or columns < 1:
            raise ValueError(f"box: '{text}' is no rectangle inside an image {height} pixels high and {width} wide")
    hidden = torch.zeros(height, width, dtype=torch.bool)
    hidden[top : top + rows, left : left + columns] = True
    return checked(hidden, "box")


def irregular(seed: int, height: int, width: int) -> Tensor:
    """Free-form strokes that hide 0.3 of the image or a little more; a seed always draws the same ones.

    A stroke is a chain of straight pieces with round ends, each turned a little from the one before.

    Raises:
        TypeError: an argument is no number.
        ValueError: one is not whole, or a seed that PyTorch does not take.
    """
    height, width = whole_number("height", height, least=1), whole_number("width", width, least=1)
    generator = torch.Generator().manual_seed(whole_number("seed", seed, least=-(2**63), most=2**64 - 1))

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()

    side = min(height, width)
    hidden = torch.zeros(height, width, dtype=torch.bool)
    while hidden.float().mean() < _COVERED:
        place = torch.tensor([uniform(0, height), uniform(0, width)], dtype=torch.float64)
        angle, breadth = uniform(0, 2 * math.pi), uniform(*_WIDTHS) * side
        for _ in range(4):
            angle += uniform(-1.0, 1.0)
            way = uniform(0.1, 0.3) * side * torch.tensor([math.sin(angle), math.cos(angle)], dtype=torch.float64)
            hidden |= distance_to_segment(place, place + way, height, width) <= max(breadth / 2, 0.5)
            place = place + way
            if hidden.float().mean() >= _COVERED:
                break
    return hidden


def distance_to_segment(start: Tensor, end: Tensor, height: int, width: int) -> Tensor:
    """From each pixel's middle to the line from ``start`` to ``end``, both (row, column): [H, W] in pixels."""
    rows, columns = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    pixels = torch.stack([rows, columns], dim=-1).double()
    way = end - start
    share = ((pixels - start) @ way / way.square().sum().clamp(min=1e-12)).clamp(0, 1)
    return (pixels - start - share[..., None] * way).norm(dim=-1)


def read_mask(path: Path, original: tuple[int, int], size: int, max_pixels: int) -> Tensor:
    """A picture as mask, white where the image is hidden, for an image that was (height, width) and is size x size now.

    It is as large as the image was, and is cropped and shrunk as that was, or as the image is now. A pixel that is
    hidden in part is hidden. No pixel may be transparent: some programs leave clear what is known, others erase what
    is to be filled in, and nothing tells the two apart.

    Raises:
        DataError: it cannot be read, has more than ``max_pixels``, another size, or transparent pixels, or hides all
            or nothing.
    """
    black, white = (read_picture(path, Decoding(background=(level,) * 3, max_pixels=max_pixels)) for level in (0, 255))
    if not torch.equal(black, white):
        raise DataError(
            f"{path}: expected a mask without transparent pixels, which may mean hidden or known: fill them with white "
            "where the image is hidden, with black where it is known"
        )
    picture = black
    if picture.max() == 1:
        raise DataError(f"{path}: expected white (255) where the image is hidden, found values 0 and 1 only")
    found = (picture.shape[1], picture.shape[2])
    if found not in (original, (size, size)):
        sizes = " or ".join(f"{width}x{height}" for height, width in dict.fromkeys([original, (size, size)]))
        raise DataError(f"{path}: expected a mask of {sizes} pixels, as the image, found {found[1]}x{found[0]}")
    hidden = (picture.float().mean(dim=0, keepdim=True) > 127).to(torch.uint8) * 255
    return checked(prepare_images(hidden[None], size, 1)[0, 0] > 0, str(path))


def as_mask(mask: Tensor) -> Tensor:
    """A user's mask as bool [H, W].

    Raises:
        TypeError: it is no tensor.
        ValueError: it has another number of dimensions, or values that are neither true or false nor 1 or 0, or it
            hides all or nothing.
    """
    check_kind("mask", mask, Tensor, "a bool tensor [H, W], true where the image is hidden")
    if mask.ndim != 2 or not mask.numel():
        raise ValueError(f"mask: expected [H, W], the images' height and width, found {list(mask.shape)}")
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(
            "mask: expected true where the image is hidden and false elsewhere, or 1 and 0, found other values"
        )
    return checked(mask.bool(), "mask")


def checked(hidden: Tensor, source: str) -> Tensor:
    """The mask itself. Raises DataError naming ``source`` where there is nothing to do, or nothing to go by."""
    if hidden.all():
        raise DataError(f"{source}: hides the whole image: to draw one, use: {program()} sample RUN")
    if not hidden.any():
        raise DataError(f"{source}: hides nothing of the image")
    return hidden


def hidden_cells(hidden: Tensor, factor: int) -> Tensor:
    """The cells of a latent, [H / factor, W / factor], of which any pixel is hidden."""
    return F.max_pool2d(hidden[None].float(), factor)[0].bool()

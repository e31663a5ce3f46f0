"""Images as bytes and as numbers in [-1, 1].

Only finite numbers become bytes, which would otherwise be black or white.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from cdrl.arguments import shown
from cdrl.data.images.sets import Grids

_SIDE = 128


def to_bytes(images: Tensor) -> Tensor:
    """Images [N, …] or one image in [-1, 1], rounded to 8 bits: uint8 of the same shape.

    Raises:
        TypeError: they are no tensor of floats.
        ValueError: as `expect_finite`.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise TypeError(f"images: expected a tensor of floats in [-1, 1], found {shown(images)}")
    expect_finite(images)
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def expect_finite(images: Tensor) -> None:
    """Raise ValueError, which says how many, where any of N images or other grids [N, …] holds NaN or infinity."""
    finite = torch.isfinite(images)
    if not finite.all():
        broken = int((~finite.flatten(1).all(dim=1)).sum()) if images.ndim > 1 else 1
        raise ValueError(
            f"{broken} of {len(images)} images hold NaN or infinity: the chains have run away (fewer or smaller steps "
            "may help), or the model's weights are damaged"
        )


def as_floats(grids: Tensor) -> Tensor:
    """Bytes 0 … 255 as float32 in [-1, 1]; other grids as they are."""
    return grids / 127.5 - 1 if grids.dtype == torch.uint8 else grids


def image_batches(images: Grids, size: int = 64) -> Iterator[Tensor]:
    """Images uint8 or in [-1, 1], [N, C, H, W], as float32 in [-1, 1], so many at a time.

    Of images beyond 128 x 128 pixels there are fewer in a batch: memory does not grow with their size.
    """
    size = fewer_of_large(size, images.shape[-1])
    for start in range(0, len(images), size):
        yield as_floats(images[start : start + size])


def fewer_of_large(count: int, side: int) -> int:
    """How many images of so many pixels a side take no more memory than ``count`` of 128 x 128; ``count`` at most."""
    return max(1, min(count, count * _SIDE**2 // side**2))

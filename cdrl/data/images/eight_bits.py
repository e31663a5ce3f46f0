"""Where computed images become bytes: only finite numbers pass, of which bytes would otherwise make black or white."""

from __future__ import annotations

import torch
from torch import Tensor


def to_bytes(images: Tensor) -> Tensor:
    """Images [N, …] or one image in [-1, 1], rounded to 8 bits: uint8 of the same shape.

    Raises:
        ValueError: as `expect_finite`.
    """
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

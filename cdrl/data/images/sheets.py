"""Contact sheets: many images in one picture."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = 64


def contact_sheet(images: Tensor, columns: int) -> Tensor:
    """Arrange images, uint8 [N, C, H, W], in rows on white: uint8 [3, H', W'].

    Small ones are enlarged, by a whole factor and without blur, to at least 64 pixels of width.
    """
    # Imported here: it takes half a second, which whoever only reads data need not wait.
    from torchvision.utils import make_grid

    zoom = -(-_SMALLEST // images.shape[-1])
    enlarged = images.repeat_interleave(zoom, dim=2).repeat_interleave(zoom, dim=3)
    return make_grid(enlarged, nrow=columns, pad_value=255).cpu()


def filled_row(images: Tensor, columns: int) -> Tensor:
    """Fill up a row of images [N, C, H, W], uint8 or in [-1, 1], with white ones: at least ``columns`` of them."""
    white = 1.0 if images.is_floating_point() else 255
    missing = max(0, columns - len(images))
    return torch.cat([images, images.new_full((missing, *images.shape[1:]), white)])

"""Images in the forms that people have them in: PIL images, arrays of bytes, tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cdrl.arguments import check_image_range, check_kind, in_order, shown
from cdrl.data import as_floats

Images = Tensor | Image.Image | Sequence[Image.Image]
"""One or several images: PIL, or a tensor [N, C, H, W] or [C, H, W], float in [-1, 1] or uint8 in 0 … 255."""


def as_tensor(images: Images, channels: int) -> Tensor:
    """Images as float [N, channels, H, W] in [-1, 1]; PIL images are made grey or RGB, over white where transparent.

    Raises:
        TypeError: they are neither PIL images nor a tensor.
        ValueError: a tensor has values out of range or another number of dimensions, PIL images differ in size, or
            there are none.
    """
    if isinstance(images, Tensor):
        return _in_range(images[None] if images.ndim == 3 else images)
    if isinstance(images, np.ndarray):
        raise TypeError(f"images: expected PIL images or a tensor, found {shown(images)}")
    listed = [images] if isinstance(images, Image.Image) else in_order("images", images, "PIL images or a tensor")
    if not listed:
        raise ValueError("images: expected at least one, found none")
    arrays = [np.atleast_3d(np.asarray(_opaque(image).convert("L" if channels == 1 else "RGB"))) for image in listed]
    if len({array.shape for array in arrays}) != 1:
        raise ValueError(f"images: expected some of one size, found {sorted({image.size for image in listed})}")
    return _in_range(torch.from_numpy(np.stack(arrays)).movedim(-1, 1))


def _opaque(image: Image.Image) -> Image.Image:
    """The image over white, where it is transparent. Raises ValueError for one of more than 8 bits a channel."""
    check_kind("images", image, Image.Image, "PIL images or a tensor")
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(f"images: expected 8 bits a channel, found mode {image.mode}")
    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))


def _in_range(tensor: Tensor) -> Tensor:
    if tensor.ndim != 4:
        raise ValueError(f"images: expected [N, C, H, W], found {list(tensor.shape)}")
    if not tensor.numel():
        raise ValueError(f"images: expected at least one, found {list(tensor.shape)}")
    # The memory order decides how convolutions round: equal images shall have equal answers, however they came.
    tensor = tensor.clone(memory_format=torch.contiguous_format)
    if tensor.dtype == torch.uint8:
        return as_floats(tensor)
    if not tensor.is_floating_point():
        raise ValueError(f"images: expected float in [-1, 1] or uint8, found {tensor.dtype}")
    check_image_range(tensor, also=", or uint8")
    return tensor.float()

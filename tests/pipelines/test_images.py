"""Images in the forms that people have them in: what is taken, and what is refused in one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipelines.images import as_tensor

GREY, LARGE = Image.new("L", (8, 8), 255), Image.new("L", (9, 9))
NAN = float("nan")
FORMS = "images: expected PIL images or a tensor, found "


def test_images_come_alone_or_together() -> None:
    white = torch.ones(1, 1, 8, 8)
    for images in (GREY, [GREY], (GREY,), white, white[0], (white * 255).to(torch.uint8)):
        assert torch.equal(as_tensor(images, 1), white)
    assert as_tensor([GREY, GREY], 3).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("images", "fault", "message"),
    [
        *((each, TypeError, FORMS) for each in (None, 3, "a.png", b"png", {"a": GREY}, [1], np.zeros((1, 8, 8)))),
        ([torch.zeros(1, 8, 8)], TypeError, rf"{FORMS}a tensor of float32, \[1, 8, 8\]"),
        ([], ValueError, "images: expected at least one, found none"),
        (torch.zeros(0, 1, 8, 8), ValueError, r"images: expected at least one, found \[0, 1, 8, 8\]"),
        (torch.zeros(2, 1, 0, 0), ValueError, r"images: expected at least one, found \[2, 1, 0, 0\]"),
        (torch.zeros(8, 8), ValueError, r"images: expected \[N, C, H, W\], found \[8, 8\]"),
        (torch.zeros(1, 8, 8).bool(), ValueError, r"images: expected float in \[-1, 1\] or uint8, found torch.bool"),
        (torch.full((1, 1, 8, 8), NAN), ValueError, "images: expected finite numbers, found NaN or infinity"),
        (torch.full((1, 1, 8, 8), 7.0), ValueError, r"images: expected values in \[-1, 1\], or uint8, found 7 … 7"),
        ([GREY, LARGE], ValueError, "images: expected some of one size, found "),
    ],
)
def test_what_is_no_image_is_refused(images: Any, fault: type[Exception], message: str) -> None:
    with pytest.raises(fault, match=f"^{message}"):
        as_tensor(images, 1)

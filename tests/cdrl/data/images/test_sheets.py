"""Contact sheets: small images are enlarged by whole factors, rows are filled up with white."""

from __future__ import annotations

import pytest
import torch

from cdrl.data import contact_sheet, filled_row


@pytest.mark.parametrize(
    ("width", "shown"), [(1, 64), (8, 64), (28, 84), (32, 64), (40, 80), (63, 126), (64, 64), (65, 65), (256, 256)]
)
def test_an_image_is_at_least_64_pixels_wide_and_every_pixel_a_whole_square(width: int, shown: int) -> None:
    pixels = torch.randint(256, (2, 3, width, width), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sheet = contact_sheet(pixels, 8)
    assert tuple(sheet.shape) == (3, shown + 4, 2 * (shown + 2) + 2)
    square = shown // width
    for index, image in enumerate(pixels):
        left = 2 + index * (shown + 2)
        inside = sheet[:, 2 : 2 + shown, left : left + shown]
        assert torch.equal(inside, image.kron(torch.ones(square, square, dtype=torch.uint8)))
    assert (sheet[:, :2] == 255).all()


@pytest.mark.parametrize(("dtype", "white"), [(torch.uint8, 255), (torch.float32, 1.0)])
def test_a_row_is_filled_up_with_white(dtype: torch.dtype, white: float) -> None:
    images = torch.zeros(3, 1, 4, 4, dtype=dtype)
    row = filled_row(images, 5)
    assert row.dtype == dtype
    assert row[:, 0, 0, 0].tolist() == [0, 0, 0, white, white]
    assert torch.equal(filled_row(images, 2), images)

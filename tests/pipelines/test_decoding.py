"""From grids to pictures: 8-bit rounding, contact sheets, scatter plots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from autoencoder.reconstruction import pairs_picture
from cdrl.data import to_bytes
from pipelines.decoding import LatentDecoder, PixelDecoder, PointDecoder, captioned_picture, grid_picture, to_pil
from pipelines.studies.plane import coloured
from tests.helpers import tiny_autoencoder


@pytest.mark.parametrize("channels", [1, 3])
def test_every_8_bit_value_survives_the_way_to_an_image(channels: int) -> None:
    values = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, channels, 16, 16)
    (image,) = to_pil(values / 127.5 - 1)
    assert image.mode == {1: "L", 3: "RGB"}[channels]
    array = np.asarray(image).reshape(16, 16, channels)
    assert (array == values[0].movedim(0, -1).numpy()).all()


def test_values_outside_the_range_are_clamped_not_wrapped() -> None:
    (image,) = to_pil(torch.tensor([-3.0, 3.0]).reshape(1, 1, 1, 2))
    assert np.asarray(image).tolist() == [[0, 255]]
    assert PixelDecoder().images(torch.tensor([[[[-3.0, 3.0]]]])).flatten().tolist() == [-1, 1]


def test_a_contact_sheet_has_eight_columns_and_enlarges_small_images() -> None:
    sheet = grid_picture(torch.zeros(17, 1, 8, 8))
    assert sheet.dtype == torch.uint8
    # 8-fold images of 64 pixels with a border of 2, three rows of eight.
    assert tuple(sheet.shape) == (3, 3 * 66 + 2, 8 * 66 + 2)
    assert tuple(grid_picture(torch.zeros(3, 3, 64, 64)).shape) == (3, 68, 3 * 66 + 2)


def test_captioned_grids_are_as_wide_as_the_widest() -> None:
    """Also where the last has fewer images, or one, than there are columns."""
    for last in (1, 3, 4):
        rows = [(torch.zeros(4, 1, 8, 8), ["a"] * 4), (torch.zeros(last, 1, 8, 8), ["b"] * 4)]
        picture = captioned_picture(rows, columns=4)
        assert tuple(picture.shape) == (3, 2 * (68 + 20), 4 * 66 + 2)
        below = picture[:, 68 + 20 : 2 * 68 + 20]
        assert [int(below[0, 20, 2 + 66 * column]) for column in range(4)] == [128] * last + [255] * (4 - last)
    assert captioned_picture([(torch.zeros(3, 1, 8, 8), ["a"])]).shape[2] == 3 * 66 + 2


def test_points_are_shown_as_a_scatter_plot_and_have_no_images() -> None:
    points = torch.rand(50, 2) * 2 - 1
    picture = PointDecoder().picture(points)
    assert picture.dtype == torch.uint8
    assert tuple(picture.shape) == (3, 400, 400)
    blank = PointDecoder().picture(points + 100)
    assert not torch.equal(picture, blank)
    with pytest.raises(TypeError, match=r"no images: read \.grids"):
        PointDecoder().images(points)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_becomes_no_picture(value: float) -> None:
    images = torch.zeros(3, 1, 4, 4)
    images[1, 0, 2, 3] = value
    for turn in (
        to_bytes,
        to_pil,
        grid_picture,
        lambda broken: captioned_picture([(broken, ["a"])]),
        lambda broken: pairs_picture(broken, torch.zeros_like(broken)),
        lambda broken: PointDecoder().picture(broken[:, 0, 2, 2:]),
    ):
        with pytest.raises(ValueError, match=r"1 of \d images hold NaN or infinity"):
            turn(images)
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        coloured(images[1].flatten(), 4)


LATENTS = LatentDecoder(tiny_autoencoder(), torch.zeros(3), torch.ones(3))


@pytest.mark.parametrize(
    ("turn", "images", "fault", "message"),
    [
        (to_pil, torch.zeros(2, 2, 8, 8), ValueError, r"images: expected \[N, 1 or 3, H, W\], found \[2, 2, 8, 8\]"),
        (to_pil, torch.zeros(8, 8), ValueError, r"images: expected \[N, 1 or 3, H, W\], found \[8, 8\]"),
        (to_pil, [1], TypeError, "images: expected a tensor of floats in "),
        (grid_picture, [1], TypeError, "images: expected a tensor, found "),
        (grid_picture, torch.zeros(2, 8, 8), ValueError, "images: expected at least one, "),
        (grid_picture, torch.zeros(0, 1, 8, 8), ValueError, "images: expected at least one, "),
        (PixelDecoder().images, 3, TypeError, "grids: expected a tensor, found 3"),
        (LATENTS.images, torch.zeros(2, 1, 8, 8), ValueError, r"grids: expected \[N, 3, 4, 4\], found \[2, 1, 8, 8\]"),
    ],
)
def test_what_is_no_batch_of_images_is_refused(
    turn: Callable[[Any], Any], images: Any, fault: type[Exception], message: str
) -> None:
    with pytest.raises(fault, match=f"^{message}"):
        turn(images)

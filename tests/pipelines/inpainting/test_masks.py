"""Masks: boxes, strokes and pictures of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cdrl.data import DataError
from pipelines.inpainting.masks import as_mask, box, checked, distance_to_segment, hidden_cells, irregular, read_mask


def saved(path: Path, hidden: Tensor) -> Path:
    Image.fromarray(hidden.numpy().astype(np.uint8) * 255).save(path)
    return path


def places(hidden: Tensor) -> set[tuple[int, int]]:
    return {(int(row), int(column)) for row, column in hidden.nonzero()}


@pytest.mark.parametrize(
    ("text", "rows", "columns"),
    [
        ("center", range(2, 6), range(2, 6)),
        ("left", range(8), range(4)),
        ("right", range(8), range(4, 8)),
        ("top", range(4), range(8)),
        ("bottom", range(4, 8), range(8)),
        ("1,5,2,3", range(1, 3), range(5, 8)),
    ],
)
def test_a_box_hides_its_pixels_and_no_others(text: str, rows: range, columns: range) -> None:
    assert places(box(text, 8, 8)) == {(row, column) for row in rows for column in columns}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("middle", "expected center, left, right, top, bottom or TOP,LEFT,HEIGHT,WIDTH in pixels, found 'middle'"),
        ("0,0,4", "TOP,LEFT,HEIGHT,WIDTH"),
        ("0,5,2,4", "'0,5,2,4' is no rectangle inside an image 8 pixels high and 8 wide"),
        ("0,0,0,4", "no rectangle"),
        ("0,0,8,8", "hides the whole image"),
    ],
)
def test_boxes_that_cannot_be_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        box(text, 8, 8)


def test_the_distance_to_a_segment_is_that_to_its_nearest_point() -> None:
    start, end = torch.tensor([2.0, 1.0], dtype=torch.float64), torch.tensor([5.0, 6.5], dtype=torch.float64)
    along = start + torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None] * (end - start)
    found = distance_to_segment(start, end, 7, 8)
    for row, column in ((0, 0), (3, 4), (6, 7), (2, 7)):
        pixel = torch.tensor([row + 0.5, column + 0.5], dtype=torch.float64)
        assert found[row, column].item() == pytest.approx((along - pixel).norm(dim=1).min().item(), abs=1e-3)
    assert distance_to_segment(start, start, 7, 8)[2, 0].item() == pytest.approx(0.5 * 2**0.5)


@pytest.mark.parametrize("size", [8, 32, 64])
def test_strokes_are_those_of_their_seed_and_hide_about_a_third(size: int) -> None:
    masks = [irregular(seed, size, size) for seed in range(6)]
    assert all(0.3 <= mask.float().mean() < 0.55 for mask in masks)
    assert torch.equal(masks[3], irregular(3, size, size))
    assert len({mask.numpy().tobytes() for mask in masks}) == len(masks)


def test_a_mask_is_cropped_and_shrunk_as_its_image_and_hides_what_is_hidden_in_part(tmp_path: Path) -> None:
    hidden = torch.zeros(16, 24, dtype=torch.bool)
    hidden[0:2, 4:6] = True  # the crop begins at column 4: pixel (0, 0) of 8x8
    hidden[9, 13] = True  # a quarter of pixel (4, 4)
    hidden[5, 0] = True  # cropped away
    found = read_mask(saved(tmp_path / "mask.png", hidden), (16, 24), 8, 2**20)
    assert {(0, 0), (4, 4)} <= places(found)
    # Antialiased shrinking spreads by a pixel at most.
    assert all(
        max(abs(row - 0), abs(column - 0)) <= 1 or max(abs(row - 4), abs(column - 4)) <= 1
        for row, column in places(found)
    )


def test_a_mask_of_the_prepared_size_is_taken_as_it_is(tmp_path: Path) -> None:
    hidden = irregular(0, 8, 8)
    assert torch.equal(read_mask(saved(tmp_path / "mask.png", hidden), (100, 70), 8, 2**20), hidden)


def test_masks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    odd = saved(tmp_path / "odd.png", irregular(0, 9, 8))
    with pytest.raises(DataError, match=r"odd.png: expected a mask of 24x16 or 8x8 pixels, .* found 8x9"):
        read_mask(odd, (16, 24), 8, 2**20)
    with pytest.raises(DataError, match=r"mask: hides nothing"):
        checked(torch.zeros(4, 4, dtype=torch.bool), "mask")
    full = saved(tmp_path / "full.png", torch.ones(8, 8, dtype=torch.bool))
    with pytest.raises(DataError, match=r"full.png: hides the whole image"):
        read_mask(full, (8, 8), 8, 2**20)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"text.png: expected a whole picture"):
        read_mask(tmp_path / "text.png", (8, 8), 8, 2**20)


def test_a_cell_is_hidden_if_any_of_its_pixels_is() -> None:
    hidden = torch.zeros(8, 8, dtype=torch.bool)
    hidden[1, 6] = hidden[4, 0] = True
    assert places(hidden_cells(hidden, 4)) == {(0, 1), (1, 0)}


@pytest.mark.parametrize("clear", [[0, 0, 0, 0], [255, 255, 255, 0]])
def test_masks_with_transparent_pixels_are_refused(tmp_path: Path, clear: list[int]) -> None:
    pixels = np.full((8, 8, 4), 255, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match="hides the whole image"):
        read_mask(tmp_path / "mask.png", (8, 8), 8, 64)
    pixels[2:5, 2:5] = clear
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask.png: expected a mask without transparent pixels"):
        read_mask(tmp_path / "mask.png", (8, 8), 8, 64)
    with pytest.raises(DataError, match=r"mask.png: 8 x 8 pixels are more than data.max_pixels=63"):
        read_mask(tmp_path / "mask.png", (8, 8), 8, 63)


def test_a_mask_of_ones_is_told_from_one_of_white(tmp_path: Path) -> None:
    Image.fromarray((np.arange(64).reshape(8, 8) % 2).astype(np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"mask.png: expected white .255. .* found values 0 and 1 only"):
        read_mask(tmp_path / "mask.png", (8, 8), 8, 64)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((3, 8, 8), "box: expected center, left, right, top, bottom or 'TOP,LEFT,HEIGHT,WIDTH' in pixels, found 3"),
        (("left", 8.0, 8), "height: expected a whole number of at least 1, found 8.0"),
        (("left", 8, True), "width: expected a whole number of at least 1, found True"),
    ],
)
def test_arguments_of_a_box_that_cannot_be_are_refused(values: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        box(*values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        *(((each, 8, 8), "seed: expected a whole number of at least .*, found ") for each in ("a", True, 1.5, 2**70)),
        ((0, 0, 8), "height: expected a whole number of at least 1, found 0"),
        ((0, 8, "8"), "width: expected a whole number of at least 1, found '8'"),
    ],
)
def test_arguments_of_strokes_that_cannot_be_are_refused(values: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        irregular(*values)


LEFT = box("left", 8, 8)


def test_a_mask_of_ones_and_zeros_is_one_of_truth_values() -> None:
    for mask in (LEFT, LEFT.float(), LEFT.to(torch.uint8)):
        assert as_mask(mask).dtype == torch.bool
        assert torch.equal(as_mask(mask), LEFT)


@pytest.mark.parametrize(
    ("mask", "fault", "message"),
    [
        *((each, TypeError, "expected a bool tensor ") for each in (LEFT.numpy(), None, "left", [[True]])),
        (LEFT[0], ValueError, r"expected \[H, W\], the images' height and width, found \[8\]"),
        (LEFT[None], ValueError, r"expected \[H, W\], the images' height and width, found \[1, 8, 8\]"),
        (LEFT[:0], ValueError, r"expected \[H, W\], the images' height and width, found \[0, 8\]"),
        (LEFT * 0.5, ValueError, "expected true where the image is hidden and false elsewhere, or 1 and 0"),
        (LEFT * float("nan"), ValueError, "expected true where the image is hidden and false elsewhere, or 1 and 0"),
        (LEFT.to(torch.uint8) * 255, ValueError, "expected true where the image is hidden"),
        (LEFT | True, ValueError, "hides the whole image"),
        (LEFT & False, ValueError, "hides nothing of the image"),
    ],
)
def test_masks_that_cannot_be_are_refused(mask: Any, fault: type[Exception], message: str) -> None:
    with pytest.raises(fault, match=f"^mask: {message}"):
        as_mask(mask)

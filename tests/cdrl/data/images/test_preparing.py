"""Cropping, resizing and channels."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl.data import DataError
from cdrl.data.images import files, preparing
from cdrl.data.images.files import Decoding, decode_image, load_array, picture_files, read_bytes
from cdrl.data.images.preparing import crop_center, prepare_images, prepare_mixed, read_source

NOISE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def png(array: np.ndarray, **options: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, format="PNG", **options)
    return content.getvalue()


def jpeg(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(array).save(content, format="JPEG")
    return content.getvalue()


def test_images_of_the_wanted_shape_are_untouched() -> None:
    images = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)
    assert prepare_images(images, 8, 3) is images


def test_resizing_keeps_flat_images_and_means() -> None:
    flat = torch.full((2, 3, 20, 12), 77, dtype=torch.uint8)
    assert torch.equal(prepare_images(flat, 5, 3), torch.full((2, 3, 5, 5), 77, dtype=torch.uint8))
    # Antialiased: a chequered pattern of the finest pitch becomes grey, where picking pixels would keep 0 or 255.
    pattern = torch.arange(64).view(-1, 1) + torch.arange(64)
    fine = (pattern % 2 * 255).to(torch.uint8)[None, None]
    small = prepare_images(fine, 16, 1).float()
    assert small.sub(127.5).abs().max() < 12


def blur_and_sample(side: int, size: int) -> np.ndarray:
    """[size, side]: a Gaussian of (r - 1) / 2 pixels, cut off and reflected at the edges, then linear interpolation."""
    ratio = side / size
    weights = np.eye(side)
    if ratio > 1:
        sigma = (ratio - 1) / 2
        reach = int(max(4 * sigma, 3)) // 2
        taps = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
        places = np.abs(np.arange(side)[:, None] + np.arange(-reach, reach + 1))
        places = np.minimum(places, 2 * (side - 1) - places)
        weights = np.zeros((side, side))
        np.add.at(weights, (np.arange(side)[:, None], places), taps / taps.sum())
    sampled = np.zeros((size, side))
    middles = np.clip((np.arange(size) + 0.5) * ratio - 0.5, 0, side - 1)
    left = middles.astype(int)
    np.add.at(sampled, (np.arange(size), left), 1 - (middles - left))
    np.add.at(sampled, (np.arange(size), np.minimum(left + 1, side - 1)), middles - left)
    return sampled @ weights


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("side", "size"), [(140, 64), (178, 64), (1024, 256), (48, 32), (20, 50)])
def test_resizing_is_blurred_and_bilinear(side: int, size: int, large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if large:  # from a few rows at a time
        monkeypatch.setattr(preparing, "_CHUNK_PIXELS", 300)
        monkeypatch.setattr(preparing, "_LARGE_PIXELS", 300)
    coarse = Image.fromarray(NOISE).resize((side, side), Image.Resampling.BICUBIC)
    fine = np.random.default_rng(1).integers(-20, 20, (side, side, 3))
    picture = np.clip(np.array(coarse) + fine, 0, 255).astype(np.uint8)
    along = blur_and_sample(side, size)
    expected = np.stack([along @ plane @ along.T for plane in picture.transpose(2, 0, 1).astype(np.float64)])
    ours = prepare_images(torch.from_numpy(picture).permute(2, 0, 1)[None], size, 3)[0].numpy()
    assert np.abs(ours - expected).max() < 0.501


def test_center_crop_takes_the_middle() -> None:
    rows = torch.arange(218).view(-1, 1).expand(218, 178)
    crop = crop_center(rows, 140)
    assert crop.shape == (140, 140)
    assert (crop[0, 0].item(), crop[-1, 0].item()) == (39, 178)
    assert crop_center(rows).shape == (178, 178)


def test_channels_are_repeated_or_weighed() -> None:
    grey = torch.randint(256, (2, 1, 4, 4), dtype=torch.uint8)
    color = prepare_images(grey, 4, 3)
    assert torch.equal(color, grey.expand(2, 3, 4, 4))
    assert torch.equal(prepare_images(color, 4, 1), grey)
    red = torch.zeros(1, 3, 1, 1, dtype=torch.uint8)
    red[:, 0] = 255
    assert prepare_images(red, 1, 1).item() == round(0.299 * 255)


def test_pictures_of_different_shapes_keep_their_order() -> None:
    pictures = [
        torch.full((c, h, w), v, dtype=torch.uint8) for c, h, w, v in [(3, 9, 5, 1), (1, 4, 4, 2), (3, 9, 5, 3)]
    ]
    prepared = prepare_mixed(pictures, 4, 3)
    assert prepared.shape == (3, 3, 4, 4)
    assert prepared[:, 0, 0, 0].tolist() == [1, 2, 3]


def test_pictures_are_read_in_order_and_upright(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_CHUNK", 2)
    paths = [tmp_path / f"{value}.png" for value in range(5)]
    for value, path in enumerate(paths):
        path.write_bytes(png(np.full((3, 3), value, np.uint8)))
    source = picture_files(paths)
    assert read_source(source, 3, 1, "test").images[:, 0, 0, 0].tolist() == list(range(5))
    monkeypatch.setattr(files, "_CHUNK_PIXELS", 20)
    monkeypatch.setattr(files, "_CHUNK", 64)
    assert [len(part.pictures) for part in source.parts(0)] == [2, 2, 1]
    assert [picture[0, 0, 0].item() for part in source.parts(2) for picture in part.pictures] == [2, 3, 4]
    # Large pictures are resized a few at a time.
    many = torch.randint(256, (5, 3, 9, 9), dtype=torch.uint8)
    together = prepare_images(many, 4, 3)
    monkeypatch.setattr(preparing, "_CHUNK_PIXELS", 200)
    assert torch.equal(prepare_images(many, 4, 3), together)
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by half a circle
    turned = decode_image(png(np.arange(6, dtype=np.uint8).reshape(2, 3), exif=exif), "turned.png")
    assert turned.flatten().tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    "content",
    [b"", b"no picture", png(NOISE)[:-40], jpeg(NOISE)[:-40], png(np.zeros((3, 3), np.uint16))],
    ids=["empty", "text", "cut png", "cut jpeg", "16 bits"],
)
def test_wrong_pictures_are_named(content: bytes) -> None:
    with pytest.raises(DataError, match=r"^a/b\.png: expected"):
        decode_image(content, "a/b.png")


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    picture.save(content, format=kind, **options)
    return content.getvalue()


def test_transparent_pixels_show_the_background_whatever_they_hide() -> None:
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([255, 0, 255, 1, 2, 3])
    palette.putpixel((1, 0), 1)
    clear_then_opaque = [
        encoded(Image.fromarray(np.array([[[*hidden, 0], [1, 2, 3, 255]]], np.uint8)))
        for hidden in ((0, 0, 0), (255, 255, 255), (0, 255, 0))
    ]
    for content in (*clear_then_opaque, encoded(palette, transparency=0)):
        assert decode_image(content, "x.png").flatten(1).T.tolist() == [[255, 255, 255], [1, 2, 3]]
        blue = decode_image(content, "x.png", Decoding(background=(0, 0, 255)))
        assert blue.flatten(1).T.tolist() == [[0, 0, 255], [1, 2, 3]]
    half = encoded(Image.fromarray(np.array([[[0, 128]]], np.uint8), "LA"))
    assert decode_image(half, "x.png").flatten().tolist() == [127, 127, 127]


def test_large_pictures_are_refused_or_decoded_smaller() -> None:
    large = np.zeros((200, 160, 3), np.uint8)
    small = Decoding(max_pixels=10_000, least_side=64)
    message = r"^x: 160 x 200 pixels are more than data.max_pixels=10000"
    with pytest.raises(DataError, match=message):
        decode_image(png(large), "x", small)
    assert decode_image(jpeg(large), "x", small).shape == (3, 100, 80)
    for decoding in (Decoding(max_pixels=10_000, least_side=81), Decoding(max_pixels=10_000)):
        with pytest.raises(DataError, match=message):
            decode_image(jpeg(large), "x", decoding)


def test_exif_that_cannot_be_written_back_turns_a_picture_all_the_same() -> None:
    # Turned by a quarter, and a signed rational -1 / 0 under the tag of a resolution.
    entries = struct.pack("<HHHIHHHHIII", 2, 0x0112, 3, 1, 6, 0, 0x011A, 10, 1, 38, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + entries + struct.pack("<ii", -1, 0)
    content = encoded(Image.fromarray(np.zeros((2, 3), np.uint8)), "JPEG", exif=exif)
    assert decode_image(content, "x").shape == (1, 3, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"<!DOCTYPE html><p>quota", "found a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\x89PNG", "found no format that is known"),
    ],
)
def test_what_is_no_picture_is_told(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        decode_image(content, "x.png")
    assert "<_io" not in str(caught.value)


def test_pipes_and_long_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(DataError, match="pipe: cannot be read: expected a file, found a named pipe"):
        read_bytes(tmp_path / "pipe")
    with pytest.raises(DataError, match="file: cannot be read: expected at most 4 bytes, found 5"):
        read_bytes(tmp_path / "file", 4)
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_bytes(tmp_path)


def test_arrays_never_run_pickles() -> None:
    content = io.BytesIO()
    np.save(content, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"^x\.npy: expected a whole \.npy array of numbers"):
        load_array(content.getvalue(), "x.npy")

"""Reconstructions: what one batch gives, whatever the batches; the worst are the worst."""

from __future__ import annotations

import pytest
import torch

from autoencoder.objective import psnr, ssim
from autoencoder.reconstruction import Reconstruction, pairs_picture, reconstruct, worst_picture
from cdrl.data import as_floats, image_batches, to_bytes
from tests.helpers import tiny_autoencoder


def test_reconstructions_are_decoded_means_with_their_errors() -> None:
    autoencoder = tiny_autoencoder()
    pixels = torch.randint(256, (70, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    given = pixels / 127.5 - 1
    with torch.no_grad():
        expected = autoencoder.decode(autoencoder.encode(given).mean).clamp(-1, 1)
    for images in (pixels, given):
        made = reconstruct(autoencoder, images)
        assert (made.images.int() - to_bytes(expected).int()).abs().max() <= 1
        torch.testing.assert_close(made.psnr, psnr(given, expected))
        torch.testing.assert_close(made.ssim, ssim(given, expected))


def test_large_images_come_fewer_at_a_time() -> None:
    def sizes(side: int, count: int) -> list[int]:
        return [len(part) for part in image_batches(torch.zeros(count, 1, side, side, dtype=torch.uint8))]

    assert sizes(32, 130) == [64, 64, 2]
    assert sizes(128, 65) == [64, 1]
    assert sizes(256, 33) == [16, 16, 1]
    assert sizes(2048, 2) == [1, 1]


def test_the_worst_come_first() -> None:
    images = torch.zeros(20, 1, 4, 4, dtype=torch.uint8)
    made = Reconstruction(
        torch.arange(20, dtype=torch.uint8).view(-1, 1, 1, 1).expand_as(images), -torch.arange(20.0), images
    )
    picture = worst_picture(images, made)
    levels = [int(picture[0, -3, 2 + 66 * column]) for column in range(8)]
    assert levels == [19, 18, 17, 16, 15, 14, 13, 12]


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 16, 30])
def test_every_image_is_right_above_its_reconstruction(count: int) -> None:
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    picture = pairs_picture(as_floats(pixels), as_floats(pixels + 100))[0]
    columns, rows = min(8, count), -(-count // 8)
    assert tuple(picture.shape) == (2 * rows * 66 + 2, columns * 66 + 2)
    cells = picture[2::66, 2::66].unflatten(0, (rows, 2))
    originals, made = cells[:, 0].flatten().tolist(), cells[:, 1].flatten().tolist()
    empty = [255] * (rows * columns - count)
    assert originals == [*range(count), *empty]
    assert made == [*range(100, 100 + count), *empty]

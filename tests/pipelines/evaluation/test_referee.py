"""Judges on classes that can be told apart."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl.data import to_bytes
from pipelines.evaluation.judge import LOOKS_AT, corrupted, train_attribute_judge, train_class_judge


def stripes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images with a bright band above (0), in the middle (1) or below (2), under a little noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.full((count, 1, 9, 9), -1.0)
    for index, label in enumerate(labels.tolist()):
        images[index, :, 3 * label : 3 * label + 3] = 1.0
    return (images + 0.05 * torch.randn(images.shape, generator=generator)).clamp(-1, 1), labels


def test_a_class_judge_learns_classes_that_can_be_told_apart_and_refuses_junk() -> None:
    images, labels = stripes(300, seed=0)
    judge = train_class_judge(images, labels, 3, steps=80, seed=0)
    fresh, truth = stripes(90, seed=1)
    read, accepted = judge.read(fresh)
    assert (read == truth).float().mean() > 0.95
    assert accepted.float().mean() > 0.8
    noise = torch.randn(90, 1, 9, 9, generator=torch.Generator().manual_seed(2)).clamp(-1, 1)
    assert judge.read(noise)[1].float().mean() < 0.2
    assert judge.features(fresh).shape == (90, 128)


def test_a_judge_is_the_same_each_time_and_leaves_the_global_generator_alone() -> None:
    images, labels = stripes(60, seed=0)
    state = torch.get_rng_state()
    first, again = (train_class_judge(images, labels, 3, steps=3, seed=0) for _ in range(2))
    assert torch.equal(first.features(images), again.features(images))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_attribute_judge_learns_what_can_be_told_apart() -> None:
    images, labels = stripes(300, seed=0)
    attributes = torch.stack([labels == 0, labels != 2], dim=1)
    judge = train_attribute_judge(images, attributes, steps=80, seed=0)
    fresh, truth = stripes(90, seed=1)
    read = judge.read(fresh)
    assert read.dtype == torch.bool
    assert (read == torch.stack([truth == 0, truth != 2], dim=1)).float().mean() > 0.95


def test_junk_is_made_in_four_ways_within_the_range_of_images() -> None:
    images, _ = stripes(40, seed=0)
    junk = corrupted(images, torch.Generator().manual_seed(0))
    assert junk.shape == images.shape
    assert junk.abs().max() <= 1
    change = (junk - images).flatten(1).square().mean(dim=1)
    for way in range(4):
        assert change[way::4].mean() > 0.01


def test_large_images_are_judged_as_their_averages_over_blocks_of_pixels() -> None:
    small, labels = stripes(60, seed=0)
    small = to_bytes(torch.nn.functional.interpolate(small, LOOKS_AT))
    # Pairs of columns, one brighter and one darker by the same, average to the small images.
    texture = torch.tensor([10, -10]).repeat(LOOKS_AT)
    large = small.clamp(20, 235).int().repeat_interleave(2, dim=2).repeat_interleave(2, dim=3) + texture
    large, small = large.to(torch.uint8), small.clamp(20, 235)
    of_large, of_small = (train_class_judge(images, labels, 3, steps=3, seed=0) for images in (large, small))
    torch.testing.assert_close(of_large.features(large), of_small.features(small), rtol=1e-4, atol=1e-5)

    attributes = (labels == 0)[:, None]
    pairs = [train_attribute_judge(images, attributes, steps=3, seed=0).features(images) for images in (large, small)]
    torch.testing.assert_close(*pairs, rtol=1e-4, atol=1e-5)

"""Memory of passes over a whole data set: that it does not grow with the number of images."""

from __future__ import annotations

import pytest

from benchmarks.memory import WORK, Peak, bytes_an_image, peak_of

COUNTS = {"prepare-256": (1000, 2000), "statistics": (6000, 24_000)}
"""Numbers of images; where the smaller one already fills a shard, or what is kept of a reference."""
OTHERS = (2000, 12_000)
MOST = {"prepare-256": 10_000, "prepare-imagenet32": 2000}
"""Bytes that an image may add, of 196,608 that it has; of ImageNet32 a tenth of the images are in memory."""
PLACES = 1000
"""Bytes of its place, its label and its turn, and what else libraries keep meanwhile."""


def test_growth_is_told_by_the_ends() -> None:
    peaks = [Peak(1000, 100.0, 1.0), Peak(2000, 150.0, 2.0), Peak(3000, 102.0, 3.0)]
    assert bytes_an_image(peaks) == 2**20 / 1000


@pytest.mark.slow
@pytest.mark.parametrize("work", WORK)
def test_an_image_adds_next_to_nothing(work: str) -> None:
    peaks = [peak_of(work, count) for count in COUNTS.get(work, OTHERS)]
    assert bytes_an_image(peaks) < MOST.get(work, PLACES)

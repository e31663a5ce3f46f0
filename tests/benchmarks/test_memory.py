"""Memory of passes over a whole data set: that it does not grow with the number of images."""

from __future__ import annotations

import pytest

from benchmarks.memory import WORK, Peak, bytes_an_image, peak_of

COUNTS = {"prepare-256": (1000, 2000), "statistics": (6000, 24_000)}
"""Numbers of images; where the smaller one already fills a shard, or what is kept of a reference."""
OTHERS = (4000, 40_000)
BYTES = {"prepare-256": 3 * 256**2, "statistics": 4 * (2048 + 1008)}
"""What an image, or its features, would add if they were kept; of the others 3 x 32 x 32 pixels."""


def test_growth_is_told_by_the_ends() -> None:
    peaks = [Peak(1000, 100.0, 1.0), Peak(2000, 150.0, 2.0), Peak(3000, 102.0, 3.0)]
    assert bytes_an_image(peaks) == 2**20 / 1000


@pytest.mark.slow
@pytest.mark.parametrize("work", WORK)
def test_an_image_adds_next_to_nothing(work: str) -> None:
    peaks = [peak_of(work, count) for count in COUNTS.get(work, OTHERS)]
    assert bytes_an_image(peaks) < BYTES.get(work, 3 * 32**2) / 2

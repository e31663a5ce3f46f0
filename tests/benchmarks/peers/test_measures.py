"""Figures of sets of images whose answers are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.peers import measures
from benchmarks.peers.measures import Ruler
from cdrl.data import Grids, as_floats
from pipelines.evaluation.distances import Reference, statistics_of
from tests.benchmarks.peers.tasks import digits_task


class FirstPixel:
    """A judge that reads an image's class off its first pixel, and takes pure white for junk."""

    def read(self, images: Grids) -> tuple[Tensor, Tensor]:
        first = images[:][:, 0, 0, 0].long()
        return first, first < 255


def pixels(images: Grids) -> Tensor:
    return as_floats(images[:]).flatten(1)


def ruler(held_out: Tensor) -> Ruler:
    features: dict[str, Callable[[Grids], Tensor]] = {"judge": pixels}
    found = pixels(held_out)
    references = {"judge": Reference("test", len(held_out), statistics_of(found), found)}
    return Ruler(FirstPixel(), 1.0, features, references)  # type: ignore[arg-type]


def random_images(count: int, low: int, high: int) -> Tensor:
    generator = torch.Generator().manual_seed(low)
    return torch.randint(low, high, (count, 1, 2, 2), generator=generator, dtype=torch.uint8)


def test_a_set_covers_itself_and_nothing_of_another() -> None:
    held_out, others = random_images(200, 0, 50), random_images(200, 150, 250)
    label = held_out[:, 0, 0, 0].long()
    same = ruler(held_out).figures(held_out, label)
    assert (same["accuracy"], same["accepted"]) == (1, 1)
    assert (same["recall_judge_200_test"], same["precision_judge_200_test"]) == (1, 1)
    assert same["fd_judge_200_test"] == pytest.approx(0, abs=1e-4)
    far = ruler(held_out).figures(others, label)
    assert (far["recall_judge_200_test"], far["precision_judge_200_test"]) == (0, 0)
    means = (pixels(held_out).mean(dim=0) - pixels(others).mean(dim=0)).square().sum()
    assert far["fd_judge_200_test"] > float(means)
    assert far["accuracy"] == 0


def test_recall_is_the_share_of_held_out_images_that_samples_reach() -> None:
    near, far = random_images(100, 0, 50), random_images(100, 150, 250)
    figures = ruler(torch.cat([near, far])).figures(torch.cat([near, near]), torch.zeros(200))
    assert figures["recall_judge_200_test"] == pytest.approx(0.5, abs=0.01)
    assert figures["precision_judge_200_test"] == 1


def test_a_judge_is_trained_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "judge_steps", lambda num_images: 30)
    task = digits_task()
    first = Ruler.of(task, tmp_path)
    paths = sorted(tmp_path.glob("*.safetensors"))
    written = [path.stat().st_mtime_ns for path in paths]
    again = Ruler.of(task, tmp_path)
    assert [path.stat().st_mtime_ns for path in paths] == written
    assert len(paths) == 2
    assert first.judge_accuracy == again.judge_accuracy > 0.3
    real = first.real_figures(task, 300)
    assert set(real) == {
        "accuracy",
        "accepted",
        *(f"{figure}_{name}_300_test" for figure in ("fd", "recall", "precision") for name in ("judge", "lite0")),
    }
    assert real == again.real_figures(task, 300)
    noise = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8)
    junk = first.figures(noise, torch.arange(300) % 10)
    assert junk["fd_lite0_300_test"] > 3 * real["fd_lite0_300_test"]
    assert junk["recall_lite0_300_test"] < real["recall_lite0_300_test"]

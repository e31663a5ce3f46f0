"""Noisy images: each with noise of its own, of the size that the level has."""

from __future__ import annotations

import pytest
import torch

from pipelines import CDRLPipeline
from pipelines.likelihood.images import clean_grids, noised
from tests.helpers import save_tiny_run


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> CDRLPipeline:
    folder = tmp_path_factory.mktemp("run")
    save_tiny_run(folder)
    return CDRLPipeline.from_pretrained(folder)


def test_grids_of_a_split_are_chosen_at_random_and_of_a_class_if_asked(pipeline: CDRLPipeline) -> None:
    found = clean_grids(pipeline, "test", 50, 0)
    assert found.grids.shape == (50, 1, 8, 8)
    assert len(found.labels.unique()) > 5
    assert not torch.equal(found.grids, clean_grids(pipeline, "test", 50, 1).grids)
    of_class = clean_grids(pipeline, "train", 1000, 0, label=3)
    assert set(of_class.labels.tolist()) == {3}
    assert 100 < len(of_class.grids) < 160


def test_noise_has_the_size_of_the_level_and_depends_on_the_image_alone(pipeline: CDRLPipeline) -> None:
    schedule, clean = pipeline.model.schedule, torch.ones(400, 1, 8, 8)
    for level in (0, 1):
        x = noised(schedule, clean, level, 0, "test")
        assert x.mean().item() == pytest.approx(float(schedule.alpha_bar[level]), abs=0.02)
        assert x.std().item() == pytest.approx(float(schedule.sigma_bar[level]), rel=0.03)
    torch.testing.assert_close(noised(schedule, clean[:5], 1, 0, "test"), x[:5])
    assert not torch.equal(noised(schedule, clean[:5], 1, 1, "test"), x[:5])

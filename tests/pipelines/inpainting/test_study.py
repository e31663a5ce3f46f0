"""The figures of fills: a judge is trained only where its figures say something, and is announced."""

from __future__ import annotations

from typing import NoReturn

import pytest
import torch

from pipelines.evaluation.referee import Referee
from pipelines.inpainting.study import plausibility
from tests.helpers import tiny_config


class JudgeTrainedError(Exception):
    """A judge would have been trained here."""


@pytest.fixture(autouse=True)
def no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(data: object) -> NoReturn:
        raise JudgeTrainedError

    monkeypatch.setattr(Referee, "of", trained)


def test_no_judge_is_trained_for_a_few_images(capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.zeros(128, 1, 8, 8)
    assert plausibility(tiny_config(), images, images, torch.zeros(128, dtype=torch.int64)) == {}
    told = "realism: not measured with 128 images; a judge of classes needs 129 images at least: --test 129\n"
    assert capsys.readouterr().err == told


def test_a_judge_is_announced_with_its_cost_before_it_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.zeros(129, 1, 8, 8)
    with pytest.raises(JudgeTrainedError):
        plausibility(tiny_config(), images, images, torch.zeros(129, dtype=torch.int64))
    told = capsys.readouterr().err
    assert told.startswith("realism: a judge of classes is trained on the run's data first: 800 steps, half a minute")
    assert told.count("\n") == 1

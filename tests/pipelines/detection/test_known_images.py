"""What goes along with weights for whoever has not the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cdrl import RunError
from cdrl.data import DataError, training_images
from cdrl.runs.run import load_tensors, save_tensors
from pipelines import CDRLPipeline
from pipelines.detection.known_images import FILE, measured, shipped_known
from run import app
from tests.helpers import save_tiny_run, tiny_config


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights with images that were exported on a machine that has the data."""
    save_tiny_run(tmp_path / "run", config=tiny_config(data={"cache": str(tmp_path / "cache")}))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["export", "run", "given", "--with-images"])
    assert result.exit_code == 0, result.output
    return tmp_path / "given"


def test_densities_and_held_out_images_are_those_of_the_data(given: Path) -> None:
    pipe = CDRLPipeline.from_pretrained(given)
    known = shipped_known(given, pipe)
    assert known is not None
    held_out = training_images(pipe.config.data, "test").grids[:]
    assert all(any(torch.equal(image, other) for other in held_out) for image in known.held_out)
    # The density at level t is that of y = alpha_y x_t with x_t at its most likely: no noise.
    schedule = pipe.model.schedule
    x = pipe.grids_of(known.held_out)
    for level in range(schedule.num_levels):
        y = schedule.alpha_y[level] * schedule.alpha_bar[level] * x
        expected = pipe.model.log_density(y, level).double()
        torch.testing.assert_close(known.held_out_log_density[: len(x), level], expected, atol=1e-3, rtol=1e-4)
    assert known.train_log_density.shape == (500, schedule.num_levels)


def test_pictures_are_scored_without_the_data(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = CDRLPipeline.from_pretrained(given)
    known = shipped_known(given, pipe)
    assert known is not None
    Path("mine").mkdir()
    for index, image in enumerate(known.held_out[:3]):
        Image.fromarray(image[0].numpy()).save(f"mine/{index}.png")

    def gone(*_: object) -> None:
        raise DataError("the data are not on this machine")

    monkeypatch.setattr("pipelines.detection.detect.training_images", gone)
    told = CliRunner().invoke(app, ["detect", "given", "--images", "mine"])
    assert told.exit_code == 0, told.output
    assert "compared with 500 training images whose densities lie with the weights" in told.output
    refused = CliRunner().invoke(app, ["detect", "given", "--images", "mine", "--num-images", "20"])
    assert refused.exit_code == 2
    assert "the data are not on this machine" in refused.output


def test_densities_of_another_model_are_refused(given: Path) -> None:
    pipe = CDRLPipeline.from_pretrained(given)
    tensors = load_tensors(given / FILE)
    save_tensors(given / FILE, {**tensors, "held_out": tensors["held_out"][..., :4]})
    with pytest.raises(RunError, match=f"{FILE}: expected images \\[1, 8, 8\\] and densities of 2 levels"):
        shipped_known(given, pipe)


def test_weights_may_come_without(tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    assert shipped_known(tmp_path, CDRLPipeline.from_pretrained(tmp_path)) is None


def test_points_have_no_images_to_give(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="2-D points"):
        measured(CDRLPipeline.from_pretrained("checkerboard"))

"""Scores of one's own pictures: the densities of the model, and their place among training images."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cdrl import DataError
from cdrl.data import training_images
from pipelines import CDRLPipeline
from pipelines.detection.image_scores import ImageScores, run_image_scores, score_images, scores_table
from run import app
from tests.helpers import save_tiny_run, tiny_config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_tiny_run(tmp_path / "run", config=tiny_config(data={"cache": str(tmp_path / "cache")}))
    return tmp_path / "run"


def pictures(folder: Path, run: Path, count: int) -> torch.Tensor:
    """The run's first held-out images as files, of which one lies in a folder inside."""
    images = training_images(CDRLPipeline.from_pretrained(run).config.data, "test").grids[:count]
    (folder / "inside").mkdir(parents=True)
    for index, image in enumerate(images):
        name = f"{index}.png" if index else "inside/0.png"
        Image.fromarray(image[0].numpy()).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return images


def test_the_energy_is_minus_the_model_s_log_density_and_the_pipeline_s_differs_by_a_constant(run: Path) -> None:
    pipe = CDRLPipeline.from_pretrained(run)
    x = torch.rand(5, 1, 8, 8) * 2 - 1
    for level in range(2):
        alpha = pipe.model.schedule.alpha_y[level]
        expected = -pipe.model.log_density(alpha * x, level, label=pipe.class_ids(3, 5))
        torch.testing.assert_close(pipe.energy(x, level, label=3), expected)
        constant = pipe.log_density(x, level, label=3) + pipe.energy(x, level, label=3)
        torch.testing.assert_close(constant, (64 * alpha.log()).expand(5), atol=1e-3, rtol=0)


def test_percentiles_are_shares_of_training_images_that_are_less_likely(run: Path) -> None:
    pipe = CDRLPipeline.from_pretrained(run)
    train = training_images(pipe.config.data).grids[:]
    scores = score_images(pipe, train[:20], num_compared=len(train))
    known = score_images(pipe, train, num_compared=10).log_density
    expected = 100 * (known[None] < scores.log_density[:, None]).double().mean(dim=1)
    torch.testing.assert_close(scores.percentile.double(), expected, atol=0.2, rtol=0)
    assert scores.compared == len(train)


def test_every_picture_of_a_folder_gets_its_line_the_least_likely_first(run: Path, tmp_path: Path) -> None:
    images = pictures(tmp_path / "mine", run, 4)
    path, told, table = run_image_scores(run, tmp_path / "mine", num_compared=50, seed=0)
    assert path == run / "scores-mine" / "scores.csv"
    left_out = "left out: 1 file that is no picture by its ending (first: notes.txt)"
    assert told == f"4 pictures read; {left_out}\ncompared with 50 training images"
    with path.open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert {line["file"] for line in lines} == {"inside/0.png", "1.png", "2.png", "3.png"}
    values = [float(line["log_density_0"]) for line in lines]
    assert values == sorted(values)
    title, *shown = table.splitlines()
    assert title == "log density at level 0, and percentile among training images"
    assert [line.split() for line in shown] == [
        [line["file"], line["log_density_0"], line["percentile_train_0"]] for line in lines
    ]
    scores = score_images(CDRLPipeline.from_pretrained(run), images, num_compared=50)
    (line,) = (line for line in lines if line["file"] == "2.png")
    assert float(line["log_density_1"]) == pytest.approx(scores.log_density[2, 1].item(), rel=1e-4)
    assert float(line["percentile_train_0"]) == pytest.approx(scores.percentile[2, 0].item(), abs=0.06)


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (10, 10), (11, 5), (1200, 5)])
def test_of_many_pictures_the_five_least_likely_are_shown(count: int, shown: int) -> None:
    density = torch.randn(count, 2, generator=torch.Generator().manual_seed(0)) * 1000
    percentile = torch.rand(count, 2, generator=torch.Generator().manual_seed(1)) * 100
    table = scores_table([f"a picture {i}.png" for i in range(count)], ImageScores(density, percentile, 9))
    title, *lines = table.splitlines()
    assert title.endswith("images" if count == shown else f"images, of the 5 least likely of {count:,}")
    least = density[:, 0].sort().indices[:shown].tolist()
    for line, row in zip(lines, least, strict=True):
        name, values = line.split(".png")
        assert name == f"a picture {row}"
        assert [float(value) for value in values.split()] == [
            pytest.approx(density[row, 0].item(), rel=1e-5),
            pytest.approx(percentile[row, 0].item(), abs=0.051),
        ]
    assert len({len(line) for line in lines}) == 1


def test_the_verb_takes_sets_or_pictures_and_names_what_is_missing(run: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "mine", run, 2)
    good = CliRunner().invoke(app, ["detect", str(run), "--images", str(tmp_path / "mine"), "--num-images", "20"])
    assert good.exit_code == 0, good.output
    assert f"in {run / 'scores-mine' / 'scores.csv'}" in good.output
    assert "log density at level 0, and percentile among training images\n" in good.output
    assert good.output.count("1.png  ") == good.output.count("inside/0.png  ") == 1
    for arguments in ([], ["--images", str(tmp_path), "--against", "noise"]):
        bad = CliRunner().invoke(app, ["detect", str(run), *arguments])
        assert (bad.exit_code, "either --against" in bad.output) == (2, True)
    (tmp_path / "empty").mkdir()
    for folder, message in (("empty", "no picture there"), ("nowhere", "no such folder of pictures")):
        with pytest.raises(DataError, match=f"{folder}: {message}"):
            run_image_scores(run, tmp_path / folder, num_compared=20, seed=0)

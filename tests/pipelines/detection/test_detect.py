"""Detection: sets of images against their names, and what a run keeps of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner, Result

import run as door
from autoencoder.model import GaussianLatent
from cdrl.config import Config, DataConfig
from cdrl.data import DataError, load_images
from cdrl.runs.run import RunError
from pipelines import CDRLPipeline
from pipelines.detection.detect import (
    SYNTHETIC,
    Source,
    detect,
    detection_table,
    run_detection,
)
from pipelines.detection.scores import detection_figures
from pipelines.jobs.preparing import run_preparation
from tests import layouts
from tests.helpers import save_tiny_run, tiny_config

DIGITS = DataConfig(name="digits", image_size=8, channels=1)


def digits() -> Tensor:
    return load_images(DIGITS, "test").images[:40] / 127.5 - 1


# ---- sets of images


def made(name: str, images: Tensor) -> Tensor:
    return SYNTHETIC[name](images, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SYNTHETIC)
@pytest.mark.parametrize("channels", [1, 3])
def test_made_images_fit_the_run_and_come_again_with_the_seed(name: str, channels: int) -> None:
    images = digits().expand(-1, channels, -1, -1)
    found = made(name, images)
    assert found.shape == images.shape
    assert found.dtype == torch.float32
    assert found.abs().max() <= 1
    assert torch.equal(found, made(name, images))


def test_made_images_are_what_they_are_called() -> None:
    images = torch.rand(40, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noise = made("noise", images)
    assert noise.mean().abs() < 0.02
    assert noise.std().item() == pytest.approx(1 / math.sqrt(3), abs=0.01)
    constant = made("constant", images)
    assert (constant == constant[..., :1, :1]).all()
    assert len(constant[:, :, 0, 0].unique()) > 60
    torch.testing.assert_close(made("inverted", images) + images, torch.zeros_like(images))
    rotated = made("rotated", images)
    torch.testing.assert_close(rotated[:, :, 0, :], images[:, :, :, -1])
    pixels, shuffled = images.flatten(2), made("shuffled", images).flatten(2)
    # The pixels move with all their channels, in another order for each image.
    order = pixels[:, 0].argsort(dim=1)
    new_order = shuffled[:, 0].argsort(dim=1)
    for channel in range(3):
        assert torch.equal(pixels[:, channel].gather(1, order), shuffled[:, channel].gather(1, new_order))
    assert len(new_order.argsort(dim=1).gather(1, order).unique(dim=0)) == 40


def test_interpolations_lie_halfway_between_two_different_images_each_used_twice() -> None:
    images = digits()
    others = 2 * made("interpolation", images) - images
    distance = torch.cdist(others.flatten(1), images.flatten(1), p=1)
    partner = distance.argmin(dim=1)
    torch.testing.assert_close(distance.amin(dim=1), torch.zeros(len(images)), rtol=0, atol=1e-3)
    assert sorted(partner.tolist()) == list(range(len(images)))
    assert (partner != torch.arange(len(images))).all()


def test_another_set_is_read_at_the_size_and_in_the_channels_of_the_run(tmp_path: Path) -> None:
    for index in range(30):
        Image.new("RGB", (20, 12), (255, 0, 0) if index % 2 else (0, 0, 255)).save(tmp_path / f"{index}.png")
    source = Source.parse(f"folder:{tmp_path}", DIGITS)
    images = source.images(100, 0)
    assert images.shape[1:] == (1, 8, 8)
    assert "1 x 8 x 8, cropped, resized and turned grey" in source.note()
    # ITU-R 601: the luma of pure red and of pure blue.
    assert set(images.unique().tolist()) == {76, 29}
    own = Source.parse("train", DIGITS)
    assert len(own.images(10_000, 0)) == 1297
    few = own.images(9, 3)
    assert torch.equal(few, own.images(9, 3))
    assert not torch.equal(few, own.images(9, 4))


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        ("nois", "nois: no such set of images; there are test, train, noise"),
        ("noise:5", "noise:5: no such set of images"),
        ("checkerboard", "checkerboard: no such set"),
        ("cifar10", "cifar10: where is it? Name its folder: cifar10:PATH"),
    ],
)
def test_an_unknown_set_is_one_line(spec: str, line: str) -> None:
    with pytest.raises(DataError) as error:
        Source.parse(spec, DIGITS)
    assert str(error.value).startswith(line)


def test_a_copy_that_was_packed_anew_can_be_named_once_it_is_prepared(tmp_path: Path) -> None:
    """No option of this verb says data.check_sums=false; the message names the way that there is."""
    (tmp_path / "copy").mkdir()
    layouts.fashion_mnist_compressed(tmp_path / "copy")
    with pytest.raises(DataError, match=r"copy.*published MD5.*prepare its data, and name them here as shards:FOLDER"):
        Source.parse(f"fashion_mnist:{tmp_path / 'copy'}", DIGITS).images(2, 0)
    data = {"name": "fashion_mnist", "channels": 1, "image_size": 28, "path": tmp_path / "copy", "check_sums": False}
    values = {**tiny_config().model_dump(), "data": {**data, "prepared": tmp_path / "shards"}}
    list(run_preparation(Config.model_validate(values)))
    assert Source.parse(f"shards:{tmp_path / 'shards'}", DIGITS).images(2, 0).shape == (2, 1, 8, 8)


# ---- runs


@pytest.fixture(scope="module", params=["pixel", "latent"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    save_tiny_run(folder, latent=request.param == "latent")
    return folder


def test_images_of_a_latent_run_are_encoded_and_standardized(run: Path) -> None:
    pipeline, images = CDRLPipeline.from_pretrained(run), digits()
    grids = pipeline.grids_of(images)
    if pipeline.config.space == "pixel":
        assert torch.equal(grids, images)
        return
    with torch.no_grad():
        posterior = pipeline.decoder.autoencoder.encode(images)  # type: ignore[attr-defined]
    assert isinstance(posterior, GaussianLatent)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1)
    draws = (grids * std + mean - posterior.mean) / torch.exp(0.5 * posterior.logvar)
    assert draws.mean().abs() < 4 / math.sqrt(draws.numel())
    assert draws.std().item() == pytest.approx(1, abs=0.05)


def test_images_of_a_run_that_has_learned_means_are_encoded_to_means(tmp_path: Path) -> None:
    save_tiny_run(tmp_path, latent=True, config=tiny_config(space="latent", autoencoder={"latents": "mean"}))
    pipeline, images = CDRLPipeline.from_pretrained(tmp_path), digits()
    with torch.no_grad():
        means = pipeline.decoder.autoencoder.encode(images).mean  # type: ignore[attr-defined]
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1)
    torch.testing.assert_close(pipeline.grids_of(images) * std + mean, means)


def test_the_papers_score_of_a_run_is_f_at_level_0_of_the_scaled_image(run: Path) -> None:
    pipeline = CDRLPipeline.from_pretrained(run)
    found = detect(pipeline, ["inverted"], num_images=30)
    images = Source.parse("test", pipeline.config.data).images(30, 0)
    grids, schedule = pipeline.grids_of(images), pipeline.model.schedule
    with torch.no_grad():
        expected = pipeline.model.log_density(schedule.alpha_step[0] * schedule.alpha_bar[0] * grids, 0)
    torch.testing.assert_close(found.inside, expected.double(), rtol=1e-4, atol=1e-3)
    figures = found.report["out_of_distribution"]["inverted"]["scores"]["level_0"]
    assert figures == detection_figures(found.inside, found.outside["inverted"])


def test_a_set_cannot_be_told_from_itself(run: Path) -> None:
    report = detect(CDRLPipeline.from_pretrained(run), ["test"], num_images=25).report
    for name, figures in report["out_of_distribution"]["test"]["scores"].items():
        assert figures["auroc"] == pytest.approx(0.5), name


def test_a_run_keeps_figures_and_picture(run: Path) -> None:
    detection = run_detection(run, ["noise", "train"], num_images=20)
    assert json.loads((run / "detection.json").read_text()) == {**detection.report, "files": ["detection.png"]}
    with Image.open(run / "detection.png") as picture:
        assert picture.width > picture.height > 100
    words = detection_table(detection.report)
    assert "in-distribution: test: test split of digits, 1 x 8 x 8, the run's own images" in words
    assert "Table 8" not in words


def test_a_cifar10_model_is_put_beside_the_papers_table() -> None:
    figures = {"auroc": 0.123, "aupr_in": 0.1, "aupr_out": 0.1, "fpr95": 0.1}
    sets = {"svhn:some/folder": {"note": "", "scores": {"level_0": figures}}}
    words = detection_table({"data": "cifar10", "in_distribution": "", "out_of_distribution": sets})
    rows = {line[:24].strip(): line[24:].split() for line in words.splitlines()}
    assert rows["CDRL"] == ["0.750", "0.780", "0.840", "0.820", "0.650"]
    assert rows["this run"] == ["-", "-", "-", "0.123", "-"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"out": ["noise", "noise"]}, "at least one, and none twice"),
        ({"out": []}, "at least one, and none twice"),
        ({"out": ["train"], "in_distribution": "noise"}, "noise: is made of in-distribution images"),
    ],
)
def test_what_makes_no_sense_is_one_line(run: Path, options: dict[str, Any], line: str) -> None:
    with pytest.raises(DataError, match=line):
        detect(CDRLPipeline.from_pretrained(run), **options)


def test_at_the_door_figures_are_printed_and_mistakes_are_one_line(run: Path) -> None:
    def call(*arguments: str) -> Result:
        return CliRunner().invoke(door.app, ["detect", str(run), "--num-images", "20", *arguments])

    printed = call("--against", "shuffled", "--against", "train", "--seed", "3").stdout
    report = json.loads((run / "detection.json").read_text())
    assert printed.startswith(detection_table(report))
    assert (report["seed"], list(report["out_of_distribution"])) == (3, ["shuffled", "train"])
    refused = call("--against", "nois")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: nois: no such set of images; there are test, train, noise")
    assert len(refused.stderr.splitlines()) == 1


def test_points_and_broken_models_are_refused(tmp_path: Path) -> None:
    model = save_tiny_run(tmp_path)
    pipeline = CDRLPipeline.from_pretrained(tmp_path)
    next(pipeline.model.energy.parameters()).data.fill_(math.nan)
    with pytest.raises(RunError, match="train: the model's densities are NaN or infinite for 20 of 20 images"):
        detect(pipeline, ["noise"], num_images=20)
    points = tiny_config(space="point", data={"name": "checkerboard", "labels": "none"})
    with pytest.raises(RunError, match="a run of 2-D points"):
        detect(CDRLPipeline(model, pipeline.decoder, points, ()), ["noise"])


COUNT = "num_images: expected a whole number of at least 2, found "
LIST = r"out: expected a list, such as \['noise'\], found "


@pytest.mark.parametrize(
    ("values", "fault", "message"),
    [
        *(({"out": each}, TypeError, LIST) for each in ("noise", {"noise"}, 3)),
        ({"out": [3]}, TypeError, "set of images: expected NAME or NAME:PATH, found 3"),
        *(({"num_images": each}, TypeError, COUNT) for each in (True, "3", None)),
        ({"num_images": 20.0}, ValueError, f"{COUNT}20.0"),
        ({"seed": "a"}, TypeError, "seed: expected a whole number, found 'a'"),
        ({"images": [1]}, TypeError, r"images: expected sets of images by name, .* found \[1\]"),
        ({"images": {3: torch.zeros(2, 1, 8, 8)}}, TypeError, "images: expected names of sets in text, found 3"),
        ({"images": {"mine": []}}, ValueError, "images: expected at least one, found none"),
        ({"images": {"mine": torch.full((2, 1, 8, 8), float("nan"))}}, ValueError, "images: expected finite numbers"),
        ({"in_distribution": ["test"]}, TypeError, "in_distribution: expected NAME or NAME:PATH, found "),
        ({"pipeline": 3}, TypeError, "pipeline: expected a CDRLPipeline, found 3"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(
    run: Path, values: dict[str, Any], fault: type[Exception], message: str
) -> None:
    with pytest.raises(fault, match=f"^{message}"):
        detect(**{"pipeline": CDRLPipeline.from_pretrained(run), "out": ["noise"], **values})

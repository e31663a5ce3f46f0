"""The report on 2-D points, against the exact density as a model of itself and against counts of points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cdrl.data import checkerboard_density, inside_squares, sample_checkerboard
from cdrl.runs.run import RunError, read_json
from cdrl.schedule import NoiseSchedule
from pipelines import CDRLPipeline
from pipelines.decoding import PointDecoder
from pipelines.studies import density
from pipelines.studies.density import (
    BINS,
    compare,
    density_report,
    density_table,
    level_grid,
    share_inside,
    square_shares,
    true_density,
    true_histogram,
    true_points,
)
from pipelines.studies.plane import kl_divergence, total_variation
from tests.helpers import save_tiny_run, tiny_config, tiny_model

POINT: dict[str, Any] = {
    "space": "point",
    "data": {"name": "checkerboard", "labels": "none"},
    "schedule": {"num_levels": 3, "logsnr_max": 5.0, "logsnr_min": -3.0},
    "energy": {"spectral_norm": False},
    "sampling": {"steps": 2, "denoise": 0.0},
}


class Exact:
    """The true densities in the place of a model's, times a constant a level; proposals stay where they are."""

    def __init__(self, schedule: NoiseSchedule) -> None:
        self.schedule = schedule

    def log_density(self, y: Tensor, level: int) -> Tensor:
        # A floor where the density vanishes in double precision: its gradient would not be a number.
        return (true_density(self.schedule, level, y) + 1e-30).log().float() + 2.0 + level

    def propose(self, x_next: Tensor, level: int) -> Tensor:
        return x_next


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> CDRLPipeline:
    """A pipeline around the true densities."""
    monkeypatch.setattr(density, "CELLS", 160)
    monkeypatch.setattr(density, "CHAINS", 128)
    monkeypatch.setattr(density, "TEMPERATURES", 120)
    config = tiny_config(**POINT)
    model = tiny_model(config, shape=(2,), num_classes=0)
    monkeypatch.setattr(model, "conditioned", lambda label=None: Exact(model.schedule))
    return CDRLPipeline(model, PointDecoder(), config, ())


def denoising(exact: CDRLPipeline) -> CDRLPipeline:
    """The same, with one denoising step after the chains."""
    config = tiny_config(**{**POINT, "sampling": {"steps": 2, "denoise": 1.0}})
    return CDRLPipeline(exact.model, exact.decoder, config, ())


def test_the_noised_density_integrates_to_one_and_is_that_of_noised_points() -> None:
    schedule = NoiseSchedule.from_config(tiny_config(**POINT).schedule)
    count, generator = 100_000, torch.Generator().manual_seed(0)
    points = sample_checkerboard(count, generator)
    epsilon = torch.randn(count, 2, generator=generator)
    for level in range(schedule.num_levels):
        grid = level_grid(schedule, level)
        mass = true_density(schedule, level, grid.points()) * grid.side**2
        assert mass.sum().item() == pytest.approx(1, abs=1e-4)
        shares = grid.histogram(true_points(schedule, level, points, epsilon))
        coarse, expected = (values.view(20, 20, 20, 20).sum(dim=(1, 3)) for values in (shares[:-1], mass))
        assert ((coarse - expected).abs() <= 5 * (expected / count).sqrt() + 1e-5).all()


def test_the_true_bins_are_those_of_points_with_and_without_noise() -> None:
    count, generator = 200_000, torch.Generator().manual_seed(1)
    points = sample_checkerboard(count, generator)
    for noise in (0.0, 0.04):
        truth = true_histogram(noise)
        assert truth.sum().item() == pytest.approx(1, abs=1e-9)
        shares = BINS.histogram(points + noise * torch.randn(count, 2, generator=generator))
        assert ((shares - truth).abs() <= 5 * (truth / count).sqrt() + 1e-6).all()
        # The floor: half the expected absolute deviation of each count.
        assert total_variation(shares, truth) == pytest.approx(
            (2 * truth / (torch.pi * count)).sqrt().sum().item() / 2, rel=0.2
        )
    # Without noise a bin is full, a sixteenth of a square, or empty.
    assert set(true_histogram(0.0).mul(128).round(decimals=6).tolist()) == {0.0, 1.0}


def test_points_are_counted_in_their_squares() -> None:
    centers = torch.tensor([[-0.75, -0.75], [0.25, -0.75], [-0.25, -0.25], [0.75, 0.75], [0.75, 0.75]])
    points = torch.cat([centers, torch.tensor([[0.75, -0.75], [3.0, 3.0], [0.2, -0.6]])])
    assert share_inside(points) == pytest.approx(6 / 8)
    assert square_shares(points).tolist() == pytest.approx([1.0, 2.0, 1.0, 0, 0, 0, 0, 2.0])


def test_the_true_density_is_its_own_best_model(exact: CDRLPipeline) -> None:
    report, picture = compare(exact, 2000, seed=0)
    assert report["kl"] == pytest.approx([0, 0, 0], abs=1e-5)
    log_z = report["log_z"]
    assert log_z["grid"] == pytest.approx(2, abs=1e-4)
    for end in ("lower", "upper"):
        assert log_z[end]["log_z"] == pytest.approx(2, abs=0.4)
        assert log_z[end]["effective_samples"] > 20
    assert abs(log_z["upper"]["log_z"] - log_z["lower"]["log_z"]) < 0.5
    assert sum(report["squares"]) / 8 == pytest.approx(report["inside"])
    assert 0.015 < report["tv_floor"] < report["tv"]
    assert picture.dtype == torch.uint8
    # The column of the clean level: data and fit agree up to the data's own noise.
    data, fitted = (picture[:, 48 + row * 176 : 216 + row * 176, 96:264].float().mean(dim=0) for row in (0, 1))
    pooled = torch.nn.functional.avg_pool2d(torch.stack([data, fitted])[:, None], 21).flatten(1)
    assert torch.corrcoef(pooled)[0, 1] > 0.95
    assert fitted.max() - fitted.min() > 100


def test_the_floor_carries_the_noise_that_the_samples_should_carry(exact: CDRLPipeline) -> None:
    schedule = exact.model.schedule
    assert compare(exact, 200, seed=0)[0]["tv_noise"] == pytest.approx(
        float(schedule.sigma_bar[0] / schedule.alpha_bar[0])
    )
    assert compare(denoising(exact), 200, seed=0)[0]["tv_noise"] == 0


def test_shares_inside_are_told_with_and_without_denoising(exact: CDRLPipeline) -> None:
    """Each is the share of what sampling draws when asked for those steps and that denoising."""
    pipeline = denoising(exact)
    report = compare(pipeline, 400, seed=5)[0]
    drawn = {
        "inside": {},
        "inside_not_denoised": {"denoise": 0.0},
        "inside_initializer": {"steps": 0, "denoise": 0.0},
        "inside_initializer_denoised": {"steps": 0},
    }
    for name, settings in drawn.items():
        points = pipeline(400, seeds=range(5, 405), **settings).grids
        assert report[name] == pytest.approx(inside_squares(points).double().mean().item(), abs=1 / 400)
    assert len({report[name] for name in drawn}) == 4
    table = density_table(report)
    assert all(f"{report[name]:.3f}" in table for name in drawn)
    raw = compare(exact, 400, seed=5)[0]
    assert raw["inside"] == raw["inside_not_denoised"] == report["inside_not_denoised"]
    assert raw["inside_initializer"] == raw["inside_initializer_denoised"] == report["inside_initializer"]


def test_a_run_without_an_initializer_has_no_share_of_it(exact: CDRLPipeline) -> None:
    exact.model.initializer = None
    report = compare(exact, 200, seed=0)[0]
    assert report["inside_initializer"] is report["inside_initializer_denoised"] is None
    assert "initializer" not in density_table(report)


def test_a_wrong_model_is_found_out(exact: CDRLPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the log density at level 1: the divergence there, and there alone, is that of the squared density."""

    def sharpened(self: Exact, y: Tensor, level: int) -> Tensor:
        return true_density(self.schedule, level, y).add(1e-30).log().float() * (2 if level == 1 else 1)

    monkeypatch.setattr(Exact, "log_density", sharpened)
    kl = compare(exact, 200, seed=0)[0]["kl"]
    grid = level_grid(exact.model.schedule, 1)
    log_p = true_density(exact.model.schedule, 1, grid.points()).log()
    assert kl[1] == pytest.approx(kl_divergence(log_p, 2 * log_p), rel=1e-4)
    assert kl[1] > 0.05
    assert max(kl[0], kl[2]) < 1e-5


def test_log_densities_are_those_of_x(exact: CDRLPipeline) -> None:
    """Normalized, the exact model's answer is the density of x_t: the checkerboard's, shrunk and noised."""
    schedule, points = exact.model.schedule, sample_checkerboard(50, torch.Generator().manual_seed(2))
    for level in range(3):
        scale, noise = float(schedule.alpha_bar[level]), float(schedule.sigma_bar[level])
        expected = checkerboard_density(points, scale, noise).log().float()
        ours = exact.log_density(points, level, log_z=2.0 + level)
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
        torch.testing.assert_close(exact.log_density(points, level) - ours, torch.full((50,), 2.0 + level))


def test_a_report_is_left_in_the_run(exact: CDRLPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CDRLPipeline, "from_pretrained", lambda *arguments: exact)
    report = density_report(tmp_path, 300, seed=3)
    assert read_json(tmp_path / "density.json") == {**report, "files": ["density.png"]}
    picture = np.asarray(Image.open(tmp_path / "density.png"))
    assert picture.shape[2] == 3
    assert (picture[0] == 255).all()
    table = density_table(report)
    assert f"{report['inside']:.3f}" in table
    assert all(f"{value:.3f}" in table for value in [*report["kl"], *report["squares"], report["log_z"]["grid"]])
    points = exact(300, seeds=range(3, 303)).grids
    assert report["inside"] == pytest.approx(inside_squares(points).double().mean().item())


def test_a_run_of_images_is_refused(tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    with pytest.raises(RunError, match="has space: pixel; densities are compared with the truth for 2-D points only"):
        density_report(tmp_path, 100, seed=0)

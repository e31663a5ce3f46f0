"""The report, from a model of tiny size and with the exact checkerboard in the place of a model's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cdrl.data import DataError, as_floats
from cdrl.runs.run import RunError
from cdrl.sampling.annealing import Bracket, Estimate
from pipelines import CDRLPipeline
from pipelines.detection.detect import made_of
from pipelines.likelihood import figures, likelihood
from pipelines.likelihood.figures import Question, class_log_densities, split_figures
from pipelines.likelihood.images import Clean
from pipelines.likelihood.levels import tail_slope
from pipelines.likelihood.likelihood import _crossed, check_normalizable, likelihood_table, run_likelihood
from pipelines.likelihood.normalizer import Effort, Normalizers
from pipelines.studies.density import level_grid, level_values
from tests.helpers import save_tiny_run, tiny_config

EFFORT = Effort(chains=4, temperatures=12, leapfrog_steps=1, equilibration=2, batch_size=40)


@pytest.fixture(scope="module")
def proper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose energies are relative to a Gaussian and small: they can be normalized."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(energy={"reference": "gaussian"}, schedule={"temperature": "one"})
    save_tiny_run(folder, config=config)
    return folder


def test_a_run_is_measured_and_what_is_kept_is_taken_up(proper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.likelihood.normalizer._PILOT_CHAINS_A_CLASS", 4)
    monkeypatch.setattr("pipelines.likelihood.baselines.COMPONENTS", (1, 2))
    question = Question(num_images=20, each_class=True, baselines=("gaussian", "mixture"))
    report = run_likelihood(proper, question, EFFORT)
    assert report["dimension"] == 64
    assert len(report["log_z"]) == 10
    for name in ("held_out", "train"):
        found = report[name]
        assert found["bits_per_dimension"] == pytest.approx(-found["nats"] / 64 / math.log(2))
        assert found["bits_per_dimension_of_8_bit_steps"] == pytest.approx(
            found["bits_per_dimension"] + math.log2(127.5)
        )
        assert 0 <= found["class_right"] <= 1
    assert [name[:8] for name in report["baselines"]] == ["Gaussian", "mixture "]
    told = json.loads((proper / "likelihood.json").read_text(encoding="utf-8"))
    assert told["held_out"] == report["held_out"]
    assert told["files"] == ["likelihood.png"]
    assert "nats" in likelihood_table(report)
    kept = {path: path.stat().st_mtime_ns for path in (proper / "likelihood").rglob("*.safetensors")}
    assert run_likelihood(proper, question, EFFORT)["log_z"] == report["log_z"]
    assert kept == {path: path.stat().st_mtime_ns for path in (proper / "likelihood").rglob("*.safetensors")}


def test_what_changes_nothing_or_cannot_be_is_refused(proper: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="label: would change nothing where each class is asked for"):
        run_likelihood(proper, Question(label=3, each_class=True), EFFORT)
    with pytest.raises(ValueError, match="this model has 2 levels"):
        run_likelihood(proper, Question(level=2), EFFORT)
    with pytest.raises(ValueError, match="class ids are"):
        run_likelihood(proper, Question(label=10), EFFORT)


def test_sets_that_cannot_be_read_are_told_before_time_is_spent(proper: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "level_normalizers", lambda *arguments, **options: pytest.fail("time was spent"))
    with pytest.raises(DataError, match="nothing: no such set of images"):
        run_likelihood(proper, Question(against=("nothing",)), EFFORT)
    with pytest.raises(DataError, match="named twice"):
        run_likelihood(proper, Question(against=("noise", "noise")), EFFORT)
    with pytest.raises(DataError, match="test are the held-out images"):
        run_likelihood(proper, Question(against=("test",)), EFFORT)
    with pytest.raises(DataError, match="/nowhere"):
        run_likelihood(proper, Question(against=("folder:/nowhere",)), EFFORT)


def test_other_sets_are_told_apart_by_likelihood_and_by_typicality(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Gaussian about the digits' mean in the place of a model: its likelihood is known, and so are both scores."""
    monkeypatch.setattr(figures, "noised", lambda schedule, grids, *rest: grids)
    monkeypatch.setattr(
        figures, "class_log_densities", lambda pipeline, x, *rest: -x.flatten(1).double().square().sum(dim=1)[:, None]
    )
    normalizers = Normalizers({-1: SimpleNamespace(bridge=Estimate(2.0, 0.0, 1.0))}, {}, 0)  # type: ignore[dict-item]
    pipeline = CDRLPipeline.from_pretrained("digits")
    held_out = figures.chosen_images(pipeline, "test", 50, 0)[0]
    own = -as_floats(held_out).flatten(1).double().square().sum(dim=1) - 2
    found = figures.detection_by_likelihood(
        pipeline, Question(num_images=50, against=("constant", "digits")), normalizers, 0, {"test": own, "train": own}
    )
    # The same images: scores of another choice of them.
    assert found["digits"]["auroc"]["likelihood"] == pytest.approx(0.5, abs=0.12)
    constant = made_of(held_out, "constant", 0)
    values = -constant.flatten(1).double().square().sum(dim=1) - 2
    above = (own[:, None] > values).double().mean()
    nearer = ((own - own.mean()).abs()[:, None] < (values - own.mean()).abs()).double().mean()
    assert found["constant"]["nats"] == pytest.approx(float(values.mean()))
    assert found["constant"]["auroc"]["likelihood"] == pytest.approx(float(above), abs=1e-3)
    assert found["constant"]["auroc"]["typicality"] == pytest.approx(float(nearer), abs=1e-3)
    assert found["constant"]["auroc"]["likelihood"] != pytest.approx(found["constant"]["auroc"]["typicality"], abs=0.05)


def test_a_density_without_normalizer_is_refused_before_time_is_spent(
    proper: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = CDRLPipeline.from_pretrained(proper)
    slopes = {0: 3.0, 1: -1.0}
    monkeypatch.setattr(likelihood, "tail_slope", lambda model, label, level: slopes[level])
    with pytest.raises(RunError, match=r"level 0: its density cannot be normalized.*rises by 3 nats.*--level 1"):
        check_normalizable(pipeline, -1, 0)
    check_normalizable(pipeline, -1, 1)


def test_the_slope_far_away_is_that_of_the_steepest_ray() -> None:
    """f = 2 |y_0| - 3 |y_1| rises along one axis; f = -|y| nowhere."""

    def model(log_density: object) -> object:
        conditioned = SimpleNamespace(log_density=log_density)
        parameters = lambda: iter([torch.zeros(1)])  # noqa: E731
        return SimpleNamespace(shape=(2,), conditioned=lambda label: conditioned, parameters=parameters)

    rising = model(lambda y, level: 2 * y[:, 0].abs() - 3 * y[:, 1].abs())
    falling = model(lambda y, level: -y.norm(dim=1) + (100 * y).sin().sum(dim=1))
    assert 1.5 < tail_slope(rising, -1, 0) <= 2.0001  # type: ignore[arg-type]
    assert tail_slope(falling, -1, 0) == pytest.approx(-1, abs=0.01)  # type: ignore[arg-type]


def test_the_shipped_digits_cannot_be_normalized_at_level_0_but_above() -> None:
    pipeline = CDRLPipeline.from_pretrained("digits")
    assert tail_slope(pipeline.model, -1, 0) > 1000
    assert tail_slope(pipeline.model, -1, 1) < 0


def test_the_shipped_density_of_digits_can_be_normalized_with_every_class() -> None:
    pipeline = CDRLPipeline.from_pretrained("digits_density")
    assert all(tail_slope(pipeline.model, label, 0) < -1000 for label in range(-1, 10))


def test_estimates_that_contradict_each_other_are_told() -> None:
    def found(gap: float) -> dict[str, Any]:
        return {"lower": {"standard_error": 0.3}, "upper": {"standard_error": 0.4}, "gap": gap}

    assert not list(_crossed({"0": found(3.0), "1": found(-1.4)}))
    (line,) = _crossed({"0": found(3.0), "1": found(-1.6), "2": found(-40.0)})
    assert "(class 1, 2)" in line


def test_figures_of_classes_are_those_of_their_mixture() -> None:
    values = torch.tensor([[1.0, 4.0], [2.0, 0.0], [0.0, 3.0]], dtype=torch.float64)
    log_z = (0.5, 1.0)

    def one(value: float) -> SimpleNamespace:
        low, high = Estimate(value - 0.1, 0.0, 1.0), Estimate(value + 0.2, 0.0, 1.0)
        return SimpleNamespace(bridge=Estimate(value, 0.0, 1.0), bracket=Bracket(low, high))

    normalizers = Normalizers({0: one(log_z[0]), 1: one(log_z[1])}, {}, 0)  # type: ignore[dict-item]
    clean = Clean(torch.zeros(3, 1, 2, 2), torch.tensor([0, 0, 1]))
    found = split_figures(values, clean, normalizers, eight_bits=False)
    normalized = values - torch.tensor(log_z)
    expected = (normalized.exp().mean(dim=1)).log().mean()
    assert found["nats"] == pytest.approx(float(expected))
    assert found["with_upper_log_z"] == pytest.approx(float(expected) - 0.2)
    assert found["with_lower_log_z"] == pytest.approx(float(expected) + 0.1)
    assert found["class_right"] == pytest.approx(2 / 3)
    assert found["conditional"] == pytest.approx((0.5 + 1.5 + 2.0) / 3)
    assert "bits_per_dimension_of_8_bit_steps" not in found


def test_the_shipped_checkerboards_normalizer_is_that_of_a_grid(tmp_path: Path) -> None:
    pipeline = CDRLPipeline.from_pretrained("checkerboard")
    effort = Effort(chains=400, temperatures=150, leapfrog_steps=1, equilibration=60, batch_size=400)
    world = likelihood.World(0, 1, torch.device("cpu"))
    found = likelihood.level_normalizers(pipeline, [-1], effort, tmp_path, world).of_class[-1]
    grid = level_grid(pipeline.model.schedule, 0)
    truth = grid.log_normalizer(level_values(pipeline, 0, grid))
    assert found.bridge.log_z == pytest.approx(truth, abs=0.05)
    assert found.bracket.lower.log_z == pytest.approx(truth, abs=4 * found.bracket.lower.standard_error)
    assert found.bracket.upper.log_z == pytest.approx(truth, abs=4 * found.bracket.upper.standard_error)
    # The density of x_0 integrates to one: that of y_0 on the grid, with the change of volume.
    x = grid.points().float()[::50] / float(pipeline.model.schedule.alpha_y[0])
    values = class_log_densities(pipeline, x, [-1])[:, 0] - truth
    again = pipeline.log_density(x, 0, log_z=truth).double()
    torch.testing.assert_close(values, again, rtol=0, atol=1e-3)

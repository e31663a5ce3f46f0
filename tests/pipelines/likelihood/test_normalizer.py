"""Brackets of normalizers that are known, in the place of a network's, in few and in many dimensions."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from cdrl.training.engine import World
from cdrl.training.interruption import Interrupted
from pipelines.likelihood.levels import LevelPath
from pipelines.likelihood.normalizer import Bracketing, Effort, Normalizers
from tests.pipelines.likelihood.known import Mixture

ALONE = World(0, 1, torch.device("cpu"))
SMALL = Effort(chains=24, temperatures=60, leapfrog_steps=1, equilibration=3)


def bracketing(
    truth: Mixture, folder: Path, effort: Effort, labels: tuple[int, ...] = (-1,), level: int = 0
) -> Bracketing:
    path = LevelPath(truth, torch.tensor(labels), truth.spread(), level)  # type: ignore[arg-type]
    return Bracketing(path, effort, folder, ALONE)


def bracketed(
    truth: Mixture, folder: Path, effort: Effort, labels: tuple[int, ...] = (-1,), level: int = 0
) -> Normalizers:
    start = truth.sample(effort.chains * len(labels), level, seed=1)
    return bracketing(truth, folder, effort, labels, level).run(start)


def check(found: Normalizers, truth: float, tolerance: float, label: int = -1) -> None:
    one = found.of_class[label]
    bracket = one.bracket
    assert bracket.lower.log_z == pytest.approx(truth, abs=tolerance)
    assert bracket.upper.log_z == pytest.approx(truth, abs=tolerance)
    assert one.bridge.log_z == pytest.approx(truth, abs=tolerance)
    assert one.along()[-1] == pytest.approx((bracket.lower.log_z, bracket.upper.log_z, one.bridge.log_z))


@pytest.mark.parametrize("components", [1, 3])
def test_both_ends_of_the_bracket_find_a_normalizer_that_is_known(components: int, tmp_path: Path) -> None:
    truth = Mixture.random(2, components)
    effort = Effort(chains=1000, temperatures=100, leapfrog_steps=1, equilibration=5, batch_size=1000)
    check(bracketed(truth, tmp_path, effort), truth.log_z(0), 0.1)


@pytest.mark.parametrize("components", [1, 3])
def test_in_64_dimensions_the_bridge_finds_it_and_the_bracket_holds_it(components: int, tmp_path: Path) -> None:
    truth = Mixture.random(64, components)
    found = bracketed(truth, tmp_path, Effort(chains=24, temperatures=300, leapfrog_steps=1, equilibration=5)).of_class[
        -1
    ]
    log_z, bracket = truth.log_z(0), found.bracket
    assert found.bridge.log_z == pytest.approx(log_z, abs=3 * found.bridge.standard_error)
    assert found.bridge.standard_error < 1
    assert log_z - 4 < bracket.lower.log_z < log_z + 0.5
    assert log_z - 0.5 < bracket.upper.log_z < log_z + 4


@pytest.mark.slow
@pytest.mark.parametrize("components", [1, 3])
@pytest.mark.parametrize(
    ("dimension", "effort"),
    [
        (2, Effort(chains=4000, temperatures=400, leapfrog_steps=1, equilibration=5, batch_size=4000)),
        (64, Effort(chains=32, temperatures=4000, leapfrog_steps=4, equilibration=5)),
    ],
)
def test_both_ends_are_within_half_a_per_cent(dimension: int, effort: Effort, components: int, tmp_path: Path) -> None:
    truth = Mixture.random(dimension, components)
    check(bracketed(truth, tmp_path, effort), truth.log_z(0), 0.005 * truth.log_z(0))


@pytest.mark.slow
def test_both_ends_are_within_half_a_per_cent_of_a_gaussians_in_3072_dimensions(tmp_path: Path) -> None:
    """Moves of 8 leapfrog steps, a quarter of a period together: MALA's are a tenth as long here."""
    truth = Mixture.random(3072, 1)
    effort = Effort(chains=4, temperatures=7000, leapfrog_steps=8, equilibration=5)
    check(bracketed(truth, tmp_path, effort), truth.log_z(0), 0.005 * truth.log_z(0))


@pytest.mark.slow
def test_the_bridge_is_within_half_a_per_cent_of_a_mixtures_in_3072_dimensions(tmp_path: Path) -> None:
    """Its parts lie 78 widths apart.

    They are alike. Where widths differ by two fifths, geometric means prefer one part by hundreds of nats, and chains
    that divide at such a temperature are off by as much.
    """
    truth = Mixture.random(3072, 3, alike=True)
    effort = Effort(chains=4, temperatures=3000, leapfrog_steps=8, equilibration=5)
    found = bracketed(truth, tmp_path, effort).of_class[-1]
    assert found.bridge.log_z == pytest.approx(truth.log_z(0), rel=0.005)
    assert found.bracket.lower.log_z < truth.log_z(0) < found.bracket.upper.log_z


def test_a_path_may_end_at_any_level(tmp_path: Path) -> None:
    truth = Mixture.random(8, 2)
    effort = Effort(chains=100, temperatures=100, leapfrog_steps=1, equilibration=5, batch_size=100)
    found = bracketed(truth, tmp_path, effort, level=3)
    check(found, truth.log_z(3), 0.1)
    assert [segment.level for segment in found.of_class[-1].segments] == [5, 4, 3]


def test_every_class_has_a_normalizer_of_its_own(tmp_path: Path) -> None:
    truth = Mixture.random(4, 2)
    effort = Effort(chains=300, temperatures=100, leapfrog_steps=1, equilibration=5, batch_size=500)
    found = bracketed(truth, tmp_path, effort, labels=(0, 2, 5))
    for label in (0, 2, 5):
        check(found, truth.log_z(0) + label, 0.15, label)


def test_integration_finds_it_without_weights_and_is_kept(tmp_path: Path) -> None:
    truth = Mixture.random(8, 2)
    effort = Effort(chains=60, temperatures=100, leapfrog_steps=1, equilibration=5, integration=16)
    found = bracketed(truth, tmp_path, effort, labels=(1, 3))
    for label in (1, 3):
        integral = found.of_class[label].integral
        assert integral is not None
        assert integral.standard_error < 0.15
        assert integral.log_z == pytest.approx(truth.log_z(0) + label, abs=max(4 * integral.standard_error, 0.2))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert bracketed(truth, tmp_path, effort, labels=(1, 3)) == found
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    without = bracketed(truth, tmp_path, dataclasses.replace(effort, integration=0), labels=(1, 3))
    assert without.of_class[1].integral is None
    assert without.of_class[1].bracket == found.of_class[1].bracket


def test_the_bracket_narrows_as_temperatures_grow_and_holds_the_truth(tmp_path: Path) -> None:
    truth = Mixture.random(24, 1, num_levels=3)
    gaps = []
    for temperatures in (30, 120, 480):
        effort = Effort(chains=12, temperatures=temperatures, leapfrog_steps=1, equilibration=5)
        bracket = bracketed(truth, tmp_path / str(temperatures), effort).of_class[-1].bracket
        assert bracket.lower.log_z < truth.log_z(0) + 3 * bracket.lower.standard_error
        assert bracket.upper.log_z > truth.log_z(0) - 3 * bracket.upper.standard_error
        gaps.append(bracket.upper.log_z - bracket.lower.log_z)
    assert gaps[0] > 2 * gaps[1] > 3 * gaps[2]


def test_a_claimed_error_is_the_spread_over_repetitions(tmp_path: Path) -> None:
    truth = Mixture.random(3, 1, num_levels=3)
    found = []
    for seed in range(16):
        effort = Effort(chains=40, temperatures=24, leapfrog_steps=1, equilibration=2, seed=seed)
        found.append(bracketed(truth, tmp_path / str(seed), effort).of_class[-1])
    for estimates in ([one.bracket.lower for one in found], [one.bridge for one in found]):
        values = torch.tensor([each.log_z for each in estimates])
        claimed = sum(each.standard_error for each in estimates) / len(estimates)
        assert values.mean().item() == pytest.approx(truth.log_z(0), abs=4 * values.std().item() / 16**0.5)
        # The spread of 16 is known to 18 %; what chains that are copies of one another have in common is not counted.
        assert 0.5 < claimed / values.std().item() < 1.8


def test_a_normalizer_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    truth = Mixture.random(5, 2, num_levels=3)

    def found(size: int) -> Any:
        effort = Effort(chains=20, temperatures=40, leapfrog_steps=1, equilibration=3, batch_size=size)
        return bracketed(truth, tmp_path / str(size), effort).of_class[-1].bracket

    assert found(7).lower.log_z == pytest.approx(found(20).lower.log_z, abs=1e-3)
    assert found(7).upper.log_z == pytest.approx(found(20).upper.log_z, abs=1e-3)


def test_what_is_finished_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    truth = Mixture.random(3, 1, num_levels=3)
    whole = bracketed(truth, tmp_path / "whole", SMALL)
    task = bracketing(truth, tmp_path / "parts", SMALL)
    start = truth.sample(SMALL.chains, 0, seed=1)
    moves = 0

    def stop_in_the_middle() -> bool:
        nonlocal moves
        moves += 1
        return moves > 100

    class Requests:
        def __enter__(self) -> Any:
            return stop_in_the_middle

        def __exit__(self, *error: object) -> None: ...

    with monkeypatch.context() as patch:
        patch.setattr("pipelines.likelihood.normalizer.stop_requests", Requests)
        with pytest.raises(Interrupted, match="the same command goes on"):
            task.run(start)
    kept = written(tmp_path / "parts")
    assert {"level_0.safetensors", "forward_2_0.safetensors"} <= {path.name for path in kept}
    assert "back_2_0.safetensors" not in {path.name for path in kept}
    assert bracketing(truth, tmp_path / "parts", SMALL).run(start) == whole
    assert written(tmp_path / "parts").items() >= kept.items()


def written(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def test_more_temperatures_go_on_from_the_same_pilot_and_other_moves_have_their_own(tmp_path: Path) -> None:
    truth = Mixture.random(3, 1, num_levels=3)
    bracketed(truth, tmp_path, SMALL)
    pilots = {path for path in written(tmp_path) if path.parent.name.startswith("pilot_")}
    assert len(pilots) == 3
    before = written(tmp_path)
    more = dataclasses.replace(SMALL, temperatures=90)
    assert bracketed(truth, tmp_path, more) == bracketed(truth, tmp_path / "anew", more)
    assert {path: written(tmp_path)[path] for path in before} == before
    assert bracketed(truth, tmp_path, SMALL, level=1) == bracketed(truth, tmp_path / "anew" / "1", SMALL, level=1)
    assert {path: written(tmp_path)[path] for path in before} == before
    bracketed(truth, tmp_path, dataclasses.replace(SMALL, leapfrog_steps=2))
    own = {path for path in written(tmp_path) if path.parent.name.startswith("pilot_") and "anew" not in path.parts}
    assert len(own) == 6


def test_the_plan_is_told_before_anything_is_spent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = Mixture.random(3, 1, num_levels=3)
    found = bracketed(truth, tmp_path, SMALL)
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert first.startswith("plan: 0.0059 million gradients")  # 2 ends * 24 chains * (2 * 60 + 3)
    assert "24 chains" in first
    assert "to level 2" in second
    assert second.count("to level") == 3
    assert found.gradients > 2 * 24 * 60


def test_as_many_starts_as_chains_are_needed(tmp_path: Path) -> None:
    truth = Mixture.random(3, 1, num_levels=3)
    with pytest.raises(ValueError, match="expected 24 grids, one for each chain, found 5"):
        bracketing(truth, tmp_path, SMALL).run(truth.sample(5, 0))

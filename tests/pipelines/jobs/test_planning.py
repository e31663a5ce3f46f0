"""Plans: counted as training counts, timed on its own updates, and leaving nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cdrl import CDRL, ConfigError
from cdrl.config_files import load_config
from pipelines.jobs import planning
from pipelines.jobs.planning import StagePlan, duration, plans
from tests.helpers import start_command, tiny_config, tiny_values, write_config

FIRST_STAGE = {
    "architecture": {"channels": 32, "multipliers": [1], "num_blocks": 1, "pixel_unshuffle": 2},
    "training": {"num_steps": 40, "batch_size": 4},
}


@pytest.fixture
def at_a_glance(monkeypatch: pytest.MonkeyPatch) -> None:
    """Updates of the fewest images are measured alone."""
    monkeypatch.setattr(planning, "_ENOUGH", 0.0)


def test_a_plan_counts_what_training_builds_and_times_its_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_config(training={"num_steps": 500})
    (stage,) = plans(config)
    assert stage.parameters == sum(p.numel() for p in CDRL.without_weights(config, (1, 8, 8), 10).parameters())
    assert (stage.images, stage.batch_size, stage.num_steps, stage.processes) == (8, 8, 500, 1)
    assert stage.total_seconds == pytest.approx(500 * stage.seconds)
    assert stage.checkpoint == 16 * stage.parameters
    assert stage.memory > 0
    assert not list(tmp_path.iterdir())


def test_updates_are_timed_with_the_number_of_threads_that_training_would_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beside a neighbour two threads take ten times as long: the plan is that of one, and none is left behind."""
    asked = []

    def beside_a_neighbour(work: Callable[[], None], numbers: list[int], rounds: int) -> dict[int, float]:
        work()
        asked.append(numbers)
        return {1: 0.5} if 1 in numbers else {2: 5.0}

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(planning, "seconds_with_each", beside_a_neighbour)
    torch.set_num_threads(2)
    try:
        (stage,) = plans(tiny_config())
        assert torch.get_num_threads() == 2
        (fixed,) = plans(tiny_config(threads=2))
    finally:
        torch.set_num_threads(1)
    assert asked[0] == [2, 1]
    # Twice as many images with what is left of the numbers.
    assert asked[1] == [1]
    assert stage.seconds == pytest.approx(0.5)
    assert fixed.seconds == pytest.approx(5.0)


@pytest.mark.usefixtures("at_a_glance")
def test_both_stages_of_a_latent_run_are_planned_the_late_discriminator_too() -> None:
    plain = tiny_config(space="latent", autoencoder=FIRST_STAGE)
    first, second = plans(plain)
    assert (first.name, first.batch_size, first.num_steps) == ("first stage", 4, 40)
    assert second.batch_size == 8
    objective = {"adversarial_weight": 0.5, "adversarial_start": 20}
    adversarial = tiny_config(
        space="latent", autoencoder={**FIRST_STAGE, "objective": objective}, data={"image_size": 32}
    )
    assert [stage.name for stage in plans(adversarial)] == ["first stage", "energies and initializers"]


@pytest.mark.usefixtures("at_a_glance")
def test_points_are_planned_and_a_first_stage_that_is_missing_is_named(tmp_path: Path) -> None:
    (points,) = plans(load_config("checkerboard", ["training.batch_size=20"]))
    assert points.batch_size == 20
    with pytest.raises(RuntimeError, match="nowhere: no trained first stage there"):
        plans(tiny_config(space="latent", autoencoder={"run": str(tmp_path / "nowhere")}))
    with pytest.raises(ConfigError, match="no autoencoder section"):
        plans(tiny_config().model_copy(update={"space": "latent"}))


def test_larger_batches_are_extrapolated_and_said_to_be() -> None:
    stage = StagePlan("energies", 2_000_000, 2**30, 10**7, 4, 6.0, 256, 1000, 2)
    assert stage.total_seconds == 6.0 * 64 * 1000
    text = "\n".join(stage.lines())
    assert "measured, 2 processes together: 6 s an update of 4 images, so 384 s for 256" in text
    assert "1,000 updates: 4 d 10 h" in text


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.4, "3 s"), (61, "1 min 1 s"), (7300, "2 h 1 min"), (90_000, "1 d 1 h")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_plan_for_two_processes_is_one_text_that_ends_with_the_command_to_begin_with(tmp_path: Path) -> None:
    path = write_config(tmp_path / "a.yaml", tiny_values())
    process = start_command("plan", path, "--processes", "2")
    told, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert told.count("measured, 2 processes together: ") == 1
    assert told.endswith(f"next: python run.py train {path}\n")

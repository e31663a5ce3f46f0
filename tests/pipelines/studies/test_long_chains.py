"""Long chains: states of Algorithm 2, figures against energies known in closed form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cdrl.runs.run import RunError
from cdrl.sampling.settings import effective, with_defaults
from pipelines import CDRLPipeline
from pipelines.decoding import to_pil
from pipelines.studies.long_chains import Chains, chain_figures, chain_images, chain_lines, long_chains, run_chains
from tests.helpers import save_tiny_run, tiny_config

SEEDS = [4, 1, 9]
LABELS = [4, 1, 9]


def test_the_states_are_those_of_algorithm_2(pipeline: CDRLPipeline) -> None:
    """The first k steps of a level's chain do not know how many are to follow, and the last state is the sample's."""
    chains = long_chains(pipeline, SEEDS, LABELS, steps=7, every=3)
    assert chains.kept == (0, 3, 6, 7)
    moves: dict[tuple[int, int], Tensor] = {}

    def remember(*, level: int, step: int, y: Tensor) -> None:
        moves[level, step] = y

    drawn = pipeline(3, seeds=SEEDS, label=LABELS, steps=7, denoise=0.0, callback=remember).grids
    expected = torch.stack([torch.stack([moves[level, step] for step in chains.kept]) for level in (0, 1)])
    torch.testing.assert_close(chains.states, expected)
    schedule = pipeline.model.schedule
    torch.testing.assert_close(chains.states[0, -1] / schedule.alpha_y[0] / schedule.alpha_bar[0], drawn)
    pipeline(3, seeds=SEEDS, label=LABELS, steps=3, callback=remember)
    torch.testing.assert_close(chains.states[1, 1], moves[1, 3])


def test_states_do_not_depend_on_the_batch(pipeline: CDRLPipeline) -> None:
    together = long_chains(pipeline, SEEDS, LABELS, steps=4, every=2, kernel="mala")
    apart = long_chains(pipeline, SEEDS, LABELS, steps=4, every=2, kernel="mala", batch_size=2)
    torch.testing.assert_close(apart.states, together.states, rtol=0, atol=1e-4)
    torch.testing.assert_close(apart.accepted, together.accepted)


def test_step_sizes_are_those_of_training_whatever_the_run_says(run: Path) -> None:
    """A thousand steps adjusted to few would go no farther than those few."""
    plain = CDRLPipeline.from_pretrained(run)
    config = tiny_config(sampling={"steps": 1, "step_adjustment": True})
    adjusting = CDRLPipeline(plain.model, plain.decoder, config, plain.class_names)
    states = [long_chains(each, SEEDS, LABELS, steps=9, every=9).states for each in (plain, adjusting)]
    assert torch.equal(*states)


def test_refused_moves_are_counted(pipeline: CDRLPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The upper level is flat, so that all moves are taken; at the lower each place is worse than any before it."""
    asked = [0, 0]

    def ever_worse(self: object, y: Tensor, level: int) -> Tensor:
        asked[level] += 1
        return 0 * y.flatten(1).sum(dim=1) - (1e6 * asked[level] if level == 0 else 0.0)

    monkeypatch.setattr("cdrl.model.ConditionedCDRL.log_density", ever_worse)
    accepted = long_chains(pipeline, SEEDS, LABELS, steps=5, every=5, kernel="mala").accepted
    assert accepted.tolist() == [0.0, 1.0]


def test_figures_are_means_over_images(pipeline: CDRLPipeline) -> None:
    states = torch.randn(2, 2, 3, *pipeline.model.shape, generator=torch.Generator().manual_seed(0))
    figures = chain_figures(pipeline, Chains((0, 5), states, torch.tensor([0.5, 1.0])), LABELS)
    assert [level["level"] for level in figures] == [0, 1]
    for level, one in enumerate(figures):
        energies = [-pipeline.model.log_density(y, level, LABELS).mean().item() for y in states[level]]
        assert one["energy"] == pytest.approx(energies, rel=1e-4)
        first, last = (sum(abs(v) for v in y.flatten().tolist()) / y.numel() for y in states[level])
        assert one["mean_abs"] == pytest.approx([first, last], rel=1e-5)
        assert one["drift"] == pytest.approx(last - first, abs=1e-5)
        assert one["accepted"] == [0.5, 1.0][level]


def test_chains_that_leave_all_bounds_are_told_in_valid_json(pipeline: CDRLPipeline) -> None:
    states = torch.full((2, 2, 3, *pipeline.model.shape), float("nan"))
    figures = chain_figures(pipeline, Chains((0, 5), states, torch.ones(2)), LABELS)
    assert figures[0]["energy"] == [None, None]
    assert figures[0]["drift"] is None
    assert "drifts out of all bounds" in chain_lines(figures)


def test_the_last_state_of_level_0_is_shown_as_the_sample_of_as_many_steps(pipeline: CDRLPipeline) -> None:
    chains = long_chains(pipeline, SEEDS, LABELS, steps=5, every=5)
    shown = chain_images(pipeline, chains.states[0], 0, LABELS)
    assert shown.shape == (3, 2, 1, 8, 8)
    sampled = pipeline(3, seeds=SEEDS, label=LABELS, steps=5, denoise=1.0).tensors
    torch.testing.assert_close(shown[:, -1], sampled, rtol=0, atol=1e-5)


def test_a_picture_has_a_row_an_image_and_a_column_a_state(run: Path, pipeline: CDRLPipeline) -> None:
    picture, levels = run_chains(run, 3, seed=4, steps=6, every=2, level=1, kernel="mala", temperature=0.9)
    assert picture == run / "chains" / "mala_6_steps_level_1.png"
    facts = json.loads(picture.with_suffix(".json").read_text())
    assert facts["kept"] == [0, 2, 4, 6]
    assert facts["levels"] == levels
    assert (facts["labels"], facts["shown_level"]) == ([4, 5, 6], 1)
    own = {"steps": 6, "kernel": "mala", "temperature": 0.9, "denoise": 0.0}
    assert facts["sampling"] == {**effective(with_defaults(tiny_config().sampling, 2)), **own}
    # 8 pixels are shown as 32, with 2 between them.
    shown = Image.open(picture).convert("L")
    assert shown.size == (4 * 66 + 2, 3 * 66 + 2)
    chains = long_chains(pipeline, [4, 5, 6], [4, 5, 6], steps=6, every=2, kernel="mala", temperature=0.9)
    images = chain_images(pipeline, chains.states[1], 1, [4, 5, 6])
    for row, column in ((0, 0), (2, 1), (1, 3)):
        left, top = 2 + 66 * column, 2 + 66 * row
        tile = shown.crop((left, top, left + 64, top + 64)).resize((8, 8), Image.Resampling.NEAREST)
        (expected,) = to_pil(images[row, column][None])
        assert np.abs(np.asarray(tile, int) - np.asarray(expected, int)).max() <= 1


def test_what_cannot_be_shown_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="level: this model has 2 levels, 0 … 1; found 2"):
        run_chains(run, 1, level=2)
    with pytest.raises(ValueError, match="kernel: unknown 'gibbs'; expected one of"):
        run_chains(run, 1, kernel="gibbs")
    assert not list(run.glob("chains/gibbs*"))
    point = tiny_config(space="point", data={"name": "checkerboard", "labels": "none"})
    save_tiny_run(tmp_path, config=point)
    with pytest.raises(RunError, match="this is a run of 2-D points"):
        run_chains(tmp_path, 1)

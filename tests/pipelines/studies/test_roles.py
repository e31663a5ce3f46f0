"""Two streams of noise: what each of them moves, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from cdrl.runs.run import RunError
from cdrl.sampling.noise import ImageNoise, derive_seed
from cdrl.sampling.sampler import sample
from cdrl.sampling.settings import effective, with_defaults
from pipelines import CDRLPipeline
from pipelines.studies.roles import drawn_from_two_streams, run_roles
from tests.helpers import chain_plan, save_tiny_run, tiny_config


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_tiny_run(folder)
    return folder


@pytest.fixture
def pipeline(run: Path) -> CDRLPipeline:
    return CDRLPipeline.from_pretrained(run)


@pytest.mark.parametrize("kernel", ["langevin", "mala", "hmc"])
def test_chains_and_proposals_draw_from_their_own_streams_alone(pipeline: CDRLPipeline, kernel: str) -> None:
    steps, shape = 3, pipeline.model.shape
    drawn: dict[str, list[torch.Tensor]] = {"first": [], "others": []}
    for chains in ((5, 6), (7, 8)):

        def keep(*, level: int, step: int, y: torch.Tensor) -> None:
            drawn["first" if level == 1 and step == 0 else "others"].append(y)

        drawn_from_two_streams(pipeline, (3, 4), chains, 1, steps=steps, kernel=kernel, callback=keep)
    # The highest level's proposals hang on the proposals' seeds alone; what comes after, on the chains' as well,
    # but for moves that are refused.
    torch.testing.assert_close(*drawn["first"], rtol=0, atol=0)
    half = len(drawn["others"]) // 2
    assert any(bool((a != b).any()) for a, b in zip(drawn["others"][:half], drawn["others"][half:], strict=True))

    noise = ImageNoise([derive_seed("proposal", 3), derive_seed("proposal", 4)])
    top = noise.normal(shape)
    conditioned = pipeline.model.conditioned(1)
    expected = conditioned.propose(top, 1) + pipeline.model.schedule.proposal_std[1] * noise.normal(shape)
    torch.testing.assert_close(drawn["first"][0], expected, rtol=0, atol=1e-5)


def test_langevin_draws_are_those_of_the_chain_stream_in_their_order(pipeline: CDRLPipeline) -> None:
    """Algorithm 2 written out over two lists of draws."""
    model, shape, steps = pipeline.model, pipeline.model.shape, 2
    proposals, chains = ImageNoise([derive_seed("proposal", 3)]), ImageNoise([derive_seed("chain", 9)])

    class Listed(ImageNoise):
        """The draws in the order in which Algorithm 2 needs them."""

        def __init__(self) -> None:
            super().__init__([0])
            one_level = [proposals, *[chains] * steps]
            self._order = iter([proposals, *one_level * model.schedule.num_levels])

        def normal(self, shape: object) -> torch.Tensor:
            return next(self._order).normal(model.shape)

    conditioned = model.conditioned(2)
    expected = sample(
        model.schedule,
        conditioned.propose,
        conditioned.log_density,
        Listed(),
        shape,
        chain_plan(model.schedule, steps=steps),
    )
    drawn = drawn_from_two_streams(pipeline, [3], [9], 2, steps=steps)
    torch.testing.assert_close(drawn.grids, expected, rtol=0, atol=1e-5)


def test_without_chains_their_stream_does_not_matter(pipeline: CDRLPipeline) -> None:
    first, second = (drawn_from_two_streams(pipeline, [3, 4], chains, steps=0).grids for chains in ([5, 6], [7, 8]))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_an_image_does_not_depend_on_its_batch(pipeline: CDRLPipeline) -> None:
    whole = drawn_from_two_streams(pipeline, range(5), range(5, 10), [0, 1, 2, 3, -1], steps=2).grids
    parts = drawn_from_two_streams(pipeline, range(5), range(5, 10), [0, 1, 2, 3, -1], steps=2, batch_size=2).grids
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-4)


def test_the_picture_and_its_figures(run: Path, pipeline: CDRLPipeline) -> None:
    picture, figures = run_roles(run, 3, fresh=2, seed=1, steps=2)
    assert Image.open(picture).size == (4 * 66 + 2, 3 * 66 + 2 + 20)
    kept = json.loads((run / "roles.json").read_text(encoding="utf-8"))
    assert (kept["labels"], kept["fresh"]) == ([1, 2, 3], 2)
    assert kept["sampling"] == {**effective(with_defaults(tiny_config().sampling, 2)), "steps": 2}
    alone = drawn_from_two_streams(pipeline, [1, 2, 3], [1, 2, 3], [1, 2, 3], steps=0).tensors
    full = drawn_from_two_streams(pipeline, [1, 2, 3], [1, 2, 3], [1, 2, 3], steps=2).tensors
    expected = torch.linalg.vector_norm(alone - full) / full.numel() ** 0.5
    assert kept["initializer"] == figures["initializer"] == pytest.approx(expected.item(), rel=1e-5)


def test_runs_without_images_or_initializer_or_chains_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one, found 0"):
        run_roles(run, steps=0)
    point = tiny_config(space="point", data={"name": "checkerboard", "labels": "none"})
    save_tiny_run(tmp_path / "point", config=point)
    with pytest.raises(RunError, match="this is a run of 2-D points"):
        run_roles(tmp_path / "point")
    save_tiny_run(tmp_path / "drl", config=tiny_config(initializer=None))
    with pytest.raises(RunError, match="its initializer is null"):
        run_roles(tmp_path / "drl")

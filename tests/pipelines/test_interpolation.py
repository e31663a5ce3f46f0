"""Interpolation: its ends are samples, and what lies between is a sample of a density between theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cdrl.runs.run import RunError, read_json
from cdrl.sampling.settings import effective, with_defaults
from pipelines import CDRLPipeline
from pipelines.decoding import to_pil
from pipelines.interpolation import between_classes, interpolated, run_interpolation
from tests.helpers import save_tiny_run, tiny_config


@pytest.mark.parametrize("kernel", ["langevin", "mala", "hmc"])
@pytest.mark.parametrize("labels", [(3, 8), (-1, -1)])
def test_the_ends_are_the_samples_of_their_seeds(pipeline: CDRLPipeline, kernel: str, labels: tuple[int, int]) -> None:
    way = interpolated(pipeline, (3, 18), 5, labels, steps=6, kernel=kernel).grids
    samples = pipeline(2, seeds=[3, 18], label=list(labels), steps=6, kernel=kernel).grids
    torch.testing.assert_close(way[[0, -1]], samples, rtol=0, atol=1e-4)
    steps = (way[1:] - way[:-1]).flatten(1).norm(dim=1)
    assert steps.min() > 1e-3


def test_images_between_do_not_depend_on_the_batch_and_lie_where_their_share_says(pipeline: CDRLPipeline) -> None:
    whole = interpolated(pipeline, (3, 18), 5, (3, 8), steps=3).grids
    torch.testing.assert_close(
        interpolated(pipeline, (3, 18), 5, (3, 8), steps=3, batch_size=2).grids, whole, rtol=0, atol=1e-4
    )
    # Three images have their middle where five have it; the way back is the same way.
    middle = interpolated(pipeline, (3, 18), 3, (3, 8), steps=3).grids[1]
    torch.testing.assert_close(middle, whole[2], rtol=0, atol=1e-4)
    back = interpolated(pipeline, (18, 3), 5, (8, 3), steps=3).grids
    torch.testing.assert_close(back.flip(0), whole, rtol=0, atol=1e-3)


def test_neighbours_come_closer_as_the_way_is_cut_finer(pipeline: CDRLPipeline) -> None:
    """With Langevin steps the way is continuous: ten times as many pieces are each about a tenth as long."""

    def piece(num_images: int) -> float:
        way: Tensor = interpolated(pipeline, (3, 18), num_images, (3, 8), steps=2).grids
        return (way[1:] - way[:-1]).flatten(1).norm(dim=1).mean().item()

    assert piece(101) < 0.15 * piece(11)


def test_the_density_between_two_classes_is_their_geometric_mean(pipeline: CDRLPipeline) -> None:
    model = pipeline.model
    share = torch.tensor([0.0, 0.25, 1.0])
    y = torch.randn(3, *model.shape, generator=torch.Generator().manual_seed(0))
    propose, log_density = between_classes(model, (2, 7), share)
    for image, u in enumerate(share.tolist()):
        alone = y[image : image + 1]
        density = (1 - u) * model.log_density(alone, 1, 2) + u * model.log_density(alone, 1, 7)
        mean = (1 - u) * model.propose(alone, 1, 2) + u * model.propose(alone, 1, 7)
        torch.testing.assert_close(log_density(y, 1)[image], density[0], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(propose(y, 1)[image], mean[0], rtol=1e-4, atol=1e-4)


def test_a_picture_is_a_row_whose_ends_are_those_of_sampling(run: Path, pipeline: CDRLPipeline) -> None:
    """Without a label the seeds have their classes in turn, as in sampling: 3 and 13 are of class 3, 18 of class 8."""
    picture = run_interpolation(run, (13, 18), 4, steps=2)
    assert picture == run / "interpolations" / "13_to_18.png"
    shown = Image.open(picture).convert("L")
    assert shown.size == (4 * 66 + 2, 66 + 2)
    ends = to_pil(pipeline(2, seeds=[13, 18], label=[3, 8], steps=2).tensors)
    for column, expected in ((0, ends[0]), (3, ends[1])):
        left = 2 + 66 * column
        tile = shown.crop((left, 2, left + 64, 66)).resize((8, 8), Image.Resampling.NEAREST)
        assert np.abs(np.asarray(tile, int) - np.asarray(expected, int)).max() <= 1
    assert read_json(picture.with_suffix(".json")) == {
        "files": ["13_to_18.png"],
        "num_images": 4,
        "seeds": [13, 18],
        "labels": [3, 8],
        "sampling": {**effective(with_defaults(tiny_config().sampling, 2)), "steps": 2},
        "model_step": None,
    }


def test_what_cannot_be_interpolated_is_refused(pipeline: CDRLPipeline, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="both ends at least, found 1"):
        interpolated(pipeline, (0, 1), 1)
    with pytest.raises(ValueError, match=r"class ids are -1 … 9, found \[10\]"):
        run_interpolation(run, (0, 1), 2, label=10)
    point = tiny_config(space="point", data={"name": "checkerboard", "labels": "none"})
    save_tiny_run(tmp_path, config=point)
    with pytest.raises(RunError, match="this is a run of 2-D points"):
        run_interpolation(tmp_path, (0, 1))


@pytest.mark.parametrize(
    ("values", "fault", "message"),
    [
        *(({"seeds": each}, TypeError, "seeds: expected a list, such as ") for each in ("12", {1, 2}, {1: 2})),
        ({"seeds": [1, 2, 3]}, ValueError, "seeds: expected one for each of 2 images"),
        *(({"num_images": each}, TypeError, "num_images: expected a whole number, ") for each in (True, "3", None)),
        ({"num_images": 2.0}, ValueError, "num_images: expected a whole number, found 2.0"),
        ({"labels": {1, 2}}, TypeError, r"label: class ids are whole numbers, found \{1, 2\}"),
        ({"labels": [1, "-1"]}, ValueError, "label: no class has the name '-1'"),
        ({"pipeline": None}, TypeError, "pipeline: expected a CDRLPipeline, found None"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    pipeline: CDRLPipeline, values: dict[str, Any], fault: type[Exception], message: str
) -> None:
    with pytest.raises(fault, match=f"^{message}"):
        interpolated(**{"pipeline": pipeline, "seeds": [1, 2], "num_images": 3, **values})

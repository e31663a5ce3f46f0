"""The order of training data, and that a row depends on nothing but seed, step and row."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cdrl.config import DataConfig
from cdrl.data import (
    DataError,
    GridSet,
    TrainingSet,
    class_names,
    image_training_set,
    latent_training_set,
    num_classes,
    possible_labels,
)


def numbered(count: int) -> Tensor:
    """Grids that tell their own number."""
    return torch.arange(count, dtype=torch.float32)[:, None]


def numbers(data: TrainingSet, steps: range) -> list[int]:
    return [int(value) for step in steps for value in data.batch(step)[0][:, 0]]


@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (10, 4), (3, 8), (7, 7)])
def test_each_epoch_is_a_permutation_of_its_own(count: int, batch_size: int) -> None:
    data = TrainingSet(numbered(count), batch_size, seed=5)
    served = numbers(data, range(3 * count))
    epochs = [served[start : start + count] for start in range(0, len(served) - count + 1, count)]
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_any_step_can_be_asked_for_first() -> None:
    in_order = numbers(TrainingSet(numbered(10), 4, seed=1), range(20))
    assert numbers(TrainingSet(numbered(10), 4, seed=1), range(13, 20)) == in_order[13 * 4 :]
    assert numbers(TrainingSet(numbered(10), 4, seed=2), range(20)) != in_order


def make_everything_random(seed: int = 0) -> TrainingSet:
    images = torch.randint(256, (9, 1, 2, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(9)[:, None] * 3 + torch.arange(3)
    return TrainingSet(images, 6, seed, labels, flip=True)


def test_rows_do_not_depend_on_the_rows_beside_them() -> None:
    data = make_everything_random()
    for step in range(4):
        grids, labels = data.batch(step)
        for rows in (range(0, 3), range(3, 6), range(1, 6, 2), slice(4, None), slice(2), range(5, 6)):
            part, part_labels = make_everything_random().batch(step, rows)
            chosen = list(range(6)[rows]) if isinstance(rows, slice) else list(rows)
            assert torch.equal(part, grids[chosen])
            assert torch.equal(part_labels, labels[chosen])


@pytest.mark.parametrize("rows", [range(7), range(-1, 3), range(6, 7)])
def test_rows_outside_a_step_are_refused(rows: range) -> None:
    with pytest.raises(IndexError, match="rows 0 … 5"):
        make_everything_random().batch(0, rows)


def test_pixels_span_minus_one_to_one() -> None:
    images = torch.tensor([0, 255, 51], dtype=torch.uint8).view(3, 1, 1, 1)
    grids, labels = TrainingSet(images, 3, seed=0).batch(0)
    assert grids.dtype == torch.float32
    assert torch.allclose(grids.flatten().sort().values, torch.tensor([-1.0, -0.6, 1.0]))
    assert labels.tolist() == [-1, -1, -1]


def test_half_of_the_images_are_flipped() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    flips = [data[0, 0, 0] > 0 for step in range(20) for data in TrainingSet(images, 50, 0, flip=True).batch(step)[0]]
    # 1,000 fair coins: the standard deviation of their mean is 0.016.
    assert abs(sum(map(float, flips)) / len(flips) - 0.5) < 0.08


def test_mirrors_are_drawn_and_standardized() -> None:
    grids = torch.stack([torch.full((2, 1, 1), value) for value in (1.0, 5.0)])[None]  # [1, 2, C=2, 1, 1]
    data = TrainingSet(grids, 400, 0, mirrors=True, mean=torch.tensor([1.0, 3.0]), std=torch.tensor([2.0, 4.0]))
    assert data.grid_shape == (2, 1, 1)
    served = data.batch(0)[0]
    assert served.shape == (400, 2, 1, 1)
    first = served[:, 0, 0, 0] == 0
    assert torch.equal(served[first][0].flatten(), torch.tensor([0.0, -0.5]))
    assert torch.equal(served[~first][0].flatten(), torch.tensor([2.0, 0.5]))
    assert abs(first.float().mean() - 0.5) < 0.13


ATTRIBUTES = torch.tensor([[True, False, True], [False, False, True]])
FACES = GridSet(
    torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
    torch.tensor([1, 0]),
    ("cat", "dog"),
    ATTRIBUTES,
    ("Smiling", "Beard", "Wearing_Hat"),
)


def config(**fields: Any) -> DataConfig:
    return DataConfig(**{"name": "faces", "image_size": 2, "channels": 1, **fields})


def test_one_attribute_of_each_image_is_drawn() -> None:
    data = config(labels="attributes", attributes=("Wearing_Hat", "Smiling"))
    assert class_names(data, FACES) == ("not Wearing_Hat", "Wearing_Hat", "not Smiling", "Smiling")
    assert num_classes(data, FACES) == 4
    # Pixels tell the two images apart: image 0 smiles, image 1 does not, both wear hats.
    images = GridSet(
        torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), None, (), ATTRIBUTES, FACES.attribute_names
    )
    grids, labels = TrainingSet(images.grids, 400, 0, possible_labels(data, images)).batch(0)
    smiling = grids.flatten() < 0
    assert set(labels[smiling].tolist()) == {1, 3}
    assert set(labels[~smiling].tolist()) == {1, 2}
    assert abs((labels == 1).float().mean() - 0.5) < 0.13


@pytest.mark.parametrize(
    ("fields", "missing"),
    [
        ({"labels": "class"}, "no training image is of class fox, nor of 1 others"),
        ({"labels": "attributes", "attributes": ("Wearing_Hat",)}, "no training image is of class not Wearing_Hat:"),
    ],
)
def test_classes_without_a_training_image_are_refused(fields: dict[str, Any], missing: str) -> None:
    images = GridSet(
        torch.zeros(2, 1, 1, 1, dtype=torch.uint8),
        torch.tensor([2, 0]),
        ("cat", "fox", "dog", "yak"),
        ATTRIBUTES,
        FACES.attribute_names,
    )
    with pytest.raises(DataError, match=missing):
        image_training_set(images, config(**fields), batch_size=2, seed=0)


def test_classes_and_no_classes() -> None:
    assert (class_names(config(), FACES), num_classes(config(), FACES)) == ((), 0)
    data = config(labels="class")
    assert class_names(data, FACES) == ("cat", "dog")
    _, labels = image_training_set(FACES, data, batch_size=2, seed=0).batch(0)
    assert sorted(labels.tolist()) == [0, 1]


@pytest.mark.parametrize(
    ("fields", "images", "message"),
    [
        ({"labels": "class"}, GridSet(FACES.grids), "data.name=faces: has no classes"),
        ({"labels": "attributes", "attributes": ("Smiling",)}, GridSet(FACES.grids), "has no attributes"),
        ({"labels": "attributes", "attributes": ("Age",)}, FACES, "has no attribute Age; it has Smiling, Beard"),
    ],
)
def test_missing_labels_are_named(fields: dict[str, Any], images: GridSet, message: str) -> None:
    with pytest.raises(DataError, match=message):
        image_training_set(images, config(**fields), 2, 0)


METADATA = {"mirrors": False, "mean": [1.0], "std": [2.0]}


def test_latents_are_standardized_by_their_metadata() -> None:
    data = latent_training_set(GridSet(torch.full((1, 1, 2, 2), 5.0), metadata=METADATA), config(), 1, 0)
    assert torch.equal(data.batch(0)[0], torch.full((1, 1, 2, 2), 2.0))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"mirrors": False, "mean": [1.0]}, "expected 'std'"),
        ({**METADATA, "mirrors": True}, "mirrors=True, but data.flip=False"),
        ({**METADATA, "std": [0.0]}, "positive std"),
    ],
)
def test_latents_with_wrong_metadata_are_refused(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        latent_training_set(GridSet(torch.zeros(1, 1, 2, 2), metadata=metadata), config(), 1, 0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"grids": torch.zeros(0, 2)},
        {"labels": torch.zeros(3, dtype=torch.int64)},
        {"labels": torch.zeros(2, 1, dtype=torch.int64)},
        {"mirrors": True},
        {"mean": torch.zeros(1)},
    ],
)
def test_contradicting_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="training data: expected"):
        TrainingSet(**{"grids": numbered(3), "batch_size": 2, "seed": 0, **arguments})

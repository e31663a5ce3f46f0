"""What an image set accepts, and what it says about contradictions."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cdrl.data import DataError, GridSet, ImageSet, SomeGrids, data_facts
from cdrl.data.images.sets import fingerprint_of, source_in_memory, source_of_grids

IMAGES = torch.zeros(4, 3, 2, 2, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 1, 0])
ATTRIBUTES = torch.tensor([[True], [False], [True], [False]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"images": IMAGES.float()}, r"images: expected uint8 .* found float32 \[4, 3, 2, 2\]"),
        ({"images": IMAGES[:, :2]}, "images: expected uint8"),
        ({"labels": LABELS}, "labels and label_names must be given together"),
        ({"label_names": ("a", "b")}, "labels and label_names must be given together"),
        ({"labels": LABELS[:3], "label_names": ("a", "b")}, r"labels: expected int64 \[4\]"),
        ({"labels": LABELS.int(), "label_names": ("a", "b")}, r"labels: expected int64 \[4\], found int32"),
        ({"labels": LABELS, "label_names": ("a",)}, "labels: expected ids 0 … 0, found 1"),
        ({"labels": -LABELS, "label_names": ("a", "b")}, "labels: expected ids 0 … 1, found -1"),
        ({"attributes": ATTRIBUTES}, "attributes and attribute_names must be given together"),
        ({"attributes": ATTRIBUTES, "attribute_names": ("a", "b")}, r"attributes: expected bool \[4, 2\]"),
        ({"attributes": ATTRIBUTES.long(), "attribute_names": ("a",)}, "attributes: expected bool"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ImageSet(**{"images": IMAGES, **fields})


def test_select_keeps_images_labels_and_attributes_together() -> None:
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 1, 2, 2)
    chosen = ImageSet(images, LABELS, ("a", "b"), ATTRIBUTES, ("x",)).select([2, 0])
    assert len(chosen) == 2
    assert chosen.images[:, 0, 0, 0].tolist() == [2, 0]
    assert chosen.labels is not None
    assert chosen.labels.tolist() == [1, 0]
    assert chosen.attributes is not None
    assert chosen.attributes.tolist() == [[True], [True]]
    assert (chosen.label_names, chosen.attribute_names) == (("a", "b"), ("x",))


def test_a_source_in_memory_is_told_by_its_numbers_row_by_row() -> None:
    def fingerprints(images: torch.Tensor, labels: torch.Tensor) -> list[str]:
        source = source_in_memory(ImageSet(images, labels, ("a", "b")))
        return [source.fingerprint(slice(row, row + 1)) for row in range(4)]

    before = fingerprints(IMAGES, LABELS)
    assert before == fingerprints(IMAGES.clone(), LABELS.clone())
    brighter, relabeled = IMAGES.clone(), LABELS.clone()
    brighter[2, 1, 1, 0] += 1
    relabeled[0] = 1
    after = fingerprints(brighter, relabeled)
    assert [first == second for first, second in zip(before, after, strict=True)] == [False, True, False, True]


def test_large_files_are_told_by_their_ends_and_by_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "large.tar"
    content = bytearray(2**21)
    found = set()
    for changed in (0, 5, 2**21 - 1):
        content[changed] += 1
        file.write_bytes(content)
        found.add(fingerprint_of([file]))
    assert len(found) == 3
    (tmp_path / "moved").mkdir()
    assert fingerprint_of([file.rename(tmp_path / "moved" / file.name)]) in found
    assert fingerprint_of([file.with_name("other.tar")]) not in found


def test_grids_are_finite_numbers() -> None:
    grids = torch.zeros(2, 3)
    assert len(GridSet(grids)) == 2
    with pytest.raises(DataError, match="found NaN"):
        GridSet(torch.full((2, 3), float("nan")))
    with pytest.raises(DataError, match="expected uint8 or float32"):
        GridSet(grids.double())
    with pytest.raises(DataError, match="images: expected uint8"):
        GridSet(grids).to_images()


def test_some_grids_are_read_where_the_others_are() -> None:
    grids = torch.randn(10, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    some = SomeGrids(grids, torch.tensor([7, 2, 5]))
    assert (len(some), some.shape, some.dtype) == (3, (3, 3, 2, 2), torch.float32)
    assert torch.equal(some[:], grids[[7, 2, 5]])
    assert torch.equal(some[torch.tensor([2, 0])], grids[[5, 7]])
    assert data_facts(GridSet(some)) == data_facts(GridSet(grids[[7, 2, 5]]))


def test_a_source_of_grids_is_one_of_the_same_images_in_memory() -> None:
    images = torch.randint(256, (200, 3, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, attributes = torch.arange(200) % 2, (torch.arange(200) % 3 == 0)[:, None]
    rows = torch.arange(0, 200, 2)
    grids = source_of_grids(GridSet(images, labels, ("a", "b"), attributes, ("x",)), rows)
    memory = source_in_memory(ImageSet(images[rows], labels[rows], ("a", "b"), attributes[rows], ("x",)))
    for start in (0, 70, 99):
        read, known = list(grids.parts(start)), next(iter(memory.parts(start)))
        for name in ("pictures", "labels", "attributes"):
            assert torch.equal(torch.cat([getattr(part, name) for part in read]), getattr(known, name))
    assert grids.fingerprint(slice(3, 90)) == memory.fingerprint(slice(3, 90))
    assert (grids.count, grids.label_names, grids.attribute_names) == (100, ("a", "b"), ("x",))

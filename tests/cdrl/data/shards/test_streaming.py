"""Shards on disk: that they serve what memory would, to every rank and worker, and that damage is named."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader

from cdrl.config import DataConfig
from cdrl.data import (
    DataError,
    GridSet,
    Sample,
    StreamedTrainingSet,
    TrainingSet,
    image_training_set,
    read_shards,
    stream_shards,
    write_shards,
)

COUNT = 23


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five shards of images that tell their own number."""
    pixels = torch.randint(256, (COUNT, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    pixels[:, 0, 0, 0] = torch.arange(COUNT)
    samples = [Sample(image, row % 3, (row % 2 == 0, row > 4)) for row, image in enumerate(pixels)]
    write_shards(tmp_path, samples, {"source": "test"}, 5, ("a", "b", "c"), ("even", "large"))
    return tmp_path


def test_a_streamed_set_is_the_set_in_memory(folder: Path) -> None:
    memory, disk = read_shards(folder), stream_shards(folder)
    assert (len(disk), disk.grids.shape, disk.grids.dtype) == (COUNT, (COUNT, 3, 4, 5), torch.uint8)
    for rows in (slice(None), slice(3, 9), torch.tensor([22, 0, 7, 7]), torch.tensor([], dtype=torch.int64)):
        assert torch.equal(disk.grids[rows], memory.grids[rows])
    for name in ("labels", "attributes"):
        assert torch.equal(getattr(disk, name), getattr(memory, name))
    assert (disk.label_names, disk.attribute_names, disk.metadata) == (
        memory.label_names,
        memory.attribute_names,
        memory.metadata,
    )
    assert torch.equal(disk.to_images().images, memory.to_images().images)


def test_latents_are_streamed_bit_by_bit(tmp_path: Path) -> None:
    latents = torch.randn(7, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    write_shards(tmp_path, map(Sample, latents), {}, shard_size=3)
    disk = stream_shards(tmp_path)
    assert torch.equal(disk.grids[:], latents)
    arguments = {"mirrors": True, "mean": torch.tensor([1.0, 2, 3]), "std": torch.tensor([1.0, 2, 4])}
    pair = [TrainingSet(grids, 4, 0, **arguments) for grids in (latents, disk.grids)]  # type: ignore[arg-type]
    for step in range(4):
        assert torch.equal(pair[0].batch(step)[0], pair[1].batch(step)[0])


def pair_of_sets(folder: Path, batch_size: int = 6) -> tuple[TrainingSet, TrainingSet]:
    """The same training data from memory and from disk."""
    data = DataConfig(name="shards", path=folder, flip=True, labels="attributes", attributes=("even", "large"))
    streaming = data.model_copy(update={"stream": True})
    memory = image_training_set(read_shards(folder), data, batch_size, seed=7)
    return memory, image_training_set(stream_shards(folder), streaming, batch_size, seed=7)


def same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(*tensors) for tensors in zip(one, other, strict=True))


def test_batches_are_those_of_memory_in_any_order_of_asking(folder: Path) -> None:
    memory, disk = pair_of_sets(folder)
    assert isinstance(disk, StreamedTrainingSet)
    assert not isinstance(memory, StreamedTrainingSet)
    for step in [*range(9), 8, 3, 4, 100, 0]:  # straight on, again, back, far ahead
        for rows in (range(0, 3), range(3, 6), slice(None)):
            assert same(disk.batch(step, rows), memory.batch(step, rows))
        assert torch.equal(disk.elements(step, range(6)), memory.elements(step, range(6)))
    with pytest.raises(IndexError, match="rows 0 … 5"):
        disk.batch(0, range(7))


def test_what_is_read_ahead_does_not_pile_up(folder: Path) -> None:
    _, disk = pair_of_sets(folder)
    assert isinstance(disk, StreamedTrainingSet)
    for step in [*range(6), 2, 9, 9, 4]:
        for rows in (range(0, 3), range(3, 6)):
            disk.batch(step, rows)
    assert set(disk._steps._ahead) <= {(step, rows) for step in (4, 5) for rows in (range(0, 3), range(3, 6))}


def test_ranks_and_workers_see_every_image_once_an_epoch(folder: Path) -> None:
    """Two ranks of two workers each: together they see one permutation after the other, the count being the clock."""
    data = TrainingSet(stream_shards(folder).grids, 4, seed=1)
    seen: list[list[int]] = []
    for rank in range(2):
        rows = range(2 * rank, 2 * rank + 2)

        class Steps(torch.utils.data.Dataset[Tensor]):
            def __getitem__(self, step: int, rows: range = rows) -> Tensor:
                return data.batch(step, rows)[0]

            def __len__(self) -> int:
                return COUNT

        loader = DataLoader(Steps(), batch_size=None, num_workers=2, multiprocessing_context="fork")
        seen.append([round(float(image[0, 0, 0] + 1) * 127.5) for batch in loader for image in batch])
    steps = [seen[rank][2 * step : 2 * step + 2] for step in range(COUNT) for rank in range(2)]
    in_order = [number for step in steps for number in step]
    assert len(in_order) == 4 * COUNT
    for epoch in range(4):
        assert sorted(in_order[epoch * COUNT : (epoch + 1) * COUNT]) == list(range(COUNT))


def test_it_goes_to_other_processes_by_pickle(folder: Path) -> None:
    grids = stream_shards(folder).grids
    assert torch.equal(pickle.loads(pickle.dumps(grids))[3:5], grids[3:5])


def spoil_table(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "samples.safetensors"
        table = load_file(path)
        change(table)
        save_file(table, path)

    return damage


def flip_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "shard-000002.tar").unlink(), "shard-000002.tar: missing"),
        (lambda folder: (folder / "samples.safetensors").unlink(), "samples.safetensors: cannot be read"),
        (lambda folder: flip_bit(folder / "samples.safetensors", -9), "samples.safetensors: damaged: its SHA-256"),
        (spoil_table(lambda table: table.pop("label")), "samples.safetensors: damaged"),
        (lambda folder: (folder / "index.json").unlink(), "index.json: cannot be read"),
    ],
)
def test_damage_is_named_at_once(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message):
        stream_shards(folder)


def test_damage_of_a_grid_is_named_when_it_is_asked_for(folder: Path) -> None:
    grids: GridSet = stream_shards(folder)
    whole = grids.grids[:]
    shard = folder / "shard-000001.tar"
    content = shard.read_bytes()
    place = content.index(b"IDAT") + 20
    flip_bit(shard, place)
    with pytest.raises(DataError, match=r"shard-000001.tar: damaged: sample 5 differs"):
        grids.grids[torch.tensor([4, 5])]
    assert torch.equal(grids.grids[6:], whole[6:])
    shard.write_bytes(content[:4000])
    with pytest.raises(DataError, match=r"shard-000001.tar: damaged: sample 9 differs"):
        grids.grids[torch.tensor([9])]
    shard.unlink()
    with pytest.raises(DataError, match=r"shard-000001.tar: cannot be read"):
        grids.grids[torch.tensor([5])]
    os.mkfifo(shard)  # to open one waits for whoever writes into it
    with pytest.raises(DataError, match=r"shard-000001.tar: cannot be read: expected a file, found a named pipe"):
        grids.grids[torch.tensor([5])]


def test_shards_without_a_table_are_refused_but_can_be_read_whole(folder: Path) -> None:
    index = folder / "index.json"
    lines = [line for line in index.read_text().splitlines() if "table_sha256" not in line]
    index.write_text("\n".join(lines))
    assert len(read_shards(folder)) == COUNT
    with pytest.raises(DataError, match="written before shards could be read sample by sample"):
        stream_shards(folder)

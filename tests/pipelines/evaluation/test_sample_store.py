"""Samples in store: drawn once, by whoever comes, the same as without any store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cdrl.data import to_bytes
from cdrl.runs.run import RunError, load_tensors, save_tensors
from cdrl.training.engine import World
from cdrl.training.interruption import Interrupted
from pipelines import CDRLPipeline
from pipelines.evaluation.sample_store import SampleStore
from tests.helpers import save_tiny_run

ALONE = World(0, 1, torch.device("cpu"))
Open = Callable[..., SampleStore]


@pytest.fixture
def open_store(tmp_path: Path) -> Open:
    save_tiny_run(tmp_path)
    pipeline = CDRLPipeline.from_pretrained(tmp_path)
    return lambda **settings: SampleStore(tmp_path, tmp_path / "model", pipeline, **settings)


def files(store: SampleStore) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in store.folder.iterdir()}


def test_a_store_gives_what_the_pipeline_draws_with_the_classes_in_turn(open_store: Open, tmp_path: Path) -> None:
    store = open_store(batch_size=3, guidance=0.5)
    store.draw(range(7, 15), ALONE)
    images, rate = store.read(range(8, 14))
    labels = [seed % 10 for seed in range(8, 14)]
    pipeline = CDRLPipeline.from_pretrained(tmp_path)
    expected = pipeline(6, seeds=range(8, 14), label=labels, guidance=0.5)
    # Other batches may round the last bit of an image differently.
    torch.testing.assert_close(images[:].int(), to_bytes(expected.tensors).int(), rtol=0, atol=1)
    assert images.dtype == torch.uint8
    assert rate > 0


def test_what_is_drawn_is_not_drawn_again_and_an_interruption_changes_nothing(
    open_store: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = open_store(batch_size=2, denoise=1.0)
    whole.draw(range(8), ALONE)
    store = open_store(batch_size=2)
    draw_batch, drawn = SampleStore._draw_batch, []

    def only_two(self: SampleStore, batch: Any, world: World) -> None:
        if len(drawn) == 2:
            raise Interrupted("killed")
        drawn.append(list(batch))
        draw_batch(self, batch, world)

    monkeypatch.setattr(SampleStore, "_draw_batch", only_two)
    with pytest.raises(Interrupted):
        store.draw(range(8), ALONE)
    before = files(store)
    drawn.clear()
    store.draw(range(8), ALONE)
    assert drawn == [[4, 5], [6, 7]]
    assert before.items() - files(store).items() <= {("settings.json", before["settings.json"])}
    # Under settings of their own the same seeds lie elsewhere, and are the same as never interrupted.
    monkeypatch.undo()
    again = SampleStore(tmp_path / "again", tmp_path / "model", CDRLPipeline.from_pretrained(tmp_path), batch_size=2)
    again.draw(range(8), ALONE)
    assert torch.equal(again.read(range(8))[0][:], store.read(range(8))[0][:])
    assert whole.folder != store.folder


def test_more_images_or_other_batches_leave_what_is_there(open_store: Open) -> None:
    open_store(batch_size=3).draw(range(6), ALONE)
    store = open_store(batch_size=4)
    before = files(store)
    first = store.read(range(6))[0][:]
    store.draw(range(10), ALONE)
    after = files(store)
    assert {name: after[name] for name in before if name != "settings.json"}.items() <= before.items()
    assert sorted(after.keys() - before.keys()) == ["from_00000006.safetensors", "from_00000008.safetensors"]
    assert torch.equal(store.read(range(10))[0][:6], first)


def test_processes_divide_the_batches_and_come_to_the_same_images(open_store: Open, tmp_path: Path) -> None:
    single = open_store(batch_size=2)
    single.draw(range(9), ALONE)
    pipeline = CDRLPipeline.from_pretrained(tmp_path)
    store = SampleStore(tmp_path / "shared", tmp_path / "model", pipeline, batch_size=2)
    second = SampleStore(tmp_path / "shared", tmp_path / "model", pipeline, batch_size=2)
    # The second process looks before the first has drawn, as it does behind their barrier.
    second._seeds = lambda: set()  # type: ignore[method-assign]
    store.draw(range(9), World(0, 2, ALONE.device))
    assert sorted(files(store)) == [*(f"from_{seed:08d}.safetensors" for seed in (0, 4, 8)), "settings.json"]
    second.draw(range(9), World(1, 2, ALONE.device))
    assert torch.equal(store.read(range(9))[0][:], single.read(range(9))[0][:])


def test_every_setting_and_other_weights_have_a_folder_of_their_own(open_store: Open, tmp_path: Path) -> None:
    stores = [open_store(), open_store(steps=2), open_store(guidance=1.0), open_store(label=3), open_store(label=-1)]
    save_tiny_run(tmp_path / "other")
    changed = CDRLPipeline.from_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model" / "energy.safetensors").rename(tmp_path / "other" / "model" / "e.safetensors")
    stores.append(SampleStore(tmp_path, tmp_path / "other" / "model", changed))
    assert len({store.folder for store in stores}) == len(stores)
    # The steps that are the run's own need not be named.
    assert open_store(steps=1).folder == open_store().folder
    assert open_store(kernel="hmc", leapfrog_steps=5).folder != open_store(kernel="hmc").folder


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: {name: tensor for name, tensor in stored.items() if name != "seeds"},
        lambda stored: {name: tensor for name, tensor in stored.items() if name != "processes"},
        lambda stored: {**stored, "images": stored["images"][1:]},
        lambda stored: {**stored, "images": stored["images"].float()},
        lambda stored: {**stored, "images": stored["images"][..., 1:]},
        lambda stored: {**stored, "seeds": stored["seeds"].float()},
        lambda stored: {**stored, "seconds": torch.zeros(())},
        lambda stored: {**stored, "processes": torch.ones(2)},
    ],
)
def test_a_damaged_batch_is_named_with_what_helps(open_store: Open, change: Callable[..., Any]) -> None:
    store = open_store(batch_size=3)
    store.draw(range(3), ALONE)
    (path,) = store.folder.glob("from_*.safetensors")
    save_tensors(path, change(load_tensors(path)))
    with pytest.raises(RunError, match=rf"{path.name}: damaged: .*; remove {path.name} to have its samples drawn anew"):
        store.read(range(3))
    path.unlink()
    with pytest.raises(RunError, match="the sample of seed 0 is gone"):
        store.read(range(3))
    store.draw(range(3), ALONE)
    assert len(store.read(range(3))[0]) == 3

"""Grids whose writing was cut short: the next call goes on, whatever the last one left, and nothing damaged is kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cdrl.data import Sample, read_shards
from cdrl.data.shards import writing
from cdrl.data.shards.writing import write_grids_resumably

COUNT, SIZE = 17, 5


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "SHARD_SIZE", SIZE)
    monkeypatch.setattr(writing, "_OBSERVED", 2)


def grids(kind: str, count: int = COUNT) -> Tensor:
    return torch.randn(count, 2, 3, 3, generator=torch.Generator().manual_seed(len(kind)))


def write(folder: Path, kind: str = "a", count: int = COUNT, stop: int | None = None) -> tuple[bool, int]:
    """Write grids of a kind; whether there was anything to do, and how many were asked for. ``stop``: a crash there."""
    metadata: dict[str, Any] = {"kind": kind, "count": count}
    total, asked = torch.zeros(2, dtype=torch.float64), 0

    def samples(first: int) -> Iterator[Sample]:
        nonlocal asked
        for number, grid in enumerate(grids(kind, count)[first:], start=first):
            if number == stop:
                raise KeyboardInterrupt
            asked += 1
            yield Sample(grid)

    def observe(some: Tensor) -> None:
        total.add_(some.double().sum(dim=(0, 2, 3)))
        metadata["sum"] = total.tolist()

    return write_grids_resumably(folder, samples, (2, 3, 3), metadata, observe=observe), asked


def cut_short(folder: Path, monkeypatch: pytest.MonkeyPatch, moves: int, kind: str = "a", count: int = COUNT) -> bool:
    """A crash at the ``moves``-th file that takes its name; whether there were as many."""
    replace, calls = os.replace, iter(range(moves))

    def crashing(source: Path, target: Path) -> None:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(writing.os, "replace", crashing)
        try:
            write(folder, kind, count)
        except KeyboardInterrupt:
            return True
    return False


def is_right(folder: Path, kind: str, count: int = COUNT) -> None:
    found = read_shards(folder)
    expected = grids(kind, count)
    assert torch.equal(found.grids, expected)
    torch.testing.assert_close(
        torch.tensor(found.metadata["sum"], dtype=torch.float64), expected.double().sum(dim=(0, 2, 3))
    )
    shards = [f"shard-{number:06d}.tar" for number in range(-(-count // SIZE))]
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "samples.safetensors", *shards]


def test_it_goes_on_after_the_last_full_shard_and_then_has_nothing_to_do(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, stop=12)
    assert write(tmp_path) == (True, COUNT - 10)
    is_right(tmp_path, "a")
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "other", stop=12)
    assert (tmp_path / "shard-000001.tar.partial").is_file()
    assert write(tmp_path) == (False, 0)
    is_right(tmp_path, "a")


@pytest.mark.parametrize("second", ["a", "other"])
def test_wherever_two_calls_are_cut_short_a_third_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    """The second may have other settings; and a larger set may have been cut short while it took its names."""
    for first_moves in range(40):
        cut = cut_short(tmp_path / str(first_moves), monkeypatch, first_moves, count=COUNT + 9)
        for moves in (0, 1, 2, 12):
            folder = tmp_path / f"{first_moves}-{moves}"
            cut_short(folder, monkeypatch, first_moves, count=COUNT + 9)
            cut_short(folder, monkeypatch, moves, second)
            write(folder, second)
            is_right(folder, second)
        if not cut:
            break
    assert 12 < first_moves < 39


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:2000],
        lambda content: content[:700] + bytes([content[700] ^ 1]) + content[701:],
        lambda content: content.replace(b"<f4", b"<i4"),
        lambda content: b"",
    ],
    ids=["its end", "a number", "its type", "all"],
)
def test_a_shard_that_was_damaged_meanwhile_is_made_again(tmp_path: Path, damage: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, stop=12)
    shard = tmp_path / "shard-000001.tar.partial"
    content = shard.read_bytes()
    shard.write_bytes(damage(content))
    assert shard.read_bytes() != content
    assert write(tmp_path) == (True, COUNT - 5)
    is_right(tmp_path, "a")


@pytest.mark.parametrize("lost", ["shard-000003.tar.partial", "shard-000000.tar", "index.json.partial"])
def test_a_set_that_lost_a_file_while_it_took_its_names_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Four shards with the plan before each, table and index are ten moves; then two shards have their names."""
    assert cut_short(tmp_path, monkeypatch, 12)
    (tmp_path / lost).unlink()
    write(tmp_path)
    is_right(tmp_path, "a")


@pytest.mark.parametrize("plan", [b"", b"{}", b"[1]", b'{"words": "a"}'])
def test_a_damaged_plan_is_none(tmp_path: Path, plan: bytes) -> None:
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, stop=12)
    (tmp_path / "plan.json.partial").write_bytes(plan)
    assert write(tmp_path) == (True, COUNT)
    is_right(tmp_path, "a")

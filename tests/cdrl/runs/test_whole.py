"""Whole or not at all: killed at every change of a file, and with the disk asked before a name is taken."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from cdrl.runs import whole
from cdrl.runs.whole import clear_all_leftovers, clear_leftovers, discard, written_whole
from tests.killing import killed_before


def write_model(path: Path, content: str) -> None:
    with written_whole(path) as partial:
        (partial / "decoder").mkdir(parents=True)
        for name in ("weights", "decoder/weights"):
            (partial / name).write_text(content)


def content(path: Path) -> list[str]:
    return [file.read_text() for file in (path / "weights", path / "decoder" / "weights")]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("in_one_move", [True, False])
def test_a_folder_that_is_replaced_is_never_missing_nor_mixed(
    in_one_move: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not in_one_move:
        monkeypatch.setattr(whole, "_exchanged", lambda one, other: False)
    path = tmp_path / "model"
    write_model(path, "old")
    kills = 0
    for event in itertools.count():
        killed = killed_before(event, lambda: write_model(path, "new"))
        if in_one_move:
            assert content(path) in (["old"] * 2, ["new"] * 2)
        clear_leftovers(path)
        assert content(path) in (["old"] * 2, ["new"] * 2)
        assert names(tmp_path) == ["model"]
        if not killed:
            break
        kills += 1
        write_model(path, "old")
    assert content(path) == ["new"] * 2
    assert kills >= 8


def test_a_folder_that_is_removed_is_never_seen_in_part(tmp_path: Path) -> None:
    path = tmp_path / "step_1"
    for event in itertools.count():
        write_model(path, "old")
        killed = killed_before(event, lambda: discard(path))
        if path.exists():
            assert content(path) == ["old"] * 2
        clear_all_leftovers(tmp_path)
        assert names(tmp_path) in ([], ["step_1"])
        if not killed:
            break
    assert event >= 4
    assert names(tmp_path) == []


def test_everything_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync_one, replace = whole._sync_one, os.replace

    def noting_sync(path: Path) -> None:
        events.append(f"sync {path.relative_to(tmp_path)}")
        sync_one(path)

    def noting_move(old: Path, new: Path) -> None:
        events.append(f"move to {Path(new).relative_to(tmp_path)}")
        replace(old, new)

    monkeypatch.setattr(whole, "_sync_one", noting_sync)
    monkeypatch.setattr(os, "replace", noting_move)
    write_model(tmp_path / "model", "new")
    *before, move, after = events
    partial = ".partial-model"
    assert sorted(before) == sorted(
        f"sync {name}" for name in (f"{partial}/weights", f"{partial}/decoder/weights", f"{partial}/decoder", partial)
    )
    assert (move, after) == ("move to model", "sync .")


def test_files_of_a_folder_that_is_not_complete_are_synced_once_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(whole, "_sync_one", lambda path: synced.append(path.name))
    with written_whole(tmp_path / "model") as partial:
        with written_whole(partial / "weights") as file:
            file.write_text("new")
        assert synced == []
    assert synced == ["weights", ".partial-model", tmp_path.name]


def test_an_error_that_names_no_file_gets_a_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as error, written_whole(tmp_path / "file"):
        raise OSError(28, "No space left on device")
    assert error.value.filename == str(tmp_path / "file")


def test_a_link_is_removed_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    write_model(tmp_path / "far", "old")
    (tmp_path / "link").symlink_to(tmp_path / "far")
    discard(tmp_path / "link")
    assert names(tmp_path) == ["far"]
    assert content(tmp_path / "far") == ["old"] * 2

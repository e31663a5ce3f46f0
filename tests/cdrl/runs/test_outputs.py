"""An output folder is one call's: never mixed with an earlier call's files, never over anybody else's."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from cdrl.runs.lock import locked
from cdrl.runs.outputs import one_calls_output
from cdrl.runs.run import RunError, read_json, write_json
from tests.killing import held_elsewhere, killed_before


def draw(folder: Path, count: int, word: str, *, alone: bool = True) -> None:
    with one_calls_output(folder, "record.json", alone=alone) as output:
        for number in range(count):
            (output.folder / f"{number}.png").write_text(word)
        output.record = {"word": word}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir()) if path.suffix == ".png"}


def test_the_files_of_an_earlier_call_give_way(tmp_path: Path) -> None:
    draw(tmp_path / "out", 5, "first")
    draw(tmp_path / "out", 2, "second")
    assert contents(tmp_path / "out") == {"0.png": "second", "1.png": "second"}
    assert read_json(tmp_path / "out" / "record.json") == {"word": "second", "files": ["0.png", "1.png"]}
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_a_call_that_fails_leaves_those_of_the_call_before(tmp_path: Path) -> None:
    draw(tmp_path, 3, "first")

    def fail() -> None:
        with one_calls_output(tmp_path, "record.json") as output:
            (output.folder / "0.png").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert contents(tmp_path) == dict.fromkeys(("0.png", "1.png", "2.png"), "first")
    assert len(list(tmp_path.iterdir())) == 4


def test_files_that_are_somebody_elses_are_left_alone(tmp_path: Path) -> None:
    draw(tmp_path, 1, "first")
    (tmp_path / "holiday.png").write_text("mine")
    with pytest.raises(RunError, match=r"holds holiday\.png, which record\.json does not list"):
        draw(tmp_path, 1, "second")
    assert contents(tmp_path) == {"0.png": "first", "holiday.png": "mine"}
    draw(tmp_path, 0, "second", alone=False)
    assert contents(tmp_path) == {"holiday.png": "mine"}


def test_killed_at_any_change_of_a_file_the_next_call_leaves_its_own_alone(tmp_path: Path) -> None:
    draw(tmp_path, 3, "first")
    for event in itertools.count():
        killed = killed_before(event, lambda: draw(tmp_path, 2, "second"))
        listed = read_json(tmp_path / "record.json")
        assert contents(tmp_path).keys() <= set(listed["files"])
        if "unfinished" not in listed:
            assert set(contents(tmp_path).values()) == {listed["word"]}
        draw(tmp_path, 3, "first")
        assert contents(tmp_path) == dict.fromkeys(("0.png", "1.png", "2.png"), "first")
        assert len(list(tmp_path.iterdir())) == 4
        if not killed:
            break
    assert event > 10


def test_a_record_that_names_files_elsewhere_removes_none(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    write_json(tmp_path / "out" / "record.json", {"files": ["../mine"]})
    with pytest.raises(RunError, match="expected a list of names of files beside it"):
        draw(tmp_path / "out", 1, "new")
    assert (tmp_path / "mine").exists()


def test_two_at_once_are_not_mixed(tmp_path: Path) -> None:
    with held_elsewhere(locked(tmp_path, "record.json")), pytest.raises(RunError, match="is being written by process"):
        draw(tmp_path, 1, "second")

"""One writer at a time: the second is told who the first is, and a killed one holds nothing."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from cdrl.runs.lock import locked
from cdrl.runs.run import RunError
from tests.killing import held_elsewhere


def test_the_second_is_told_who_holds_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/run.py", "train", "digits.yaml"])
    run = tmp_path / "run"
    holder = held_elsewhere(locked(run))
    with holder as process:
        with pytest.raises(RunError) as error, locked(run):
            pytest.fail("two at once")
        assert (
            str(error.value)
            == f"{run}: is being written by process {process} on {socket.gethostname()}: run.py train digits.yaml"
        )
        with locked(run, "detection.json"):
            pass  # another thing in the same folder


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with held_elsewhere(locked(tmp_path)) as process:
        os.kill(process, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while True:
            try:
                with locked(tmp_path):
                    break
            except RunError:
                assert time.monotonic() < deadline
                time.sleep(0.01)
    assert not list(tmp_path.iterdir())


def test_a_process_may_lock_again_what_it_holds_and_leaves_no_file(tmp_path: Path) -> None:
    with locked(tmp_path):
        with locked(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert not list(tmp_path.iterdir())
    with locked(tmp_path / "new"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_forked_process_does_not_go_on_holding_what_its_parent_has_let_go(tmp_path: Path) -> None:
    with locked(tmp_path):
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
    try:
        with held_elsewhere(locked(tmp_path)):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_lock_file_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("process 1 on nowhere: a long story" * 100)
    with locked(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
        assert (tmp_path / ".lock").read_text().count("\n") == 1

"""One job in several processes: they work together, and what stops one of them is told."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from cdrl.training.interruption import Interrupted, stop_requests
from cdrl.training.processes import side_by_side
from tests.helpers import start_script


def tell(path: Path) -> None:
    """What is around a job, or an end without a word."""
    if path.name == "silent":
        os._exit(7)
    path.write_text(f"{torch.get_num_threads()} {os.environ['OMP_NUM_THREADS']} {os.environ.get('MASTER_PORT')}")


def wait_for_the_end(path: Path) -> None:
    with stop_requests() as stop_requested:
        path.write_text("begun")
        while not stop_requested():
            time.sleep(0.01)
    path.write_text("stopped in order")
    raise Interrupted("in order")


def test_jobs_side_by_side_are_alone_and_an_end_without_a_word_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread each, even where the caller has joined a group and has more threads."""
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    ended = dict(side_by_side(tell, [(tmp_path / "silent",), (tmp_path / "talking",)], processes=2))
    assert ended == {0: "its process ended with exit code 7", 1: None}
    assert (tmp_path / "talking").read_text() == "1 1 None"
    assert (os.environ["MASTER_PORT"], os.environ["OMP_NUM_THREADS"]) == ("1", "5")


def test_a_request_to_stop_reaches_what_runs_and_begins_nothing_new(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"

    def stop_when_begun() -> None:
        while not first.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop_when_begun)
    thread.start()
    with pytest.raises(Interrupted, match="the same command goes on from there"):
        list(side_by_side(wait_for_the_end, [(first,), (second,)], processes=1))
    thread.join()
    assert first.read_text() == "stopped in order"
    assert not second.exists()


def test_a_process_that_a_signal_ends_is_told_as_a_shell_tells_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import os, sys
from cdrl.training.processes import launch
if "RANK" in os.environ:
    os.abort() if os.environ["RANK"] == "1" else sys.exit(0)
sys.exit(launch(2))
""",
        encoding="utf-8",
    )
    process = start_script(script)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (128 + signal.SIGABRT, ""), errors

"""One job in several processes: they work together, and what stops one of them is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cdrl.loop import Interrupted
from cdrl.processes import process_count, run_on_all
from cdrl.runs import RunError


def sum_ranks(folder: Path) -> None:
    dist.init_process_group("gloo")
    total = torch.tensor(float(dist.get_rank() + 1))
    dist.all_reduce(total)
    (folder / str(dist.get_rank())).write_text(str(total.item()))
    dist.destroy_process_group()


def stop(folder: Path) -> None:
    raise Interrupted("in order")


def fail(folder: Path) -> None:
    raise ValueError("the learning rate is odd")


def test_the_processes_find_each_other(tmp_path: Path) -> None:
    run_on_all(sum_ranks, tmp_path, processes=2)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"0": "3.0", "1": "3.0"}


@pytest.mark.parametrize(("job", "error"), [(stop, Interrupted), (fail, RunError)])
def test_what_stops_a_process_is_told(tmp_path: Path, job: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        run_on_all(job, tmp_path, processes=2)  # type: ignore[arg-type]


def test_processes_divide_the_batch_and_have_rows_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    assert [process_count(batch) for batch in (4, 16, 24, 32, 48, 50)] == [1, 2, 3, 4, 6, 5]

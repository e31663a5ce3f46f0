"""One job on all cores or GPUs of this machine, for those who started a single process."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as multiprocessing

from cdrl.loop import Interrupted, stop_requests
from cdrl.runs import RunError

_INTERRUPTED, _FAILED = 130, 2
_FEWEST_ROWS = 8


def process_count(batch_size: int) -> int:
    """Processes that training with this global batch size is worth: one a GPU, or one a core with at least 8 rows."""
    if torch.cuda.is_available():
        most = torch.cuda.device_count()
    else:
        most = min(len(os.sched_getaffinity(0)), batch_size // _FEWEST_ROWS)
    return max((count for count in range(1, most + 1) if batch_size % count == 0), default=1)


def run_on_all(job: Callable[..., None], *arguments: Any, processes: int) -> None:
    """Call ``job(*arguments)`` in so many processes, which find each other as those of torchrun do.

    Small networks gain more from a process a core than from threads. Ctrl-C and SIGTERM reach all of them.

    Args:
        job: importable by name; with one process it is called here.

    Raises:
        Interrupted: the job was asked to stop and has stopped in order.
        RunError: a process failed; it has said why.
    """
    if processes == 1:
        job(*arguments)
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with stop_requests() as stop_requested:
        context = multiprocessing.start_processes(
            _one_process, (processes, port, job, arguments), nprocs=processes, join=False, start_method="spawn"
        )
        passed_on = False
        try:
            while not context.join(timeout=0.5):
                if stop_requested() and not passed_on:
                    passed_on = True
                    for process in context.processes:
                        process.terminate()
        except multiprocessing.ProcessExitedException as exit_:
            if exit_.exit_code == _INTERRUPTED:
                raise Interrupted("stopped; the same command goes on from there") from None
            raise RunError(
                f"process {exit_.error_index} of {processes} stopped with exit code {exit_.exit_code}"
            ) from None


def _one_process(rank: int, size: int, port: int, job: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // size))
    try:
        job(*arguments)
    except Interrupted as stop:
        if rank == 0:
            print(stop, file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except (RuntimeError, ValueError) as error:
        print(f"error in process {rank}: {error}", file=sys.stderr)
        sys.exit(_FAILED)

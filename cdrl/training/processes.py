"""Processes: many jobs side by side, and one job in several that work together."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from cdrl.runs.run import RunError
from cdrl.training.engine import World, barrier
from cdrl.training.interruption import Interrupted, stop_requests
from cdrl.training.monitor import DivergenceError

_INTERRUPTED, _FAILED = 130, 2
_GRACE = 30.0
"""Seconds that processes have to end in after another has failed: some wait for it where no signal reaches them."""
_ALONE: dict[str, str | None] = {
    "OMP_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
    **dict.fromkeys(("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")),
}
"""Environment of a process that works by itself: one thread, no bar among those of others, no group to join."""


def side_by_side(
    job: Callable[..., None], arguments: Sequence[tuple[Any, ...]], processes: int
) -> Iterator[tuple[int, str | None]]:
    """Run ``job(*arguments[i])`` for every i, each in a process with one thread, at most ``processes`` at a time.

    Yields i as each ends, and None or, in one line, why it failed; a failure stops none of the others.

    Args:
        job: importable by name.

    Raises:
        Interrupted: after Ctrl-C or SIGTERM, when all that had begun have stopped in order.
    """
    waiting, stopping = list(range(len(arguments))), False
    running: dict[int, tuple[BaseProcess, Connection]] = {}
    with stop_requests() as stop_requested:
        try:
            while running or (waiting and not stopping):
                while waiting and len(running) < processes and not stop_requested():
                    index = waiting.pop(0)
                    running[index] = _started(job, arguments[index])
                if stop_requested() and not stopping:
                    stopping = True
                    for process, _ in running.values():
                        process.terminate()
                wait([process.sentinel for process, _ in running.values()], timeout=0.5)
                for index in [index for index, (process, _) in running.items() if process.exitcode is not None]:
                    process, receiving = running.pop(index)
                    failure = _failure(process.exitcode or 0, receiving)
                    if failure is None or not stopping:
                        yield index, failure
                    else:
                        waiting.append(index)
        finally:
            for process, _ in running.values():
                process.terminate()
    if waiting:
        raise Interrupted("stopped; the same command goes on from there")


def _started(job: Callable[..., None], arguments: tuple[Any, ...]) -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_by_itself, args=(sending, job, arguments))
    with _environment(_ALONE), sending:
        process.start()
    return process, receiving


def _failure(exit_code: int, receiving: Connection) -> str | None:
    if exit_code == 0:
        return None
    with receiving, suppress(EOFError):
        if receiving.poll():
            return receiving.recv()
    return f"its process ended with exit code {exit_code}"


def _by_itself(sending: Connection, job: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    _stop_with_parent()
    torch.set_num_threads(1)
    try:
        job(*arguments)
    except (Interrupted, KeyboardInterrupt) as stop:
        _end(sending, str(stop) or "stopped", _INTERRUPTED)
    except Exception as error:  # whatever stops one job must not stop the others
        if os.environ.get("CDRL_TRACEBACK"):
            traceback.print_exc()
        _end(sending, " ".join(f"{type(error).__name__}: {error}".split()), _FAILED)


def _end(sending: Connection, why: str, exit_code: int) -> None:
    with suppress(BrokenPipeError):  # where nobody is left to be told
        sending.send(why)
    sys.exit(exit_code)


def _stop_with_parent() -> None:
    """Stop in order when the process that started this one is gone: two must never write one run."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def stop_with_launcher(launcher: int) -> None:
    """Stop in order when the launcher (torchrun) has gone: the process would otherwise go on and hold its run.

    Args:
        launcher: what os.getppid() said when this process began. Where no torchrun has started it, nothing happens.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def others_watched(world: World, what_is_kept: Callable[[], str]) -> Iterator[None]:
    """End this process, in one clear line, when another has gone or cannot be reached; every process enters it.

    Whoever waits for numbers of a host that was cut off would wait for half an hour. So each process makes itself heard
    every `_BEAT` seconds, through the store by which they met, the others by the main one and the main one by all. Who
    has heard nothing for `_SILENCE` seconds ends.

    Args:
        what_is_kept: of the run, in words, for the line.

    Raises:
        RunError: another process has ended in the middle of what they do together.
    """
    if world.size == 1:
        yield
        return

    def line(reason: str) -> str:
        return f"{reason}; {what_is_kept()}; the same command on all hosts goes on from there"

    pulse = _Pulse(world, lambda reason: _end_at_once(line(reason)))
    try:
        yield
    except RuntimeError as error:
        found = _LOST.search(str(error))
        if found is None or isinstance(error, RunError | DivergenceError):
            raise
        reason = f"a process that trains together with this one has ended, or its host is gone ({found.group()})"
        raise RunError(line(reason)) from error
    finally:
        pulse.stop()


_LOST = re.compile(
    r"Connection (closed by peer|reset by peer|refused|timed out)|Broken pipe|Socket closed|remote process exited"
    r"|Timed out waiting|NCCL communicator was aborted|No route to host",
    re.IGNORECASE,
)
"""What Gloo and NCCL say of others that have gone."""
_BEAT, _SILENCE = 2.0, 30.0
_LEFT = "left"


class _Pulse:
    """This process's beat, and its ear for that of others.

    Two threads: one talks to the store, where it may hang with the network; the other looks at the clock.
    """

    def __init__(self, world: World, lost: Callable[[str], None]) -> None:
        token = [uuid.uuid4().hex]  # the store may outlive a training that torchrun starts again
        dist.broadcast_object_list(token)
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = timedelta(seconds=_SILENCE)
        self._store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=patience)
        self._lost, self._ended = lost, threading.Event()
        self._key = f"cdrl/{token[0]}/{{}}".format
        self._rank = world.rank
        now = time.monotonic()
        self._heard = dict.fromkeys(range(1, world.size) if world.is_main else [0], ("", now))
        self._store.set(self._key(self._rank), "0")
        barrier()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()
        threading.Thread(target=self._listen, daemon=True).start()

    def stop(self) -> None:
        """Say that this process leaves in order, and listen no more."""
        self._ended.set()
        self._beating.join(timeout=_BEAT)
        if not self._beating.is_alive():
            with suppress(RuntimeError):  # the store's own process may have left before
                self._store.set(self._key(self._rank), _LEFT)

    def _beat(self) -> None:
        for count in itertools.count(1):
            if self._ended.wait(_BEAT):
                return
            with suppress(RuntimeError):  # silence is told by the clock
                self._store.set(self._key(self._rank), str(count))
                beats = self._store.multi_get([self._key(rank) for rank in self._heard])
                now = time.monotonic()
                for rank, beat in zip(self._heard, beats, strict=True):
                    if beat.decode() != self._heard[rank][0]:
                        self._heard[rank] = beat.decode(), now

    def _listen(self) -> None:
        while not self._ended.wait(1.0):
            for rank, (beat, heard_at) in self._heard.items():
                if beat != _LEFT and time.monotonic() - heard_at > _SILENCE:
                    who = "the main process" if rank == 0 else f"process {rank}"
                    self._lost(f"nothing has been heard of {who} for {_SILENCE:.0f} seconds")


def _end_at_once(message: str) -> None:
    """End this process, whose main thread may be waiting where nothing but its end reaches it."""
    told = first_to_fail(f"error: {message}")
    if told is not None:
        print(told, file=sys.stderr, flush=True)
    os._exit(_FAILED)


def launch(processes: int) -> int:
    """Run this very command in processes that train together on this machine; returns its exit code.

    They find one another as those of torchrun do, but nothing is printed beside what they print. Where one fails the
    others are ended; a request to stop goes to all, and they have the time that a last checkpoint takes.
    """
    with tempfile.TemporaryDirectory() as folder, stop_requests() as stop_requested:
        port = _free_port()
        running = [_member(rank, processes, Path(folder), port) for rank in range(processes)]
        code, killed_at = 0, math.inf
        while any(process.poll() is None for process in running):
            failed = next((_exit_code(process) for process in running if process.poll()), 0)
            if code == 0 and (failed or stop_requested()):
                code = failed or _INTERRUPTED
                killed_at = time.monotonic() + _GRACE if failed else math.inf
                for process in running:
                    process.terminate()
            if time.monotonic() > killed_at:
                for process in running:
                    process.kill()
            time.sleep(0.1)
        return code or max(_exit_code(process) for process in running)


def _exit_code(process: subprocess.Popen[bytes]) -> int:
    """As a shell tells it: 128 and the number of the signal that ended the process."""
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _member(rank: int, size: int, folder: Path, port: int) -> subprocess.Popen[bytes]:
    """One of the processes of `launch`, in a session of its own: Ctrl-C comes to it through the launcher alone."""
    errors = folder / "attempt" / str(rank) / "error.json"
    errors.parent.mkdir(parents=True)
    own = {
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        **{"TORCHELASTIC_RUN_ID": folder.name, "TORCHELASTIC_ERROR_FILE": str(errors)},
    }
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // size))}
    environment = {**threads, **os.environ, **own}
    return subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=environment, start_new_session=True)


def end_among_others(code: int) -> None:
    """End this process here if it works together with others; otherwise nothing happens.

    Libraries keep threads that talk to the others. Where these have gone first, the C++ library aborts a process whose
    Python closes down as usual ("terminate called without an active exception"): its exit code would tell of that.
    """
    if not _among_others():
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or nobody reads
            stream.flush()
    os._exit(code)


def part_from_others() -> None:
    """Let go of what this process and others work together through, when all of it is done."""
    if _among_others():
        dist.destroy_process_group()


def _among_others() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def first_to_fail(message: str) -> str | None:
    """Message that a failing process should print; None if another process of the same launch has printed its own.

    torchrun gets the message too: it ends its own lines with it.
    """
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if error_file is None:
        return message
    told = _told(error_file)
    try:
        os.close(os.open(told, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return None
    except OSError:
        pass  # a launcher that has taken its folder away: two lines are better than none
    else:
        failure = {"message": message, "extraInfo": {"timestamp": str(int(time.time()))}}
        Path(error_file).write_text(json.dumps({"message": failure}), encoding="utf-8")
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE")
    return f"{message} [process {rank} of {size}; with CDRL_TRACEBACK=1 each shows where it ended]"


def another_has_told() -> bool:
    """Whether another process of the same launch has printed why it failed: what fails after it fails for that."""
    error_file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    return error_file is not None and _told(error_file).exists()


def _told(error_file: str) -> Path:
    """What the first process of a launch to fail makes, for which each has a folder."""
    return Path(error_file).parent.parent / "told"


@contextmanager
def _environment(values: dict[str, str | None]) -> Iterator[None]:
    """Variables set, or unset for None, for processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}

    def put(variables: dict[str, str | None]) -> None:
        for name, value in variables.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    put(values)
    try:
        yield
    finally:
        put(before)

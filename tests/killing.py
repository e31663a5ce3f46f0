"""Processes that are killed in the middle of what they do, or hold something while others try."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate")


def _in_a_process(action: Callable[[], object]) -> int:
    """Call ``action`` in a forked process; its id."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return child


def killed_before(event: int, action: Callable[[], object]) -> bool:
    """Do ``action`` in a process that is killed before its so many-th change of a file; False where it makes fewer."""

    def counted() -> None:
        count = 0

        def watch(name: str, arguments: Any) -> None:
            nonlocal count
            if name in CHANGES or (name == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT):
                if count == event:
                    os.kill(os.getpid(), signal.SIGKILL)
                count += 1

        sys.addaudithook(watch)
        action()

    _, status = os.waitpid(_in_a_process(counted), 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@contextmanager
def held_elsewhere(*contexts: AbstractContextManager[object]) -> Iterator[int]:
    """Another process is within ``contexts``; it is killed at the end, if it still is there."""
    receiving, sending = os.pipe()

    def hold() -> None:
        for context in contexts:
            context.__enter__()
        os.write(sending, b"!")
        signal.pause()

    child = _in_a_process(hold)
    assert os.read(receiving, 1) == b"!"
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(receiving)
        os.close(sending)

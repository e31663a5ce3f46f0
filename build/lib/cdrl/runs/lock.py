"""One writer at a time: a folder is locked while it is written, and a killed process leaves no lock behind."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cdrl.runs.run import RunError

_held: dict[str, int] = {}
"""Descriptors of the lock files that this process holds."""


@contextmanager
def locked(folder: Path, name: str = "") -> Iterator[None]:
    """Hold the lock of ``folder``, which is created if needed: only one process may write into it.

    The lock is the system's (flock) on a file .lock, so it ends with the process, however that ends. The file tells
    who holds it, and is removed afterwards. A process that holds the lock may lock again.

    Args:
        name: of what is written, where different commands may write into one folder: each has a lock of its own.

    Raises:
        RunError: another process holds it; the message names that process.
        OSError: the folder cannot be written.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (f".lock-{name}" if name else ".lock")
    key = os.path.realpath(path)
    if key in _held:
        yield
        return
    descriptor = _taken(path, folder)
    _held[key] = descriptor
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, _who().encode(), 0)
        yield
    finally:
        del _held[key]
        # Removed before it is let go: whoever has opened the file meanwhile finds that it is no longer this one.
        path.unlink(missing_ok=True)
        os.close(descriptor)
        if made:
            with suppress(OSError):  # it holds something
                folder.rmdir()


def _taken(path: Path, folder: Path) -> int:
    """The descriptor of a lock file that is locked by this process and has its name."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 2000, 0).decode(errors="replace").strip()
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(descriptor)
                raise RunError(f"{folder}: is being written by {holder or 'another process'}") from None
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
                os.close(descriptor)
                raise OSError(error.errno, error.strerror, str(path)) from None
            print(f"{path}: this file system has no locks: start no second command here", file=sys.stderr, flush=True)
        if _is_named(descriptor, path):
            return descriptor
        os.close(descriptor)


def _is_named(descriptor: int, path: Path) -> bool:
    """Whether the file is still there under its name: the one who held it may have removed it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _who() -> str:
    command = " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    return f"process {os.getpid()} on {socket.gethostname()}: {command[:1000]}\n"


def _let_go_in_child() -> None:
    """A forked process must not go on holding what its parent has locked."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)

"""Files and folders that are there whole or not at all, also after a killed process or a loss of power.

Beside a file or folder NAME, three hidden names may be left by a process that was killed:

.partial-NAME   not yet complete, or, of a folder, the old content after the new one has taken its name
.old-NAME       the old content, where a folder cannot be exchanged in one move
.gone-NAME      on its way to be removed
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PARTIAL, _OLD, _GONE = ".partial-", ".old-", ".gone-"
# Of Linux's renameat2: names relative to the working folder; the two names change places in one move.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_NO_EXCHANGE = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)
"""What systems and file systems answer that know no such move."""


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Write a file or folder under a temporary name beside ``path``; it takes its name when complete and on the disk.

    An old file or folder of that name is there, whole, until the new one is.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    partial = partial_name(path)
    # What is part of a folder that is not complete itself is synced with it.
    is_part = any(folder.name.startswith(_PARTIAL) for folder in path.absolute().parents)
    try:
        with file_named(path):
            yield partial
        if not is_part:
            sync(partial)
        if partial.is_dir() and path.exists():
            _exchange(partial, path)
        else:
            os.replace(partial, path)
        if not is_part:
            sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):  # what went wrong first is what must be told
            discard(partial)
        raise
    discard(partial)


@contextmanager
def file_named(path: Path) -> Iterator[None]:
    """Name ``path`` in an OSError that names no file, as those of a full disk do not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def partial_name(path: Path) -> Path:
    """Where `written_whole` has ``path`` written."""
    return path.with_name(f"{_PARTIAL}{path.name}")


def discard(path: Path) -> None:
    """Remove a file or folder, if it is there; a folder is never seen under its name with a part of its files."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    gone = path.with_name(f"{_GONE}{path.name}")
    if gone.exists():
        shutil.rmtree(gone)
    os.replace(path, gone)
    shutil.rmtree(gone)


def clear_leftovers(path: Path) -> None:
    """Remove what a killed process left when it wrote or removed ``path``, and bring back what it had moved aside."""
    old = path.with_name(f"{_OLD}{path.name}")
    if old.exists() and not path.exists():
        os.replace(old, path)
    for leftover in (old, partial_name(path), path.with_name(f"{_GONE}{path.name}")):
        _remove(leftover)
        _remove(leftover.with_name(f"{_GONE}{leftover.name}"))


def clear_all_leftovers(folder: Path) -> None:
    """`clear_leftovers` of everything directly in ``folder``; nobody else may be writing there."""
    names = {_without_prefix(path.name) for path in folder.glob(".*") if _without_prefix(path.name) != path.name}
    for name in sorted(names):
        clear_leftovers(folder / name)


def _without_prefix(name: str) -> str:
    while name.startswith((_PARTIAL, _OLD, _GONE)):
        name = name[name.index("-") + 1 :]
    return name


def sync(path: Path) -> None:
    """Wait until a file, or a folder with all that it holds, is on the disk and would survive a loss of power."""
    if path.is_dir():
        for folder, _, files in os.walk(path, topdown=False):
            for name in files:
                _sync_one(Path(folder, name))
            _sync_one(Path(folder))
    else:
        _sync_one(path)


def sync_folder(path: Path) -> None:
    """Wait until the names of a folder's files are on the disk, whatever is in them."""
    _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have no such call for folders; others tell that a file could not be written.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise OSError(error.errno, error.strerror, str(path)) from None
    finally:
        os.close(descriptor)


def _exchange(partial: Path, path: Path) -> None:
    """Give a folder the name of another, which steps aside in the same move where the system can do that."""
    if _exchanged(partial, path):
        return
    # A folder cannot replace a full one in one move: a process that is killed in between leaves no `path`, but
    # `clear_leftovers` brings the old one back.
    old = path.with_name(f"{_OLD}{path.name}")
    os.replace(path, old)
    os.replace(partial, path)
    discard(old)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether two names could change places in one move."""
    move = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if move is None:
        return False
    if move(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _NO_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def _remove(path: Path) -> None:
    """Remove what is known to be incomplete."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)

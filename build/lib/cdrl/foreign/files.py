"""What lies under a path before anything reads it: a file or a pipe, and what is there in place of the file wanted."""

from __future__ import annotations

import errno
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_HEAD = 512
_LFS = b"version https://git-lfs.github.com/spec/v"
_PAGES = (b"<!doctype html", b"<html", b"<?xml")


def open_file(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        OSError: it cannot be read, or is a named pipe or a device: to open these may wait for ever.
    """
    if "\0" in str(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    # Without waiting for whoever writes into a pipe: only then can it be seen that it is one.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "expected a file, found a named pipe or a device", str(path))


def read_file(path: Path, most: int) -> bytes:
    """The content of a file of ``most`` bytes at most.

    Raises:
        OSError: as `open_file`.
        ValueError: it is larger.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"has {size:,} bytes, expected {most:,} at most")
        return file.read()


def read_at_most(read: Callable[[int], bytes], most: int) -> bytes:
    """All that ``read(count)`` of a compressed stream gives, if that is ``most`` bytes at most; else ValueError."""
    content = read(most + 1)
    if len(content) > most:
        raise ValueError(f"unfolds to more than {most:,} bytes")
    return content


def stand_in(path: Path) -> str | None:
    """What lies at ``path`` in place of the weights or the archive that was meant, in words; None if unknown.

    Raises:
        OSError: as `open_file`.
    """
    with open_file(path) as file:
        head = file.read(_HEAD)
    if not head:
        return "is empty"
    if head.startswith(_LFS):
        return "is a Git LFS pointer, not the file that it stands for: fetch that with: git lfs pull"
    if head.lstrip().lower().startswith(_PAGES):
        return "is a web page, not the file that was to be downloaded: download it again"
    if head.startswith(b"PK\x03\x04") and not zipfile.is_zipfile(path):
        return "is cut short: its end is missing"
    return None

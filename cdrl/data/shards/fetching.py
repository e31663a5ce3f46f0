"""Files elsewhere brought to this machine, over HTTP, from buckets or by a command; tried again where that may help."""

from __future__ import annotations

import errno
import os
import random
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from fsspec.callbacks import Callback
from fsspec.core import url_to_fs
from tqdm import tqdm

from cdrl.data.images.sets import DataError
from cdrl.foreign.places import FILE, PIPE
from cdrl.installation import program

AT_ONCE = 8
"""Files, or parts of files, that a process fetches at a time."""
PIPES_ALLOWED = "CDRL_ALLOW_PIPE"
"""In the environment: 1 lets the settings of a run name a command, which may be somebody else's."""

_ATTEMPTS = 10
_FIRST_PAUSE, _LONGEST_PAUSE = 0.25, 30.0  # seconds; each is twice the one before
_TOLD_FROM = 3  # failures in a row: one or two are everyday
_SILENCE = 60.0  # seconds without a byte
_CHUNK = 2**20
# Of HTTP: too slow a request, too early, too many; other answers from 400 to 499 will be the same the next time.
_PASSING = (408, 425, 429)
_PIPED: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
_OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_EXTRAS = {"http": "remote", "https": "remote", "s3": "remote", "gs": "remote", "hf": "hub"}

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Stopped(Exception):  # noqa: N818 - no error of what is fetched
    """Fetching was given up from outside."""


class Stop:
    """Tells those who fetch that nobody waits for them any longer."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask them to give up."""
        self._event.set()

    def check(self) -> None:
        """Raise `Stopped` if they are to give up, as at the end of the program."""
        if self._event.is_set() or not threading.main_thread().is_alive():
            raise Stopped

    def pause(self, seconds: float) -> None:
        """Wait. Raises `Stopped` as soon as they are to give up."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.check()
            self._event.wait(min(left, 0.5))


class Files(Protocol):
    """What is used of a file system of fsspec."""

    def get_file(self, rpath: str, lpath: str, *, callback: Callback) -> None:
        """Write a file's content to a file of this machine."""

    def cat_file(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """A file's content, or a part of it."""


class Commands:
    """Files that a command writes to its standard output, each named in the command's words."""

    def __init__(self, command: str) -> None:
        """Raises DataError where there is no such command."""
        self._words = shlex.split(command)
        if shutil.which(self._words[0]) is None:
            raise DataError(f"data.prepared={PIPE}{command}: there is no command {self._words[0]} here")

    def get_file(self, rpath: str, lpath: str, *, callback: Callback) -> None:
        """Run the command, without a shell, into a file. Raises OSError where it fails."""
        with open(lpath, "wb") as file, subprocess.Popen(self._command(rpath), **_PIPED) as process:
            assert process.stdout is not None
            try:
                while chunk := process.stdout.read(_CHUNK):
                    file.write(chunk)
                    callback.relative_update(len(chunk))
            except BaseException:
                process.kill()
                raise
        self._expect_success(process.returncode)

    def cat_file(self, path: str, *, start: int | None = None, end: int | None = None) -> bytes:
        """What the command writes; a command knows no parts."""
        if start is not None or end is not None:
            raise NotImplementedError
        done = subprocess.run(self._command(path), check=False, **_PIPED)
        self._expect_success(done.returncode)
        return done.stdout

    def _command(self, name: str) -> list[str]:
        return [word.replace(FILE, name) for word in self._words]

    def _expect_success(self, status: int) -> None:
        if status:
            raise OSError(f"the command ended with status {status}")


class Fetcher:
    """Fetches the files of a folder elsewhere. It keeps nothing open, so processes may share it, by fork or by pickle.

    Attributes:
        place: as `cdrl.foreign.places.checked_place` has it.
    """

    def __init__(self, place: str) -> None:
        """Raises DataError for a command, unless the environment allows them."""
        self.place = place
        if place.startswith(PIPE) and os.environ.get(PIPES_ALLOWED) != "1":
            raise DataError(
                f"data.prepared={place}: a command that would be run: if it is yours, allow it by {PIPES_ALLOWED}=1 in "
                "the environment"
            )

    def where(self, name: str) -> str:
        """What a file is called."""
        return self.place.replace(FILE, name) if self.place.startswith(PIPE) else f"{self.place}/{name}"

    @property
    def knows_parts(self) -> bool:
        """Whether a part of a file can be asked for."""
        return not self.place.startswith(PIPE)

    def content(self, name: str) -> bytes:
        """A small file. Raises DataError where it is not there, or cannot be fetched."""
        files, path = self._files(name)
        return self._tried(name, lambda: files.cat_file(path), Stop())

    def part(self, name: str, start: int, length: int, fits: Callable[[bytes], bool], stop: Stop) -> bytes:
        """Some bytes of a file. Raises DataError where they cannot be fetched so that they are as ``fits`` wants."""
        files, path = self._files(name)

        def fetch() -> bytes:
            content = files.cat_file(path, start=start, end=start + length)
            if len(content) > length:
                raise NotImplementedError
            if not fits(content):
                raise OSError(f"what came of bytes {start} … {start + length - 1} differs from what was written there")
            return content

        return self._tried(name, fetch, stop)

    def fetch(self, name: str, target: Path, check: Callable[[Path], None], stop: Stop) -> None:
        """Write a file to ``target``, which ``check`` looks at; it raises OSError where the file is to be fetched anew.

        Raises:
            DataError: the file is not there, or cannot be fetched.
            Stopped: it was to give up.
        """
        files, path = self._files(name)

        def fetch() -> None:
            files.get_file(path, str(target), callback=_Watched(stop))
            check(target)

        self._tried(name, fetch, stop)

    def _files(self, name: str) -> tuple[Files, str]:
        if self.place.startswith(PIPE):
            return Commands(self.place.removeprefix(PIPE)), name
        scheme = urlsplit(self.place).scheme.lower()
        try:
            # fsspec keeps one for each process: asking for it again costs next to nothing, and is right after a fork.
            files, path = url_to_fs(f"{self.place}/{name}", **_options(scheme))
        except ImportError as error:
            raise DataError(
                f"{self.place}: needs packages that are not installed ({error}): pip install 'cdrl[{_EXTRAS[scheme]}]'"
            ) from None
        return files, path

    def _tried(self, name: str, once: Callable[[], _Result], stop: Stop) -> _Result:
        where, pause = self.where(name), _FIRST_PAUSE
        for attempt in range(1, _ATTEMPTS + 1):
            stop.check()
            try:
                return once()
            except (Stopped, DataError, NotImplementedError):
                raise
            except FileNotFoundError as error:
                raise DataError(
                    f"{where}: not there; expected a copy of what is written by: {program()} prepare CONFIG"
                ) from error
            except Exception as error:
                # Each library behind fsspec has dozens of exceptions of its own.
                reason = " ".join(str(error).split())[:300] or type(error).__name__
                if _is_lasting(error):
                    raise DataError(f"{where}: cannot be fetched: {reason}") from error
                if attempt == _ATTEMPTS:
                    raise DataError(f"{where}: cannot be fetched, tried {attempt} times: {reason}") from error
            if attempt >= _TOLD_FROM:
                line = f"{where}: failed {attempt} times ({reason}); the next attempt is in {pause:.0f} s"
                tqdm.write(line, file=sys.stderr)
            # Not all processes at the same moment, and without touching the random numbers of anything else.
            stop.pause(pause * random.SystemRandom().uniform(0.5, 1))
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise AssertionError("the last attempt returns or raises")


def in_threads(function: Callable[[_Item, Stop], _Result], items: Sequence[_Item]) -> list[_Result]:
    """What ``function`` makes of each item, in order, `AT_ONCE` of them at a time; the first error ends all.

    Whoever waits here may be interrupted: the threads are told to stop, and are waited for.
    """
    stop = Stop()
    with ThreadPoolExecutor(min(AT_ONCE, len(items))) as pool:
        futures = [pool.submit(function, item, stop) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            stop.set()
            for future in futures:
                future.cancel()
            raise


class _Watched(Callback):
    """Looks up, whenever some bytes have come, whether anybody waits for them."""

    def __init__(self, stop: Stop) -> None:
        super().__init__()
        self._stop = stop

    def relative_update(self, inc: int = 1) -> None:
        super().relative_update(inc)
        self._stop.check()


def _options(scheme: str) -> dict[str, Any]:
    """How a file system is opened."""
    if scheme not in ("http", "https"):
        return {}
    # Imported here, as it belongs to an extra.
    from aiohttp import ClientTimeout

    # By default a file has five minutes, however large it is; proxies and .netrc are looked up in the environment.
    timeout = ClientTimeout(total=None, sock_connect=_SILENCE, sock_read=_SILENCE)
    return {"client_kwargs": {"timeout": timeout, "trust_env": True}}


def _is_lasting(error: Exception) -> bool:
    """Whether another attempt would fail in the same way."""
    status = getattr(error, "status", None) or getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in _PASSING
    if isinstance(error, OSError) and error.errno in _OWN_DISK:
        return True
    # Those who look for credentials have exceptions that cannot be named where their packages are not installed.
    return isinstance(error, PermissionError | ImportError) or "Credentials" in type(error).__name__

"""A web server on this machine that serves a folder; it may be slow, fail, cut its answers and lie of lengths."""

from __future__ import annotations

import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_CHUNK = 4096


@dataclass
class Manners:
    """How a server answers.

    Attributes:
        pause: seconds before each 4096 bytes.
        failing: share of requests that are answered by status 503.
        cutting: share of answers that end in the middle.
        lying: names of files of which the first answer claims to be longer, and the second to be shorter, than it is.
        knows_parts: whether a part of a file may be asked for.
        status: of all answers; 200 for those that should be.
    """

    pause: float = 0.0
    failing: float = 0.0
    cutting: float = 0.0
    lying: tuple[str, ...] = ()
    knows_parts: bool = True
    status: int = 200
    dice: random.Random = field(default_factory=lambda: random.Random(1))


class DataServer(ThreadingHTTPServer):
    """The server, and what it was asked for.

    Attributes:
        asked: how often each path was asked for as a whole.
        parts: how often a part of each path was asked for.
        trouble: how often it failed, cut and lied.
        sending: set as soon as it has sent some bytes of a shard.
    """

    daemon_threads = True

    def __init__(self, folder: Path, manners: Manners) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.manners = folder, manners
        self.asked: Counter[str] = Counter()
        self.parts: Counter[str] = Counter()
        self.trouble: Counter[str] = Counter()
        self.sending = threading.Event()
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Those who ask may go away."""


@contextmanager
def serving(folder: Path, **manners: Any) -> Iterator[DataServer]:
    """A server of a folder in threads of its own."""
    server = DataServer(folder, Manners(**manners))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: DataServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server, manners = self.server, self.server.manners
        path = server.folder / self.path.lstrip("/")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if manners.knows_parts else None
        with server.lock:
            (server.asked if asked is None else server.parts)[self.path] += 1
            fails = manners.dice.random() < manners.failing
            cuts = manners.dice.random() < manners.cutting
            lie = server.asked[self.path] if path.name in manners.lying and asked is None else 0
            server.trouble["failed"] += fails
            server.trouble["cut"] += cuts and not fails
            server.trouble["lied"] += lie in (1, 2) and not fails
        if fails or manners.status != 200:
            self._head(503 if fails else manners.status, 0)
        elif not path.is_file():
            self._head(404, 0)
        else:
            content = path.read_bytes()
            if asked is not None:
                content = content[int(asked[1]) : int(asked[2]) + 1]
            claimed = len(content) + {1: 1000, 2: -1000}.get(lie, 0)
            self._head(200 if asked is None else 206, claimed)
            self._send(content[: len(content) // 2] if cuts else content)
            if cuts or lie in (1, 2):
                self.close_connection = True

    def _head(self, status: int, length: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send(self, content: bytes) -> None:
        for start in range(0, len(content), _CHUNK):
            if self.server.manners.pause:
                time.sleep(self.server.manners.pause)
            self.wfile.write(content[start : start + _CHUNK])
            if self.path.endswith(".tar"):
                self.server.sending.set()

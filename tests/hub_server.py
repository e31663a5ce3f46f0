"""A Hugging Face Hub of a few endpoints on this machine: repositories that are made, filled, listed and read."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Repository = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """The server, with the files of every repository by their names."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A hub in a thread of its own."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b"".join(self._chunks())
        parts = self._parts()
        if self.headers.get("Authorization") is None:
            self._json({"error": "Invalid credentials"}, 401)
        elif parts == ["api", "repos", "create"]:
            wanted = json.loads(content)
            name = f"{wanted.get('organization') or 'someone'}/{wanted['name']}"
            if name in self.server.repositories:
                self._json({"error": "You already created this model repo"}, 409)
                return
            self.server.repositories[name] = {}
            self._json({"url": f"{self.server.address}/{name}", "name": name})
        elif parts[-2:] == ["preupload", "main"]:
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(content)["files"]
            ]
            self._json({"files": files})
        elif parts[-2:] == ["commit", "main"]:
            name = "/".join(parts[2:4])
            for line in content.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    assert entry["value"]["encoding"] == "base64"
                    self.server.repositories[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            address = f"{self.server.address}/{name}/commit/{self._revision(name)}"
            self._json({"success": True, "commitUrl": address, "commitOid": self._revision(name)})
        elif parts == ["api", "validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        else:
            self._json({"error": "Not Found"}, 404)

    def _answer(self, *, with_body: bool) -> None:
        parts = self._parts()
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            if name not in self.server.repositories:
                self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            elif parts[4:5] == ["tree"]:
                files = self.server.repositories[name]
                self._json(
                    [
                        {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
                        for path, content in files.items()
                    ]
                )
            else:
                siblings = [{"rfilename": path} for path in self.server.repositories[name]]
                self._json({"id": name, "sha": self._revision(name), "siblings": siblings, "private": False})
        elif parts[2:3] == ["resolve"]:
            name, path = "/".join(parts[:2]), "/".join(parts[4:])
            content = self.server.repositories.get(name, {}).get(path)
            if content is None:
                self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
                return
            headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": self._revision(name)}
            self._send(content, 200, "application/octet-stream", headers, with_body=with_body)
        else:
            self._json({"error": "Not Found"}, 404)

    def _parts(self) -> list[str]:
        self.server.asked.append(f"{self.command} {self.path}")
        self.server.tokens.add(self.headers.get("Authorization"))
        return [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _revision(self, name: str) -> str:
        files = self.server.repositories[name]
        return hashlib.sha1("".join(f"{path} {_oid(files[path])}" for path in sorted(files)).encode()).hexdigest()

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(
            json.dumps(value).encode(), status, "application/json", headers or {}, with_body=self.command != "HEAD"
        )

    def _send(self, content: bytes, status: int, kind: str, headers: dict[str, str], *, with_body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(content)


def _oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

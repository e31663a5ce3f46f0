"""Folders elsewhere: what a setting may name beside a folder of this machine, and what it must not hold."""

from __future__ import annotations

import re
import shlex
from urllib.parse import urlsplit

SCHEMES = ("https", "http", "s3", "gs", "hf")
PIPE = "pipe:"
FILE = "{}"
"""In the command of a pipe: the place of the file's name, such as train/index.json."""


def is_elsewhere(text: str) -> bool:
    """Whether a text is meant as a URL or a pipe, rather than as a path of this machine."""
    return text.startswith(PIPE) or re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text) is not None


def checked_place(text: str) -> str:
    """The URL of a folder, without a slash at its end, or ``pipe:`` and a command that writes a file to its output.

    Places are kept with runs and models, so they hold no secrets.

    Raises:
        ValueError: it is of another kind, incomplete, or holds a password, a token or a signature.
    """
    if not text.isprintable():
        raise ValueError("expected a URL in printable characters")
    if text.startswith(PIPE):
        return _checked_pipe(text)
    parts = urlsplit(text)
    if parts.scheme.lower() not in SCHEMES:
        kinds = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ValueError(f"expected a folder of this machine, or one of {kinds} and {PIPE}, found {parts.scheme}:")
    if not parts.netloc:
        raise ValueError(f"expected a URL with a host or a bucket, found none behind {parts.scheme}://")
    _refuse_secrets(text)
    return text.rstrip("/")


def without_secrets(text: str) -> str:
    """A text with … in the place of what URLs in it hold of users, passwords and signatures."""
    text = re.sub(r"://[^/@\s'\"]*@", "://…@", text)
    return re.sub(r"(://[^?#\s'\"]*[?#])[^\s'\"]+", r"\1…", text)


def _checked_pipe(text: str) -> str:
    try:
        words = shlex.split(text.removeprefix(PIPE))
    except ValueError as error:
        raise ValueError(f"expected a command behind {PIPE} ({error})") from None
    if not words or FILE in words[0] or not any(FILE in word for word in words):
        raise ValueError(f"expected a command behind {PIPE} with {FILE} in the place of a file's name")
    for word in words:
        if "://" in word:
            _refuse_secrets(word)
    return text


def _refuse_secrets(url: str) -> None:
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError(
            "expected a URL without a user or a password, which would be kept with the run: put them where the "
            "storage's own programs look for them"
        )
    if parts.query or parts.fragment or "?" in url:
        raise ValueError(
            "expected the URL of a folder, without ? or #: a signature would be kept with the run, and belongs to one "
            "file"
        )

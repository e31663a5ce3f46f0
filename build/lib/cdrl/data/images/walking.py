"""Folders of pictures listed: links followed, what is no picture of the user's counted and left out."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from PIL import Image

from cdrl.data.images.census import Tally, printable
from cdrl.data.images.sets import DataError

PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# Other pictures, told apart from files that are none.
_FOREIGN_ENDINGS = frozenset(
    (".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".psd", ".tga", ".ppm", ".pgm", ".dng", ".cr2", ".nef", ".arw")
)
_SYSTEM_FOLDERS = frozenset(
    ("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__")
)
_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini", "ehthumbs.db"))


def list_folder(folder: Path, tally: Tally) -> tuple[list[Path], list[Path]]:
    """The sub-folders and the pictures that lie directly in ``folder``, each sorted; all else goes to ``tally``.

    Hidden and system folders and files are left out by their names, links that lead nowhere, and what is no picture
    by its ending.

    Raises:
        DataError: the folder cannot be read.
    """
    folders: list[Path] = []
    pictures: list[Path] = []
    for path in _entries(folder):
        reason = _why_left_out(path)
        if reason is not None:
            tally.add(reason, path)
        else:
            (folders if path.is_dir() else pictures).append(path)
    return folders, pictures


def pictures_below(folder: Path, tally: Tally, root: Path | None = None) -> list[Path]:
    """All pictures in ``folder`` and its sub-folders, sorted; links are followed, but not back to ``root`` or above it.

    Raises:
        DataError: a folder cannot be read.
    """
    above = frozenset(_identity(each) for each in ((root, *root.resolve().parents) if root is not None else ()))
    if root is not None and _identity(folder) in above:
        tally.add("links back to a folder above them", folder)
        return []
    return sorted(_walk(folder, above | {_identity(each) for each in folder.resolve().parents}, tally))


def files_beside(folder: Path, names: set[str], tally: Tally, reason: str) -> None:
    """Count the files of ``folder`` that end as those in ``names`` do, and of which ``names`` knows nothing."""
    endings = {Path(name).suffix for name in names}
    for path in _entries(folder) if folder.is_dir() else []:
        if path.suffix in endings and path.name not in names:
            tally.add(reason, path)


def _walk(folder: Path, above: frozenset[tuple[int, int]], tally: Tally) -> list[Path]:
    folders, pictures = list_folder(folder, tally)
    here = above | {_identity(folder)}
    for each in folders:
        if _identity(each) in here:
            tally.add("links back to a folder above them", each)
        else:
            pictures += _walk(each, here, tally)
    return pictures


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{printable(folder)}: cannot be read: {error.strerror}") from None


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _why_left_out(path: Path) -> str | None:
    """Why a file or folder is none of the user's pictures; None where it may hold or be one."""
    name = path.name.lower()
    try:
        mode = path.stat().st_mode
    except OSError as error:
        if path.is_symlink():
            return "links that lead nowhere"
        raise DataError(f"{printable(path)}: cannot be read: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        return "hidden or system folders" if name.startswith(".") or name in _SYSTEM_FOLDERS else None
    if name.startswith(".") or name in _SYSTEM_FILES:
        return "hidden or system files"
    ending = os.path.splitext(name)[1]
    if ending in _FOREIGN_ENDINGS or (ending in PICTURE_ENDINGS and ending not in Image.registered_extensions()):
        return "pictures of formats that are not read"
    if ending not in PICTURE_ENDINGS:
        return "files that are no pictures by their endings"
    return None if stat.S_ISREG(mode) else "pipes or devices named like pictures"

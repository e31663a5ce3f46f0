"""Clothes and glasses."""

from __future__ import annotations

import itertools

import numpy as np
import shading
from body import Body
from camera import Camera
from people import Person
from studio import Studio


def clothes(studio: Studio, person: Person, body: Body) -> list[tuple[np.ndarray, ...]]:
    """Shells around the body below a neckline, each as `glasses` returns a part, before it is posed."""
    points, normals = body.points, body.normals
    base = studio.assets.vertices
    low = _low_skin(studio)
    used, packed = np.unique(low, return_inverse=True)
    packed = packed.reshape(low.shape)
    b = base[used]
    angle = np.arctan2(np.abs(b[:, 0]), b[:, 2] - 0.15)
    behind = 0.5 - 0.5 * np.cos(angle)

    def shell(front: float, back: float, slope: float, out: float, kind: int) -> tuple[np.ndarray, ...]:
        neckline = front + (back - front) * behind
        if slope:
            neckline = np.where(b[:, 2] > 0.1, np.minimum(front + slope * np.abs(b[:, 0]), back), back)
        neckline = neckline + np.maximum(0, np.abs(b[:, 0]) - 0.75)  # shoulders are always covered
        moved = points[used] + (out + 0.012 * np.sin(b[:, :1] * 5 + b[:, 1:2] * 3)) * normals[used]
        material = np.full(len(packed), kind)
        return moved, normals[used], b, studio.assets.uv[used], packed, material, neckline - b[:, 1]

    first, second = shading.CLOTH, shading.SECOND_CLOTH
    return {
        "crew": [shell(5.60, 5.86, 0, 0.06, first)],
        "vee": [shell(4.75, 5.86, 2.2, 0.06, first)],
        "scoop": [shell(5.15, 5.75, 0, 0.055, first)],
        "turtle": [shell(5.98, 6.02, 0, 0.09, first)],
        "shirt": [shell(5.25, 5.98, 2.6, 0.075, first), shell(5.62, 5.86, 0, 0.04, second)],
        "jacket": [shell(4.3, 5.86, 2.4, 0.12, first), shell(5.3, 5.97, 2.6, 0.06, second)],
    }[person.clothes]


def how_covered(studio: Studio, shells: list[tuple[np.ndarray, ...]]) -> np.ndarray:
    """How far below a neckline each vertex lies [V]: what is well below is not drawn, lest it show through."""
    low = np.unique(_low_skin(studio))
    covered = np.full(len(studio.assets.vertices), -1.0)
    covered[low] = np.max([shell[-1] for shell in shells], axis=0)
    return covered


def _low_skin(studio: Studio) -> np.ndarray:
    """Triangles [T, 3] of the skin that clothes may cover."""
    skin = studio.assets.triangles["skin"]
    return skin[(studio.assets.vertices[skin][:, :, 1] < 6.2).all(axis=1)]


def _frame_paths(person: Person, body: Body) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Middles of the frame's tubes, and of the two rims alone, in the unposed head."""
    points, eyes = body.points, body.eyes
    half_width, half_height, power = {
        "round": (0.235, 0.225, 2.0),
        "square": (0.265, 0.185, 4.0),
        "oval": (0.255, 0.175, 2.5),
    }[person.glasses]
    apart = 0.5 * (eyes[0, 0] - eyes[1, 0])
    front = points[:, 2][(np.abs(points[:, 0]) < 0.45) & (np.abs(points[:, 1] - eyes[0, 1] + 0.02) < 0.1)].max() + 0.03
    front = max(front, eyes[:, 2].mean() + 0.33)
    y = eyes[:, 1].mean() - 0.03
    turn = np.linspace(0, 2 * np.pi, 41)
    cos, sin = np.cos(turn), np.sin(turn)
    rims = []
    for side in (1, -1):
        x = np.sign(cos) * np.abs(cos) ** (2 / power) * half_width
        up = np.sign(sin) * np.abs(sin) ** (2 / power) * half_height
        center = max(apart, half_width + 0.07) + 0.015
        middle = np.stack(
            [side * (center + x), y + up, front - 0.16 * (x + 0.1) ** 2 - 0.10 * (x + half_width)], axis=1
        )
        rims.append(middle)
    inner = center - half_width
    s = np.linspace(-1, 1, 9)
    bridge = np.stack([s * inner, y + 0.05 + 0.05 * (1 - s**2), front + 0.02 * (1 - s**2)], axis=1)
    paths = [*rims, bridge]
    ear = np.abs(points[:, 0])[(np.abs(points[:, 1] - y) < 0.1) & (np.abs(points[:, 2] - 0.62) < 0.1)].max() + 0.02
    for side in (1, -1):
        t = np.linspace(0, 1, 9)[:, None]
        start = np.array([side * (center + half_width), y + 0.07, rims[0][:, 2].min() + 0.0])
        paths.append(start + t * (np.array([side * max(ear, center + half_width), y + 0.07, 0.45]) - start))
    return paths, rims


def glasses(person: Person, body: Body) -> tuple[np.ndarray, ...]:
    """The frame as tubes, posed: points, normals, base points, uv, triangles, their material, and a cut (none)."""
    paths, _ = _frame_paths(person, body)
    thick = 0.011 if person.glasses_metal else 0.024
    around = np.linspace(0, 2 * np.pi, 7)[:-1]
    all_points, all_normals, all_triangles, start = [], [], [], 0
    for path in paths:
        along = np.gradient(path, axis=0)
        along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
        ahead = np.array([0.0, 0.0, 1.0]) if len(path) > 9 else np.array([0.0, 1.0, 0.05])
        first = np.cross(along, ahead)
        first /= np.linalg.norm(first, axis=1, keepdims=True) + 1e-9
        second = np.cross(first, along)
        ring = np.cos(around)[None, :, None] * first[:, None] + np.sin(around)[None, :, None] * second[:, None]
        all_points.append((path[:, None] + thick * ring).reshape(-1, 3))
        all_normals.append(ring.reshape(-1, 3))
        n = len(around)
        a = np.arange(len(path) - 1)[:, None] * n + np.arange(n)[None]
        b = np.arange(len(path) - 1)[:, None] * n + (np.arange(n) + 1)[None] % n
        quads = np.stack([a, b, b + n, a + n], axis=-1).reshape(-1, 4)
        all_triangles.append(np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]) + start)
        start += len(path) * n
    tube, normals, triangles = np.concatenate(all_points), np.concatenate(all_normals), np.concatenate(all_triangles)
    material = np.full(len(triangles), shading.FRAME)
    uv, cut = np.zeros((len(tube), 2)), np.ones(len(tube))
    return body.pose.move_head(tube), body.pose.turn_head(normals), tube, uv, triangles, material, cut


def add_lenses(image: np.ndarray, camera: Camera, person: Person, body: Body) -> None:
    """Darken what is behind the glass a trifle, and lay a slanting reflection on it."""
    _, rims = _frame_paths(person, body)
    size = len(image)
    rows, columns = np.mgrid[0:size, 0:size] + 0.5
    for rim in rims:
        flat = camera.project(body.pose.move_head(rim))[:, :2]
        low = np.clip(np.floor(flat.min(axis=0)).astype(int) - 1, 0, size)
        high = np.clip(np.ceil(flat.max(axis=0)).astype(int) + 1, 0, size)
        window = (slice(low[1], high[1]), slice(low[0], high[0]))
        x, y = columns[window], rows[window]
        inside = np.zeros(x.shape, dtype=bool)
        for (x0, y0), (x1, y1) in itertools.pairwise(flat):
            crosses = (y0 > y) != (y1 > y)
            inside ^= crosses & (x < (x1 - x0) * (y - y0) / (y1 - y0 + 1e-12) + x0)
        band = (x - low[0]) / max(1, high[0] - low[0]) + 0.8 * (y - low[1]) / max(1, high[1] - low[1])
        shine = 0.03 + 0.10 * np.exp(-(((band - 0.45) / 0.16) ** 2))
        glass = inside[..., None] * (shine[..., None] * person.light["sky"])
        image[window] = image[window] * (1 - 0.06 * inside[..., None]) + glass

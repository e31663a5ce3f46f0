"""What all heads share: the mesh as one piece, and where on it strands may grow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from assets import Assets

PARTS = ("skin", "upper_teeth", "lower_teeth", "tongue", "left_eye", "right_eye")


@dataclass(frozen=True)
class Roots:
    """Places on the skin where strands may grow: triangles' corners int64 [N, 3], weights and base points [N, 3]."""

    corners: np.ndarray
    weights: np.ndarray
    base: np.ndarray


@dataclass(frozen=True)
class Studio:
    """What all heads share: the assets, triangles of all parts in one array, and where strands may grow."""

    assets: Assets
    triangles: np.ndarray
    material: np.ndarray
    scalp: Roots
    beard: Roots
    brows: Roots


def open_studio(assets: Assets) -> Studio:
    """Prepare what all heads share."""
    triangles = np.concatenate([assets.triangles[part] for part in PARTS])
    material = np.concatenate([np.full(len(assets.triangles[part]), k) for k, part in enumerate(PARTS)])
    rng = np.random.default_rng(0)
    base = assets.vertices
    skin = assets.triangles["skin"]
    middle = base[skin].mean(axis=1)
    lips = _at_corners(assets, "lips", skin)
    inside = _at_corners(assets, "mouth", skin)
    ears = _at_corners(assets, "ears", skin)
    outside = (lips < 0.4) & (inside < 0.4)
    scalp = skin[(middle[:, 1] > 6.3) & (ears < 0.3) & outside & ((middle[:, 1] > 6.9) | (middle[:, 2] < 0.3))]
    front = (middle[:, 2] > 0.45) & (middle[:, 1] > 5.8) & (middle[:, 1] < 7.4) & outside & (ears < 0.3)
    forehead = (middle[:, 2] > 0.9) & (middle[:, 1] > 7.35) & (middle[:, 1] < 7.75)
    return Studio(
        assets,
        triangles,
        material,
        _scatter(rng, base, scalp, 40000),
        _scatter(rng, base, skin[front], 30000),
        _scatter(rng, base, skin[forehead], 24000),
    )


def _at_corners(assets: Assets, mask: str, triangles: np.ndarray) -> np.ndarray:
    image = assets.masks[mask]
    size = len(image)
    uv = np.clip(assets.uv, 0, 1)
    values = image[((size - 1) * (1 - uv[:, 1])).astype(int), ((size - 1) * uv[:, 0]).astype(int)]
    return values[triangles].mean(axis=1)


def _scatter(rng: np.random.Generator, base: np.ndarray, triangles: np.ndarray, count: int) -> Roots:
    a, b, c = (base[triangles[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    chosen = triangles[rng.choice(len(triangles), count, p=area / area.sum())]
    u, v = rng.random(count), rng.random(count)
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    weights = np.stack([1 - u - v, u, v], axis=1)
    return Roots(chosen, weights, np.einsum("nk,nkd->nd", weights, base[chosen]))


def at_roots(roots: Roots, chosen: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What the vertices' `values` [V, D] are at the chosen roots [N, D]."""
    return np.einsum("nk,nkd->nd", roots.weights[chosen], values[roots.corners[chosen]])


def unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors [..., 3] at length 1."""
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-12)


def smooth(low: float, high: float, x: np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, smooth between; the other way round where `low` is the higher."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)

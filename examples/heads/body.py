"""One person's mesh: morphed, dressed in nothing yet, and how it stands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from assets import Assets
from camera import Pose
from people import Person
from studio import PARTS, Studio, smooth

_NECK = np.array([0.0, 5.95, 0.15])


@dataclass(frozen=True)
class Body:
    """The morphed mesh before it is posed, and its pose.

    Attributes:
        points, normals: float64 [V, 3], the vertices are those of the assets.
        eyes: float64 [2, 3], their centres, the left one first.
        mouth: float64 [3], the middle between its corners.
        pose: what turns all this as the person stands.
    """

    points: np.ndarray
    normals: np.ndarray
    eyes: np.ndarray
    mouth: np.ndarray
    pose: Pose


def shape_body(studio: Studio, person: Person) -> Body:
    """Morph the mesh into a person."""
    assets = studio.assets
    points = _morph(assets, person.weights)
    _draw_in(assets, points)
    eyes = np.stack([points[np.unique(assets.triangles[side])].mean(axis=0) for side in PARTS[4:]])
    neck = _NECK + 0.5 * (points - assets.vertices)[studio.scalp.corners[:, 0]].mean(axis=0)
    normals = _normals(points, studio.triangles, assets.original)
    mouth = points[_lip_corners(assets)].mean(axis=0)
    return Body(points, normals, eyes, mouth, Pose(person, neck))


def _draw_in(assets: Assets, points: np.ndarray) -> None:
    """Move teeth and the mouth's lining back a little, or strong jaws show them through the chin."""
    u, v = assets.uv.T
    lining = (u > 0.74) & (u < 0.93) & (v < 0.15)
    points[:, 2] -= 0.08 * lining * (1 - smooth(1.44, 1.51, assets.vertices[:, 2]))
    points[np.unique(assets.triangles["upper_teeth"])] -= [0.0, 0.025, 0.05]
    points[np.unique(assets.triangles["lower_teeth"])] -= [0.0, 0.05, 0.10]


def _morph(assets: Assets, weights: dict[str, float]) -> np.ndarray:
    points = assets.vertices.copy()
    for name, weight in weights.items():
        if weight:
            indices, offsets = assets.targets[name]
            points[indices] += weight * offsets
    return points


def _normals(points: np.ndarray, triangles: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Normals of the vertices; copies of one vertex on a seam of the UV map share theirs."""
    a, b, c = (points[triangles[:, k]] for k in range(3))
    faces = np.cross(b - a, c - a)
    sums = np.zeros((original.max() + 1, 3))
    for k in range(3):
        owner = original[triangles[:, k]]
        for d in range(3):
            sums[:, d] += np.bincount(owner, weights=faces[:, d], minlength=len(sums))
    normals = sums[original]
    return normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-12)


def _lip_corners(assets: Assets) -> np.ndarray:
    base = assets.vertices
    skin = np.unique(assets.triangles["skin"])
    at_lips = skin[(np.abs(base[skin, 1] - 6.61) < 0.02) & (np.abs(np.abs(base[skin, 0]) - 0.25) < 0.03)]
    return at_lips[base[at_lips, 2] > 1.2]

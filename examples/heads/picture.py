"""From light to a picture: light beneath the skin, exposure, development, and what is behind the person."""

from __future__ import annotations

import kernels
import numpy as np
from camera import FINE
from people import Person, linear
from studio import smooth


def scatter_under_skin(falling: np.ndarray, skin: np.ndarray) -> np.ndarray:
    """Light that falls on skin, spread beneath it: red furthest."""
    result = falling.copy()
    for channel, radius in enumerate((3 * FINE, 2 * FINE, 1 * FINE)):
        share = kernels.blur(skin, radius)
        spread = kernels.blur(falling[..., channel] * skin, radius) / np.maximum(share, 1e-6)
        weight = skin * (0.55, 0.45, 0.35)[channel]
        result[..., channel] += weight * (spread - falling[..., channel])
    return result


def exposure(skin: np.ndarray) -> float:
    """What a camera does half of: bring the face, however dark or brightly lit, to a middle brightness."""
    return float(np.clip((0.42 / (skin @ [0.21, 0.72, 0.07]).mean()) ** 0.5, 0.6, 1.6))


def develop(image: np.ndarray) -> np.ndarray:
    """sRGB in 0…1 of linear light, with a soft shoulder."""
    image = np.maximum(image, 0) * 0.47
    curve = image * (2.51 * image + 0.03) / (image * (2.43 * image + 0.59) + 0.14)
    return np.clip(curve, 0, 1) ** (1 / 2.2)


def background(person: Person, size: int) -> np.ndarray:
    """What is behind the person, out of focus: linear RGB [size, size, 3]."""
    settings = person.background
    first, second, third = np.asarray(settings["colors"])
    rows, columns = (np.mgrid[0:size, 0:size] + 0.5) / size
    kind, seed = settings["kind"], float(str(settings["seed"]))
    center = np.asarray(settings["center"])
    if kind == "studio":
        away = np.sqrt((columns - center[0]) ** 2 + (rows - 0.35) ** 2)
        share = np.clip(1 - away / 0.9, 0, 1)[..., None] ** 1.3
        return first * (0.28 + 0.8 * share)
    coarse = np.array(
        [[kernels.noise(c * 4.0 + seed, r * 4.0, 0.0) for c in np.linspace(0, 1, 24)] for r in np.linspace(0, 1, 24)]
    )
    patch = np.clip(0.5 + 0.9 * _stretch(coarse, size), 0, 1)[..., None]
    if kind == "wall":
        return (0.75 + 0.25 * (1 - columns[..., None])) * (0.7 * third + 0.3 * first) * (0.85 + 0.15 * patch)
    if kind == "outdoors":
        green = linear([86, 112, 62]) * 0.9
        sky = linear([196, 214, 236])
        horizon = smooth(0.25, 0.75, rows + 0.25 * (patch[..., 0] - 0.5))[..., None]
        return sky * (1 - horizon) + (green * patch + 0.5 * first * (1 - patch)) * horizon
    image = first * (0.35 + 0.35 * patch) + 0.25 * second * (1 - patch)
    for x, y, radius, strength, warm, edge in np.asarray(settings["discs"]):
        distance = np.sqrt((columns - x) ** 2 + (rows - y) ** 2)
        r = 0.02 + 0.06 * radius
        disc = (1 - smooth(r * (0.75 + 0.15 * edge), r, distance))[..., None]
        image = image + disc * 0.5 * strength * (third * (1 - warm) + warm * np.array([1.0, 0.75, 0.4]))
    return image


def _stretch(coarse: np.ndarray, size: int) -> np.ndarray:
    n = len(coarse)
    place = np.linspace(0, n - 1.001, size)
    low, share = place.astype(int), place - place.astype(int)
    rows = coarse[low] * (1 - share)[:, None] + coarse[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share

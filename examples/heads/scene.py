"""Where everything is: the mesh morphed and posed, clothes, glasses, hair and the camera, and the finished picture."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import kernels
import numpy as np
import shading
from assets import Assets
from people import Person, linear
from scipy.spatial import cKDTree

SIZE = 256
_FINE = 2  # pixels are drawn so many times finer in each direction and averaged
_SHADOW = 320
_FELT = 0.8
_NECK = np.array([0.0, 5.95, 0.15])
_PARTS = ("skin", "upper_teeth", "lower_teeth", "tongue", "left_eye", "right_eye")


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
    triangles = np.concatenate([assets.triangles[part] for part in _PARTS])
    material = np.concatenate([np.full(len(assets.triangles[part]), k) for k, part in enumerate(_PARTS)])
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


def render(studio: Studio, person: Person) -> tuple[np.ndarray, np.ndarray]:
    """The person's picture uint8 [256, 256, 3], and the part of each pixel that is hair of the head [256, 256]."""
    rng = np.random.default_rng([7919, person.number])
    size = SIZE * _FINE
    points = _morph(studio.assets, person.weights)
    base = studio.assets.vertices
    # The lining of the mouth and the teeth stand a little further in than the mesh has them, or strong jaws show them through the chin.
    u, v = studio.assets.uv.T
    lining = (u > 0.74) & (u < 0.93) & (v < 0.15)
    points[:, 2] -= 0.08 * lining * (1 - _smooth(1.44, 1.51, base[:, 2]))
    points[np.unique(studio.assets.triangles["upper_teeth"])] -= [0.0, 0.025, 0.05]
    points[np.unique(studio.assets.triangles["lower_teeth"])] -= [0.0, 0.05, 0.10]
    eyes = np.stack([points[np.unique(studio.assets.triangles[side])].mean(axis=0) for side in _PARTS[4:]])
    neck = _NECK + 0.5 * (points - base)[studio.scalp.corners[:, 0]].mean(axis=0)
    normals = _normals(points, studio.triangles, studio.assets.original)
    shells = _clothes(studio, person, points, normals)
    covered = _covered(studio, shells)
    parts = [(points, normals, base, studio.assets.uv, studio.triangles, studio.material, 0.07 - covered), *shells]
    pose = _Pose(person, neck)
    posed = [(pose.move(p, b), pose.turn(n, b), b, uv, t, m, cut) for p, n, b, uv, t, m, cut in parts]
    if person.glasses != "none":
        posed.append(_glasses(person, points, eyes, pose))
    solid = _merge(posed)
    posed_eyes = pose.move_head(eyes)
    mouth = pose.move_head(points[_lip_corners(studio.assets)].mean(axis=0)[None])[0]
    camera = _Camera(person, posed_eyes, mouth)
    shadow_view = _ShadowView(person.light["key"], posed_eyes.mean(axis=0))

    strands = _all_strands(studio, person, points, normals, pose, rng)
    in_shadow = [shadow_view.project(s.points.reshape(-1, 3)).reshape(s.points.shape) for s in strands]
    light_points = shadow_view.project(solid.points)
    shadow = kernels.shadow_depth(light_points, solid.triangles, solid.cut, _SHADOW)
    long_hair = [v.reshape(-1, 3) for s, v in zip(strands, in_shadow) if s.casts]
    cloud = np.concatenate(long_hair) if long_hair else np.zeros((0, 3))
    hair_depth, hair_count = kernels.hair_shadow(cloud, _SHADOW)
    hair_count = kernels.blur(hair_count, 1) * (0.35 if len(cloud) else 0.0)

    screen = camera.project(solid.points)
    depth = np.full((size, size), kernels.FAR)
    index = np.zeros((size, size), dtype=np.int64)
    bary = np.zeros((size, size, 2))
    kernels.rasterize(screen, solid.triangles, solid.cut, depth, index, bary)
    open_sky = kernels.occlusion(depth[::_FINE, ::_FINE].copy(), (SIZE * 0.075, 0.45), 1.35)
    open_sky = kernels.blur(open_sky, 2).repeat(_FINE, axis=0).repeat(_FINE, axis=1)
    light = person.light
    lights = (
        np.stack([light["key"], light["fill"], light["rim"]]),
        np.stack([light[name] for name in ("key_color", "fill_color", "rim_color", "sky", "ground")]),
        float(light["softness"][0]),
    )
    hair_settings, beard_settings = scalp_settings(person), _beard_settings(person)
    masks = studio.assets.masks
    albedo, falling, gloss, skin = shading.shade(
        (depth, index, bary, open_sky),
        (solid.triangles, solid.material, solid.points, solid.normals, solid.base, solid.uv, light_points),
        (masks["lips"], masks["mouth"], masks["ears"], shadow, hair_depth, hair_count),
        (
            _colors(person),
            _settings(person),
            hair_settings,
            beard_settings,
            person.brow,
            np.concatenate([posed_eyes, pose.gaze(person, posed_eyes, camera.place)], axis=1),
            camera.place,
        ),
        lights,
    )
    image = albedo * _scatter_under_skin(falling, skin) + gloss
    behind = background(person, SIZE).repeat(_FINE, axis=0).repeat(_FINE, axis=1)
    image = np.where((depth < kernels.FAR)[..., None], image, behind)
    drawn, hair_drawn = np.zeros((size, size)), np.zeros((size, size))
    for s, place in zip(strands, in_shadow):
        colors = shading.shade_strands(
            s.points, s.outward, s.colors, s.settings, (shadow, hair_depth), place, lights, camera.place
        )
        lines = camera.project(s.points.reshape(-1, 3)).reshape(s.points.shape)
        width = s.width * camera.pixels
        kernels.draw_strands(lines, colors, width, depth, image, hair_drawn if s.casts else drawn)
    if person.glasses != "none":
        _add_lenses(image, camera, pose, person, eyes, points)
    image *= _exposure(image[skin > 0])
    picture = _develop(np.minimum(image, 2.5).reshape(SIZE, _FINE, SIZE, _FINE, 3).mean(axis=(1, 3)))
    covered = hair_drawn.reshape(SIZE, _FINE, SIZE, _FINE).mean(axis=(1, 3))
    return np.clip(np.round(picture * 255), 0, 255).astype(np.uint8), covered


# --- the mesh


@dataclass(frozen=True)
class _Solid:
    points: np.ndarray
    normals: np.ndarray
    base: np.ndarray
    uv: np.ndarray
    triangles: np.ndarray
    material: np.ndarray
    cut: np.ndarray


def _at_corners(assets: Assets, mask: str, triangles: np.ndarray) -> np.ndarray:
    image = assets.masks[mask]
    size = len(image)
    uv = np.clip(assets.uv, 0, 1)
    values = image[((size - 1) * (1 - uv[:, 1])).astype(int), ((size - 1) * uv[:, 0]).astype(int)]
    return values[triangles].mean(axis=1)


def _lip_corners(assets: Assets) -> np.ndarray:
    base = assets.vertices
    skin = np.unique(assets.triangles["skin"])
    at_lips = skin[(np.abs(base[skin, 1] - 6.61) < 0.02) & (np.abs(np.abs(base[skin, 0]) - 0.25) < 0.03)]
    return at_lips[base[at_lips, 2] > 1.2]


def _scatter(rng: np.random.Generator, base: np.ndarray, triangles: np.ndarray, count: int) -> Roots:
    a, b, c = (base[triangles[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    chosen = triangles[rng.choice(len(triangles), count, p=area / area.sum())]
    u, v = rng.random(count), rng.random(count)
    u, v = np.where(u + v > 1, 1 - u, u), np.where(u + v > 1, 1 - v, v)
    weights = np.stack([1 - u - v, u, v], axis=1)
    return Roots(chosen, weights, np.einsum("nk,nkd->nd", weights, base[chosen]))


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


def _merge(parts: list[tuple[np.ndarray, ...]]) -> _Solid:
    offsets = np.cumsum([0] + [len(part[0]) for part in parts])
    columns = [np.concatenate([part[k] for part in parts]) for k in (0, 1, 2, 3)]
    triangles = np.concatenate([part[4] + offset for part, offset in zip(parts, offsets)])
    return _Solid(*columns, triangles, np.concatenate([p[5] for p in parts]), np.concatenate([p[6] for p in parts]))


# --- pose and camera


def _rotation(yaw: float, pitch: float) -> np.ndarray:
    turn = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    nod = np.array([[1, 0, 0], [0, math.cos(pitch), -math.sin(pitch)], [0, math.sin(pitch), math.cos(pitch)]])
    return turn @ nod


class _Pose:
    """Turns the body a little and the head, with the neck between them, the rest of the way."""

    def __init__(self, person: Person, neck: np.ndarray) -> None:
        self._person = person
        self._neck = neck
        self._head = _rotation(person.yaw, person.pitch)

    def move(self, points: np.ndarray, base: np.ndarray) -> np.ndarray:
        """Posed points [N, 3], of which `base` says where on the body they are."""
        return self.turn(points - self._neck, base) + self._neck

    def move_head(self, points: np.ndarray) -> np.ndarray:
        return (points - self._neck) @ self._head.T + self._neck

    def turn_head(self, directions: np.ndarray) -> np.ndarray:
        return directions @ self._head.T

    def turn(self, directions: np.ndarray, base: np.ndarray) -> np.ndarray:
        t = np.clip((base[:, 1] + 0.5 * (base[:, 2] - 0.1) - 5.25) / 1.35, 0, 1)
        share = t * t * (3 - 2 * t)
        person = self._person
        yaw = person.body_yaw + share * (person.yaw - person.body_yaw)
        pitch = share * person.pitch
        x, y, z = directions.T
        y, z = y * np.cos(pitch) - z * np.sin(pitch), y * np.sin(pitch) + z * np.cos(pitch)
        x, z = x * np.cos(yaw) + z * np.sin(yaw), -x * np.sin(yaw) + z * np.cos(yaw)
        return np.stack([x, y, z], axis=1)

    def gaze(self, person: Person, eyes: np.ndarray, camera: np.ndarray) -> np.ndarray:
        ahead = camera - eyes
        ahead /= np.linalg.norm(ahead, axis=1, keepdims=True)
        ahead = ahead + np.array([*person.gaze, 0.0])
        # Eyes turn towards the camera, but not so far that only white is left.
        straight = self._head @ np.array([0.0, 0.0, 1.0])
        ahead = 0.75 * ahead + 0.25 * straight
        return ahead / np.linalg.norm(ahead, axis=1, keepdims=True)


class _Camera:
    """A pinhole camera in front of the face, with the picture shifted, turned and scaled as CelebA-HQ's are."""

    def __init__(self, person: Person, eyes: np.ndarray, mouth: np.ndarray) -> None:
        middle = 0.5 * (eyes.mean(axis=0) + mouth)
        self.place = middle + np.array([0.0, 0.0, person.distance])
        flat = self._flat(np.concatenate([eyes, mouth[None]]))[:, :2]
        eye, to_eye = flat[:2].mean(axis=0), flat[0] - flat[1]
        to_mouth = flat[2] - eye
        across = to_eye + np.array([to_mouth[1], -to_mouth[0]])
        side = max(2.0 * np.linalg.norm(to_eye), 1.8 * np.linalg.norm(to_mouth)) * 2
        across /= np.linalg.norm(across)
        self._across = across
        self._center = eye + 0.1 * to_mouth
        size = SIZE * _FINE
        self._scale = size / side * person.frame[2]
        self._shift = size * (0.5 + person.frame[:2])
        self.pixels = self._scale / person.distance  # a decimetre at the face

    def _flat(self, points: np.ndarray) -> np.ndarray:
        x, y, z = (points - self.place).T
        return np.stack([x / -z, -y / -z, -z], axis=1)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Column, row and depth [N, 3] of points [N, 3]."""
        flat = self._flat(points)
        x, y = (flat[:, :2] - self._center).T
        ax, ay = self._across
        turned = np.stack([x * ax + y * ay, -x * ay + y * ax], axis=1) * self._scale + self._shift
        return np.concatenate([turned, flat[:, 2:]], axis=1)


class _ShadowView:
    """The view from the key light: parallel, and around the head."""

    def __init__(self, light: np.ndarray, center: np.ndarray) -> None:
        across = np.cross([0.0, 1.0, 0.0], light)
        across /= np.linalg.norm(across)
        self._axes = np.stack([across, -np.cross(light, across), -light])
        self._center = center - np.array([0.0, 0.5, 0.4])

    def project(self, points: np.ndarray) -> np.ndarray:
        """Column, row and depth [N, 3] in the shadow map."""
        seen = (points - self._center) @ self._axes.T
        seen[:, :2] = (seen[:, :2] / 4.8 + 0.5) * _SHADOW
        return seen


# --- clothes and glasses


def _clothes(studio: Studio, person: Person, points: np.ndarray, normals: np.ndarray) -> list[tuple[np.ndarray, ...]]:
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


def _covered(studio: Studio, shells: list[tuple[np.ndarray, ...]]) -> np.ndarray:
    """How far below a neckline each vertex lies [V]: what is well below is not drawn, lest it show through."""
    low = np.unique(_low_skin(studio))
    covered = np.full(len(studio.assets.vertices), -1.0)
    covered[low] = np.max([shell[-1] for shell in shells], axis=0)
    return covered


def _low_skin(studio: Studio) -> np.ndarray:
    """Triangles [T, 3] of the skin that clothes may cover."""
    skin = studio.assets.triangles["skin"]
    return skin[(studio.assets.vertices[skin][:, :, 1] < 6.2).all(axis=1)]


def _frame_paths(person: Person, points: np.ndarray, eyes: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Middles of the frame's tubes, and of the two rims alone, in the unposed head."""
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


def _glasses(person: Person, points: np.ndarray, eyes: np.ndarray, pose: _Pose) -> tuple[np.ndarray, ...]:
    paths, _ = _frame_paths(person, points, eyes)
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
    return pose.move_head(tube), pose.turn_head(normals), tube, uv, triangles, material, cut


def _add_lenses(
    image: np.ndarray, camera: _Camera, pose: _Pose, person: Person, eyes: np.ndarray, points: np.ndarray
) -> None:
    """Darken what is behind the glass a trifle, and lay a slanting reflection on it."""
    _, rims = _frame_paths(person, points, eyes)
    size = len(image)
    rows, columns = np.mgrid[0:size, 0:size] + 0.5
    for rim in rims:
        flat = camera.project(pose.move_head(rim))[:, :2]
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


# --- hair


@dataclass(frozen=True)
class _Strands:
    points: np.ndarray  # [N, K, 3], posed
    outward: np.ndarray  # [N, 3]
    colors: np.ndarray  # [N, 3]
    settings: np.ndarray
    width: np.ndarray  # [N] in decimetres
    casts: bool  # hair of the head, whose shadow matters


_LONG = ("long", "wavy", "bob", "bangs", "medium")
_HAIRLINE = np.array(
    [7.99, 7.99, 7.98, 7.95, 7.90, 7.80, 7.66, 7.48, 7.25, 7.20, 7.36, 7.30, 7.0, 6.85, 6.72, 6.6, 6.52, 6.48, 6.46]
)


def scalp_settings(person: Person) -> np.ndarray:
    """Where hair grows, as `kernels.scalp_density` takes it."""
    settings = np.zeros(25)
    settings[:19] = _HAIRLINE
    if not person.male:
        settings[7:9] += 0.1
    settings[19], settings[20], settings[21], settings[22] = 99.0, 0.0, 0.035, 0.02
    settings[23] = person.number % 97
    settings[24] = 0.45 * person.receding
    if person.hair_style == "bald":
        settings[19] = -99.0
    elif person.hair_style == "rim":
        settings[19] = 7.62
    return settings


def _beard_settings(person: Person) -> np.ndarray:
    weights = {
        "none": (0.6, 0.6, 0.5, 0.4),
        "stubble": (1.0, 1.0, 0.9, 0.8),
        "mustache": (1.0, 0, 0, 0),
        "goatee": (1.0, 1.0, 0, 0),
        "full": (1.0, 1.0, 1.0, 1.0),
        "sideburns": (0, 0, 0, 1.0),
    }[person.beard]
    return np.array([*weights, 0.03, person.number % 89])


def _settings(person: Person) -> np.ndarray:
    stubble = 0.0
    if person.male:
        stubble = {"none": 0.10, "stubble": 0.62}.get(person.beard, 0.12)
    rooted = person.beard in ("mustache", "goatee", "full", "sideburns")
    settings = np.zeros(16)
    settings[:12] = [
        person.number % 101,
        person.skin_tone,
        person.rosy,
        person.freckles,
        person.age,
        0.0 if rooted else stubble,
        float(person.makeup),
        0.55 if rooted else 0.0,
        float(person.hair_style == "bald"),
        person.brow_dark,
        float(person.glasses_metal),
        float(person.clothes in ("crew", "vee", "turtle") and person.number % 5 == 0),
    ]
    return settings


def _brow_color(person: Person) -> np.ndarray:
    fair = person.hair_color_name == "blond"
    color = 0.35 * person.hair_color + np.array([0.055, 0.033, 0.016]) if fair else 0.7 * person.hair_color
    return np.minimum(color, 0.14 + 0.1 * person.hair_color)


def _colors(person: Person) -> np.ndarray:
    colors = np.zeros((10, 3))
    rows = (person.skin, person.lips, person.iris, person.hair_color, _brow_color(person))
    colors[:8] = [*rows, person.clothes_color, person.second_color, person.glasses_color]
    return colors


def _all_strands(
    studio: Studio, person: Person, points: np.ndarray, normals: np.ndarray, pose: _Pose, rng: np.random.Generator
) -> list[_Strands]:
    groups = []
    grid = _distance_grid(studio, points, normals, person.hair_style)
    if person.hair_style != "bald":
        groups.append(_head_hair(studio, person, points, normals, pose, grid, rng))
    if person.beard in ("mustache", "goatee", "full", "sideburns"):
        groups.append(_beard_hair(studio, person, points, normals, pose, grid, rng))
    groups.append(_brow_hair(studio, person, points, normals, pose, rng))
    groups.append(_lash_hair(studio, person, points, pose, rng))
    return groups


def _distance_grid(
    studio: Studio, points: np.ndarray, normals: np.ndarray, style: str
) -> tuple[np.ndarray, np.ndarray, float]:
    """Distance to the skin and its gradient [X, Y, Z, 4] on a grid, its origin and its cell."""
    long = style in _LONG
    cell = 0.16
    shift = (points - studio.assets.vertices)[studio.scalp.corners[:, 0]].mean(axis=0)
    origin = np.array([-1.9, 3.9 if long else 5.7, -1.2]) + shift
    shape = np.ceil((np.array([1.9, 9.0, 2.1]) + shift - origin) / cell).astype(int) + 1
    axes = [origin[d] + cell * np.arange(shape[d]) for d in range(3)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    skin = np.unique(studio.assets.triangles["skin"])
    tree = cKDTree(points[skin])
    # Far from the skin nothing is pushed: there the distance need not be known.
    _, nearest = tree.query(places, k=3, distance_upper_bound=_FELT)
    beyond = nearest[:, 2] == len(skin)
    chosen = skin[np.minimum(nearest, len(skin) - 1)]
    away = places[:, None] - points[chosen]
    distance = np.linalg.norm(away, axis=2)
    signed = np.einsum("nkd,nkd->nk", away, normals[chosen])
    weight = 1 / (distance + 0.02)
    weight /= weight.sum(axis=1, keepdims=True)
    flat = (weight * signed).sum(axis=1)
    far = distance[:, 0]
    value = np.where(flat > 0, np.maximum(flat, 0.6 * far), flat)
    value[beyond] = _FELT
    gradient = (weight[..., None] * normals[chosen]).sum(axis=1)
    table = np.concatenate([value[:, None], gradient], axis=1)
    return table.reshape(*shape, 4), origin, cell


def _pick(roots: Roots, density: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    kept = np.flatnonzero(rng.random(len(density)) < density)
    return kept[:count] if len(kept) <= count else np.sort(rng.choice(kept, count, replace=False))


def _on_skin(roots: Roots, chosen: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.einsum("nk,nkd->nd", roots.weights[chosen], values[roots.corners[chosen]])


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-12)


def _smooth(low: float, high: float, x: np.ndarray) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


@dataclass(frozen=True)
class _Cut:
    """How a style is grown: lengths [N], layers [N], combs [N, 3], starts [N, 3], and `kernels.grow`'s style."""

    lengths: np.ndarray
    layers: np.ndarray
    comb: np.ndarray
    start: np.ndarray
    style: np.ndarray
    clump: float


def _cut_of(person: Person, base: np.ndarray, outward: np.ndarray, shift: np.ndarray, rng: np.random.Generator) -> _Cut:
    n = len(base)
    x, y, z = base.T
    more = person.hair_length
    random = rng.random(n)
    part = person.part
    side = np.where(x > part, 1.0, -1.0)
    seed = person.number % 83
    top = _smooth(7.55, 8.15, y)
    fringe = _smooth(0.75, 1.25, z) * _smooth(7.6, 7.9, y)
    aside = np.stack([side * 1.0, -0.15 + 0 * x, -0.55 + 0.45 * (1 - fringe) * 0], axis=1)
    down = np.stack([0.15 * np.sign(x), -1.0 + 0 * x, -0.25 + 0 * x], axis=1)
    layers = 0.02 + random * 0.14
    face, free = 0.0, 7.9
    weight, stiff, wave, waves, disorder, clump = 1.0, 0.35, 0.0, 0.0, 0.8, 0.5
    start = _unit(outward + 0.6 * aside)
    cling, steps = 0.0, 18.0
    style = person.hair_style
    if style in ("long", "wavy", "medium", "bob"):
        base_length = {
            "long": 3.6 + 1.4 * more,
            "wavy": 3.4 + 1.4 * more,
            "medium": 1.5 + 0.4 * more,
            "bob": 1.9 + 0.5 * more,
        }
        shorter = 0.9 if style in ("bob", "medium") else 0.55
        lengths = np.maximum(base_length[style] * (1 - 0.18 * (1 - random**2)) - (8.2 - y) * shorter, 0.35)
        comb = top[:, None] * aside + (1 - top[:, None]) * down
        layers = 0.03 + (0.12 + 0.05 * (style == "wavy")) * random
        face, free, stiff, cling = 0.76, 8.0, 0.4, 0.05
        if style == "wavy":
            wave, waves, clump, disorder, steps = 0.06, 0.75, 0.7, 1.2, 22.0
    elif style == "bangs":
        fringed = fringe > 0.3
        lengths = np.where(fringed, 0.60 + 0.08 * random, 3.0 + 1.5 * more - (8.2 - y) * 0.6)
        forward = np.stack([0.25 * x, -0.35 + 0 * x, 1.0 + 0 * x], axis=1)
        comb = np.where(fringed[:, None], forward, top[:, None] * aside + (1 - top[:, None]) * down)
        layers = 0.03 + 0.11 * random
        face, free, weight, clump = 0.76, 7.35, 1.1, 0.3
        start = _unit(outward + 0.6 * comb)
    elif style == "back":
        way = _knot(person) - base
        lengths = np.linalg.norm(way, axis=1) * 1.12 + 0.1
        comb = _unit(way + 0.8 * outward)
        layers, weight, stiff, disorder, clump = 0.015 + 0.05 * random, 0.0, 3.0, 0.25, 0.3
        start, cling = _unit(0.25 * outward + comb), 0.3
    elif style in ("curls", "coils"):
        lengths = (0.50 + 0.30 * more if style == "curls" else 0.6 + 0.6 * more) * (0.7 + 0.3 * random)
        lengths *= 0.4 + 0.6 * top if style == "curls" else 1.0
        comb, start = 0.6 * outward + 0.4 * _unit(rng.normal(0, 1, (n, 3))), outward
        layers = 0.03 + 0.08 * random
        weight, stiff, wave, waves, clump, disorder, steps = 0.45, 0.5, 0.05, 3.2, 0.35, 4.0, 26.0
    elif style in ("buzz", "rim"):
        lengths = np.full(n, 0.05 + 0.05 * more) * (1.8 if style == "rim" else 1.0)
        comb, start, layers = outward + 0.5 * down, _unit(outward + 0.4 * down), np.full(n, 0.0)
        if style == "rim":
            comb = down + np.array([0.0, 0.0, -0.5])
            start = _unit(0.3 * outward + comb)
        weight, disorder, clump, steps = 0.0, 1.0, 0.0, 5.0
    else:
        longest = {"side": 0.60, "forward": 0.45, "quiff": 0.5, "pixie": 0.7}[style] * (0.7 + 0.5 * more)
        shortest = {"side": 0.16, "forward": 0.14, "quiff": 0.10, "pixie": 0.45}[style]
        on_top = _smooth(7.75, 8.2, y + 0.25 * fringe) * _smooth(0.75, 0.45, np.abs(x))
        lengths = (shortest + (longest - shortest) * on_top) * (0.75 + 0.35 * random)
        sweep = 1.0 if part < 0 else -1.0
        if style in ("side", "pixie"):
            toward = np.stack([np.where(x * sweep > -0.46, sweep, -sweep), 0.1 + 0 * x, -0.1 + 0.35 * fringe], axis=1)
        elif style == "forward":
            toward = np.stack([0.3 * sweep + 0 * x, -0.2 + 0 * x, 1.0 + 0 * x], axis=1)
        else:
            toward = np.stack([0.25 * sweep + 0 * x, 0.75 + 0 * x, -0.55 - 0.2 * fringe], axis=1)
        comb = on_top[:, None] * toward + (1 - on_top[:, None]) * (down - np.array([0, 0, 0.4]))
        comb -= 0.8 * np.minimum(0, (comb * outward).sum(axis=1, keepdims=True)) * outward
        layers = 0.01 + (0.03 + 0.13 * on_top) * random
        lift = (0.9 if style == "quiff" else 0.42) * on_top + 0.12
        start = _unit(lift[:, None] * outward + 0.9 * comb)
        weight, stiff, disorder, clump, cling = 0.35, 0.5, 1.6, 0.5, 0.1 if style == "quiff" else 0.35
    shape = np.array([weight, stiff, wave, waves, face, free + shift[1], seed, disorder, cling, steps, shift[2]])
    return _Cut(lengths, layers, comb, start, shape, clump)


def _head_hair(
    studio: Studio,
    person: Person,
    points: np.ndarray,
    normals: np.ndarray,
    pose: _Pose,
    grid: tuple[np.ndarray, np.ndarray, float],
    rng: np.random.Generator,
) -> _Strands:
    roots = studio.scalp
    density = kernels.densities(roots.base, 0, scalp_settings(person))
    count = {"buzz": 22000, "coils": 13000, "curls": 14000}.get(person.hair_style, 12500)
    chosen = _pick(roots, density, count, rng)
    base = roots.base[chosen]
    places, outward = _on_skin(roots, chosen, points), _unit(_on_skin(roots, chosen, normals))
    shift = (places - base).mean(axis=0)
    cut = _cut_of(person, base, outward, shift, rng)
    lines = kernels.grow((places, cut.start, cut.comb, cut.lengths, cut.layers), grid, cut.style)
    lines = _clumped(lines, places, cut.clump, rng)
    if person.hair_style == "back":
        bun = _bun(person, lines.shape[1], rng) + shift
        lines = np.concatenate([lines, bun])
        outward = np.concatenate([outward, _unit(bun[:, 0] - _knot(person) - shift)])
        places = np.concatenate([places, bun[:, 0]])
    shape = lines.shape
    posed = pose.move(lines.reshape(-1, 3), lines.reshape(-1, 3) - shift).reshape(shape)
    near = cKDTree(places[:: max(1, len(places) // 220)]).query(places)[1]
    lock = rng.normal(0, 0.10, near.max() + 1)[near]
    shade = np.exp(lock + rng.normal(0, 0.16, len(places)))[:, None]
    colors = person.hair_color * shade
    if person.hair_color_name == "gray":
        dark = rng.random((len(places), 1)) < 0.3
        colors = np.where(dark, colors * 0.45, colors)
    curly = person.hair_style in ("curls", "coils", "buzz", "rim")
    settings = np.array([0.12 if curly else 0.8, 0.45, 2.2 if curly else 3.2, 0.0])
    center = np.array([0.0, 7.4, 0.45]) + shift
    direction = pose.turn_head(_unit(0.5 * outward + 0.5 * _unit(places - center)))
    return _Strands(
        posed, direction, colors, settings, np.full(len(places), 0.0115 if person.hair_style in _LONG else 0.0088), True
    )


def _knot(person: Person) -> np.ndarray:
    """Where hair that is combed back is held together, on the base mesh: at the crown or at the back."""
    return np.array([0.0, 8.62, -0.12]) if person.hair_length > 0.4 else np.array([0.0, 7.75, -0.75])


def _bun(person: Person, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Strands [N, steps, 3] wound around the knot."""
    count = 1500
    axis = _unit(np.array([0.0, 1.0, -0.3]) + rng.normal(0, 0.35, (count, 3)))
    first = _unit(np.cross(axis, rng.normal(0, 1, (count, 3))))
    second = np.cross(axis, first)
    turn = np.linspace(0, 2.6, steps)[None, :, None]
    radius = (0.27 * rng.uniform(0.8, 1.05, count))[:, None, None]
    lift = rng.uniform(-0.16, 0.16, (count, 1, 1)) * axis[:, None]
    flat = np.sqrt(np.maximum(0.05, 1 - (lift / 0.27) ** 2).min(axis=2, keepdims=True))
    around = np.cos(turn) * first[:, None] + np.sin(turn) * second[:, None]
    return _knot(person) + lift + radius * flat * around


def _clumped(lines: np.ndarray, places: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Draw each strand's outer part towards a neighbour's, as hair lies in locks."""
    if strength == 0:
        return lines
    guides = rng.choice(len(lines), max(8, len(lines) // 28), replace=False)
    near = guides[cKDTree(places[guides]).query(places)[1]]
    along = np.linspace(0, 1, lines.shape[1])[None, :, None]
    share = strength * rng.uniform(0.5, 1.0, (len(lines), 1, 1)) * along**1.2
    # Not across a parting: halfway between two strands that fall on either side of the face is the face.
    apart = np.linalg.norm(lines[near] - lines, axis=2).max(axis=1)
    share = share * (apart < 0.7)[:, None, None]
    offset = (places - places[near])[:, None] * (1 - 0.75 * along)
    return lines + share * (lines[near] + offset - lines)


def _beard_hair(
    studio: Studio,
    person: Person,
    points: np.ndarray,
    normals: np.ndarray,
    pose: _Pose,
    grid: tuple[np.ndarray, np.ndarray, float],
    rng: np.random.Generator,
) -> _Strands:
    roots = studio.beard
    density = kernels.densities(roots.base, 1, _beard_settings(person)) * _off_lips(studio, roots)
    chosen = _pick(roots, 0.95 * density, 14000, rng)
    base = roots.base[chosen]
    places, outward = _on_skin(roots, chosen, points), _unit(_on_skin(roots, chosen, normals))
    x, y, z = base.T
    over_lip = (y > 6.66) & (np.abs(x) < 0.36)
    lengths = np.where(over_lip, 0.068, person.beard_length * (0.45 + 0.55 * _smooth(6.9, 6.35, y)))
    lengths = lengths * rng.uniform(0.6, 1.1, len(chosen)) * (0.35 + 0.65 * density[chosen])
    side = np.stack(
        [np.sign(x) * (0.3 + 1.5 * over_lip * np.minimum(1, np.abs(x) / 0.1)), -1.0 + 0 * x, 0.15 - 0.3 * (z < 1)],
        axis=1,
    )
    comb = _unit(side)
    layers = np.full(len(chosen), 0.006) + 0.03 * rng.random(len(chosen))
    style = np.array([0.3, 0.4, 0.006, 5.0, 0.0, 0.0, person.number % 79, 4.0, 0.0, 6.0, 0.0])
    lines = kernels.grow((places, _unit(0.55 * outward + 0.9 * comb), comb, lengths, layers), grid, style)
    flat = np.repeat(base, lines.shape[1], axis=0)
    posed = pose.move(lines.reshape(-1, 3), flat).reshape(lines.shape)
    shade = np.exp(rng.normal(0, 0.25, (len(chosen), 1)))
    colors = (0.85 * person.hair_color + 0.004) * shade
    settings = np.array([0.25, 0.3, 1.5, 0.0])
    return _Strands(posed, pose.turn(outward, base), colors, settings, np.full(len(chosen), 0.0062), False)


def _off_lips(studio: Studio, roots: Roots) -> np.ndarray:
    image = studio.assets.masks["lips"]
    uv = np.einsum("nk,nkd->nd", roots.weights, studio.assets.uv[roots.corners])
    size = len(image)
    values = image[((size - 1) * (1 - uv[:, 1])).astype(int), ((size - 1) * uv[:, 0]).astype(int)]
    return 1 - _smooth(0.1, 0.4, values)


def _brow_hair(
    studio: Studio, person: Person, points: np.ndarray, normals: np.ndarray, pose: _Pose, rng: np.random.Generator
) -> _Strands:
    roots = studio.brows
    density = kernels.densities(roots.base, 2, person.brow)
    chosen = _pick(roots, density, int((420 + 520 * person.brow_dark) * (1.0 if person.male else 0.7)), rng)
    base = roots.base[chosen]
    places, outward = _on_skin(roots, chosen, points), _unit(_on_skin(roots, chosen, normals))
    x, y, _ = base.T
    along = (np.abs(x) - 0.125) / person.brow[3]
    middle = person.brow[0] + person.brow[1] * np.sin(np.clip(along, 0, 1) * 2.3)
    up = 0.9 - 1.5 * along - 6.0 * (y - middle) + rng.normal(0, 0.2, len(x))
    way = _unit(np.stack([np.sign(x) * (0.45 + 0.9 * along), up, 0 * x], axis=1))
    way -= (way * outward).sum(axis=1, keepdims=True) * outward
    length = 0.075 * rng.uniform(0.6, 1.1, len(x)) * (1.1 - 0.4 * along)
    t = np.linspace(0, 1, 4)[None, :, None]
    lines = places[:, None] + length[:, None, None] * (t * way[:, None] + 0.22 * np.sin(np.pi * t) * outward[:, None])
    lines = lines + 0.006 * outward[:, None]
    posed = pose.move_head(lines.reshape(-1, 3)).reshape(lines.shape)
    colors = _brow_color(person) * np.exp(rng.normal(0, 0.2, (len(x), 1)))
    settings = np.array([0.1, 0.0, 0.3, 0.0])
    return _Strands(posed, pose.turn_head(outward), colors, settings, np.full(len(x), 0.0058), False)


def _lash_hair(studio: Studio, person: Person, points: np.ndarray, pose: _Pose, rng: np.random.Generator) -> _Strands:
    """Lashes along the strips of the mesh: from the edge at the lid to the outer edge."""
    strip = np.unique(studio.assets.triangles["lashes"])
    base = studio.assets.vertices[strip]
    upper = base[:, 1] > 7.2795
    lines, width = [], []
    for is_upper in (True, False):
        for side in (1, -1):
            group = strip[(upper == is_upper) & (np.sign(base[:, 0]) == side)]
            u, v = studio.assets.uv[group].T
            tree = cKDTree(np.stack([u, v], axis=1))

            def at(places: np.ndarray, group: np.ndarray = group, tree: cKDTree = tree) -> np.ndarray:
                distance, near = tree.query(places, k=3)
                weight = 1 / (distance + 3e-4)
                weight /= weight.sum(axis=-1, keepdims=True)
                return (weight[..., None] * points[group][near]).sum(axis=-2)

            count = 90 if is_upper else 40
            along = np.linspace(u.min() + 0.003, u.max() - 0.001, count) + rng.normal(0, 0.0004, count)
            band = np.linspace(v.min(), v.max(), 6) if is_upper else np.linspace(v.max(), v.min(), 6)
            lines.append(at(np.stack(np.meshgrid(along, band, indexing="ij"), axis=-1)))
            width.append(np.full(count, (0.004 if person.male else 0.006) if is_upper else 0.0010))
    merged = np.concatenate(lines)
    posed = pose.move_head(merged.reshape(-1, 3)).reshape(merged.shape)
    colors = np.full((len(merged), 3), 0.006 if person.makeup else 0.012)
    front = pose.turn_head(np.tile([0.0, 0.0, 1.0], (len(merged), 1)))
    return _Strands(posed, front, colors, np.array([0.0, 0.0, 0.0, 0.0]), np.concatenate(width), False)


# --- the picture


def _scatter_under_skin(falling: np.ndarray, skin: np.ndarray) -> np.ndarray:
    """Light that falls on skin, spread beneath it: red furthest."""
    result = falling.copy()
    for channel, radius in enumerate((3 * _FINE, 2 * _FINE, 1 * _FINE)):
        share = kernels.blur(skin, radius)
        spread = kernels.blur(falling[..., channel] * skin, radius) / np.maximum(share, 1e-6)
        weight = skin * (0.55, 0.45, 0.35)[channel]
        result[..., channel] += weight * (spread - falling[..., channel])
    return result


def _exposure(skin: np.ndarray) -> float:
    """What a camera does half of: bring the face, however dark or brightly lit, to a middle brightness."""
    return float(np.clip((0.42 / (skin @ [0.21, 0.72, 0.07]).mean()) ** 0.5, 0.6, 1.6))


def _develop(image: np.ndarray) -> np.ndarray:
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
        horizon = _smooth(0.25, 0.75, rows + 0.25 * (patch[..., 0] - 0.5))[..., None]
        return sky * (1 - horizon) + (green * patch + 0.5 * first * (1 - patch)) * horizon
    image = first * (0.35 + 0.35 * patch) + 0.25 * second * (1 - patch)
    for x, y, radius, strength, warm, edge in np.asarray(settings["discs"])[:18]:
        distance = np.sqrt((columns - x) ** 2 + (rows - y) ** 2)
        r = 0.02 + 0.06 * radius
        disc = (1 - _smooth(r * (0.75 + 0.15 * edge), r, distance))[..., None]
        image = image + disc * 0.5 * strength * (third * (1 - warm) + warm * np.array([1.0, 0.75, 0.4]))
    return image


def _stretch(coarse: np.ndarray, size: int) -> np.ndarray:
    n = len(coarse)
    place = np.linspace(0, n - 1.001, size)
    low, share = place.astype(int), place - place.astype(int)
    rows = coarse[low] * (1 - share)[:, None] + coarse[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share

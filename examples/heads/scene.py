"""A person's picture: everything put together, seen, lit and developed."""

from __future__ import annotations

from dataclasses import dataclass

import kernels
import numpy as np
import shading
from body import Body, shape_body
from camera import FINE, SHADOW_SIZE, SIZE, Camera, ShadowView
from hair import Strands, beard_settings, brow_color, grow_strands, scalp_settings
from people import Person
from picture import background, develop, exposure, scatter_under_skin
from studio import Studio
from wear import add_lenses, clothes, glasses, how_covered


def render(studio: Studio, person: Person) -> tuple[np.ndarray, np.ndarray]:
    """The person's picture uint8 [256, 256, 3], and the part of each pixel that is hair of the head [256, 256]."""
    rng = np.random.default_rng([7919, person.number])
    body = shape_body(studio, person)
    solid = _assemble(studio, person, body)
    eyes = body.pose.move_head(body.eyes)
    camera = Camera(person, eyes, body.pose.move_head(body.mouth[None])[0])
    strands = grow_strands(studio, person, body, rng)
    shadows = _cast(solid, strands, ShadowView(person.light["key"], eyes.mean(axis=0)))
    image, depth, skin = _solid_image(studio, person, body, solid, camera, shadows)
    drawn = _draw_strands(image, depth, strands, shadows, camera, _lights(person))
    if person.glasses != "none":
        add_lenses(image, camera, person, body)
    image *= exposure(image[skin > 0])
    picture = develop(_averaged(np.minimum(image, 2.5)))
    return np.clip(np.round(picture * 255), 0, 255).astype(np.uint8), _averaged(drawn)


@dataclass(frozen=True)
class _Solid:
    """Vertices and triangles of everything that is no strand, as `shading.shade` and `kernels.rasterize` take them."""

    points: np.ndarray
    normals: np.ndarray
    base: np.ndarray
    uv: np.ndarray
    triangles: np.ndarray
    material: np.ndarray
    cut: np.ndarray


@dataclass(frozen=True)
class _Shadows:
    """The shadow map: depth of what is solid, hair's first depth and how many hairs; and where in it everything is."""

    solid: np.ndarray
    hair_depth: np.ndarray
    hair_count: np.ndarray
    solid_points: np.ndarray
    strand_points: list[np.ndarray]


def _assemble(studio: Studio, person: Person, body: Body) -> _Solid:
    """Skin, eyes, teeth, clothes and glasses, posed, in one set of triangles."""
    assets = studio.assets
    shells = clothes(studio, person, body)
    hidden = 0.07 - how_covered(studio, shells)
    naked = (body.points, body.normals, assets.vertices, assets.uv, studio.triangles, studio.material, hidden)
    posed = [
        (body.pose.move(points, base), body.pose.turn(normals, base), base, *rest)
        for points, normals, base, *rest in (naked, *shells)
    ]
    if person.glasses != "none":
        posed.append(glasses(person, body))
    return _merge(posed)


def _cast(solid: _Solid, strands: list[Strands], view: ShadowView) -> _Shadows:
    points = view.project(solid.points)
    placed = [view.project(s.points.reshape(-1, 3)).reshape(s.points.shape) for s in strands]
    casting = [place.reshape(-1, 3) for s, place in zip(strands, placed) if s.casts]
    hair_depth, count = kernels.hair_shadow(np.concatenate([np.zeros((0, 3)), *casting]), SHADOW_SIZE)
    depth = kernels.shadow_depth(points, solid.triangles, solid.cut, SHADOW_SIZE)
    return _Shadows(depth, hair_depth, 0.35 * kernels.blur(count, 1), points, placed)


def _solid_image(
    studio: Studio, person: Person, body: Body, solid: _Solid, camera: Camera, shadows: _Shadows
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Linear RGB [H, W, 3] of all but strands, with what is behind; its depth [H, W]; 1 where there is skin [H, W]."""
    size = SIZE * FINE
    depth, index, bary = np.full((size, size), kernels.FAR), np.zeros((size, size), np.int64), np.zeros((size, size, 2))
    kernels.rasterize(camera.project(solid.points), solid.triangles, solid.cut, depth, index, bary)
    open_sky = kernels.occlusion(depth[::FINE, ::FINE].copy(), (SIZE * 0.075, 0.45), 1.35)
    eyes = body.pose.move_head(body.eyes)
    masks = studio.assets.masks
    albedo, falling, gloss, skin = shading.shade(
        (depth, index, bary, _enlarged(kernels.blur(open_sky, 2))),
        (solid.triangles, solid.material, solid.points, solid.normals, solid.base, solid.uv, shadows.solid_points),
        (masks["lips"], masks["mouth"], masks["ears"], shadows.solid, shadows.hair_depth, shadows.hair_count),
        (
            _colors(person),
            _settings(person),
            scalp_settings(person),
            beard_settings(person),
            person.brow,
            np.concatenate([eyes, body.pose.gaze(person, eyes, camera.place)], axis=1),
            camera.place,
        ),
        _lights(person),
    )
    image = albedo * scatter_under_skin(falling, skin) + gloss
    behind = _enlarged(background(person, SIZE))
    return np.where((depth < kernels.FAR)[..., None], image, behind), depth, skin


def _draw_strands(
    image: np.ndarray,
    depth: np.ndarray,
    strands: list[Strands],
    shadows: _Shadows,
    camera: Camera,
    lights: tuple[np.ndarray, np.ndarray, float],
) -> np.ndarray:
    """Draw all strands into `image` and `depth`; returns how much of each pixel is hair of the head [H, W]."""
    hair, other = np.zeros(depth.shape), np.zeros(depth.shape)
    maps = (shadows.solid, shadows.hair_depth)
    for s, place in zip(strands, shadows.strand_points):
        colors = shading.shade_strands(s.points, s.outward, s.colors, s.settings, maps, place, lights, camera.place)
        lines = camera.project(s.points.reshape(-1, 3)).reshape(s.points.shape)
        kernels.draw_strands(lines, colors, s.width * camera.pixels, depth, image, hair if s.casts else other)
    return hair


def _lights(person: Person) -> tuple[np.ndarray, np.ndarray, float]:
    light = person.light
    return (
        np.stack([light["key"], light["fill"], light["rim"]]),
        np.stack([light[name] for name in ("key_color", "fill_color", "rim_color", "sky", "ground")]),
        float(light["softness"][0]),
    )


def _averaged(image: np.ndarray) -> np.ndarray:
    return image.reshape(SIZE, FINE, SIZE, FINE, *image.shape[2:]).mean(axis=(1, 3))


def _enlarged(image: np.ndarray) -> np.ndarray:
    return image.repeat(FINE, axis=0).repeat(FINE, axis=1)


def _merge(parts: list[tuple[np.ndarray, ...]]) -> _Solid:
    offsets = np.cumsum([0] + [len(part[0]) for part in parts])
    points, normals, base, uv, triangles, material, cut = zip(*parts)
    shifted = [rows + offset for rows, offset in zip(triangles, offsets)]
    joined = (np.concatenate(arrays) for arrays in (points, normals, base, uv, shifted, material, cut))
    return _Solid(*joined)


def _settings(person: Person) -> np.ndarray:
    stubble = 0.0
    if person.male:
        stubble = {"none": 0.10, "stubble": 0.62}.get(person.beard, 0.12)
    rooted = person.beard in ("mustache", "goatee", "full", "sideburns")
    return np.array(
        [
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
    )


def _colors(person: Person) -> np.ndarray:
    colors = np.zeros((8, 3))
    rows = (person.skin, person.lips, person.iris, person.hair_color, brow_color(person))
    colors[:] = [*rows, person.clothes_color, person.second_color, person.glasses_color]
    return colors

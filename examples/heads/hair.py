"""Strands: hair of the head in its styles, beards, eyebrows and lashes."""

from __future__ import annotations

from dataclasses import dataclass

import kernels
import numpy as np
from body import Body
from people import Person
from scipy.spatial import cKDTree
from studio import Roots, Studio, at_roots, smooth, unit

_FELT = 0.8
_Field = tuple[np.ndarray, np.ndarray, float]  # a grid, its origin and its cell, as `kernels.look_up` takes them
_LONG = ("long", "wavy", "bob", "bangs", "medium")
_HAIRLINE = np.array(
    [7.99, 7.99, 7.98, 7.95, 7.90, 7.80, 7.66, 7.48, 7.25, 7.20, 7.36, 7.30, 7.0, 6.85, 6.72, 6.6, 6.52, 6.48, 6.46]
)


@dataclass(frozen=True)
class Strands:
    """Strands of one kind, posed, with their colours, and what `shading.shade_strands` wants to know of them."""

    points: np.ndarray  # [N, K, 3], posed
    outward: np.ndarray  # [N, 3]
    colors: np.ndarray  # [N, 3]
    settings: np.ndarray
    width: np.ndarray  # [N] in decimetres
    casts: bool  # hair of the head, whose shadow matters


def grow_strands(studio: Studio, person: Person, body: Body, rng: np.random.Generator) -> list[Strands]:
    groups = []
    grid = _distance_grid(studio, body, person.hair_style)
    if person.hair_style != "bald":
        groups.append(_head_hair(studio, person, body, grid, rng))
    if person.beard in ("mustache", "goatee", "full", "sideburns"):
        groups.append(_beard_hair(studio, person, body, grid, rng))
    groups.append(_brow_hair(studio, person, body, rng))
    groups.append(_lash_hair(studio, person, body, rng))
    return groups


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


def beard_settings(person: Person) -> np.ndarray:
    """Where a beard or its shadow grows, as `kernels.beard_density` takes it."""
    weights = {
        "none": (0.6, 0.6, 0.5, 0.4),
        "stubble": (1.0, 1.0, 0.9, 0.8),
        "mustache": (1.0, 0, 0, 0),
        "goatee": (1.0, 1.0, 0, 0),
        "full": (1.0, 1.0, 1.0, 1.0),
        "sideburns": (0, 0, 0, 1.0),
    }[person.beard]
    return np.array([*weights, 0.03, person.number % 89])


def brow_color(person: Person) -> np.ndarray:
    """Linear RGB of brows and beard's roots: darker than the hair, and of fair hair browner."""
    fair = person.hair_color_name == "blond"
    color = 0.35 * person.hair_color + np.array([0.055, 0.033, 0.016]) if fair else 0.7 * person.hair_color
    return np.minimum(color, 0.14 + 0.1 * person.hair_color)


def _distance_grid(studio: Studio, body: Body, style: str) -> _Field:
    """Distance to the skin and its gradient [X, Y, Z, 4] on a grid, its origin and its cell."""
    long = style in _LONG
    cell = 0.16
    shift = (body.points - studio.assets.vertices)[studio.scalp.corners[:, 0]].mean(axis=0)
    origin = np.array([-1.9, 3.9 if long else 5.7, -1.2]) + shift
    shape = np.ceil((np.array([1.9, 9.0, 2.1]) + shift - origin) / cell).astype(int) + 1
    axes = [origin[d] + cell * np.arange(shape[d]) for d in range(3)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    skin = np.unique(studio.assets.triangles["skin"])
    tree = cKDTree(body.points[skin])
    # Far from the skin nothing is pushed: there the distance need not be known.
    _, nearest = tree.query(places, k=3, distance_upper_bound=_FELT)
    beyond = nearest[:, 2] == len(skin)
    chosen = skin[np.minimum(nearest, len(skin) - 1)]
    away = places[:, None] - body.points[chosen]
    distance = np.linalg.norm(away, axis=2)
    signed = np.einsum("nkd,nkd->nk", away, body.normals[chosen])
    weight = 1 / (distance + 0.02)
    weight /= weight.sum(axis=1, keepdims=True)
    flat = (weight * signed).sum(axis=1)
    far = distance[:, 0]
    value = np.where(flat > 0, np.maximum(flat, 0.6 * far), flat)
    value[beyond] = _FELT
    gradient = (weight[..., None] * body.normals[chosen]).sum(axis=1)
    table = np.concatenate([value[:, None], gradient], axis=1)
    return table.reshape(*shape, 4), origin, cell


def _pick(roots: Roots, density: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    kept = np.flatnonzero(rng.random(len(density)) < density)
    return kept[:count] if len(kept) <= count else np.sort(rng.choice(kept, count, replace=False))


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
    top = smooth(7.55, 8.15, y)
    fringe = smooth(0.75, 1.25, z) * smooth(7.6, 7.9, y)
    aside = np.stack([side * 1.0, -0.15 + 0 * x, -0.55 + 0 * x], axis=1)
    down = np.stack([0.15 * np.sign(x), -1.0 + 0 * x, -0.25 + 0 * x], axis=1)
    layers = 0.02 + random * 0.14
    face, free = 0.0, 7.9
    weight, stiff, wave, waves, disorder, clump = 1.0, 0.35, 0.0, 0.0, 0.8, 0.5
    start = unit(outward + 0.6 * aside)
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
        start = unit(outward + 0.6 * comb)
    elif style == "back":
        way = _knot(person) - base
        lengths = np.linalg.norm(way, axis=1) * 1.12 + 0.1
        comb = unit(way + 0.8 * outward)
        layers, weight, stiff, disorder, clump = 0.015 + 0.05 * random, 0.0, 3.0, 0.25, 0.3
        start, cling = unit(0.25 * outward + comb), 0.3
    elif style in ("curls", "coils"):
        lengths = (0.50 + 0.30 * more if style == "curls" else 0.6 + 0.6 * more) * (0.7 + 0.3 * random)
        lengths *= 0.4 + 0.6 * top if style == "curls" else 1.0
        comb, start = 0.6 * outward + 0.4 * unit(rng.normal(0, 1, (n, 3))), outward
        layers = 0.03 + 0.08 * random
        weight, stiff, wave, waves, clump, disorder, steps = 0.45, 0.5, 0.05, 3.2, 0.35, 4.0, 26.0
    elif style in ("buzz", "rim"):
        lengths = np.full(n, 0.05 + 0.05 * more) * (1.8 if style == "rim" else 1.0)
        comb, start, layers = outward + 0.5 * down, unit(outward + 0.4 * down), np.full(n, 0.0)
        if style == "rim":
            comb = down + np.array([0.0, 0.0, -0.5])
            start = unit(0.3 * outward + comb)
        weight, disorder, clump, steps = 0.0, 1.0, 0.0, 5.0
    else:
        longest = {"side": 0.60, "forward": 0.45, "quiff": 0.5, "pixie": 0.7}[style] * (0.7 + 0.5 * more)
        shortest = {"side": 0.16, "forward": 0.14, "quiff": 0.10, "pixie": 0.45}[style]
        on_top = smooth(7.75, 8.2, y + 0.25 * fringe) * smooth(0.75, 0.45, np.abs(x))
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
        start = unit(lift[:, None] * outward + 0.9 * comb)
        weight, stiff, disorder, clump, cling = 0.35, 0.5, 1.6, 0.5, 0.1 if style == "quiff" else 0.35
    shape = np.array([weight, stiff, wave, waves, face, free + shift[1], seed, disorder, cling, steps, shift[2]])
    return _Cut(lengths, layers, comb, start, shape, clump)


def _head_hair(studio: Studio, person: Person, body: Body, grid: _Field, rng: np.random.Generator) -> Strands:
    roots = studio.scalp
    density = kernels.densities(roots.base, 0, scalp_settings(person))
    count = {"buzz": 22000, "coils": 13000, "curls": 14000}.get(person.hair_style, 12500)
    chosen = _pick(roots, density, count, rng)
    base = roots.base[chosen]
    places, outward = at_roots(roots, chosen, body.points), unit(at_roots(roots, chosen, body.normals))
    shift = (places - base).mean(axis=0)
    cut = _cut_of(person, base, outward, shift, rng)
    lines = kernels.grow((places, cut.start, cut.comb, cut.lengths, cut.layers), grid, cut.style)
    lines = _clumped(lines, places, cut.clump, rng)
    if person.hair_style == "back":
        bun = _bun(person, lines.shape[1], rng) + shift
        lines = np.concatenate([lines, bun])
        outward = np.concatenate([outward, unit(bun[:, 0] - _knot(person) - shift)])
        places = np.concatenate([places, bun[:, 0]])
    shape = lines.shape
    posed = body.pose.move(lines.reshape(-1, 3), lines.reshape(-1, 3) - shift).reshape(shape)
    near = cKDTree(places[:: max(1, len(places) // 220)]).query(places)[1]
    lock = rng.normal(0, 0.10, near.max() + 1)[near]
    shade = np.exp(lock + rng.normal(0, 0.16, len(places)))[:, None]
    colors = person.hair_color * shade
    if person.hair_color_name == "gray":
        dark = rng.random((len(places), 1)) < 0.3
        colors = np.where(dark, colors * 0.45, colors)
    curly = person.hair_style in ("curls", "coils", "buzz", "rim")
    settings = np.array([0.12 if curly else 0.8, 0.45, 2.2 if curly else 3.2])
    center = np.array([0.0, 7.4, 0.45]) + shift
    direction = body.pose.turn_head(unit(0.5 * outward + 0.5 * unit(places - center)))
    return Strands(
        posed, direction, colors, settings, np.full(len(places), 0.0115 if person.hair_style in _LONG else 0.0088), True
    )


def _knot(person: Person) -> np.ndarray:
    """Where hair that is combed back is held together, on the base mesh: at the crown or at the back."""
    return np.array([0.0, 8.62, -0.12]) if person.hair_length > 0.4 else np.array([0.0, 7.75, -0.75])


def _bun(person: Person, steps: int, rng: np.random.Generator) -> np.ndarray:
    """Strands [N, steps, 3] wound around the knot."""
    count = 1500
    axis = unit(np.array([0.0, 1.0, -0.3]) + rng.normal(0, 0.35, (count, 3)))
    first = unit(np.cross(axis, rng.normal(0, 1, (count, 3))))
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


def _beard_hair(studio: Studio, person: Person, body: Body, grid: _Field, rng: np.random.Generator) -> Strands:
    roots = studio.beard
    density = kernels.densities(roots.base, 1, beard_settings(person)) * _off_lips(studio, roots)
    chosen = _pick(roots, 0.95 * density, 14000, rng)
    base = roots.base[chosen]
    places, outward = at_roots(roots, chosen, body.points), unit(at_roots(roots, chosen, body.normals))
    x, y, z = base.T
    over_lip = (y > 6.66) & (np.abs(x) < 0.36)
    lengths = np.where(over_lip, 0.068, person.beard_length * (0.45 + 0.55 * smooth(6.9, 6.35, y)))
    lengths = lengths * rng.uniform(0.6, 1.1, len(chosen)) * (0.35 + 0.65 * density[chosen])
    side = np.stack(
        [np.sign(x) * (0.3 + 1.5 * over_lip * np.minimum(1, np.abs(x) / 0.1)), -1.0 + 0 * x, 0.15 - 0.3 * (z < 1)],
        axis=1,
    )
    comb = unit(side)
    layers = np.full(len(chosen), 0.006) + 0.03 * rng.random(len(chosen))
    style = np.array([0.3, 0.4, 0.006, 5.0, 0.0, 0.0, person.number % 79, 4.0, 0.0, 6.0, 0.0])
    lines = kernels.grow((places, unit(0.55 * outward + 0.9 * comb), comb, lengths, layers), grid, style)
    flat = np.repeat(base, lines.shape[1], axis=0)
    posed = body.pose.move(lines.reshape(-1, 3), flat).reshape(lines.shape)
    shade = np.exp(rng.normal(0, 0.25, (len(chosen), 1)))
    colors = (0.85 * person.hair_color + 0.004) * shade
    settings = np.array([0.25, 0.3, 1.5])
    return Strands(posed, body.pose.turn(outward, base), colors, settings, np.full(len(chosen), 0.0062), False)


def _off_lips(studio: Studio, roots: Roots) -> np.ndarray:
    image = studio.assets.masks["lips"]
    uv = np.einsum("nk,nkd->nd", roots.weights, studio.assets.uv[roots.corners])
    size = len(image)
    values = image[((size - 1) * (1 - uv[:, 1])).astype(int), ((size - 1) * uv[:, 0]).astype(int)]
    return 1 - smooth(0.1, 0.4, values)


def _brow_hair(studio: Studio, person: Person, body: Body, rng: np.random.Generator) -> Strands:
    roots = studio.brows
    density = kernels.densities(roots.base, 2, person.brow)
    chosen = _pick(roots, density, int((420 + 520 * person.brow_dark) * (1.0 if person.male else 0.7)), rng)
    base = roots.base[chosen]
    places, outward = at_roots(roots, chosen, body.points), unit(at_roots(roots, chosen, body.normals))
    x, y, _ = base.T
    along = (np.abs(x) - 0.125) / person.brow[3]
    middle = person.brow[0] + person.brow[1] * np.sin(np.clip(along, 0, 1) * 2.3)
    up = 0.9 - 1.5 * along - 6.0 * (y - middle) + rng.normal(0, 0.2, len(x))
    way = unit(np.stack([np.sign(x) * (0.45 + 0.9 * along), up, 0 * x], axis=1))
    way -= (way * outward).sum(axis=1, keepdims=True) * outward
    length = 0.075 * rng.uniform(0.6, 1.1, len(x)) * (1.1 - 0.4 * along)
    t = np.linspace(0, 1, 4)[None, :, None]
    lines = places[:, None] + length[:, None, None] * (t * way[:, None] + 0.22 * np.sin(np.pi * t) * outward[:, None])
    lines = lines + 0.006 * outward[:, None]
    posed = body.pose.move_head(lines.reshape(-1, 3)).reshape(lines.shape)
    colors = brow_color(person) * np.exp(rng.normal(0, 0.2, (len(x), 1)))
    settings = np.array([0.1, 0.0, 0.3])
    return Strands(posed, body.pose.turn_head(outward), colors, settings, np.full(len(x), 0.0058), False)


def _lash_hair(studio: Studio, person: Person, body: Body, rng: np.random.Generator) -> Strands:
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
                return (weight[..., None] * body.points[group][near]).sum(axis=-2)

            count = 90 if is_upper else 40
            along = np.linspace(u.min() + 0.003, u.max() - 0.001, count) + rng.normal(0, 0.0004, count)
            band = np.linspace(v.min(), v.max(), 6) if is_upper else np.linspace(v.max(), v.min(), 6)
            lines.append(at(np.stack(np.meshgrid(along, band, indexing="ij"), axis=-1)))
            width.append(np.full(count, (0.004 if person.male else 0.006) if is_upper else 0.0010))
    merged = np.concatenate(lines)
    posed = body.pose.move_head(merged.reshape(-1, 3)).reshape(merged.shape)
    colors = np.full((len(merged), 3), 0.006 if person.makeup else 0.012)
    front = body.pose.turn_head(np.tile([0.0, 0.0, 1.0], (len(merged), 1)))
    return Strands(posed, front, colors, np.array([0.0, 0.0, 0.0]), np.concatenate(width), False)

"""What a pixel looks like: skin, eyes, teeth, cloth and frames under three lights, compiled by numba."""

from __future__ import annotations

import math

import numpy as np
from kernels import FAR, beard_density, brow_density, noise, scalp_density, smoothstep
from numba import njit

Array = np.ndarray
Vector = tuple[float, float, float]

SKIN, UPPER_TEETH, LOWER_TEETH, TONGUE, LEFT_EYE, RIGHT_EYE, CLOTH, SECOND_CLOTH, FRAME = range(9)


# Eight places on a spiral within the unit circle, turned 64 ways: every pixel takes another of them.
_SAMPLES = 8
_ANGLES = 2.399963 * np.arange(_SAMPLES) + 2 * np.pi * np.arange(64)[:, None] / 64
_RADII = np.sqrt((np.arange(_SAMPLES) + 0.5) / _SAMPLES)
_SPIRALS = np.stack([_RADII * np.cos(_ANGLES), _RADII * np.sin(_ANGLES)], axis=-1)


@njit(cache=True)
def sample_mask(mask: Array, u: float, v: float) -> float:
    """Value of a UV mask [H, W], linear between its pixels."""
    height, width = mask.shape
    x = min(width - 1.001, max(0.0, u * width - 0.5))
    y = min(height - 1.001, max(0.0, (1 - v) * height - 0.5))
    ix, iy = int(x), int(y)
    fx, fy = x - ix, y - iy
    top = mask[iy, ix] * (1 - fx) + mask[iy, ix + 1] * fx
    bottom = mask[iy + 1, ix] * (1 - fx) + mask[iy + 1, ix + 1] * fx
    return top * (1 - fy) + bottom * fy


@njit(cache=True)
def light_visible(
    maps: tuple[Array, Array, Array], column: float, row: float, z: float, spread: float, turn: int
) -> float:
    """Part of the key light that reaches a point of the shadow map, 0…1, softened over `spread` pixels."""
    shadow, hair_depth, hair_count = maps
    size = shadow.shape[0]
    seen = 0.0
    for k in range(_SAMPLES):
        c = int(column + spread * _SPIRALS[turn, k, 0])
        r = int(row + spread * _SPIRALS[turn, k, 1])
        if c < 0 or r < 0 or c >= size or r >= size:
            seen += 1
        elif z < shadow[r, c] + 0.035:
            if z > hair_depth[r, c] + 0.03:
                seen += math.exp(-0.30 * hair_count[r, c])
            else:
                seen += 1
    return seen / _SAMPLES


@njit(cache=True)
def _unit(x: float, y: float, z: float) -> tuple[float, float, float]:
    size = math.sqrt(x * x + y * y + z * z) + 1e-12
    return x / size, y / size, z / size


@njit(cache=True)
def _glossy(normal: Vector, light: Vector, view: Vector, rough: float) -> float:
    """GGX reflection of a light, times the cosine, for a surface that reflects 4 % head on."""
    nx, ny, nz = normal
    lx, ly, lz = light
    vx, vy, vz = view
    hx, hy, hz = _unit(lx + vx, ly + vy, lz + vz)
    cos_h = max(0.0, nx * hx + ny * hy + nz * hz)
    cos_l = max(0.0, nx * lx + ny * ly + nz * lz)
    cos_v = max(0.05, nx * vx + ny * vy + nz * vz)
    a2 = rough**4
    d = a2 / (math.pi * ((cos_h * cos_h * (a2 - 1) + 1) ** 2) + 1e-9)
    k = (rough + 1) ** 2 / 8
    g = 1 / ((cos_l * (1 - k) + k) * (cos_v * (1 - k) + k))
    grazing = (1 - max(0.0, vx * hx + vy * hy + vz * hz)) ** 5
    return d * g * 0.25 * cos_l * (0.04 + 0.96 * grazing)


@njit(cache=True)
def shade(
    pixels: tuple[Array, ...],
    mesh: tuple[Array, ...],
    maps: tuple[Array, ...],
    person: tuple[Array, ...],
    lights: tuple[Array, Array, float],
) -> tuple[Array, Array, Array, Array]:
    """Albedo, light that falls in, gloss and the part of skin of each pixel.

    Args:
        pixels: depth [H, W], index [H, W] (triangle), bary [H, W, 2], occlusion [H, W].
        mesh: triangles [T, 3], material [T], posed points, normals and points of the base mesh [V, 3], uv [V, 2],
            points in the shadow map [V, 3].
        maps: masks of lips, mouth and ears, then the shadow map's depth, hair's first depth and number.
        person: colours [8, 3] (skin, lips, iris, hair, brow, cloth, second cloth, frame), settings [12] in the order in
            which they are unpacked below, settings of hair [25], of beard [6], of brows [4], eyes [2, 6] (centre and
            gaze), camera [3].
        lights: directions [3, 3] and colours [5, 3] of key, fill, rim, then sky and ground, and the softness.
    """
    depth, index, bary, open_sky = pixels
    triangles, material, points, normals, base, uv, in_shadow = mesh
    lips_mask, mouth_mask, ears_mask, shadow, hair_depth, hair_count = maps
    colors, settings, hair, beard, brow, eyes, camera = person
    directions, light_colors, softness = lights
    height, width = depth.shape
    albedo = np.zeros((height, width, 3))
    falling = np.zeros((height, width, 3))
    gloss = np.zeros((height, width, 3))
    skin = np.zeros((height, width))
    seed, tone, rosy, freckles, age, stubble, makeup, beard_root, bald, brow_dark, metal, striped = settings
    p, n, q, lp = np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3)
    color = np.zeros(3)
    for row in range(height):
        for column in range(width):
            if depth[row, column] >= FAR:
                continue
            t = index[row, column]
            wb, wc = bary[row, column, 0], bary[row, column, 1]
            wa = 1 - wb - wc
            a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
            for k in range(3):
                p[k] = wa * points[a, k] + wb * points[b, k] + wc * points[c, k]
                n[k] = wa * normals[a, k] + wb * normals[b, k] + wc * normals[c, k]
                q[k] = wa * base[a, k] + wb * base[b, k] + wc * base[c, k]
                lp[k] = wa * in_shadow[a, k] + wb * in_shadow[b, k] + wc * in_shadow[c, k]
            u = wa * uv[a, 0] + wb * uv[b, 0] + wc * uv[c, 0]
            v = wa * uv[a, 1] + wb * uv[b, 1] + wc * uv[c, 1]
            kind = material[t]
            nx, ny, nz = _unit(n[0], n[1], n[2])
            vx, vy, vz = _unit(camera[0] - p[0], camera[1] - p[1], camera[2] - p[2])
            rough, shine, occluded = 0.5, 1.0, open_sky[row, column]
            wrap = 0.0
            if kind == SKIN:
                wrap = 0.25
                lip = sample_mask(lips_mask, u, v)
                inside = sample_mask(mouth_mask, u, v)
                ear = sample_mask(ears_mask, u, v)
                coarse = noise(q[0] * 4 + seed, q[1] * 4, q[2] * 4)
                fine = noise(q[0] * 16, q[1] * 16 + seed, q[2] * 16) + 0.6 * noise(
                    q[0] * 38 + seed, q[1] * 38, q[2] * 38
                )
                pore = noise(q[0] * 75, q[1] * 75, q[2] * 75 + seed)
                cheek = math.exp(-((abs(q[0]) - 0.47) ** 2 / 0.03) - (q[1] - 6.93) ** 2 / 0.045)
                tip = math.exp(-(q[0] ** 2 / 0.02) - (q[1] - 6.93) ** 2 / 0.012) * smoothstep(1.5, 1.65, q[2])
                red = rosy * (0.75 * cheek + 0.8 * tip + 0.5 * ear) + 0.22 * coarse
                red *= 0.14 * (1 - 0.5 * tone)
                dark = 1 + 0.035 * coarse + 0.035 * fine + 0.03 * pore
                under = math.exp(-((abs(q[0]) - 0.29) ** 2 / 0.018) - (q[1] - 7.13) ** 2 / 0.004)
                socket = math.exp(-((abs(q[0]) - 0.30) ** 2 / 0.03) - (q[1] - 7.38) ** 2 / 0.004)
                dark *= 1 - (0.07 + 0.10 * age) * under - 0.10 * socket
                if freckles > 0:
                    spot = smoothstep(0.35, 0.7, noise(q[0] * 30 + seed, q[1] * 30, q[2] * 30))
                    near = math.exp(-((abs(q[0]) - 0.3) ** 2 / 0.06) - (q[1] - 7.0) ** 2 / 0.06)
                    dark *= 1 - 0.3 * freckles * spot * near
                if age > 0.4:
                    spot = smoothstep(0.55, 0.85, noise(q[0] * 7 - seed, q[1] * 7, q[2] * 7))
                    dark *= 1 - 0.10 * spot
                for k in range(3):
                    color[k] = colors[0, k] * dark
                color[0] *= 1 + 0.4 * red
                color[1] *= 1 - 1.0 * red
                color[2] *= 1 - 0.9 * red
                if makeup > 0:
                    shadowed = math.exp(-((abs(q[0]) - 0.33) ** 2 / 0.03) - (q[1] - 7.40) ** 2 / 0.003)
                    blush = math.exp(-((abs(q[0]) - 0.55) ** 2 / 0.02) - (q[1] - 6.98) ** 2 / 0.02)
                    color[0] *= 1 - 0.35 * shadowed + 0.05 * blush
                    color[1] *= 1 - 0.45 * shadowed - 0.16 * blush
                    color[2] *= 1 - 0.35 * shadowed - 0.12 * blush
                bare = (1 - smoothstep(0.2, 0.6, lip)) * (1 - ear)  # where a beard may grow
                if stubble > 0 and q[1] < 7.3:
                    grown = beard_density(q[0], q[1], q[2], beard) * bare
                    grain = 0.75 + 0.35 * noise(q[0] * 60, q[1] * 60 + seed, q[2] * 60)
                    grown *= stubble * grain
                    for k in range(3):
                        shadow_color = 0.35 * colors[0, k] * (1.0, 0.98, 1.0)[k] + 0.3 * colors[4, k]
                        color[k] += grown * (shadow_color - color[k])
                if beard_root > 0 and q[1] < 7.3:
                    grown = (
                        beard_root
                        * beard_density(q[0], q[1], q[2], beard)
                        * (1 - smoothstep(0.2, 0.6, lip))
                        * (1 - ear)
                    )
                    for k in range(3):
                        color[k] += grown * (0.5 * colors[4, k] + 0.08 * colors[0, k] - color[k])
                if q[2] > 0.9 and q[1] > 7.2:
                    grown = 0.55 * brow_dark * brow_density(q[0], q[1], brow)
                    for k in range(3):
                        color[k] += grown * (0.7 * colors[4, k] + 0.15 * colors[0, k] - color[k])
                if lip > 0.02:
                    part = smoothstep(0.15, 0.75, lip)
                    line = 1 - 0.12 * smoothstep(0.0, 0.8, noise(q[0] * 70 + seed, q[1] * 6, 0.0))
                    for k in range(3):
                        color[k] += part * (colors[1, k] * line * (1 + 0.1 * fine) - color[k])
                    rough = 0.5 - 0.14 * part
                    shine = 1 + 0.5 * part
                if inside > 0.5 and lip < 0.5:
                    for k in range(3):
                        color[k] = 0.5 * color[k] * (1.0, 0.45, 0.42)[k]
                    deep = smoothstep(1.52, 1.2, q[2])
                    occluded *= 1 - 0.9 * deep
                    shine *= 1 - deep
                scalp = 0.0
                if bald < 0.5:
                    scalp = scalp_density(q[0], q[1], q[2], hair)
                    for k in range(3):
                        color[k] += 0.96 * scalp * (0.7 * colors[3, k] + 0.01 * colors[0, k] - color[k])
                shine *= 1 - 0.9 * scalp
                oily = math.exp(-(q[0] ** 2 / 0.06)) * smoothstep(6.8, 7.0, q[1])
                rough -= 0.05 * oily + 0.03 * fine
                # Relief: pores, and with age lines across the forehead, beside the eyes and from nose to mouth.
                bump = 0.05 + 0.05 * age
                nx += bump * (fine * 0.5 + pore * 0.8)
                ny += bump * noise(q[0] * 75 + 9, q[1] * 75, q[2] * 75 + seed)
                if age > 0.3:
                    forehead = (
                        smoothstep(7.55, 7.65, q[1]) * (1 - smoothstep(7.9, 8.0, q[1])) * smoothstep(0.9, 1.2, q[2])
                    )
                    bend = 0.04 * noise(q[0] * 5 + seed, q[1] * 2, 0.0)
                    ny += 0.35 * age * forehead * math.sin((q[1] + bend) * 85) * smoothstep(0.6, 0.2, abs(q[0]))
                    crow = math.exp(-((abs(q[0]) - 0.63) ** 2 / 0.006) - (q[1] - 7.27) ** 2 / 0.012)
                    ny += 0.35 * age * crow * math.sin((q[1] + 0.3 * (abs(q[0]) - 0.6) * (q[1] - 7.27)) * 130)
                nx, ny, nz = _unit(nx, ny, nz)
                skin[row, column] = 1.0
            elif kind in (UPPER_TEETH, LOWER_TEETH):
                gap = abs(math.sin(q[0] * 40.0)) ** 0.35
                for k in range(3):
                    color[k] = (1.0, 0.93, 0.80)[k] * (0.72 + 0.28 * gap)
                deep = smoothstep(1.48, 1.15, q[2])
                lit = 1.0 if kind == UPPER_TEETH else 0.4
                occluded = lit * max(occluded, 0.85) * (1 - 0.8 * deep)
                rough = 0.28
                wrap = 0.7
            elif kind == TONGUE:
                for k in range(3):
                    color[k] = (0.45, 0.14, 0.13)[k]
                occluded *= 0.15 + 0.6 * smoothstep(1.1, 1.45, q[2])
                rough = 0.4
            elif kind in (LEFT_EYE, RIGHT_EYE):
                e = kind - LEFT_EYE
                nx, ny, nz = _unit(p[0] - eyes[e, 0], p[1] - eyes[e, 1], p[2] - eyes[e, 2])
                gx, gy, gz = eyes[e, 3], eyes[e, 4], eyes[e, 5]
                angle = math.acos(min(1.0, max(-1.0, nx * gx + ny * gy + nz * gz)))
                around = math.atan2(ny - gy * math.cos(angle), nx - gx * math.cos(angle))
                vein = noise(nx * 14 + seed, ny * 22, e * 9.0)
                for k in range(3):
                    color[k] = (0.74, 0.68, 0.65)[k] * (
                        1 - (0.0, 0.10, 0.10)[k] * smoothstep(0.5, 1.0, angle + 0.15 * vein)
                    )
                iris = 1 - smoothstep(0.43, 0.47, angle)
                ray = 0.75 + 0.5 * noise(around * 9 + seed, angle * 6, 3.0) + 0.25 * noise(around * 22, angle * 9, 5.0)
                ring = 1 - 0.65 * smoothstep(0.33, 0.46, angle)
                lower = 1 + 0.7 * smoothstep(0.1, -0.4, ny - gy)
                for k in range(3):
                    within = 1.25 * colors[2, k] * ray * ring * lower
                    within *= smoothstep(0.155, 0.195, angle)
                    color[k] += iris * (within + 0.004 - color[k])
                rough = 0.24
                shine = 2.6
                # The cornea bulges: over the iris its surface turns faster than the ball's, and there light glints.
                if angle < 0.47:
                    along = nx * gx + ny * gy + nz * gz
                    nx, ny, nz = _unit(
                        nx + 0.7 * (nx - along * gx), ny + 0.7 * (ny - along * gy), nz + 0.7 * (nz - along * gz)
                    )
                # The lids shade the ball from above and at both corners.
                occluded *= 0.45 + 0.55 * smoothstep(0.62, 0.22, (p[1] - eyes[e, 1]) / 0.15)
                occluded *= 1 - 0.35 * smoothstep(0.45, 0.9, abs((p[0] - eyes[e, 0]) / 0.15 - gx))
                wrap = 0.2
            elif kind == FRAME:
                for k in range(3):
                    color[k] = colors[7, k]
                rough = 0.25 if metal > 0.5 else 0.35
                shine = 5.0 if metal > 0.5 else 1.3
            else:
                which = 5 if kind == CLOTH else 6
                weave = 0.5 * noise(q[0] * 45, q[1] * 45, q[2] * 45) + 0.5 * noise(q[0] * 90, q[1] * 25, q[2] * 90)
                if striped > 0.5 and kind == CLOTH:
                    weave += 0.9 * math.sin(q[1] * 60 + 2 * noise(q[0] * 3, q[1] * 3, seed)) * 0.3
                for k in range(3):
                    color[k] = colors[which, k] * (1 + 0.10 * weave)
                fold = noise(q[0] * 3 + seed, q[1] * 1.6, q[2] * 2) + 0.5 * noise(q[0] * 7, q[1] * 4 + seed, q[2] * 5)
                nx += 0.32 * fold
                ny += 0.28 * noise(q[0] * 3 + seed, q[1] * 2.5 + 30, q[2] * 2)
                nx, ny, nz = _unit(nx, ny, nz)
                rough = 0.8
                shine = 0.4
            turn = (row * 37 + column * 23 + (row * column) % 61) & 63
            seen = light_visible((shadow, hair_depth, hair_count), lp[0], lp[1], lp[2], softness, turn)
            if kind in (UPPER_TEETH, LOWER_TEETH, LEFT_EYE, RIGHT_EYE):
                seen = 0.5 + 0.5 * seen
            up = 0.5 + 0.5 * ny
            for k in range(3):
                albedo[row, column, k] = min(1.0, max(0.002, color[k]))
                falling[row, column, k] = occluded * (
                    light_colors[4, k] + (light_colors[3, k] - light_colors[4, k]) * up
                )
            for s in range(3):
                lx, ly, lz = directions[s, 0], directions[s, 1], directions[s, 2]
                cosine = nx * lx + ny * ly + nz * lz
                reach = (seen if s == 0 else 1.0) * (0.4 + 0.6 * occluded)
                if s > 0:
                    reach *= occluded
                soft = max(0.0, (cosine + wrap) / (1 + wrap)) ** (1 + wrap)
                bright = shine * _glossy((nx, ny, nz), (lx, ly, lz), (vx, vy, vz), rough) if cosine > 0 else 0.0
                for k in range(3):
                    falling[row, column, k] += reach * soft * light_colors[s, k]
                    gloss[row, column, k] += (
                        reach * bright * light_colors[s, k] * (colors[7, k] if kind == FRAME and metal > 0.5 else 1.0)
                    )
            # The surroundings mirrored at a grazing angle.
            facing = max(0.0, nx * vx + ny * vy + nz * vz)
            mirrored = shine * occluded * (0.02 + 0.25 * (1 - facing) ** 4) * (1 - rough)
            for k in range(3):
                gloss[row, column, k] += mirrored * light_colors[3, k]
    return albedo, falling, gloss, skin


@njit(cache=True)
def shade_strands(
    strands: Array,
    roots: Array,
    color: Array,
    settings: Array,
    maps: tuple[Array, Array],
    in_shadow: Array,
    lights: tuple[Array, Array, float],
    camera: Array,
) -> Array:
    """Colour [N, K, 3] of each point of the strands, after Kajiya and Kay.

    Args:
        strands: float64 [N, K, 3] posed points.
        roots: float64 [N, 3] outward directions at the roots.
        color: float64 [N, 3] of the strands.
        settings: float64 [3]: gloss, how dark the roots are, how far light gets in.
        maps: depth of the solid shadow map, then hair's first depth.
        in_shadow: float64 [N, K, 3] points in the shadow map.
        lights: as `shade` takes them.
        camera: float64 [3].
    """
    count, steps = strands.shape[0], strands.shape[1]
    shadow, hair_depth = maps
    directions, light_colors, _ = lights
    size = shadow.shape[0]
    result = np.zeros((count, steps, 3))
    glossy, root_dark, depth_dark = settings
    for i in range(count):
        for k in range(steps):
            j = min(k, steps - 2)
            tx, ty, tz = _unit(
                strands[i, j + 1, 0] - strands[i, j, 0],
                strands[i, j + 1, 1] - strands[i, j, 1],
                strands[i, j + 1, 2] - strands[i, j, 2],
            )
            x, y, z = strands[i, k, 0], strands[i, k, 1], strands[i, k, 2]
            vx, vy, vz = _unit(camera[0] - x, camera[1] - y, camera[2] - z)
            column, row = int(in_shadow[i, k, 0]), int(in_shadow[i, k, 1])
            seen = 1.0
            if 0 <= column < size and 0 <= row < size:
                into = max(0.0, in_shadow[i, k, 2] - hair_depth[row, column])
                seen = math.exp(-depth_dark * into)
                if in_shadow[i, k, 2] > shadow[row, column] + 0.06:
                    seen *= 0.25
            place = k / (steps - 1)
            inner = 1 - root_dark * (1 - smoothstep(0.0, 0.45, place))
            ox, oy, oz = roots[i, 0], roots[i, 1], roots[i, 2]
            up = 0.5 + 0.5 * oy
            tv = tx * vx + ty * vy + tz * vz
            sin_v = math.sqrt(max(0.0, 1 - tv * tv))
            for c in range(3):
                ambient = 0.75 * inner * (light_colors[4, c] + (light_colors[3, c] - light_colors[4, c]) * up)
                result[i, k, c] = color[i, c] * ambient * (0.5 + 0.5 * seen)
            for s in range(3):
                lx, ly, lz = directions[s, 0], directions[s, 1], directions[s, 2]
                tl = tx * lx + ty * ly + tz * lz
                sin_l = math.sqrt(max(0.0, 1 - tl * tl))
                facing = 0.5 + 0.5 * (ox * lx + oy * ly + oz * lz)
                facing = smoothstep(0.15, 0.9, facing)
                reach = facing * inner * (seen if s == 0 else 0.3 + 0.7 * seen)
                cos_first = sin_l * sin_v - tl * tv
                first = max(0.0, cos_first) ** 60
                second = max(0.0, sin_l * sin_v - (tl + 0.12) * tv) ** 16
                for c in range(3):
                    result[i, k, c] += (
                        reach
                        * light_colors[s, c]
                        * (0.8 * color[i, c] * sin_l + glossy * (0.055 * first + 0.55 * color[i, c] * second))
                    )
    return result

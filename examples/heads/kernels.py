"""The inner loops of the renderer, compiled by numba: noise, triangles, shadows, occlusion, strands.

Pictures are indexed [row, column] with row 0 at the top. Depth is the distance from the camera in decimetres.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numba
import numpy as np
from numba import njit

Array = np.ndarray

# numba keeps a compiled function until its own file changes, though what it calls has changed in another: so what is
# kept lies under a name of both files' contents.
_HERE = Path(__file__).parent
_CONTENTS = b"".join((_HERE / name).read_bytes() for name in ("kernels.py", "shading.py"))
numba.config.CACHE_DIR = str(_HERE / "__pycache__" / hashlib.sha256(_CONTENTS).hexdigest()[:16])  # type: ignore[attr-defined]

FAR = 1e9


_CELLS = 32
_LATTICE = np.random.default_rng(12345).uniform(-1, 1, (_CELLS, _CELLS, _CELLS)).astype(np.float32)


@njit(cache=True)
def _hash(x: int, y: int, z: int) -> float:
    h = (x * 374761393 + y * 668265263 + z * 2147483647) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 16)) * 2246822519) & 0xFFFFFFFF
    return ((h ^ (h >> 15)) & 0xFFFFFF) / 8388607.5 - 1.0


@njit(cache=True)
def noise(x: float, y: float, z: float) -> float:
    """Smooth value noise in -1…1 with cells of size 1, the same again after 32 cells."""
    fx, fy, fz = math.floor(x), math.floor(y), math.floor(z)
    u, v, w = x - fx, y - fy, z - fz
    u, v, w = u * u * (3 - 2 * u), v * v * (3 - 2 * v), w * w * (3 - 2 * w)
    i, j, k = int(fx) & 31, int(fy) & 31, int(fz) & 31
    i1, j1, k1 = (i + 1) & 31, (j + 1) & 31, (k + 1) & 31
    near = (_LATTICE[i, j, k] * (1 - w) + _LATTICE[i, j, k1] * w) * (1 - v) + (
        _LATTICE[i, j1, k] * (1 - w) + _LATTICE[i, j1, k1] * w
    ) * v
    far = (_LATTICE[i1, j, k] * (1 - w) + _LATTICE[i1, j, k1] * w) * (1 - v) + (
        _LATTICE[i1, j1, k] * (1 - w) + _LATTICE[i1, j1, k1] * w
    ) * v
    return near * (1 - u) + far * u


@njit(cache=True)
def smoothstep(low: float, high: float, x: float) -> float:
    """0 below `low`, 1 above `high`, smooth between."""
    t = (x - low) / (high - low)
    t = min(1.0, max(0.0, t))
    return t * t * (3 - 2 * t)


@njit(cache=True)
def rasterize(screen: Array, triangles: Array, cut: Array, depth: Array, index: Array, bary: Array) -> None:
    """Draw triangles into `depth`, `index` and `bary` where they are nearest.

    Args:
        screen: float64 [V, 3]: column, row, depth.
        triangles: int64 [T, 3].
        cut: float64 [V]; a pixel where the interpolated value is negative is left out.
        depth, index, bary: float64 [H, W], int64 [H, W] and float64 [H, W, 2], changed in place.
    """
    height, width = depth.shape
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ax, ay, az = screen[a, 0], screen[a, 1], screen[a, 2]
        bx, by, bz = screen[b, 0], screen[b, 1], screen[b, 2]
        cx, cy, cz = screen[c, 0], screen[c, 1], screen[c, 2]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0:
            continue
        left = max(0, math.ceil(min(ax, bx, cx) - 0.5))
        right = min(width - 1, math.floor(max(ax, bx, cx) - 0.5))
        top = max(0, math.ceil(min(ay, by, cy) - 0.5))
        bottom = min(height - 1, math.floor(max(ay, by, cy) - 0.5))
        for row in range(top, bottom + 1):
            py = row + 0.5
            for column in range(left, right + 1):
                px = column + 0.5
                wb = ((px - ax) * (cy - ay) - (py - ay) * (cx - ax)) / area
                wc = ((bx - ax) * (py - ay) - (by - ay) * (px - ax)) / area
                wa = 1 - wb - wc
                if wa < 0 or wb < 0 or wc < 0:
                    continue
                z = 1 / (wa / az + wb / bz + wc / cz)
                if z >= depth[row, column]:
                    continue
                wb, wc = wb * z / bz, wc * z / cz
                if cut[a] * (1 - wb - wc) + cut[b] * wb + cut[c] * wc < 0:
                    continue
                depth[row, column] = z
                index[row, column] = t
                bary[row, column, 0] = wb
                bary[row, column, 1] = wc


@njit(cache=True)
def shadow_depth(points: Array, triangles: Array, cut: Array, size: int) -> Array:
    """Depth of the first surface along -z in a map of `size` squared; points [V, 3] are column, row, depth."""
    depth = np.full((size, size), FAR)
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        if cut[a] < 0 and cut[b] < 0 and cut[c] < 0:
            continue
        ax, ay, bx, by, cx, cy = points[a, 0], points[a, 1], points[b, 0], points[b, 1], points[c, 0], points[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0.0:
            continue
        for row in range(max(0, int(min(ay, by, cy))), min(size - 1, int(max(ay, by, cy))) + 1):
            for column in range(max(0, int(min(ax, bx, cx))), min(size - 1, int(max(ax, bx, cx))) + 1):
                px, py = column + 0.5, row + 0.5
                wb = ((px - ax) * (cy - ay) - (py - ay) * (cx - ax)) / area
                wc = ((bx - ax) * (py - ay) - (by - ay) * (px - ax)) / area
                if wb >= -0.02 and wc >= -0.02 and wb + wc <= 1.02:
                    z = points[a, 2] * (1 - wb - wc) + points[b, 2] * wb + points[c, 2] * wc
                    depth[row, column] = min(depth[row, column], z)
    return depth


@njit(cache=True)
def hair_shadow(points: Array, size: int) -> tuple[Array, Array]:
    """First depth and number of hairs in a shadow map; points [N, 3] are column, row, depth."""
    depth = np.full((size, size), FAR)
    count = np.zeros((size, size))
    for i in range(points.shape[0]):
        column, row = int(points[i, 0]), int(points[i, 1])
        if 0 <= column < size and 0 <= row < size:
            depth[row, column] = min(depth[row, column], points[i, 2])
            count[row, column] += 1
    return depth, count


@njit(cache=True)
def blur(image: Array, radius: int) -> Array:
    """Two passes of a box of `radius` pixels in each direction over [H, W]."""
    height, width = image.shape
    result = image.copy()
    other = np.zeros((height, width))
    totals = np.zeros(width)
    scale = 1.0 / (2 * radius + 1)
    for _ in range(2):
        for row in range(height):
            total = 0.0
            for k in range(-radius, radius + 1):
                total += result[row, min(width - 1, max(0, k))]
            for column in range(width):
                other[row, column] = total * scale
                total += result[row, min(width - 1, column + radius + 1)] - result[row, max(0, column - radius)]
        totals[:] = 0.0
        for k in range(-radius, radius + 1):
            totals += other[min(height - 1, max(0, k))]
        for row in range(height):
            into, out = other[min(height - 1, row + radius + 1)], other[max(0, row - radius)]
            for column in range(width):
                result[row, column] = totals[column] * scale
                totals[column] += into[column] - out[column]
    return result


@njit(cache=True)
def occlusion(depth: Array, reach: tuple[float, float], strength: float) -> Array:
    """Ambient occlusion in screen space from `depth` [H, W]: 1 where open, less in corners.

    What is within `reach` counts: so many pixels, and so many decimetres of depth.
    """
    height, width = depth.shape
    result = np.ones((height, width))
    pixels, limit = reach
    for row in range(height):
        for column in range(width):
            z = depth[row, column]
            if z >= FAR:
                continue
            turn = 6.2831853 * (_hash(row, column, 7) * 0.5 + 0.5)
            hidden = 0.0
            for k in range(14):
                distance = pixels * (k + 0.5) / 14
                angle = turn + k * 2.399963
                dx, dy = distance * math.cos(angle), distance * math.sin(angle)
                r1, c1 = int(row + dy), int(column + dx)
                r2, c2 = int(row - dy), int(column - dx)
                if min(r1, r2, c1, c2) < 0 or max(r1, r2) >= height or max(c1, c2) >= width:
                    continue
                # A plane hides nothing of itself: what counts is the mean of two opposite neighbours.
                near = z - 0.5 * (max(z - limit, depth[r1, c1]) + max(z - limit, depth[r2, c2]))
                if depth[r1, c1] < FAR and depth[r2, c2] < FAR and near > 0:
                    hidden += min(1.0, near / (0.28 * limit)) * (1 - 0.5 * k / 14)
            result[row, column] = max(0.0, 1 - strength * hidden / 10.0)
    return result


@njit(cache=True)
def scalp_density(x: float, y: float, z: float, hair: Array) -> float:
    """How much hair grows at a point of the base mesh, 0…1.

    Args:
        hair: float64 [25]: the hairline's height for each ten degrees from the front to the nape, then the height
            above which hair has gone, the radius of a bald crown, the softness of the edge, its wobble, a seed,
            and how far temples have receded.
    """
    if y < 6.3:
        return 0.0
    angle = math.degrees(math.atan2(abs(x), z - 0.5)) / 10
    k = min(17, max(0, int(angle)))
    line = hair[k] + (hair[k + 1] - hair[k]) * (angle - k)
    receded = hair[24] * math.exp(-(((angle - 3.4) / 1.3) ** 2)) + 0.4 * hair[24] * math.exp(-((angle / 2.0) ** 2))
    wobble = hair[22] * (noise(x * 9 + hair[23], y * 9, z * 9) + 0.6 * noise(x * 23, y * 23 + hair[23], z * 23))
    soft = hair[21]
    density = smoothstep(line + receded - soft, line + receded + soft, y + wobble)
    density *= 1 - smoothstep(hair[19] - 0.12, hair[19] + 0.12, y + 2 * wobble)
    crown = math.sqrt(x * x + (z - 0.15) ** 2 + max(0.0, 8.2 - y) ** 2)
    if hair[20] > 0:
        density *= smoothstep(hair[20] - 0.18, hair[20] + 0.18, crown + 2 * wobble)
    if z > 0.2 and z < 0.75 and abs(x) > 0.72 and y < 7.42 and line < 7.2 and z < 0.66:
        density = 0.0
    return density


@njit(cache=True)
def beard_density(x: float, y: float, z: float, beard: Array) -> float:
    """How much beard grows at a point of the base mesh, 0…1.

    Args:
        beard: float64 [6]: weights of moustache, chin, jaw and sideburns, wobble of the edge, a seed.
    """
    if z < 0.45 or y > 7.35 or y < 5.85:
        return 0.0
    ax = abs(x)
    wobble = beard[4] * (noise(x * 6 + beard[5], y * 6, z * 6) + 0.7 * noise(x * 17, y * 17 + beard[5], z * 17))
    side = ax + wobble
    up = y + wobble
    # From the base of the nose down to the upper lip, sinking towards the corners of the mouth.
    sink = 0.30 * smoothstep(0.12, 0.36, ax) * ax
    moustache = smoothstep(6.665 - sink, 6.70 - sink, y) * (1 - smoothstep(6.80 - sink, 6.845 - sink, up))
    moustache *= (1 - smoothstep(0.30, 0.40, side)) * smoothstep(1.15, 1.25, z)
    chin = (1 - smoothstep(0.24, 0.36, side)) * (1 - smoothstep(6.43, 6.49, up + 0.10 * smoothstep(0.08, 0.2, ax)))
    chin = max(chin, smoothstep(0.27, 0.31, ax) * (1 - smoothstep(0.35, 0.42, side)) * (1 - smoothstep(6.72, 6.80, up)))
    chin *= smoothstep(6.02, 6.16, up) * smoothstep(0.95, 1.15, z)
    soul = (1 - smoothstep(0.05, 0.10, side)) * (1 - smoothstep(6.47, 6.50, y)) * smoothstep(6.3, 6.4, y)
    chin = max(chin, soul)
    line = 6.52 + 0.62 * smoothstep(0.34, 0.86, ax) + 0.25 * smoothstep(0.66, 0.82, ax)
    jaw = (1 - smoothstep(line - 0.07, line + 0.05, up)) * smoothstep(0.26, 0.36, side)
    jaw *= smoothstep(6.0, 6.2, up + 0.25 * ax)
    sideburn = smoothstep(0.62, 0.69, side) * smoothstep(6.82, 6.92, up) * (1 - smoothstep(0.88, 0.98, z + wobble))
    density = max(max(moustache * beard[0], chin * beard[1]), max(jaw * beard[2], sideburn * beard[3]))
    return density * smoothstep(0.55, 0.68, z) * smoothstep(6.06, 6.18, y)


@njit(cache=True)
def brow_density(x: float, y: float, brow: Array) -> float:
    """How much eyebrow grows at a point of the base mesh's front, 0…1; brow [4]: height, arch, thickness, length."""
    ax = abs(x)
    along = (ax - 0.125) / brow[3]
    if along < -0.1 or along > 1.05 or y < 7.2:
        return 0.0
    middle = brow[0] + brow[1] * math.sin(min(1.0, max(0.0, along)) * 2.3) - 0.02 * along
    half = brow[2] * (1 - 0.72 * smoothstep(0.35, 1.0, along)) * smoothstep(-0.1, 0.12, along)
    return 1 - smoothstep(0.55 * half, half + 0.008, abs(y - middle))


@njit(cache=True)
def densities(points: Array, kind: int, settings: Array) -> Array:
    """Density of hair (kind 0), beard (1) or brows (2) at points [N, 3] of the base mesh."""
    result = np.zeros(points.shape[0])
    for i in range(points.shape[0]):
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        if kind == 0:
            result[i] = scalp_density(x, y, z, settings)
        elif kind == 1:
            result[i] = beard_density(x, y, z, settings)
        elif z > 0.9:
            result[i] = brow_density(x, y, settings)
    return result


@njit(cache=True)
def look_up(grid: Array, origin: Array, cell: float, x: float, y: float, z: float) -> tuple[float, float, float, float]:
    """Value of grid [X, Y, Z, C] at a point, linear between cells, the border's beyond it."""
    nx, ny, nz = grid.shape[0], grid.shape[1], grid.shape[2]
    gx = min(nx - 1.001, max(0.0, (x - origin[0]) / cell))
    gy = min(ny - 1.001, max(0.0, (y - origin[1]) / cell))
    gz = min(nz - 1.001, max(0.0, (z - origin[2]) / cell))
    ix, iy, iz = int(gx), int(gy), int(gz)
    u, v, w = gx - ix, gy - iy, gz - iz
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    for dx in range(2):
        for dy in range(2):
            for dz in range(2):
                weight = (u if dx else 1 - u) * (v if dy else 1 - v) * (w if dz else 1 - w)
                a += weight * grid[ix + dx, iy + dy, iz + dz, 0]
                b += weight * grid[ix + dx, iy + dy, iz + dz, 1]
                c += weight * grid[ix + dx, iy + dy, iz + dz, 2]
                d += weight * grid[ix + dx, iy + dy, iz + dz, 3]
    return a, b, c, d


@njit(cache=True)
def grow(strands: tuple[Array, ...], field: tuple[Array, Array, float], style: Array) -> Array:
    """Grow strands from their roots: combed, then falling, never inside the head, never before the face.

    Args:
        strands: where and whither each one starts, float64 [N, 3] both; where it is combed to, float64 [N, 3]; its
            length, and how far from the skin it lies, float64 [N] both.
        field: distance to the skin and its gradient: grid, origin and cell as `look_up` takes them.
        style: float64 [11]: weight, stiffness, waviness, waves a decimetre, width of the face kept free, height from
            where it is kept free, seed, disorder, how closely it clings to the head, number of points K, and by how
            much the head stands further to the front than the base mesh's.

    Returns:
        float64 [N, K, 3] points of the strands.
    """
    roots, directions, comb, lengths, layers = strands
    grid, origin, cell = field
    count, steps = roots.shape[0], int(style[9])
    result = np.zeros((count, steps, 3))
    weight, stiffness, wave, waves, face, free_below, seed, disorder, cling = style[:9]
    for i in range(count):
        x, y, z = roots[i, 0], roots[i, 1], roots[i, 2]
        dx, dy, dz = directions[i, 0], directions[i, 1], directions[i, 2]
        step = lengths[i] / (steps - 1)
        result[i, 0, 0], result[i, 0, 1], result[i, 0, 2] = x, y, z
        phase = 3.0 * noise(roots[i, 0] * 2.2 + seed, roots[i, 1] * 2.2, roots[i, 2] * 2.2) + _hash(i, 3, 5) * 0.5
        side = 1.0 if comb[i, 0] > 0 else -1.0
        turned = 6.2831853 * _hash(i // 3, 8, 2)
        for k in range(1, steps):
            gone = k * step
            pull = math.exp(-gone / stiffness)
            fall = weight * (1 - pull)
            rx = noise(x * 5 + seed, y * 5, z * 5) + 0.5 * _hash(i, k // 5, 11)
            rz = noise(x * 5, y * 5 + seed, z * 5) + 0.5 * _hash(i, k // 5, 12)
            dx += step * (6 * pull * comb[i, 0] + disorder * rx)
            dy += step * (6 * pull * comb[i, 1] - 7 * fall)
            dz += step * (6 * pull * comb[i, 2] + disorder * rz)
            size = math.sqrt(dx * dx + dy * dy + dz * dz) + 1e-9
            dx, dy, dz = dx / size, dy / size, dz / size
            x, y, z = x + step * dx, y + step * dy, z + step * dz
            layer = layers[i] * min(1.0, 0.25 + 2.2 * k / steps)
            sdf, gx, gy, gz = look_up(grid, origin, cell, x, y, z)
            if sdf < layer:
                size = math.sqrt(gx * gx + gy * gy + gz * gz) + 1e-9
                gx, gy, gz = gx / size, gy / size, gz / size
                x, y, z = x + (layer - sdf) * gx, y + (layer - sdf) * gy, z + (layer - sdf) * gz
                into = dx * gx + dy * gy + dz * gz
                if into < 0:
                    dx, dy, dz = dx - into * gx, dy - into * gy, dz - into * gz
            elif cling > 0:
                size = math.sqrt(gx * gx + gy * gy + gz * gz) + 1e-9
                back = min(cling * (sdf - layer), 0.5 * step) / size
                x, y, z = x - back * gx, y - back * gy, z - back * gz
            front = z - style[10]
            if face > 0 and y < free_below and front > 0.35:
                want = face * smoothstep(-0.15, 0.35, free_below - y) * smoothstep(0.35, 0.75, front)
                if side * x < want:
                    x += 0.6 * (want * side - x)
                    if side * dx < 0:
                        dx = 0.0
            wx, wy, wz = 0.0, 0.0, 0.0
            if wave > 0:
                turn = 6.2831853 * waves * gone + (turned if waves > 2 else 3.0 * phase)
                swing = wave * min(1.0, gone / 0.35)
                wx, wz = swing * math.cos(turn), swing * math.sin(turn)
                wy = 0.4 * swing * math.sin(turn + 1.0)
                if waves > 2:
                    wy = swing * math.sin(turn + 2.0)
            result[i, k, 0], result[i, k, 1], result[i, k, 2] = x + wx, y + wy, z + wz
    return result


@njit(cache=True)
def draw_strands(screen: Array, colors: Array, width: Array, depth: Array, image: Array, drawn: Array) -> None:
    """Draw strands as lines where they are nearest, each pixel mixed by how much of it is covered.

    Args:
        screen: float64 [N, K, 3]: column, row, depth of the points.
        colors: float64 [N, K, 3].
        width: float64 [N]: in pixels at the root; a strand is thinner towards its tip.
        depth, image: float64 [H, W] and [H, W, 3], changed in place.
        drawn: float64 [H, W]: how much of a pixel is hair, changed in place.
    """
    rows, columns = depth.shape
    for i in range(screen.shape[0]):
        for k in range(screen.shape[1] - 1):
            x0, y0, z0 = screen[i, k, 0], screen[i, k, 1], screen[i, k, 2]
            x1, y1, z1 = screen[i, k + 1, 0], screen[i, k + 1, 1], screen[i, k + 1, 2]
            dx, dy = x1 - x0, y1 - y0
            if max(x0, x1) < -2 or min(x0, x1) > columns + 2 or max(y0, y1) < -2 or min(y0, y1) > rows + 2:
                continue
            flat = abs(dx) >= abs(dy)
            steps = int(max(abs(dx), abs(dy))) + 1
            slope = math.sqrt(1 + (min(abs(dx), abs(dy)) / max(1e-6, max(abs(dx), abs(dy)))) ** 2)
            for s in range(steps):
                t = (s + 0.5) / steps
                z = z0 + t * (z1 - z0)
                taper = 1 - ((k + t) / (screen.shape[1] - 1)) ** 3 * 0.75
                half = 0.5 * width[i] * taper * slope
                cx, cy = x0 + t * dx, y0 + t * dy
                across = cy if flat else cx
                first, last = math.floor(across - half), math.floor(across + half)
                red = colors[i, k, 0] + t * (colors[i, k + 1, 0] - colors[i, k, 0])
                green = colors[i, k, 1] + t * (colors[i, k + 1, 1] - colors[i, k, 1])
                blue = colors[i, k, 2] + t * (colors[i, k + 1, 2] - colors[i, k, 2])
                for q in range(first, last + 1):
                    cover = min(across + half, q + 1.0) - max(across - half, float(q))
                    row = q if flat else math.floor(cy)
                    column = math.floor(cx) if flat else q
                    if row < 0 or column < 0 or row >= rows or column >= columns or cover <= 0:
                        continue
                    if z < depth[row, column]:
                        image[row, column, 0] += cover * (red - image[row, column, 0])
                        image[row, column, 1] += cover * (green - image[row, column, 1])
                        image[row, column, 2] += cover * (blue - image[row, column, 2])
                        # A pixel mostly uncovered stays open to strands behind, or what is behind them shows as dots.
                        if cover > 0.7:
                            depth[row, column] = z
                        drawn[row, column] += cover * (1 - drawn[row, column])

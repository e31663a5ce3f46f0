"""Nearest training images of samples, to reveal copies."""

from __future__ import annotations

import torch
from torch import Tensor

from cdrl.data import Grids

_CHUNK_NUMBERS = 2**24


def nearest(queries: Tensor, known: Grids, count: int = 1) -> tuple[Tensor, Tensor]:
    """Find the nearest of ``known`` [N, *shape] for each of ``queries`` [Q, *shape], nearest first.

    Returns:
        Distances (root mean square of the differences) and indices into ``known``, [Q, count] each.
    """
    asked = queries.float().flatten(1)
    size = max(count, _CHUNK_NUMBERS // asked.shape[1])
    distances, places = torch.empty(len(asked), 0), torch.empty(len(asked), 0, dtype=torch.int64)
    for start in range(0, len(known), size):
        part = known[start : start + size].float().flatten(1)
        # Exact differences: a copy must come out at zero.
        found = torch.cdist(asked, part, compute_mode="donot_use_mm_for_euclid_dist") / asked.shape[1] ** 0.5
        distances = torch.cat([distances, found], dim=1)
        places = torch.cat([places, torch.arange(start, start + len(part)).expand(len(asked), -1)], dim=1)
        distances, best = distances.topk(min(count, distances.shape[1]), largest=False)
        places = places.gather(1, best)
    return distances, places


def nearest_images(queries: Tensor, known: Grids, count: int = 1, *, mirrored: bool = False) -> tuple[Tensor, Tensor]:
    """Like `nearest`, for uint8 images [N, C, H, W]; distances are on values scaled to 0 … 1.

    Args:
        mirrored: compare with the mirror images of the known images too.

    Returns:
        Distances [Q, count] and images [Q, count, C, H, W].
    """
    distances, places = nearest(queries, known, count)
    images = known[places.flatten()].unflatten(0, places.shape)
    if mirrored:
        # A mirror image is as far from a query as the image itself is from the query's mirror image.
        other_distances, other_places = nearest(queries.flip(-1), known, count)
        distances, best = torch.cat([distances, other_distances], dim=1).topk(count, largest=False)
        images = torch.cat([images, known[other_places.flatten()].unflatten(0, other_places.shape).flip(-1)], dim=1)
        images = torch.stack([row[order] for row, order in zip(images, best, strict=True)])
    return distances / 255, images

"""What a run has learned from, in a few checksums: whether data have changed since."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from cdrl.data.images.sets import Grids, GridSet
from cdrl.data.shards.streaming import ShardGrids

_BYTES_AT_A_TIME = 2**22


def data_facts(data: GridSet) -> dict[str, Any]:
    """Fingerprint of training data as plain values, which change with any image, its position or its label.

    ``count``, ``shape`` of a grid, names of ``classes`` and ``attributes``, and hashes of the ``labels``, of the
    ``contents`` and of what the writer of shards has noted. Of grids that stay on disk the checksums in the index of
    their shards stand for the contents.
    """
    grids = data.grids
    annotations = [tensor for tensor in (data.labels, data.attributes) if tensor is not None]
    noted = json.dumps(dict(data.metadata), sort_keys=True).encode()
    return {
        "count": len(grids),
        "shape": list(grids.shape[1:]),
        "classes": list(data.label_names),
        "attributes": list(data.attribute_names),
        "labels": _hash_of(*annotations) if annotations else None,
        "noted": hashlib.blake2b(noted, digest_size=16).hexdigest(),
        "contents": grids.checksum if isinstance(grids, ShardGrids) else _hash_of(grids),
    }


def _hash_of(*arrays: Grids) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        rows = max(1, _BYTES_AT_A_TIME // max(1, array[:1].nbytes))
        for start in range(0, len(array), rows):
            digest.update(array[start : start + rows].contiguous().numpy().data.cast("B"))
    return digest.hexdigest()

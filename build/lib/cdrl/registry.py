"""Names that configurations use for what the code offers, each with the place of the function behind it.

To offer something new, write it in a file of its own and add its line here: docs/extending.md shows how. The places
are text, so that a configuration is checked without loading them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from cdrl.names import one_of

KERNELS = {
    "langevin": "cdrl.sampling.kernels:make_langevin",
    "mala": "cdrl.sampling.kernels:make_mala",
    "hmc": "cdrl.sampling.kernels:make_hmc",
}
"""``sampling.kernel``: SamplerSettings -> Kernel, see `cdrl.sampling.kernels`."""


class DataSet(NamedTuple):
    """A reader of images: (data.path, split, data section) -> `cdrl.data.Source`."""

    place: str
    needs_path: bool = True


DATA_SETS = {
    "faces": DataSet("cdrl.data.readers.faces:open_faces", needs_path=False),
    "digits": DataSet("cdrl.data.readers.digits:open_digits", needs_path=False),
    "fashion_mnist": DataSet("cdrl.data.readers.idx:open_fashion_mnist", needs_path=False),
    "cifar10": DataSet("cdrl.data.readers.pickles:open_cifar10"),
    "cifar100": DataSet("cdrl.data.readers.pickles:open_cifar100"),
    "svhn": DataSet("cdrl.data.readers.svhn:open_svhn"),
    "dtd": DataSet("cdrl.data.readers.dtd:open_dtd"),
    "imagenet32": DataSet("cdrl.data.readers.pickles:open_imagenet32"),
    "celeba": DataSet("cdrl.data.readers.celeba:open_celeba"),
    "celebahq": DataSet("cdrl.data.readers.celeba:open_celebahq"),
    "folder": DataSet("cdrl.data.readers.folders:open_folder"),
    "shards": DataSet("cdrl.data.readers.folders:open_shard_folder"),
}
"""``data.name``: images. Beside them there is ``checkerboard``, of 2-D points."""


def registered(what: str, name: str, table: Mapping[str, str | DataSet]) -> Any:
    """The function that a name in one of the tables stands for.

    Raises:
        ValueError: there is no such name.
    """
    entry = one_of(what, name, table)
    module, _, function = (entry.place if isinstance(entry, DataSet) else entry).partition(":")
    return getattr(importlib.import_module(module), function)

"""Names that configurations use for what the code offers, each with the place of the function behind it.

To offer something new, write it in a file of its own and add its line here: docs/extending.md shows how. The places
are text, so that a configuration is checked without loading them.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from cdrl.names import one_of

KERNELS = {
    "langevin": "cdrl.sampling.kernels:make_langevin",
    "mala": "cdrl.sampling.kernels:make_mala",
    "hmc": "cdrl.sampling.kernels:make_hmc",
}
"""``sampling.kernel``: SamplerSettings -> Kernel, see `cdrl.sampling.kernels`."""


def registered(what: str, name: str, table: Mapping[str, str]) -> Any:
    """The function that a name in one of the tables stands for.

    Raises:
        ValueError: there is no such name.
    """
    module, _, function = one_of(what, name, table).partition(":")
    return getattr(importlib.import_module(module), function)

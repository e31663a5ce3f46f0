"""What was drawn, with how it was drawn: samples, and images filled in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from cdrl.config import SamplerSettings
from cdrl.data import to_bytes
from pipelines.decoding import BATCH, Decoder, to_pil
from pipelines.guidance import Guidance


@dataclass(frozen=True)
class Generated:
    """Samples of a run.

    Attributes:
        grids: what CDRL drew: pixels, standardized latents or points, [N, *shape].
        settings: of the sampler, none left open.
        seeds: of the images, where each has one of its own.
        labels: class ids of the images, -1 for no class; None where they were drawn from more than a class each.
        guidance: weight of the guidance; 0 for none.
    """

    grids: Tensor
    decoder: Decoder
    settings: SamplerSettings
    seeds: tuple[int, ...] | None = None
    labels: tuple[int, ...] | None = None
    guidance: float | Guidance | None = 0.0

    @property
    def tensors(self) -> Tensor:
        """Images [N, C, H, W] in [-1, 1]."""
        return self.decoder.images(self.grids)

    @property
    def bytes(self) -> Tensor:
        """Images uint8 [N, C, H, W] on the CPU: a quarter of what ``tensors`` take."""
        return torch.cat([to_bytes(self.decoder.images(part)).cpu() for part in self.grids.split(BATCH)])

    @property
    def images(self) -> list[Image.Image]:
        """8-bit PIL images."""
        return to_pil(self.bytes)

    def __len__(self) -> int:
        return len(self.grids)

    def __repr__(self) -> str:
        facts = {"seeds": self.seeds, "labels": self.labels, "guidance": self.guidance or None}
        told = [f"{name}={_shortened(value)}" for name, value in facts.items() if value is not None]
        return f"Generated({', '.join([f'{len(self)} of shape {tuple(self.grids.shape[1:])}', *told])})"


class Move(NamedTuple):
    """Where the chains stood, y [N, *shape], after one move: step 0 is a proposal."""

    level: int
    step: int
    y: Tensor


@dataclass(frozen=True)
class Filled:
    """Images filled in.

    Attributes:
        tensors: [N, C, H, W] in [-1, 1], equal to the given ones in all that is known.
        grids: what CDRL drew: pixels or standardized latents, [N, *shape].
        energies: -f of the grids at level 0, up to a constant, [N].
        by: the method used, ``reset`` or ``likelihood``.
        settings: of the sampler, none left open.
        chains: every move in its order, if asked for.
    """

    tensors: Tensor
    grids: Tensor
    energies: Tensor
    by: str
    settings: SamplerSettings
    chains: tuple[Move, ...] = ()

    @property
    def images(self) -> list[Image.Image]:
        """8-bit PIL images."""
        return to_pil(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


Drawn = Generated | Filled
"""Results that can be given back to a pipeline."""


def _shortened(values: Any) -> str:
    if not isinstance(values, tuple) or len(values) <= 4:
        return str(values)
    return f"({', '.join(map(str, values[:3]))}, …)"

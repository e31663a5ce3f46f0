"""Random numbers per image: each image of a batch has its own stream, from its own seed.

The draws of an image depend on its seed alone, not on the other images, the batch size or the process. They are made
on the CPU, so that every device gets the same ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """Derive a seed in [0, 2^63) from numbers and strings; different arguments give unrelated seeds."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class ImageNoise:
    """One stream of random numbers for each image of a batch."""

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._normals: dict[tuple[int, ...], Iterator[Tensor]] = {}

    def __len__(self) -> int:
        return len(self._generators)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Draw standard normal numbers for every image: [N, *shape]."""
        stream = self._normals.setdefault(tuple(shape), self._stream(tuple(shape)))
        return next(stream)

    def _stream(self, shape: tuple[int, ...]) -> Iterator[Tensor]:
        # A call of a generator costs more than small draws: each is asked for several at a time, but no more
        # than cost about one call, since a training step leaves some unused.
        block = min(32, max(1, 2**12 // math.prod(shape)))
        while True:
            draws = torch.empty(len(self), block, *shape)
            for row, generator in zip(draws, self._generators, strict=True):
                row.normal_(generator=generator)
            yield from draws.to(self.device).unbind(dim=1)

    def kept(self, rate: float, shape: Sequence[int]) -> Tensor:
        """Dropout mask of every image: each value is kept with probability 1 - ``rate``, bool [N, *shape].

        The rate is rounded to a multiple of 2^-16: four values share one draw of 64 bits.
        """
        count = math.prod(shape)
        draws = torch.empty(len(self), -(-count // 4), dtype=torch.int64)
        for row, generator in zip(draws, self._generators, strict=True):
            row.random_(-(2**63), None, generator=generator)
        numbers = draws.view(torch.int16)[:, :count]
        return (numbers >= round(rate * 2**16) - 2**15).reshape(len(self), *shape).to(self.device)

    def uniform(self) -> Tensor:
        """Draw one uniform number in [0, 1) for every image: [N]."""
        return torch.cat([torch.rand(1, generator=generator) for generator in self._generators]).to(self.device)

    def integers(self, high: int) -> Tensor:
        """Draw one integer in 0 … high - 1 for every image: int64 [N]."""
        draws = [torch.randint(high, (1,), generator=generator) for generator in self._generators]
        return torch.cat(draws).to(self.device)


class InterpolatedNoise(ImageNoise):
    """Streams of random numbers interpolated between those of two lists of seeds.

    Normal draws a and b become cos(u pi / 2) a + sin(u pi / 2) b: spherical interpolation at the right angle that
    independent draws have on average. Every interpolated draw is exactly standard normal, and exactly a or b at the
    ends. Uniform draws are mapped to normal ones, interpolated and mapped back, and stay uniform. Integers cannot be
    interpolated and are those of the first seeds.

    Args:
        first, second: one seed per image each.
        share: u, the position of each image between first (0) and second (1), [N].
    """

    def __init__(
        self, first: Sequence[int], second: Sequence[int], share: Tensor, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(first, device)
        self._second = ImageNoise(second, device)
        angle = share.double().to(self.device) * (math.pi / 2)
        self._weights = angle.cos(), angle.sin()

    def normal(self, shape: Sequence[int]) -> Tensor:
        first, second = super().normal(shape), self._second.normal(shape)
        a, b = (weight.to(first.dtype).reshape(-1, *[1] * len(shape)) for weight in self._weights)
        return a * first + b * second

    def uniform(self) -> Tensor:
        both = torch.stack([super().uniform(), self._second.uniform()]).double()
        # A draw of 0 would become minus infinity.
        first, second = torch.special.ndtri(both.clamp(min=torch.finfo(torch.float32).tiny))
        a, b = self._weights
        return torch.special.ndtr(a * first + b * second).float()

"""Random numbers per image: each image of a batch has its own stream, from its own seed.

The draws of an image depend on its seed alone, not on the other images, the batch size or the process. They are made
on the CPU, so that every device gets the same ones; for another device they can be made ahead, on a thread.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

BYTES_AHEAD = 2**28
"""Draws made ahead for one batch wait in at most so much memory, or in that of the next group if it is larger."""


def derive_seed(*parts: int | str) -> int:
    """Derive a seed in [0, 2^63) from numbers and strings; different arguments give unrelated seeds."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Draw(NamedTuple):
    """One call of a method of `ImageNoise`: its name, the shape it has an image, its other argument."""

    method: str
    shape: tuple[int, ...] = ()
    argument: float = 0

    @property
    def bytes(self) -> int:
        """Of one image's draw."""
        return math.prod(self.shape) * (1 if self.method == "kept" else 4)


class ImageNoise:
    """One stream of random numbers for each image of a batch.

    Attributes:
        draws: the calls so far, in order: what a batch of the same kind can be told to expect.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.draws: list[Draw] = []
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._normals: dict[tuple[int, ...], Iterator[Tensor]] = {}
        self._ahead: _DrawsAhead | None = None

    def __len__(self) -> int:
        return len(self._generators)

    def expect(self, draws: Sequence[Draw]) -> None:
        """Begin to make the coming draws, which have to be these in this order, on a thread.

        Where the device is a GPU they wait in pinned memory, from where they are copied while it computes: neither
        the drawing nor a copy holds up a chain. The values are those that it would get without.
        """
        self._ahead = _DrawsAhead(self, draws)

    def normal(self, shape: Sequence[int]) -> Tensor:
        """Draw standard normal numbers for every image: [N, *shape]."""
        expected = self._expected(Draw("normal", tuple(shape)))
        if expected is not None:
            return expected
        stream = self._normals.setdefault(tuple(shape), self._stream(tuple(shape), self.device))
        return next(stream)

    def _stream(self, shape: tuple[int, ...], device: torch.device) -> Iterator[Tensor]:
        # A call of a generator costs more than small draws: each is asked for several at a time, but no more
        # than cost about one call, since a training step leaves some unused.
        block = _block(shape)
        while True:
            draws = torch.empty(len(self), block, *shape)
            for row, generator in zip(draws, self._generators, strict=True):
                row.normal_(generator=generator)
            yield from draws.to(device).unbind(dim=1)

    def kept(self, rate: float, shape: Sequence[int]) -> Tensor:
        """Dropout mask of every image: each value is kept with probability 1 - ``rate``, bool [N, *shape].

        The rate is rounded to a multiple of 2^-16: four values share one draw of 64 bits.
        """
        expected = self._expected(Draw("kept", tuple(shape), rate))
        return self._kept(rate, tuple(shape)).to(self.device) if expected is None else expected

    def _kept(self, rate: float, shape: tuple[int, ...]) -> Tensor:
        count = math.prod(shape)
        draws = torch.empty(len(self), -(-count // 4), dtype=torch.int64)
        for row, generator in zip(draws, self._generators, strict=True):
            row.random_(-(2**63), None, generator=generator)
        numbers = draws.view(torch.int16)[:, :count]
        return (numbers >= round(rate * 2**16) - 2**15).reshape(len(self), *shape)

    def uniform(self) -> Tensor:
        """Draw one uniform number in [0, 1) for every image: [N]."""
        expected = self._expected(Draw("uniform"))
        return self._uniform().to(self.device) if expected is None else expected

    def _uniform(self) -> Tensor:
        return torch.cat([torch.rand(1, generator=generator) for generator in self._generators])

    def integers(self, high: int) -> Tensor:
        """Draw one integer in 0 … high - 1 for every image: int64 [N]."""
        expected = self._expected(Draw("integers", (), high))
        return self._integers(high).to(self.device) if expected is None else expected

    def _integers(self, high: int) -> Tensor:
        return torch.cat([torch.randint(high, (1,), generator=generator) for generator in self._generators])

    def _expected(self, draw: Draw) -> Tensor | None:
        """What was made ahead for this call; None where it is to be made now."""
        self.draws.append(draw)
        return None if self._ahead is None else self._ahead.next(draw)


def _block(shape: tuple[int, ...]) -> int:
    """Normal draws of a shape that are asked for in one call of a generator."""
    return min(32, max(1, 2**12 // math.prod(shape)))


class _Group(NamedTuple):
    """Equal draws that follow one another."""

    draw: Draw
    number: int


class _DrawsAhead:
    """The draws that a batch will ask for, made in their order on the one thread that makes such draws."""

    def __init__(self, noise: ImageNoise, draws: Sequence[Draw]) -> None:
        self._noise, self._device = noise, noise.device
        self._streams: dict[tuple[int, ...], Iterator[Tensor]] = {}
        self._waiting = deque(self._groups(draws))
        self._made: deque[tuple[_Group, Future[Tensor]]] = deque()
        self._bytes = 0
        self._unused: deque[Tensor] = deque()
        self._unused_are = Draw("none")
        self._begin_more()

    def next(self, draw: Draw) -> Tensor:
        """The next draw, on the device.

        Raises:
            RuntimeError: another one was expected.
        """
        if not self._unused and self._made:
            group, made = self._made.popleft()
            self._unused.extend(self._on_device(group, made.result()))
            self._unused_are = group.draw
            self._bytes -= self._size(group)
            self._begin_more()
        if not self._unused or draw != self._unused_are:
            expected = self._unused_are if self._unused else "no more"
            raise RuntimeError(f"random numbers made ahead: expected {expected}, found {draw}")
        return self._unused.popleft()

    def _groups(self, draws: Sequence[Draw]) -> Iterator[_Group]:
        for draw, same in itertools.groupby(draws):
            count = len(list(same))
            most = max(1, BYTES_AHEAD // (4 * len(self._noise) * draw.bytes))
            for start in range(0, count, most):
                yield _Group(draw, min(count - start, most))

    def _size(self, group: _Group) -> int:
        return group.number * len(self._noise) * group.draw.bytes

    def _begin_more(self) -> None:
        while self._waiting and (not self._made or self._bytes + self._size(self._waiting[0]) <= BYTES_AHEAD):
            group = self._waiting.popleft()
            self._made.append((group, _thread().submit(self._make, group)))
            self._bytes += self._size(group)

    def _make(self, group: _Group) -> Tensor:
        """All draws of a group, [number, N, *shape], or [N, number, *shape] where `_in_one_call`."""
        noise, (draw, number) = self._noise, group
        if _in_one_call(draw):
            values = torch.empty(len(noise), number, *draw.shape, pin_memory=self._device.type == "cuda")
            for row, generator in zip(values, noise._generators, strict=True):
                row.normal_(generator=generator)
            return values
        values = torch.stack([self._draw(draw) for _ in range(number)])
        return values.pin_memory() if self._device.type == "cuda" else values

    def _draw(self, draw: Draw) -> Tensor:
        noise = self._noise
        if draw.method == "normal":
            cpu = torch.device("cpu")
            return next(self._streams.setdefault(draw.shape, noise._stream(draw.shape, cpu)))
        if draw.method == "kept":
            return noise._kept(draw.argument, draw.shape)
        return noise._uniform() if draw.method == "uniform" else noise._integers(int(draw.argument))

    def _on_device(self, group: _Group, values: Tensor) -> tuple[Tensor, ...]:
        values = values.to(self._device, non_blocking=True)
        return (values.transpose(0, 1).contiguous() if _in_one_call(group.draw) else values).unbind()


def _in_one_call(draw: Draw) -> bool:
    """Whether several draws are the same numbers when a generator is asked for all of them at once.

    PyTorch's generators make normal numbers in lots of 16.
    """
    return draw.method == "normal" and _block(draw.shape) == 1 and math.prod(draw.shape) % 16 == 0


@lru_cache(maxsize=1)
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="noise", initializer=torch.set_num_threads, initargs=(1,))


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

    def expect(self, draws: Sequence[Draw]) -> None:
        super().expect(draws)
        self._second.expect(draws)

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

"""The Langevin chains of a training batch (Algorithm 1): move by move, compiled, or replayed as one CUDA graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from cdrl.config import TrainingConfig
from cdrl.model import log_density
from cdrl.networks import FoldedEnergy
from cdrl.networks.energy import EnergyCondition
from cdrl.sampling.kernels import Position, recovery, with_gradient
from cdrl.sampling.noise import ImageNoise
from cdrl.sampling.sampler import refine
from cdrl.schedule import NoiseSchedule


class ChainStart(NamedTuple):
    """Where the chains of a batch start, and what they move towards."""

    energy: FoldedEnergy
    level: Tensor
    """t of each image, int64 [N]."""
    label: Tensor
    """Class ids, -1 for the null class, int64 [N]."""
    y: Tensor
    """The noised proposal, [N, *shape], without gradients."""
    x_next: Tensor
    """x_{t+1}, [N, *shape]."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, the energy's weights among them."""
        return tuple(_tensors(self.energy)) + self[1:]


class ChainEnd(NamedTuple):
    """The end of the chains of a batch."""

    before: Position
    """Where the last step began; the start where there is no step."""
    end: Position


class RunChain(Protocol):
    """Runs the Langevin steps of a batch."""

    def __call__(self, start: ChainStart, noise: ImageNoise, schedule: NoiseSchedule, steps: int) -> ChainEnd: ...


def run_chain(start: ChainStart, noise: ImageNoise, schedule: NoiseSchedule, steps: int) -> ChainEnd:
    """K Langevin steps towards p(y_t | x_{t+1}) (eq. 3, 5), move by move."""
    energy, level, label, y, x_next = start
    condition = energy.condition(schedule.logsnr[level], label)
    marginal = with_gradient(lambda grid: log_density(energy(grid, condition), grid, schedule, level))
    return _run(Position(y, recovery(marginal, x_next, schedule.precision[level])), start, noise, schedule, steps)


def _run(position: Position, start: ChainStart, noise: ImageNoise, schedule: NoiseSchedule, steps: int) -> ChainEnd:
    step_size = schedule.step_size[start.level]
    before = refine(position, step_size, noise, max(steps - 1, 0))
    return ChainEnd(before, refine(before, step_size, noise, min(steps, 1)))


class CompiledChain:
    """`run_chain` with the log density and its gradient compiled into one graph by torch.compile.

    The first batch of a shape waits for the compiler, some tens of seconds.

    Args:
        backend: which of torch.compile's.
    """

    def __init__(self, backend: str = "inductor") -> None:
        self._density_and_gradient = torch.compile(density_and_gradient, fullgraph=True, dynamic=False, backend=backend)

    def __call__(self, start: ChainStart, noise: ImageNoise, schedule: NoiseSchedule, steps: int) -> ChainEnd:
        energy, level, label, y, x_next = start
        condition = energy.condition(schedule.logsnr[level], label)

        def marginal(grid: Tensor) -> tuple[Tensor, Tensor]:
            return self._density_and_gradient(energy, condition, grid, schedule, level)

        return _run(Position(y, recovery(marginal, x_next, schedule.precision[level])), start, noise, schedule, steps)


def density_and_gradient(
    energy: FoldedEnergy, condition: EnergyCondition, y: Tensor, schedule: NoiseSchedule, level: Tensor
) -> tuple[Tensor, Tensor]:
    """log p(y_t) up to a constant, [N], and its gradient, [N, *shape], as the compiler can follow it."""

    def summed(grid: Tensor) -> tuple[Tensor, Tensor]:
        values = log_density(energy(grid, condition), grid, schedule, level)
        return values.sum(), values

    gradient, values = torch.func.grad(summed, has_aux=True)(y)
    return values, gradient


class CapturedChain:
    """`run_chain` or `CompiledChain` captured once as a CUDA graph, and replayed for every batch after.

    A chain is some hundreds of small kernels, which a GPU computes faster than Python can name them; a graph is
    launched whole. Its tensors stay where they are: what a batch brings is copied there first, and what a call returns
    holds until the next call.

    Args:
        chain: what to capture.
    """

    def __init__(self, chain: RunChain) -> None:
        self._chain = chain
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, start: ChainStart, noise: ImageNoise, schedule: NoiseSchedule, steps: int) -> ChainEnd:
        if steps == 0:
            return self._chain(start, noise, schedule, steps)
        drawn = [noise.normal(start.y.shape[1:]) for _ in range(steps)]
        # A graph reads the tables where they lay when it was captured: it needs these very ones, kept alive.
        known = self._graph is not None and schedule is self._schedule
        if not known or start.y.shape != self._start.y.shape or steps != len(self._drawn):
            self._capture(start, drawn, schedule)
        assert self._graph is not None
        torch._foreach_copy_([*self._start.tensors, *self._drawn], [*start.tensors, *drawn])
        self._graph.replay()

        def target(y: Tensor) -> tuple[Tensor, Tensor]:
            return self._chain(start, _Given([]), schedule, 0).end.target(y)

        before = Position(self._ends[0], target, (self._ends[1], self._ends[2]))
        return ChainEnd(before, Position(self._ends[3], target))

    def _capture(self, start: ChainStart, drawn: Sequence[Tensor], schedule: NoiseSchedule) -> None:
        rest = (tensor.clone() for tensor in (start.level, start.label, start.y, start.x_next))
        self._start = ChainStart(start.energy.detach(), *rest)
        self._drawn, self._schedule = [draw.clone() for draw in drawn], schedule

        def run() -> tuple[Tensor, ...]:
            before, end = self._chain(self._start, _Given(self._drawn), schedule, len(self._drawn))
            return before.y, before.log_density, before.gradient, end.y

        # Libraries choose and set up their algorithms in the first calls, which a graph must not hold.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, which pin the memory of the next batch meanwhile, do not belong to the graph.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._ends = run()


def chosen_chain(training: TrainingConfig, device: torch.device) -> RunChain:
    """How ``training.compile`` and ``training.cuda_graph`` ask for the chains to be run on this device."""
    chain: RunChain = CompiledChain() if training.compile else run_chain
    return CapturedChain(chain) if training.cuda_graph and device.type == "cuda" else chain


class _Given(ImageNoise):
    """Normal draws that are there already, in their order."""

    def __init__(self, draws: Iterable[Tensor]) -> None:
        super().__init__([])
        self._draws = iter(draws)

    def normal(self, shape: Sequence[int]) -> Tensor:
        return next(self._draws)


def _tensors(part: object) -> Iterator[Tensor]:
    """The tensors of a folded energy, however deep they lie."""
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, FoldedEnergy):
        yield from _tensors(list(vars(part).values()))
    elif isinstance(part, list | tuple):
        for each in part:
            yield from _tensors(each)

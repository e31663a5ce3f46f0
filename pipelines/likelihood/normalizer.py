"""The log normalizer of a level of a model in a bracket, level by level, resumable and over several processes.

Forward chains go from standard normal noise down the levels, chains of the way back from samples of that level up
to the noise. At the end of each segment chains are resampled by their weights (Del Moral et al., 2006), which keeps the
product of the segments' mean weights unbiased for Z, and for 1 / Z on the way back.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from cdrl.runs.progress import progress_bar
from cdrl.runs.run import load_tensors, save_tensors
from cdrl.sampling.annealing import Bracket, Estimate
from cdrl.sampling.kernels import Kernel, hmc
from cdrl.sampling.noise import ImageNoise, derive_seed
from cdrl.training.engine import World, barrier
from cdrl.training.interruption import Interrupted, stop_requests
from pipelines.likelihood.annealing import (
    PILOT_MOVES,
    Annealed,
    Ladder,
    Pilot,
    anneal,
    equilibrate,
    integrate,
    pilot_run,
)
from pipelines.likelihood.bridge import Bridge, acceptance_ratio, estimate, resampled
from pipelines.likelihood.levels import LevelPath

_PILOT_CHAINS, _PILOT_CHAINS_A_CLASS = 64, 16
_FEWEST_TEMPERATURES = 8
_LONGEST_MOVE = math.pi / 2
"""In units of the density's width. On a Gaussian such a trajectory ends anywhere, but one of pi opposite its start."""
METHOD = f"quarter periods, {PILOT_MOVES} moves a knot, midpoints"
"""What chains that are kept were made by, besides their `Effort`; others are not taken up."""
_TIMED = 3


@dataclass(frozen=True)
class Effort:
    """How much is spent on a normalizer, and how.

    Attributes:
        chains: in each direction, of each class.
        temperatures: changes of temperature over the whole path, with a move after each; the bracket narrows as they
            grow.
        leapfrog_steps: of each move; 1 for MALA.
        equilibration: moves at the lowest level before chains go back; as their starts are not exact samples.
        integration: moves at each knot of the pilot run, and between two, of thermodynamic integration; 0 for none.
        seed: of all chains.
        batch_size: chains at a time; changes no result.
    """

    chains: int = 32
    temperatures: int = 1000
    leapfrog_steps: int = 4
    equilibration: int = 100
    integration: int = 0
    seed: int = 0
    batch_size: int = 64


@dataclass(frozen=True)
class SegmentFigures:
    """What both directions say of one segment, for one class.

    Attributes:
        level: t; the segment leads from level t + 1 to level t.
        temperatures: changes of temperature.
        lower, upper: log of the ratio of the normalizers, forward, and back.
        bridge: the same by the acceptance ratio of both.
        accepted: share of moves that were accepted, forward and back, over all classes.
    """

    level: int
    temperatures: int
    lower: Estimate
    upper: Estimate
    bridge: Bridge
    accepted: tuple[float, float]


@dataclass(frozen=True)
class Normalizer:
    """log Z of a level for one class, or for no class: of the density of y_t = alpha_y_t x_t.

    Attributes:
        label: class id, -1 for none.
        segments: from the highest level down.
        log_volumes: D log alpha_y_t of each of them, which turns Z of y_t into that of x_t.
        integral: the estimate by thermodynamic integration, from chains of its own and without weights.
    """

    label: int
    segments: tuple[SegmentFigures, ...]
    log_volumes: tuple[float, ...]
    integral: Estimate | None = None

    @property
    def bracket(self) -> Bracket:
        """Lower and upper estimate, over the whole path."""
        lower, upper = (self._summed([getattr(each, end) for each in self.segments]) for end in ("lower", "upper"))
        return Bracket(lower, upper)

    @property
    def bridge(self) -> Estimate:
        """The estimate by the acceptance ratio of both directions; its effective samples are those of the bracket."""
        value = sum(each.bridge.log_ratio for each in self.segments) - sum(self.log_volumes[:-1])
        error = math.sqrt(sum(each.bridge.standard_error**2 for each in self.segments))
        bracket = self.bracket
        return Estimate(value, error, min(bracket.lower.effective_samples, bracket.upper.effective_samples))

    def along(self) -> list[tuple[float, float, float]]:
        """(lower, upper, bridge) of log Z after each segment, of the levels T - 1 … t."""
        rows, lower, upper, middle = [], 0.0, 0.0, 0.0
        for each, before in zip(self.segments, (0.0, *self.log_volumes), strict=False):
            lower += each.lower.log_z - before
            upper += each.upper.log_z - before
            middle += each.bridge.log_ratio - before
            rows.append((lower, upper, middle))
        return rows

    def _summed(self, parts: Sequence[Estimate]) -> Estimate:
        return Estimate(
            sum(part.log_z for part in parts) - sum(self.log_volumes[:-1]),
            math.sqrt(sum(part.standard_error**2 for part in parts)),
            min(part.effective_samples for part in parts),
        )


@dataclass(frozen=True)
class Normalizers:
    """log Z of every class that was asked for, and what the chains looked like.

    Attributes:
        of_class: by class id.
        typical: mean of f(y_t) over what chains of the way back started from (``start``), what became of it by moves at
            that level (``equilibrated``), and what the forward chains ended in, by their weights (``annealed``).
        gradients: evaluations of an energy's gradient at one grid.
    """

    of_class: dict[int, Normalizer]
    typical: dict[str, float]
    gradients: int


class Bracketing:
    """Estimation of the normalizers of a path's lowest level; what is finished is kept in a folder and not done again.

    Args:
        path: its labels are the classes, each once.
        folder: of this model and these classes, and of nothing else. Efforts that differ in the number of chains or
            temperatures share their pilots, and so do paths that end at different levels.
        world: the processes that work together; each calls `run`.
    """

    def __init__(self, path: LevelPath, effort: Effort, folder: Path, world: World) -> None:
        self.effort, self.folder, self.world = effort, folder, world
        moves = f"leapfrog_{effort.leapfrog_steps}_seed_{effort.seed}"
        self._pilot_folder = folder / f"pilot_{moves}"
        self._chain_folder = folder / (
            f"level_{path.lowest}_chains_{effort.chains}_temperatures_{effort.temperatures}"
            f"_equilibration_{effort.equilibration}_{moves}_batch_{effort.batch_size}"  # chains are kept in batches
        )
        self.classes = path.labels.tolist()
        self.path = dataclasses.replace(path, labels=path.labels.repeat_interleave(effort.chains))
        each = max(_PILOT_CHAINS_A_CLASS, -(-_PILOT_CHAINS // len(self.classes)))
        self._pilot_path = dataclasses.replace(path, labels=path.labels.repeat_interleave(each))

    @property
    def count(self) -> int:
        """Chains in each direction, over all classes."""
        return len(self.path.labels)

    def run(self, start: Tensor) -> Normalizers:
        """Bracket the normalizers.

        Args:
            start: y_t near samples of that level, [chains of each class in turn, *shape]; the upper estimates are
                bounds in so far as the moves at that level turn them into such.

        Raises:
            Interrupted: after Ctrl-C or SIGTERM; what is finished is kept.
        """
        if len(start) != self.count:
            raise ValueError(f"start: expected {self.count} grids, one for each chain, found {len(start)}")
        with stop_requests() as stop_requested:
            self._stop_requested = stop_requested
            self._tell(self._plan(start))
            pilots = self._pilots()
            ladders = self._ladders(pilots)
            self._tell(self._ladder_plan(ladders, pilots))
            with progress_bar(self._moves(ladders, pilots), "anneal", unit="move", shown=self.world.is_main) as bar:
                forward = self._forward(ladders, bar.update)
                ready = self._equilibrated(start, pilots[self.path.lowest], bar.update)
                back = self._back(ready.grids, ladders, bar.update)
                integrated = self._integrated(pilots, bar.update) if self.effort.integration else {}
        typical = {
            "start": self._log_density(start).mean().item(),
            "equilibrated": self._log_density(ready.grids).mean().item(),
            "annealed": self._weighted_log_density(forward[self.path.lowest]),
        }
        of_class = {
            label: dataclasses.replace(
                self._normalizer(row, label, ladders, forward, back),
                integral=self._integral(row, integrated) if integrated else None,
            )
            for row, label in enumerate(self.classes)
        }
        spent = self._gradients(ladders) + self._pilot_gradients(pilots) + self._integral_gradients(pilots)
        return Normalizers(of_class, typical, spent)

    # ---- plan ------------------------------------------------------------------------------------------------------

    def _tell(self, text: str) -> None:
        if self.world.is_main:
            print(text, file=sys.stderr, flush=True)

    def _plan(self, start: Tensor) -> str:
        """What it takes, from the time of some gradients."""
        effort, segment = self.effort, self.path.segment(self.path.lowest)
        some = slice(0, min(self.count, effort.batch_size))
        targets = segment.start(some), segment.end(some)
        for turn in range(_TIMED + 1):
            if turn == 1:
                started = time.monotonic()
            for target in targets:
                target(start[some])
        self._seconds = (time.monotonic() - started) / _TIMED / 2 / (some.stop - some.start)
        moves = 2 * effort.temperatures + effort.equilibration
        gradients = 2 * effort.leapfrog_steps * self.count * moves
        besides = "a pilot of some chains goes before" + (", integration comes on top" if effort.integration else "")
        return f"plan: {self._cost(gradients)} at most for {self.count} chains; {besides}"

    def _cost(self, gradients: int) -> str:
        hours = gradients * self._seconds / 3600 / self.world.size
        return f"{gradients / 1e6:.3g} million gradients, about {hours:.2g} h"

    def _ladder_plan(self, ladders: dict[int, Ladder], pilots: dict[int, Pilot]) -> str:
        shares = ", ".join(f"{len(ladder.betas) - 1} to level {level}" for level, ladder in ladders.items())
        return f"temperatures: {shares}; {self._cost(self._gradients(ladders) + self._integral_gradients(pilots))}"

    def _moves(self, ladders: dict[int, Ladder], pilots: dict[int, Pilot]) -> int:
        inner = sum(len(ladder.step_sizes) for ladder in ladders.values())
        knots = sum(len(pilot.halved().betas) for pilot in pilots.values())
        return self.count * (2 * inner + self.effort.equilibration + self.effort.integration * knots)

    def _gradients(self, ladders: dict[int, Ladder]) -> int:
        """The highest segment has one energy, the others two."""
        top = self.path.segments[0]
        moves = sum((1 if level == top else 2) * len(ladder.step_sizes) for level, ladder in ladders.items())
        return self.effort.leapfrog_steps * self.count * (2 * moves + 2 * self.effort.equilibration)

    def _pilot_gradients(self, pilots: dict[int, Pilot]) -> int:
        return self.effort.leapfrog_steps * len(self._pilot_path.labels) * PILOT_MOVES * self._knot_energies(pilots)

    def _integral_gradients(self, pilots: dict[int, Pilot]) -> int:
        halved = {level: pilot.halved() for level, pilot in pilots.items()}
        return self.effort.leapfrog_steps * self.count * self.effort.integration * self._knot_energies(halved)

    def _knot_energies(self, pilots: dict[int, Pilot]) -> int:
        top = self.path.segments[0]
        return sum((1 if level == top else 2) * len(pilot.betas) for level, pilot in pilots.items())

    # ---- phases ----------------------------------------------------------------------------------------------------

    @cached_property
    def _kernel(self) -> Kernel:
        return hmc(self.effort.leapfrog_steps)

    def _noise(self, phase: str, level: int, chains: Sequence[int]) -> ImageNoise:
        seeds = [derive_seed("likelihood", phase, self.effort.seed, level, chain) for chain in chains]
        return ImageNoise(seeds, self.world.device)

    def _from_noise(self, phase: str, count: int) -> Tensor:
        return self._noise(phase, self.path.segments.start + 1, range(count)).normal(self.path.model.shape)

    def _pilots(self) -> dict[int, Pilot]:
        path, pilots = self._pilot_path, {}
        grids = self._from_noise("pilot", len(path.labels))
        with progress_bar(None, "pilot", unit="move", shown=self.world.is_main) as bar:
            for level in path.segments:
                file = self._pilot_folder / f"level_{level}.safetensors"
                if self.world.is_main and not file.exists():
                    pilot, grids = pilot_run(
                        path.segment(level),
                        grids,
                        self._noise("pilot", level, range(len(path.labels))),
                        self._kernel,
                        groups=path.labels,
                        longest_step=_LONGEST_MOVE / self.effort.leapfrog_steps,
                        after_move=self._after_moves(len(path.labels), bar.update),
                    )
                    save_pilot(file, pilot, grids=grids)
                barrier()
                pilots[level] = load_pilot(file)
                grids = load_tensors(file, ("grids",))["grids"].to(self.world.device) * path.between(level)
        return pilots

    def _ladders(self, pilots: dict[int, Pilot]) -> dict[int, Ladder]:
        """Temperatures in proportion to the segments' lengths."""
        whole = sum(pilot.lengths[-1] for pilot in pilots.values())

        def share(pilot: Pilot) -> int:
            return max(_FEWEST_TEMPERATURES, round(self.effort.temperatures * pilot.lengths[-1] / whole))

        return {level: pilot.ladder(share(pilot)) for level, pilot in pilots.items()}

    def _forward(self, ladders: dict[int, Ladder], moved: Callable[[int], object]) -> dict[int, Annealed]:
        grids, done = self._from_noise("forward", self.count), {}
        for level, ladder in ladders.items():
            done[level] = self._annealed("forward", level, ladder, grids, moved)
            grids = self._resampled(done[level], "forward", level) * self.path.between(level)
        return done

    def _back(self, grids: Tensor, ladders: dict[int, Ladder], moved: Callable[[int], object]) -> dict[int, Annealed]:
        done = {}
        for level in reversed(ladders):
            done[level] = self._annealed("back", level, ladders[level], grids, moved)
            if level + 1 in ladders:
                grids = self._resampled(done[level], "back", level) / self.path.between(level + 1)
        return done

    def _integrated(self, pilots: dict[int, Pilot], moved: Callable[[int], object]) -> dict[int, Annealed]:
        phase, done = f"integral-{self.effort.integration}", {}
        grids = self._from_noise(phase, self.count)
        for level, pilot in pilots.items():
            done[level] = self._integrated_segment(phase, level, pilot.halved(), grids, moved)
            grids = done[level].grids * self.path.between(level)
        return done

    def _integrated_segment(
        self, phase: str, level: int, pilot: Pilot, grids: Tensor, moved: Callable[[int], object]
    ) -> Annealed:
        segment, moves = self.path.segment(level), self.effort.integration

        def some(chains: slice, noise: ImageNoise, after_move: Callable[[], object]) -> Annealed:
            return integrate(
                segment, pilot, grids[chains], noise, self._kernel, moves=moves, chains=chains, after_move=after_move
            )

        return self._in_batches(phase, level, some, moved, moves * len(pilot.betas))

    def _annealed(
        self, phase: str, level: int, ladder: Ladder, grids: Tensor, moved: Callable[[int], object]
    ) -> Annealed:
        segment = self.path.segment(level)

        def some(chains: slice, noise: ImageNoise, after_move: Callable[[], object]) -> Annealed:
            back = phase == "back"
            return anneal(
                segment, ladder, grids[chains], noise, self._kernel, chains=chains, back=back, after_move=after_move
            )

        return self._in_batches(phase, level, some, moved, len(ladder.step_sizes))

    def _equilibrated(self, start: Tensor, pilot: Pilot, moved: Callable[[int], object]) -> Annealed:
        segment, steps = self.path.segment(self.path.lowest), self.effort.equilibration

        def some(chains: slice, noise: ImageNoise, after_move: Callable[[], object]) -> Annealed:
            size = pilot.step_sizes[-1]
            return equilibrate(
                segment, size, start[chains], noise, self._kernel, steps=steps, chains=chains, after_move=after_move
            )

        return self._in_batches("equilibrated", self.path.lowest, some, moved, steps)

    def _in_batches(
        self,
        phase: str,
        level: int,
        some: Callable[[slice, ImageNoise, Callable[[], object]], Annealed],
        moved: Callable[[int], object],
        moves: int,
    ) -> Annealed:
        """All chains' parts of a phase: this process does its batches, unless they are there, and reads all."""
        size = self.effort.batch_size
        batches = [range(first, min(first + size, self.count)) for first in range(0, self.count, size)]
        files = [self._chain_folder / f"{phase}_{level}_{batch[0]}.safetensors" for batch in batches]
        for turn, (batch, file) in enumerate(zip(batches, files, strict=True)):
            if file.exists() or turn % self.world.size != self.world.rank:
                moved(len(batch) * moves)
                continue
            noise = self._noise(phase, level, batch)
            part = some(slice(batch[0], batch[-1] + 1), noise, self._after_moves(len(batch), moved))
            accepted = torch.tensor(part.accepted, dtype=torch.float64)
            save_tensors(file, {"grids": part.grids, "log_weights": part.log_weights, "accepted": accepted})
        barrier()
        parts = [load_tensors(file, ("grids", "log_weights", "accepted")) for file in files]
        grids, log_weights = (
            torch.cat([part[name] for part in parts]).to(self.world.device) for name in ("grids", "log_weights")
        )
        share = sum(float(part["accepted"]) * len(batch) for part, batch in zip(parts, batches, strict=True))
        return Annealed(grids, log_weights, share / self.count)

    def _after_moves(self, chains: int, moved: Callable[[int], object]) -> Callable[[], object]:
        def after_move() -> None:
            moved(chains)
            if self._stop_requested():
                raise Interrupted(f"stopped; finished segments are kept in {self.folder}: the same command goes on")

        return after_move

    def _resampled(self, done: Annealed, phase: str, level: int) -> Tensor:
        """Chains by their weights, each among those of its class."""
        parts = []
        for row, label in enumerate(self.classes):
            own = self._rows(row)
            generator = torch.Generator().manual_seed(
                derive_seed("likelihood", "resample", self.effort.seed, phase, level, label)
            )
            uniform = float(torch.rand(1, generator=generator, dtype=torch.float64))
            parts.append(done.grids[own][resampled(done.log_weights[own], uniform)])
        return torch.cat(parts)

    def _rows(self, row: int) -> slice:
        """The chains of the class in this place."""
        return slice(row * self.effort.chains, (row + 1) * self.effort.chains)

    # ---- results ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _log_density(self, y: Tensor) -> Tensor:
        """f(y_t) of all chains, float64 [N]."""
        size = self.effort.batch_size
        chains = [slice(first, min(first + size, len(y))) for first in range(0, len(y), size)]
        parts = [
            self.path.model.conditioned(self.path.labels[each]).log_density(y[each], self.path.lowest)
            for each in chains
        ]
        return torch.cat(parts).double()

    def _weighted_log_density(self, done: Annealed) -> float:
        values = self._log_density(done.grids)
        means = [done.log_weights[own].softmax(0) @ values[own] for own in map(self._rows, range(len(self.classes)))]
        return float(torch.stack(means).mean())

    def _normalizer(
        self,
        row: int,
        label: int,
        ladders: dict[int, Ladder],
        forward: dict[int, Annealed],
        back: dict[int, Annealed],
    ) -> Normalizer:
        own, segments = self._rows(row), []
        for level, ladder in ladders.items():
            there, returned = forward[level].log_weights[own].cpu(), back[level].log_weights[own].cpu()
            upper = estimate(returned)
            segments.append(
                SegmentFigures(
                    level=level,
                    temperatures=len(ladder.betas) - 1,
                    lower=estimate(there),
                    upper=dataclasses.replace(upper, log_z=-upper.log_z),
                    bridge=acceptance_ratio(there, returned),
                    accepted=(forward[level].accepted, back[level].accepted),
                )
            )
        return Normalizer(label, tuple(segments), self._log_volumes(ladders))

    def _log_volumes(self, levels: Iterable[int]) -> tuple[float, ...]:
        return tuple(self.path.dimension * -math.log(self.path.between(level)) for level in levels)

    def _integral(self, row: int, integrated: dict[int, Annealed]) -> Estimate:
        own = self._rows(row)
        volumes = sum(self._log_volumes(list(integrated)[:-1]))
        # A chain's errors go on from segment to segment: whole paths are what is independent.
        paths = torch.stack([done.log_weights[own].cpu() for done in integrated.values()]).sum(dim=0)
        error = float(paths.std()) / math.sqrt(len(paths))
        return Estimate(float(paths.mean()) - volumes, error, float(len(paths)))


def save_pilot(file: Path, pilot: Pilot, **others: Tensor) -> None:
    """Write what a pilot run found out, and other tensors beside it."""
    save_tensors(file, {name: torch.tensor(each, dtype=torch.float64) for name, each in vars(pilot).items()} | others)


def load_pilot(file: Path) -> Pilot:
    """Read what `save_pilot` has written. Raises RunError for a damaged file."""
    stored = load_tensors(file, Pilot.__annotations__)
    return Pilot(*(tuple(stored[name].tolist()) for name in Pilot.__annotations__))

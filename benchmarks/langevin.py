"""CPU time of one Langevin step of the energy alone: plain, this package, in bfloat16, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.timing import (
    BUILT_IN,
    SIZES,
    Bfloat16,
    Size,
    SizeName,
    in_turn,
    new_model,
    plain_copy,
    relative_error,
    table,
)
from cdrl.model import CDRL
from cdrl.sampling.kernels import Position, langevin, recovery, with_gradient
from cdrl.sampling.noise import ImageNoise
from cdrl.training.chains import ChainStart, CompiledChain

LEVEL = 2


def our_step(model: CDRL, y: Tensor, x_next: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A Langevin step of this package from y, under the noise of the images 0, 1, …"""
    conditioned, noise = model.conditioned(dtype=dtype), ImageNoise(range(len(y)))
    marginal = with_gradient(lambda grid: conditioned.log_density(grid, LEVEL))
    target = recovery(marginal, x_next, model.schedule.precision[LEVEL])
    return lambda: langevin(Position(y, target), model.schedule.step_size[LEVEL], noise).y


def compiled_step(model: CDRL, y: Tensor, x_next: Tensor) -> Callable[[], Tensor]:
    """The step that training takes under ``training.compile``."""
    count, chain, noise = len(y), CompiledChain(), ImageNoise(range(len(y)))
    level, label = torch.full((count,), LEVEL), torch.full((count,), -1)
    start = ChainStart(model.energy.fold().detach(), level, label, y, x_next)
    target = chain(start, noise, model.schedule, 0).end.target
    return lambda: langevin(Position(y, target), model.schedule.step_size[level], noise).y


def measure(size: Size, rounds: int, bfloat16: bool, compiled: bool) -> str:
    """The table of one size; plain and this package are first compared in one step from the same state."""
    model = new_model(size)
    plain = plain_copy(size.config, model).eval()
    x_next = torch.randn(size.batch, *size.shape)
    y = model.schedule.alpha_y[LEVEL] * x_next
    level, label = torch.full((size.batch,), LEVEL), torch.full((size.batch,), -1)

    def plain_step(normal: Callable[[], Tensor] = lambda: torch.randn(y.shape)) -> Tensor:
        return plain.langevin_step(y, x_next, level, label, normal)

    noise = ImageNoise(range(size.batch))
    logsnr = model.schedule.logsnr[level]
    expected = plain.energy(y, logsnr, label), plain_step(lambda: noise.normal(size.shape)) - y
    found = model.energy(y, logsnr, label), our_step(model, y, x_next, torch.float32)() - y
    energy_error, move_error = map(relative_error, found, expected)

    steps = {"plain": plain_step, "this package": our_step(model, y, x_next, torch.float32)}
    if bfloat16:
        steps["this package, bfloat16"] = our_step(model, y, x_next, torch.bfloat16)
    if compiled:
        steps["this package, compiled"] = compiled_step(model, y, x_next)
    times = in_turn(list(steps.values()), rounds)
    return f"{table(list(steps), times)}\nlargest relative difference: energy {energy_error:.0e}, move {move_error:.0e}"


def main(
    size: Annotated[list[SizeName], typer.Option(help="Sizes to time.")] = list(SizeName),  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Rounds of taking turns.", min=1)] = 9,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.", min=1)] = 1,
    bfloat16: Bfloat16 = BUILT_IN,
    compiled: Annotated[bool, typer.Option("--compile", help="Also compiled: takes minutes to begin.")] = False,
) -> None:
    """Time one Langevin step; ratios are of CPU time, to the plain one's."""
    torch.set_num_threads(threads)
    for name in size:
        for title, one in SIZES[name].items():
            print(f"Langevin step, {title}, batch {one.batch}, {rounds} rounds, {threads} threads")
            print(measure(one, rounds, bfloat16, compiled), flush=True)


if __name__ == "__main__":
    typer.run(main)

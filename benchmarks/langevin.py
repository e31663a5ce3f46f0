"""CPU time of one Langevin step of the energy alone: textbook, this package, this package in bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.plain import PlainEnergy, langevin_step
from benchmarks.timing import SIZES, Size, SizeName, in_turn, new_model, relative_error, table
from cdrl.sampling.kernels import Position, langevin, recovery, with_gradient
from cdrl.sampling.noise import ImageNoise

LEVEL = 2


def measure(size: Size, rounds: int) -> str:
    """The table of one size; textbook and this package are first compared in one step from the same state."""
    model = new_model(size)
    plain, schedule = PlainEnergy(model.energy), model.schedule
    x_next = torch.randn(size.batch, *size.shape)
    y = schedule.alpha_y[LEVEL] * x_next
    level, label = torch.full((size.batch,), LEVEL), torch.full((size.batch,), -1)

    def plain_step(normal: Callable[[], Tensor] = lambda: torch.randn(y.shape)) -> Tensor:
        return langevin_step(plain, schedule, y, x_next, level, label, normal)

    def our_step(dtype: torch.dtype) -> Callable[[], Tensor]:
        conditioned = model.conditioned(dtype=dtype)
        noise = ImageNoise(range(size.batch))
        target = with_gradient(lambda y: conditioned.log_density(y, LEVEL))
        target = recovery(target, x_next, schedule.precision[LEVEL])
        return lambda: langevin(Position(y, target), schedule.step_size[LEVEL], noise).y

    noise = ImageNoise(range(size.batch))
    expected = plain.eval()(y, schedule.logsnr[level], label), plain_step(lambda: noise.normal(size.shape)) - y
    found = model.energy(y, schedule.logsnr[level], label), our_step(torch.float32)() - y
    energy_error, move_error = map(relative_error, found, expected)
    plain.train()

    names = ["textbook", "this package", "this package, bfloat16"]
    times = in_turn([plain_step, our_step(torch.float32), our_step(torch.bfloat16)], rounds)
    return f"{table(names, times)}\nlargest relative difference: energy {energy_error:.0e}, move {move_error:.0e}"


def main(
    size: Annotated[list[SizeName], typer.Option(help="Sizes to time.")] = list(SizeName),  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Rounds of taking turns.", min=1)] = 9,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.", min=1)] = 1,
) -> None:
    """Time one Langevin step; ratios are of CPU time, to the textbook's."""
    torch.set_num_threads(threads)
    for name in size:
        for title, one in SIZES[name].items():
            print(f"Langevin step, {title}, {rounds} rounds, {threads} threads")
            print(measure(one, rounds), flush=True)


if __name__ == "__main__":
    typer.run(main)

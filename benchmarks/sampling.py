"""CPU time of sampling (Algorithm 2) with its last denoising step: plain and this package."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.timing import SIZES, Size, SizeName, in_turn, new_model, plain_copy, table
from cdrl.model import CDRL
from cdrl.sampling.noise import ImageNoise
from cdrl.sampling.sampler import sample
from cdrl.sampling.settings import ChainPlan

DENOISE = 2.0


def our_samples(model: CDRL, count: int, steps: int) -> Tensor:
    """Samples of the seeds 0, 1, … with ``steps`` Langevin steps a level, from a model in evaluation mode."""
    conditioned, noise = model.conditioned(), ImageNoise(range(count))
    propose, log_density = conditioned.propose, conditioned.log_density
    plan = ChainPlan((steps,) * model.schedule.num_levels, denoise=DENOISE)
    return sample(model.schedule, propose, log_density, noise, model.shape, plan)


def shortened(size: Size, levels: int) -> Size:
    """The same networks under a schedule of fewer levels, all of which cost the same, and half of the batch."""
    schedule = size.config.schedule.model_copy(update={"num_levels": levels})
    config = size.config.model_copy(update={"schedule": schedule})
    return dataclasses.replace(size, config=config, batch=size.batch // 2)


def measure(size: Size, steps: int, rounds: int) -> str:
    """The table of one size."""
    model = new_model(size).eval()
    plain = plain_copy(size.config, model).eval()
    label = torch.full((size.batch,), -1)

    def plain_samples() -> Tensor:
        return plain.sample(label, steps, DENOISE, lambda: torch.randn(size.batch, *size.shape))

    times = in_turn([plain_samples, lambda: our_samples(model, size.batch, steps)], rounds)
    return table(["plain", "this package"], times)


def main(
    size: Annotated[list[SizeName], typer.Option(help="Sizes to time.")] = list(SizeName),  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Rounds of taking turns.", min=1)] = 3,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.", min=1)] = 1,
    levels: Annotated[int, typer.Option(help="Noise levels.", min=2)] = 2,
) -> None:
    """Time a batch of samples with the size's own number of Langevin steps; the ratio is of CPU time, to the plain."""
    torch.set_num_threads(threads)
    for name in size:
        for title, whole in SIZES[name].items():
            one = shortened(whole, levels)
            steps = one.config.training.langevin_steps
            print(
                f"sampling, {title}, batch {one.batch}, {levels} levels of {steps} Langevin steps, {rounds} rounds, "
                f"{threads} threads"
            )
            print(measure(one, steps, rounds), flush=True)


if __name__ == "__main__":
    typer.run(main)

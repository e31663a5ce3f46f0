"""CPU time of one training update: a plain loop, this package's trainer, and the same with energies in bfloat16.

Both draw the batch, run the chains, and update both networks with clipping, Adam and a moving average of the weights.
The trainer is the one of `run.py train`, with its DeepSpeed engines and its diagnostics. Both use Adam, whatever
the configuration names.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.plain import PlainTrainer
from benchmarks.timing import BUILT_IN, SIZES, Bfloat16, Size, SizeName, in_turn, plain_copy, table
from cdrl.config import Config
from cdrl.data import TrainingSet
from cdrl.training.engine import start
from cdrl.training.trainer import CooperativeTrainer

IMAGES = 64


def with_training(size: Size, steps: int) -> Size:
    """The size with chains of ``steps`` steps and Adam, as both sides train it."""
    changes = {"batch_size": size.batch, "langevin_steps": steps, "optimizer": "adam"}
    training = size.config.training.model_copy(update=changes)
    return dataclasses.replace(size, config=size.config.model_copy(update={"training": training}))


def in_bfloat16(config: Config) -> Config:
    """The configuration with energies that compute in bfloat16 in chains and where they learn."""
    changes = {"chain_dtype": "bfloat16", "learning_dtype": "bfloat16"}
    return config.model_copy(update={"training": config.training.model_copy(update=changes)})


def measure(size: Size, rounds: int, bfloat16: bool) -> str:
    """The table of one size, from the same weights on random images."""
    grids = torch.randn(IMAGES, *size.shape)
    data = TrainingSet(grids, size.batch, seed=0)
    configs = {"this package": size.config}
    if bfloat16:
        configs["this package, bfloat16"] = in_bfloat16(size.config)
    world = start()
    trainers = {name: CooperativeTrainer(config, data, 0, world) for name, config in configs.items()}
    ours = trainers["this package"]
    plain = PlainTrainer(plain_copy(size.config, ours.averaged), size.config.training)

    def plain_update() -> tuple[Tensor, Tensor]:
        x0 = grids[torch.randint(IMAGES, (size.batch,))]
        level = torch.randint(ours.schedule.num_levels, (size.batch,))
        return plain.update(x0, level, torch.full_like(level, -1), lambda: torch.randn(x0.shape))

    def update_of(trainer: CooperativeTrainer) -> Callable[[], object]:
        steps = itertools.count()
        return lambda: trainer.update(next(steps))

    times = in_turn([plain_update, *map(update_of, trainers.values())], rounds)
    for trainer in trainers.values():
        trainer.close()
    return table(["plain", *trainers], times)


def main(
    size: Annotated[list[SizeName], typer.Option(help="Sizes to time.")] = list(SizeName),  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Rounds of taking turns.", min=1)] = 5,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.", min=1)] = 1,
    steps: Annotated[int | None, typer.Option(help="Langevin steps; the size's own by default.", min=1)] = None,
    bfloat16: Bfloat16 = BUILT_IN,
) -> None:
    """Time one update; ratios are of CPU time, to the plain one's."""
    torch.set_num_threads(threads)
    for name in size:
        for title, one in SIZES[name].items():
            trained = with_training(one, steps or one.config.training.langevin_steps)
            chain = trained.config.training.langevin_steps
            print(f"update, {title}, batch {one.batch}, {chain} Langevin steps, {rounds} rounds, {threads} threads")
            print(measure(trained, rounds, bfloat16), flush=True)


if __name__ == "__main__":
    typer.run(main)

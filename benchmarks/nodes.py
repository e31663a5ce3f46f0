"""How long the paper's runs take on 1, 8, 16, … GPUs, from what one GPU was measured to do.

    python -m benchmarks.nodes benchmarks/measured/h100.json --gib-per-second 40

An update takes the arithmetic of a GPU's share of the batch, counted on the networks themselves, at the rate that
benchmarks/gpu.py measured in training, and then the exchange of both networks' gradients, a ring all-reduce at the
given bandwidth. Reading data is hidden by a thread as long as a GPU gets them faster than it learns: the last column is
the rate that this asks for. What the model leaves out: shares of fewer images than were measured compute less
efficiently, and an all-reduce waits for the slowest process.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
import typer

from benchmarks.gpu import CONFIGS
from benchmarks.plain import PlainCDRL, PlainEnergy, PlainInitializer
from benchmarks.timing import Arithmetic
from cdrl.config import Config
from cdrl.config_files import load_config
from cdrl.schedule import NoiseSchedule

RUNS = {
    "cifar10": ((3, 32, 32), "cifar10"),
    "imagenet32": ((3, 32, 32), "cifar10"),
    "celeba64_inpainting": ((3, 64, 64), "celebahq256_kl_f4"),
    "celebahq256_vq_f4": ((3, 64, 64), "celebahq256_kl_f4"),
}
"""The paper's runs: the shape of their grids, and the measured size whose grids are as large."""
BYTES = 4


class Cost(NamedTuple):
    """What an update costs: arithmetic of one image, and bytes of the gradients of both networks."""

    flops_per_image: float
    gradient_bytes: int


class Time(NamedTuple):
    """Seconds of one update on each of some GPUs, apart."""

    computing: float
    exchanging: float

    @property
    def whole(self) -> float:
        """Both, one after the other: the exchange follows the backward pass."""
        return self.computing + self.exchanging


def cost_of(config: Config, shape: tuple[int, ...]) -> Cost:
    """Counted on torch's meta device, where nothing is computed, for one image."""
    assert config.initializer is not None
    with torch.device("meta"):
        energy = PlainEnergy(config.energy, shape)
        initializer = PlainInitializer(config.initializer, shape)
    schedule = NoiseSchedule.from_config(config.schedule).to("meta")
    model = PlainCDRL(schedule, energy, initializer)
    x0, level = torch.zeros(1, *shape, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")
    with Arithmetic() as arithmetic:
        losses = model.losses(x0, level, level - 1, config.training.langevin_steps, lambda: torch.randn_like(x0))
        sum(losses).backward()  # type: ignore[union-attr]
    weights = sum(parameter.numel() for network in (energy, initializer) for parameter in network.parameters())
    return Cost(arithmetic.flops, BYTES * weights)


def time_of_update(cost: Cost, batch: int, gpus: int, flops_per_second: float, bytes_per_second: float) -> Time:
    """Each GPU computes its share, then sends and receives 2 (N - 1) / N of the gradients, as a ring does."""
    exchanged = 2 * (gpus - 1) / gpus * cost.gradient_bytes
    return Time(cost.flops_per_image * batch / gpus / flops_per_second, exchanged / bytes_per_second)


def measured_rates(path: Path, how: str) -> dict[str, float]:
    """Arithmetic a second that training reached at each measured size, from benchmarks/gpu.py's JSON.

    The arithmetic is that of the plain implementation, which does no less.
    """
    lines = [line for line in json.loads(path.read_text())["results"] if line.get("what") == "training"]
    flops = {line["size"]: line["counted_flops"] / line["batch"] for line in lines if line.get("counted_flops")}
    return {
        line["size"]: flops[line["size"]] * line["images_per_second"]
        for line in lines
        if line["how"] == how and line["processes"] == 1 and "images_per_second" in line
    }


def main(
    measured: Annotated[Path, typer.Argument(help="gpu.json of benchmarks/gpu.py")],
    gpus: Annotated[str, typer.Option(help="numbers of GPUs")] = "1,8,16,32",
    gib_per_second: Annotated[float, typer.Option(help="bandwidth of an all-reduce between them", min=0.1)] = 40,
    how: Annotated[str, typer.Option(help="which of the measured ways")] = "CUDA graph, bfloat16 chain",
) -> None:
    """Print the table in Markdown."""
    rates = measured_rates(measured, how)
    if not rates:
        raise typer.BadParameter(f"{measured}: holds no training of one process measured as {how!r}")
    columns = ("run", "GPUs", "images a GPU", "computing, ms", "exchanging, ms", "days", "images a second")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for name, (shape, size) in RUNS.items():
        config = load_config(CONFIGS / f"{name}.yaml")
        cost, training = cost_of(config, shape), config.training
        for count in (int(number) for number in gpus.split(",")):
            time = time_of_update(cost, training.batch_size, count, rates[size], gib_per_second * 2**30)
            days = time.whole * training.num_steps / 86_400
            print(
                f"| {name} | {count} | {training.batch_size / count:g} | {1000 * time.computing:.0f} "
                f"| {1000 * time.exchanging:.1f} | {days:.1f} | {training.batch_size / time.whole:.0f} |"
            )


if __name__ == "__main__":
    typer.run(main)

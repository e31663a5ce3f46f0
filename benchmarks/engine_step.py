"""CPU time of what an update costs beside its networks: a plain optimizer step, and this package's engine step.

The loss is a sum of the weights, each times a number, so that its gradient costs next to nothing. What is left is what
an update of networks of this size always pays: gradients, clipping, Adam, and the moving average of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from benchmarks.timing import SIZES, SizeName, in_turn, new_model, table
from cdrl.training.engine import Trainee, TraineeSettings, ema_decay, start

SETTINGS = TraineeSettings(1e-4, lambda step: 1.0, gradient_clip=1.0, batch_size=1, ema=0.9999)


class Weights(nn.Module):
    """All the weights of a network, and a loss with a gradient at each."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.weights = nn.ParameterList(parameter.detach().clone() for parameter in network.parameters())

    def forward(self) -> Tensor:
        """The loss."""
        return torch.stack([weight.mean() for weight in self.weights]).sum()


def plain_step(module: Weights) -> Callable[[], None]:
    """Backward pass, clipping, Adam and moving average, by PyTorch's own fused and grouped operations."""
    weights: list[Tensor] = list(module.parameters())
    average = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.Adam(weights, lr=SETTINGS.learning_rate, betas=SETTINGS.betas, fused=True)
    update = 0

    def step() -> None:
        nonlocal update
        update += 1
        optimizer.zero_grad()
        module().backward()
        torch.nn.utils.clip_grad_norm_(weights, SETTINGS.gradient_clip)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - ema_decay(SETTINGS.ema, update))

    return step


def engine_step(module: Weights) -> Callable[[], None]:
    """The same by the engine that training uses."""
    trainee = Trainee(module, start(), SETTINGS)
    return lambda: trainee.update(trainee.engine())


def measure(network: nn.Module, rounds: int) -> str:
    """The table of one network."""
    runs = [plain_step(Weights(network)), engine_step(Weights(network))]
    return table(["plain", "this package"], in_turn(runs, rounds))


def main(
    size: Annotated[SizeName, typer.Option(help="Size to time.")] = SizeName.cifar10,
    rounds: Annotated[int, typer.Option(help="Rounds of taking turns.", min=1)] = 15,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.", min=1)] = 1,
) -> None:
    """Time one update's engine step; the ratio is of CPU time, to the plain one's."""
    torch.set_num_threads(threads)
    for title, one in SIZES[size].items():
        energy = new_model(one).energy
        millions = sum(parameter.numel() for parameter in energy.parameters()) / 1e6
        print(f"engine step, energy of {title}, {millions:.1f} million weights, {rounds} rounds, {threads} threads")
        print(measure(energy, rounds), flush=True)


if __name__ == "__main__":
    typer.run(main)

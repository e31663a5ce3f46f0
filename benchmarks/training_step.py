"""CPU time of one cooperative training step: textbook and this package."""

from __future__ import annotations

import copy
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from benchmarks import plain
from benchmarks.timing import SIZES, Size, SizeName, in_turn, new_model, relative_error, table
from cdrl.networks.initializer import dropout_noise
from cdrl.sampling.noise import ImageNoise
from cdrl.training.objective import LossSettings, Networks, cooperative_losses


class Update:
    """Backward pass, clipping and Adam for both networks."""

    def __init__(self, size: Size, energy: nn.Module, initializer: nn.Module, *, fused: bool) -> None:
        training = size.config.training
        self.networks, self.clip = (energy, initializer), training.gradient_clip
        self.optimizers = [
            torch.optim.Adam(energy.parameters(), lr=training.energy_lr, fused=fused),
            torch.optim.Adam(initializer.parameters(), lr=training.initializer_lr, fused=fused),
        ]

    def __call__(self, losses: tuple[Tensor, Tensor]) -> None:
        for network, optimizer, loss in zip(self.networks, self.optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), self.clip)
            optimizer.step()


def measure(size: Size, steps: int, rounds: int) -> str:
    """The table of one size; the losses are first compared under the same noise and weights."""
    model = new_model(size)
    schedule, initializer = model.schedule, model.initializer
    assert initializer is not None
    plain_energy, plain_initializer = plain.PlainEnergy(model.energy), copy.deepcopy(initializer)
    x0, label = torch.randn(size.batch, *size.shape), torch.full((size.batch,), -1)

    def plain_losses() -> tuple[Tensor, Tensor]:
        level = torch.randint(schedule.num_levels, (size.batch,))
        return plain.losses(
            x0, level, label, lambda: torch.randn(x0.shape), schedule, plain_energy, plain_initializer, steps
        )

    def plain_losses_under_our_noise() -> tuple[Tensor, Tensor]:
        noise = ImageNoise(range(size.batch))
        level = noise.integers(schedule.num_levels)
        noise.uniform()  # spent on dropping labels there
        return plain.losses(
            x0, level, label, lambda: noise.normal(size.shape), schedule, plain_energy, plain_initializer, steps
        )

    def our_losses() -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            chain_energy = model.energy.fold().detach()
        noise = ImageNoise(range(size.batch))
        networks = Networks(model.energy, initializer, chain_energy)
        losses = cooperative_losses(x0, label, noise, networks, schedule, LossSettings(steps))
        assert losses.initializer is not None
        return losses.energy, losses.initializer

    networks = [plain_energy, plain_initializer, model]
    for network in networks:
        network.eval()
    errors = [relative_error(*pair) for pair in zip(our_losses(), plain_losses_under_our_noise(), strict=True)]
    for network in networks:
        network.train()

    plain_update = Update(size, plain_energy, plain_initializer, fused=False)
    our_update = Update(size, model.energy, initializer, fused=True)

    def our_step() -> None:
        model.energy.power_iteration()
        our_update(our_losses())

    with dropout_noise(ImageNoise(range(size.batch))):
        times = in_turn([lambda: plain_update(plain_losses()), our_step], rounds)
    differences = ", ".join(f"{error:.0e}" for error in errors)
    return f"{table(['textbook', 'this package'], times)}\nrelative difference of the two losses: {differences}"


def main(
    size: Annotated[list[SizeName], typer.Option(help="Sizes to time.")] = list(SizeName),  # noqa: B006
    rounds: Annotated[int, typer.Option(help="Rounds of taking turns.", min=1)] = 5,
    threads: Annotated[int, typer.Option(help="Threads of PyTorch.", min=1)] = 1,
    steps: Annotated[int | None, typer.Option(help="Langevin steps; the size's own by default.", min=0)] = None,
) -> None:
    """Time one training step; the ratio is of CPU time, to the textbook's."""
    torch.set_num_threads(threads)
    for name in size:
        for title, one in SIZES[name].items():
            chain = one.config.training.langevin_steps if steps is None else steps
            print(f"training step, {title}, {chain} Langevin steps, {rounds} rounds, {threads} threads")
            print(measure(one, chain, rounds), flush=True)


if __name__ == "__main__":
    typer.run(main)

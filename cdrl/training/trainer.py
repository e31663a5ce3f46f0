"""The networks of a run in their engines, and one update of them (Algorithm 1)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdrl.config import Config, InitializerConfig
from cdrl.data import DataError, TrainingSet, check_batch
from cdrl.model import CDRL
from cdrl.networks import FoldedEnergy
from cdrl.runs.records import read_checkpoint_record
from cdrl.runs.run import write_json
from cdrl.sampling.noise import ImageNoise, derive_seed
from cdrl.sampling.sampler import sample, sampler_settings
from cdrl.training.engine import Trainee, World, checkpoint_written_whole, linear_schedule
from cdrl.training.objective import Losses, Network, cooperative_losses

ACCEPTANCE_EVERY = 10
"""Updates between two measurements of the acceptance, which costs a gradient more."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class CooperativeTrainer:
    """The networks in their engines, and one update of them (Algorithm 1)."""

    def __init__(
        self,
        config: Config,
        data: TrainingSet,
        shape: tuple[int, ...],
        num_classes: int,
        world: World,
        rollbacks: int = 0,
    ) -> None:
        """
        Args:
            rollbacks: how often the run has been rolled back; each time halves the learning rates.
        """
        training = config.training
        self.config, self.data, self.world, self.rollbacks = config, data, world, rollbacks
        self.rows = world.rows(training.batch_size, training.accumulation)
        torch.manual_seed(derive_seed(config.seed, "weights"))
        model = CDRL.from_config(config, shape, num_classes)
        self.schedule = model.schedule.to(world.device)
        self.chain_dtype = DTYPES[training.chain_dtype]

        def trainee(module: Any, learning_rate: float, head_start: int) -> Trainee:
            factor = linear_schedule(
                training.num_steps,
                training.warmup_steps,
                head_start,
                training.decay_fraction,
                training.decay_floor,
            )
            return Trainee(
                module,
                world,
                learning_rate=learning_rate,
                lr_factor=lambda step: 0.5**self.rollbacks * factor(step),
                gradient_clip=training.gradient_clip,
                batch_size=training.batch_size,
                accumulation=training.accumulation,
                ema=training.ema,
                optimizer=training.optimizer,
                zero_stage=config.deepspeed.zero_stage,
            )

        self.energy = trainee(model.energy, training.energy_lr, 0)
        self.initializer: Trainee | None = None
        self.trainees = {"energy": self.energy}
        if model.initializer is not None:
            self.initializer = trainee(model.initializer, training.initializer_lr, training.initializer_head_start)
            self.trainees["initializer"] = self.initializer
        initializer = None if self.initializer is None else self.initializer.averaged.eval()
        self.averaged = CDRL(model.schedule, self.energy.averaged.eval(), initializer, shape, num_classes)

    def step(self, step: int) -> Iterator[Losses]:
        """Update ``step`` (from 0): the losses of each micro-batch, before they are applied."""
        with self.energy.whole() as energy, torch.no_grad():
            energy.power_iteration()
            chain_energy = energy.fold().detach(self.chain_dtype)
        self._seed_dropout(step)
        for rows in self.rows:
            initializer = None if self.initializer is None else self.initializer.engine
            losses = self._losses(step, rows, chain_energy, self.energy.engine, initializer)
            yield losses
            self.energy.update(losses.energy)
            if self.initializer is not None:
                assert losses.initializer is not None
                self.initializer.update(losses.initializer)

    @torch.no_grad()
    def rehearsal(self, step: int) -> Losses:
        """What the weights of this moment make of update ``step``, with nothing learned from it."""
        self._seed_dropout(step)
        with contextlib.ExitStack() as stack:
            energy, *initializer = [stack.enter_context(trainee.whole()) for trainee in self.trainees.values()]
            chain_energy = energy.fold().detach(self.chain_dtype)
            return self._losses(step, self.rows[0], chain_energy, energy, *(initializer or [None]))

    def _seed_dropout(self, step: int) -> None:
        torch.manual_seed(derive_seed(self.config.seed, "dropout", step, self.world.rank))

    def _losses(
        self, step: int, rows: range, chain_energy: FoldedEnergy, energy: Network, initializer: Network | None
    ) -> Losses:
        training, settings = self.config.training, self.config.initializer or InitializerConfig()
        x0, label = self.data.batch(step, rows)
        try:
            check_batch(x0, label, self.averaged.num_classes, self.data.elements(step, rows))
        except DataError as error:
            raise DataError(f"training data of step {step + 1}: {error}") from None
        return cooperative_losses(
            x0.to(self.world.device),
            label.to(self.world.device),
            ImageNoise([derive_seed(self.config.seed, "train", step, row) for row in rows], self.world.device),
            self.schedule,
            chain_energy,
            energy,
            initializer,
            training.langevin_steps,
            training.label_dropout,
            pairs=training.pairs,
            predicts=settings.predicts,
            target=settings.target,
            measure_acceptance=step % ACCEPTANCE_EVERY == 0,
        )

    def samples(self, count: int) -> Tensor:
        """Samples of the averaged model under fixed seeds and classes in turn, [count, *shape]."""
        classes = self.averaged.num_classes
        label = torch.arange(count, device=self.world.device) % classes if classes else None
        conditioned = self.averaged.conditioned(label)
        return sample(
            self.averaged.schedule,
            conditioned.propose,
            conditioned.log_density,
            ImageNoise([derive_seed("sample", seed) for seed in range(count)], self.world.device),
            self.averaged.shape,
            **sampler_settings(self.config.sampling, self.config.training.langevin_steps, self.schedule.num_levels),
        )

    def save(self, path: Path, state: Mapping[str, float]) -> None:
        """Write a checkpoint with ``state`` in its state.json; every process calls it."""
        with checkpoint_written_whole(path, self.world) as folder:
            for name, trainee in self.trainees.items():
                trainee.save(folder, name)
            if self.world.is_main:
                state = {**state, "processes": self.world.size, "rollbacks": self.rollbacks}
                write_json(folder / "state.json", state)

    def load(self, path: Path) -> dict[str, Any]:
        """Take up a checkpoint; returns its state.json, which has ``step``, the number of updates behind it."""
        state = read_checkpoint_record(path / "state.json", self.config.training.num_steps)
        self.rollbacks = max(self.rollbacks, state.get("rollbacks", 0))
        for name, trainee in self.trainees.items():
            trainee.load(path, name)
            trainee.refresh_learning_rate()
        return state

    def close(self) -> None:
        """Let go of the engines."""
        for trainee in self.trainees.values():
            trainee.close()

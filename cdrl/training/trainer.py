"""The networks of a run in their engines, and one update of them (Algorithm 1)."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cdrl.config import Config
from cdrl.data import DataError, StepAhead, TrainingSet, check_batch
from cdrl.model import CDRL
from cdrl.networks.initializer import dropout_noise
from cdrl.runs.checksums import verify_checksums
from cdrl.runs.model_folder import take_over
from cdrl.runs.records import read_checkpoint_record
from cdrl.runs.run import write_json
from cdrl.sampling.noise import Draw, ImageNoise, derive_seed
from cdrl.sampling.sampler import sample
from cdrl.sampling.settings import plan_chains
from cdrl.training.chains import chosen_chain
from cdrl.training.engine import (
    Trainee,
    TraineeSettings,
    World,
    check_checkpoint,
    checkpoint_written_whole,
    linear_schedule,
)
from cdrl.training.machine import computes_in_bfloat16
from cdrl.training.monitor import save_sums
from cdrl.training.objective import (
    Diagnostics,
    Losses,
    LossSettings,
    Measurements,
    Networks,
    cooperative_losses,
    diagnose,
)


@dataclass(frozen=True)
class Batch:
    """What an update of one micro-batch needs beside the networks, on the host."""

    x0: Tensor
    label: Tensor
    noise: ImageNoise
    dropout: ImageNoise


class BatchesAhead:
    """Batches for a GPU: while it learns from one, threads read the next one and draw its random numbers.

    Args:
        prepare: makes the batch of a step and some of its rows.
    """

    def __init__(self, prepare: Callable[[int, range], Batch]) -> None:
        self._prepare = prepare
        self._steps = StepAhead(self._begin)
        self._last: Batch | None = None
        self._draws: tuple[list[Draw], list[Draw]] | None = None

    def take(self, step: int, rows: range) -> Batch:
        """The batch of a step; that of the same rows of the next step is begun.

        Raises:
            DataError: see ``prepare``.
        """
        if self._draws is None and self._last is not None:  # each batch draws what the first one has drawn
            self._draws = self._last.noise.draws, self._last.dropout.draws
        self._last = self._steps.take(step, rows)
        return self._last

    def _begin(self, step: int, rows: range) -> Batch:
        batch = self._prepare(step, rows)
        if torch.cuda.is_available():
            batch = dataclasses.replace(batch, x0=batch.x0.pin_memory(), label=batch.label.pin_memory())
        if self._draws is not None:
            batch.noise.expect(self._draws[0])
            batch.dropout.expect(self._draws[1])
        return batch

    def close(self) -> None:
        """Let go of the thread."""
        self._steps.close()


ACCEPTANCE_EVERY = 10
"""Updates between two measurements of the acceptance, which costs a gradient more."""


class CooperativeTrainer:
    """The networks in their engines, and one update of them (Algorithm 1).

    Args:
        rollbacks: how often the run has been rolled back; each time halves the learning rates.
        initial: the model folder that the weights are taken over from, as far as they fit.

    Raises:
        RunError: a file of that folder is missing or damaged, or nothing of it fits.
    """

    def __init__(
        self,
        config: Config,
        data: TrainingSet,
        num_classes: int,
        world: World,
        rollbacks: int = 0,
        initial: Path | None = None,
    ) -> None:
        training = config.training
        self.config, self.data, self.world, self.rollbacks = config, data, world, rollbacks
        self.rows = world.rows(training.batch_size, training.accumulation)
        torch.manual_seed(derive_seed(config.seed, "weights"))
        model = CDRL.from_config(config, data.grid_shape, num_classes)
        if initial is not None:
            _take_over(model, initial, world)
        self.schedule = model.schedule.to(world.device)
        model.energy.recompute = training.recompute_energy
        if world.device.type == "cuda":
            torch.set_float32_matmul_precision("high" if training.tf32 else "highest")
            torch.backends.cudnn.allow_tf32 = training.tf32
        self.settings = LossSettings.from_config(config, num_classes)
        half = computes_in_bfloat16(training.chain_dtype, world.device)
        self.chain_dtype = torch.bfloat16 if half else torch.get_default_dtype()
        model.energy.in_bfloat16 = computes_in_bfloat16(training.learning_dtype, world.device)
        self.run_chain = chosen_chain(training, world.device)
        self._batches = BatchesAhead(self._prepare) if world.device.type != "cpu" else None
        self.energy = self._trainee(model.energy, training.energy_lr, half_updates=model.energy.in_bfloat16)
        self.initializer: Trainee | None = None
        self.trainees = {"energy": self.energy}
        averaged_initializer = None
        if model.initializer is not None:
            head_start = training.initializer_head_start
            self.initializer = self._trainee(model.initializer, training.initializer_lr, head_start)
            self.trainees["initializer"] = self.initializer
            averaged_initializer = self.initializer.averaged.eval()
        averaged_energy = self.energy.averaged.eval()
        self.averaged = CDRL(model.schedule, averaged_energy, averaged_initializer, data.grid_shape, num_classes)

    def _trainee(
        self, module: nn.Module, learning_rate: float, head_start: int = 0, *, half_updates: bool = False
    ) -> Trainee:
        training = self.config.training
        factor = linear_schedule(
            training.num_steps, training.warmup_steps, head_start, training.decay_fraction, training.decay_floor
        )
        settings = TraineeSettings(
            learning_rate=learning_rate,
            lr_factor=lambda step: 0.5**self.rollbacks * factor(step),
            gradient_clip=training.gradient_clip,
            batch_size=training.batch_size,
            accumulation=training.accumulation,
            ema=training.ema,
            optimizer=training.optimizer,
            zero_stage=self.config.deepspeed.zero_stage,
            half_updates=half_updates,
        )
        return Trainee(module, self.world, settings)

    def update(self, step: int) -> Measurements:
        """Make update ``step`` (from 0) of both networks, and return what it measured before it moved them.

        Raises:
            DataError: a sample is not finite or has no valid class id; the message names it.
        """
        with self.energy.whole() as energy, torch.no_grad():
            energy.power_iteration()
            chain_energy = energy.fold().detach(self.chain_dtype)
        initializer = None if self.initializer is None else self.initializer.engine
        networks = Networks(self.energy.engine, initializer, chain_energy, self.run_chain)
        losses, diagnostics = [], []
        for rows in self.rows:
            batch = self._losses(step, rows, networks)
            losses.append(batch)
            diagnostics.append(self._diagnose(step, batch))
            self.energy.update(batch.energy)
            if self.initializer is not None:
                assert batch.initializer is not None
                self.initializer.update(batch.initializer)
        return Measurements.of(losses, diagnostics)

    @torch.no_grad()
    def measure(self, step: int) -> Measurements:
        """Losses and diagnostics that update ``step`` would measure first under the current weights; learns nothing."""
        with contextlib.ExitStack() as stack:
            bare = {name: stack.enter_context(trainee.whole()) for name, trainee in self.trainees.items()}
            chain_energy = bare["energy"].fold().detach(self.chain_dtype)
            networks = Networks(bare["energy"], bare.get("initializer"), chain_energy, self.run_chain)
            losses = self._losses(step, self.rows[0], networks)
            return Measurements.of([losses], [self._diagnose(step, losses)])

    def _losses(self, step: int, rows: range, networks: Networks) -> Losses:
        batch = self._prepare(step, rows) if self._batches is None else self._batches.take(step, rows)
        x0, label = (tensor.to(self.world.device, non_blocking=True) for tensor in (batch.x0, batch.label))
        with dropout_noise(batch.dropout):
            return cooperative_losses(x0, label, batch.noise, networks, self.schedule, self.settings)

    def _prepare(self, step: int, rows: range) -> Batch:
        """The images of an update and the random numbers of each of them, whichever process it is in.

        Raises:
            DataError: a sample is not finite or has no valid class id; the message names it.
        """
        x0, label = self.data.batch(step, rows)
        try:
            check_batch(x0, label, self.averaged.num_classes, self.data.elements(step, rows))
        except DataError as error:
            raise DataError(f"training data of step {step + 1}: {error}") from None
        noise, dropout = (
            ImageNoise([derive_seed(self.config.seed, purpose, step, row) for row in rows], self.world.device)
            for purpose in ("train", "dropout")
        )
        return Batch(x0, label, noise, dropout)

    def _diagnose(self, step: int, losses: Losses) -> Diagnostics:
        return diagnose(losses.chain, self.schedule, measure_acceptance=step % ACCEPTANCE_EVERY == 0)

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
            plan_chains(self.config.sampling, self.config.training.langevin_steps, self.schedule.num_levels),
        )

    def save(self, path: Path, state: Mapping[str, float], sums: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Write a checkpoint with ``state`` in its state.json and the log's running sums; every process calls it."""
        with checkpoint_written_whole(path, self.world) as folder:
            save_sums(folder, sums, self.world)
            for name, trainee in self.trainees.items():
                trainee.save(folder, name)
            if self.world.is_main:
                state = {**state, "processes": self.world.size, "rollbacks": self.rollbacks}
                write_json(folder / "state.json", state)

    def load(self, path: Path) -> dict[str, Any]:
        """Take up a checkpoint; returns its state.json, which has ``step``, the number of updates behind it."""
        check_checkpoint(path, self.world)
        state = read_checkpoint_record(path / "state.json", self.config.training.num_steps)
        self.rollbacks = max(self.rollbacks, state.get("rollbacks", 0))
        for name, trainee in self.trainees.items():
            trainee.load(path, name)
        return state

    def close(self) -> None:
        """Let go of the engines."""
        for trainee in self.trainees.values():
            trainee.close()
        if self._batches is not None:
            self._batches.close()


def _take_over(model: CDRL, initial: Path, world: World) -> None:
    """Weights of another run's model, as far as they fit; the main process tells which."""
    verify_checksums(initial)
    lines = [take_over(model.energy, initial / "energy.safetensors")]
    path = initial / "initializer.safetensors"
    if model.initializer is not None:
        lines.append(take_over(model.initializer, path) if path.exists() else f"{initial}: holds no initializer")
    if world.is_main:
        print("\n".join(lines), file=sys.stderr, flush=True)

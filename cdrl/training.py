"""Cooperative training: batch, step, log, sample, checkpoint, resume."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdrl.checkpoint import save_model
from cdrl.config import Config, InitializerConfig
from cdrl.data import DataError, TrainingSet, check_batch
from cdrl.engine import Trainee, World, barrier, checkpoint_written_whole, linear_schedule
from cdrl.loop import Interrupted, any_process, progress_bar, save_picture, stop_requests
from cdrl.mcmc import kernel_named
from cdrl.model import CDRL
from cdrl.monitor import DivergenceError, DivergenceWatch, LevelMonitor, summed_over_processes
from cdrl.networks import FoldedEnergy
from cdrl.noise import ImageNoise, derive_seed
from cdrl.objective import Losses, Network, cooperative_losses
from cdrl.runs import MetricsLog, Run, read_json, write_json, written_whole
from cdrl.sampler import sample, step_adjustment

MAX_ROLLBACKS = 3
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
        sampling, trained = self.config.sampling, self.config.training.langevin_steps
        steps = trained if sampling.steps is None else sampling.steps
        classes = self.averaged.num_classes
        label = torch.arange(count, device=self.world.device) % classes if classes else None
        conditioned = self.averaged.conditioned(label)
        return sample(
            self.averaged.schedule,
            conditioned.propose,
            conditioned.log_density,
            ImageNoise([derive_seed("sample", seed) for seed in range(count)], self.world.device),
            self.averaged.shape,
            steps=steps,
            step_scale=step_adjustment(trained, steps) if sampling.step_adjustment else 1.0,
            denoise=sampling.denoise,
            kernel=kernel_named(sampling.kernel, sampling.leapfrog_steps),
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
        state = read_json(path / "state.json")
        self.rollbacks = max(self.rollbacks, state.get("rollbacks", 0))
        for name, trainee in self.trainees.items():
            trainee.load(path, name)
            trainee.refresh_learning_rate()
        return state

    def close(self) -> None:
        """Let go of the engines."""
        for trainee in self.trainees.values():
            trainee.close()


class Stopwatch:
    """Seconds that training has taken since it was begun, through all of its interruptions.

    What a crash has lost counts once it has been done again, not before: the seconds are those behind a checkpoint.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state``, that of a checkpoint, tells."""
        self._wall_before, self._cpu_before = (float(state.get(name, 0)) for name in ("wall_seconds", "cpu_seconds"))
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def seconds(self, world: World) -> dict[str, float]:
        """``wall_seconds``, and ``cpu_seconds`` of all processes, each of which must ask at the same time."""
        cpu = torch.tensor(time.process_time() - self._cpu, dtype=torch.float64, device=world.device)
        return {
            "wall_seconds": round(self._wall_before + time.monotonic() - self._wall, 2),
            "cpu_seconds": round(self._cpu_before + summed_over_processes(cpu).item(), 2),
        }


def trained_steps(model_folder: Path) -> int | None:
    """Updates behind the model that a run has exported; None without one."""
    path = model_folder / "config.json"
    return read_json(path).get("step") if path.exists() else None


def train(
    config: Config,
    run: Run,
    data: TrainingSet,
    *,
    shape: tuple[int, ...],
    num_classes: int,
    description: dict[str, Any],
    add_files: Callable[[Path], None],
    render: Callable[[Tensor], Tensor],
    world: World,
) -> None:
    """Train the networks, or go on from the run's last checkpoint; leaves the averaged model in ``run.model``.

    Its config.json tells the ``step``, the ``images`` seen, and the wall and CPU seconds that these took.

    Args:
        description: what the model's config.json shall hold beside the model's own facts.
        add_files: puts further files (a decoder) into the model folder.
        render: grids [N, *shape] -> one uint8 picture [3, H, W].

    Raises:
        DataError: a sample is not finite or has no valid class id; the message names it.
        Interrupted: after Ctrl-C or SIGTERM, with a checkpoint written.
        DivergenceError: training has run away, and rolling back is not asked for or has not helped; the last
            checkpoint stays as it was.
    """
    data.check_labels(num_classes)
    rollbacks = 0
    with stop_requests() as stop_requested:
        while True:
            trainer = CooperativeTrainer(config, data, shape, num_classes, world, rollbacks)
            try:
                _train(trainer, run, description, add_files, render, stop_requested)
                return
            except DivergenceError as error:
                if config.training.on_divergence == "stop":
                    raise
                if trainer.rollbacks == MAX_ROLLBACKS:
                    raise DivergenceError(f"{error} ({MAX_ROLLBACKS} rollbacks did not help)") from None
                rollbacks = trainer.rollbacks + 1
                if world.is_main:
                    again = f"rollback {rollbacks} of {MAX_ROLLBACKS}, with learning rates halved"
                    print(f"{error}; {again}", file=sys.stderr, flush=True)
            finally:
                trainer.close()


def _train(
    trainer: CooperativeTrainer,
    run: Run,
    description: dict[str, Any],
    add_files: Callable[[Path], None],
    render: Callable[[Tensor], Tensor],
    stop_requested: Callable[[], bool],
) -> None:
    """The loop of `train`, from the last checkpoint to the end."""
    world, training = trainer.world, trainer.config.training
    last = run.last_checkpoint()
    state = trainer.load(last[1]) if last else {"step": 0}
    step, stopwatch = int(state["step"]), Stopwatch(state)
    monitor = LevelMonitor(trainer.schedule.num_levels, world.device)
    watch = DivergenceWatch(trainer.schedule.num_levels, world.device)
    # A look at a GPU's results waits for it.
    watch_every = 1 if world.device.type == "cpu" else 10
    loss_sums = torch.zeros(1 + len(trainer.trainees), dtype=torch.float64, device=world.device)

    def state_now() -> dict[str, float]:
        return {"step": step, "images": step * training.batch_size, **stopwatch.seconds(world)}

    def export(state: Mapping[str, float]) -> None:
        with written_whole(run.model) as folder:
            save_model(folder, trainer.averaged, {**description, **state})
            add_files(folder)

    def stop_if_diverged() -> None:
        trouble = watch.verdict(trainer.averaged.parameters())
        if trouble is not None:
            last = run.last_checkpoint()
            kept = f"the checkpoint of step {last[0]} is kept" if last else "there is no checkpoint before it"
            raise DivergenceError(f"{run.folder}: diverged at step {step}, {trouble}; {kept}")

    def checkpoint() -> None:
        # The last update has not been seen at work yet.
        watch.add(trainer.rehearsal(step - 1))
        stop_if_diverged()
        state = state_now()
        trainer.save(run.checkpoint_path(step), state)
        if world.is_main:
            run.prune_checkpoints()
            export(state)

    with contextlib.ExitStack() as stack:
        log = stack.enter_context(closing(MetricsLog(run.folder, from_step=step))) if world.is_main else None
        progress = stack.enter_context(progress_bar(training.num_steps, "train", initial=step, shown=world.is_main))
        started, since = time.monotonic(), step
        while True:
            # Done?
            if step >= training.num_steps:
                break

            # Update.
            for losses in trainer.step(step):
                monitor.add(losses.diagnostics)
                watch.add(losses)
                loss_sums += torch.stack([torch.ones_like(losses.energy), *losses.values().values()]).double()
            step += 1
            progress.update()
            done = step == training.num_steps

            stop = any_process(stop_requested(), world)
            logged = step % training.log_every == 0 or done
            kept = step % training.checkpoint_every == 0 or done or stop

            # Diverged?
            if step % watch_every == 0 or logged or kept:
                stop_if_diverged()

            # Status.
            if logged:
                count, *sums = summed_over_processes(loss_sums).tolist()
                losses_mean = dict(zip(losses.values(), (total / count for total in sums), strict=True))
                loss_sums.zero_()
                means = monitor.means()
                if log is not None:
                    rate = (step - since) * training.batch_size / (time.monotonic() - started)
                    started, since = time.monotonic(), step
                    images = step * training.batch_size
                    log.write(step, {"images": images, **losses_mean, **means, "images_per_second": rate})
                    progress.set_postfix(
                        energy=f"{losses_mean['energy_loss']:.3f}", images_per_s=f"{rate:.0f}", refresh=False
                    )

            # Samples.
            if log is not None and (step % training.sample_every == 0 or done):
                picture = render(trainer.samples(64))
                save_picture(run.folder / "samples" / f"step_{step:08d}.png", picture)
                log.picture(step, "samples", picture)

            # Checkpoint.
            if kept:
                checkpoint()
            if stop and not done:
                raise Interrupted(
                    f"stopped at step {step} of {training.num_steps}; the same command goes on from there"
                )

    # A crash may have come between the last checkpoint and its export.
    last_state = state_now()
    if world.is_main and trained_steps(run.model) != step:
        export(last_state)
    barrier()

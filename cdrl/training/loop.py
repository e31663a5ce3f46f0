"""Cooperative training: batch, step, log, sample, checkpoint, resume."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdrl.config import Config
from cdrl.data import TrainingSet
from cdrl.model import CDRL
from cdrl.runs.checksums import folder_with_checksums
from cdrl.runs.model_folder import find_model, save_model
from cdrl.runs.progress import progress_bar
from cdrl.runs.run import Run, read_json, tell_where_it_goes_on
from cdrl.training.engine import World, barrier, by_main
from cdrl.training.interruption import (
    Interrupted,
    Stopwatch,
    any_process,
    pictures_of,
    save_picture,
    stop_requests,
)
from cdrl.training.machine import Threads, tell_precision
from cdrl.training.memory import expect_room_for_training
from cdrl.training.monitor import DivergenceError, DivergenceWatch, LevelMonitor, RunningMeans, load_sums
from cdrl.training.trackers import opened_log
from cdrl.training.trainer import CooperativeTrainer

MAX_ROLLBACKS = 3


class Measured(NamedTuple):
    """A figure of a model, the lower the better, under a name that says what was compared."""

    name: str
    value: float


Evaluate = Callable[[CDRL], Measured]
"""Measures the averaged model; every process calls it and gets the same answer."""


def _is_exported(model_folder: Path, step: int, config: Mapping[str, Any]) -> bool:
    """Whether a model folder holds what a run has learned by ``step``, with its settings of now."""
    path = model_folder / "config.json"
    exported = read_json(path) if path.exists() else {}
    return (exported.get("step"), exported.get("config")) == (step, config)


def trained_steps(model_folder: Path) -> int | None:
    """Updates behind the model that a run has exported; None without one."""
    path = model_folder / "config.json"
    return read_json(path).get("step") if path.exists() else None


def best_value(model_folder: Path, name: str) -> float:
    """What the best model so far has been measured at, under this name; infinity without one."""
    path = model_folder / "config.json"
    best = read_json(path)["evaluation"] if path.exists() else {}
    return best["value"] if best.get("name") == name else float("inf")


@dataclass(frozen=True)
class Outputs:
    """What a run leaves beside its networks.

    Attributes:
        description: what the model's config.json shall hold beside the model's own facts.
        add_files: puts further files (a decoder) into the model folder.
        render: grids [N, *shape] -> one uint8 picture [3, H, W]; raises ValueError where they are not finite.
        evaluate: called as often as ``config.evaluation`` says; the best model by it is kept in ``run.best``.
    """

    description: dict[str, Any]
    add_files: Callable[[Path], None]
    render: Callable[[Tensor], Tensor]
    evaluate: Evaluate | None = None

    def export(self, folder: Path, model: CDRL, facts: Mapping[str, Any]) -> None:
        """Write a model with ``facts`` of its training, whole or not at all."""
        with folder_with_checksums(folder) as partial:
            save_model(partial, model, {**self.description, **facts})
            self.add_files(partial)


def train(config: Config, run: Run, data: TrainingSet, num_classes: int, outputs: Outputs, world: World) -> None:
    """Train the networks, or go on from the run's last checkpoint; leaves the averaged model in ``run.model``.

    Its config.json tells the ``step``, the ``images`` seen, and the wall and CPU seconds that these took. A run that
    diverges is rolled back to its last checkpoint where the configuration says so.

    Raises:
        ConfigError: it cannot fit into memory, see `expect_room_for_training`.
        DataError: a sample is not finite or has no valid class id; the message names it.
        Interrupted: after Ctrl-C or SIGTERM, with a checkpoint written.
        DivergenceError: training has run away, and rolling back is not asked for or has not helped; the last
            checkpoint stays as it was.
        RunError: there is no model in ``training.init``, or it does not fit.
    """
    data.check_labels(num_classes)
    by_main(world, lambda: expect_room_for_training(config, data.grid_shape, num_classes, world))
    rollbacks = 0
    with stop_requests() as stop_requested:
        while True:
            start_from = config.training.init if run.last_checkpoint() is None else None
            initial = None if start_from is None else find_model(start_from)
            trainer = CooperativeTrainer(config, data, num_classes, world, rollbacks, initial)
            try:
                _train_to_the_end(trainer, run, outputs, stop_requested)
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


def _train_to_the_end(
    trainer: CooperativeTrainer, run: Run, outputs: Outputs, stop_requested: Callable[[], bool]
) -> None:
    """The loop of `train`, from the last checkpoint to the last update."""
    world, training, evaluation = trainer.world, trainer.config.training, trainer.config.evaluation
    last = run.last_checkpoint()
    state = trainer.load(last[1]) if last else {"step": 0}
    step, stopwatch = int(state["step"]), Stopwatch(state)
    # Code is compiled for a number of threads: for each other one that is tried there would be minutes to wait.
    compiled = training.compile and trainer.config.threads == "auto"
    threads = Threads(
        torch.get_num_threads() if compiled else trainer.config.threads,
        world,
        None if compiled else state.get("threads"),
    )
    if world.is_main:
        tell_where_it_goes_on(run, step, "training.num_steps", training.num_steps)
        tell_precision("chains compute", "training.chain_dtype", training.chain_dtype, world.device)
        tell_precision("energies learn", "training.learning_dtype", training.learning_dtype, world.device)
    monitor, losses = LevelMonitor(trainer.schedule.num_levels, world.device), RunningMeans(world.device)
    sums = load_sums(last[1], world) if last else {}
    monitor.sums |= sums.get("monitor", {})
    losses.sums |= sums.get("losses", {})
    spectral_norm = trainer.config.energy.spectral_norm
    watch = DivergenceWatch(trainer.schedule.num_levels, world.device, spectral_norm=spectral_norm)
    # A look at a GPU's results waits for it.
    watch_every = 1 if world.device.type == "cpu" else 10

    def state_now() -> dict[str, float]:
        counts = {"step": step, "images": step * training.batch_size, "threads": threads.number}
        return {**counts, **stopwatch.seconds(world)}

    def stop_if_diverged() -> None:
        trouble = watch.verdict(trainer.averaged.parameters())
        if trouble is not None:
            kept = run.last_checkpoint_in_words()
            raise DivergenceError(f"{run.folder}: diverged at step {step}, {trouble}; {kept}")

    with contextlib.ExitStack() as stack:
        stack.enter_context(threads.in_use())
        log = None
        if world.is_main:
            settings = outputs.description["config"]
            log = stack.enter_context(opened_log(run.folder, step, training.trackers, settings))
        progress = stack.enter_context(progress_bar(training.num_steps, "train", initial=step, shown=world.is_main))
        started, since = time.monotonic(), step
        while True:
            # Done?
            if step >= training.num_steps:
                break

            # Update.
            with threads.update():
                measured = trainer.update(step)
            monitor.add(measured.diagnostics)
            watch.add(measured)
            losses.add(measured.losses)
            step += 1
            progress.update()

            # What is due after this update?
            done = step == training.num_steps
            stop = any_process(stop_requested(), world)
            logged = step % training.log_every == 0 or done
            kept = step % training.checkpoint_every == 0 or done or stop

            # Diverged? What is kept is looked at under the weights of now, which no update has seen at work yet.
            if kept:
                watch.add(trainer.measure(step - 1))
            if step % watch_every == 0 or logged or kept:
                stop_if_diverged()

            # Status.
            if logged:
                losses_mean, means = losses.means(), monitor.means()
                losses.forget()
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
                with pictures_of(run, step):
                    picture = outputs.render(trainer.samples(64))
                save_picture(run.folder / "samples" / f"step_{step:08d}.png", picture)
                log.picture(step, "samples", picture)

            # Evaluation.
            if outputs.evaluate is not None and evaluation is not None and (step % evaluation.every == 0 or done):
                figure, state = outputs.evaluate(trainer.averaged), state_now()
                if log is not None:
                    log.write(step, {figure.name: figure.value})
                    if figure.value < best_value(run.best, figure.name):
                        outputs.export(run.best, trainer.averaged, {**state, "evaluation": figure._asdict()})

            # Checkpoint.
            if kept:
                state = state_now()
                trainer.save(run.checkpoint_path(step), state, {"monitor": monitor.sums, "losses": losses.sums})
                if world.is_main:
                    run.prune_checkpoints()
                    outputs.export(run.model, trainer.averaged, state)
            if stop and not done:
                raise Interrupted.at(step, training.num_steps)

    # A crash may have come between the last checkpoint and its export, or settings have changed since.
    state = state_now()
    if world.is_main and not _is_exported(run.model, step, outputs.description["config"]):
        outputs.export(run.model, trainer.averaged, state)
    barrier()

"""Cooperative training: batch, step, log, sample, checkpoint, resume."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cdrl.config import Config
from cdrl.data import TrainingSet
from cdrl.model import CDRL
from cdrl.runs.checksums import folder_with_checksums
from cdrl.runs.model_folder import save_model
from cdrl.runs.progress import progress_bar
from cdrl.runs.run import MetricsLog, Run, read_json
from cdrl.training.engine import World, barrier
from cdrl.training.interruption import Interrupted, Stopwatch, any_process, save_picture, stop_requests
from cdrl.training.monitor import DivergenceError, DivergenceWatch, LevelMonitor, summed_over_processes
from cdrl.training.trainer import CooperativeTrainer

MAX_ROLLBACKS = 3


class Measured(NamedTuple):
    """A figure of a model, the lower the better, under a name that says what was compared."""

    name: str
    value: float


Evaluate = Callable[[CDRL], Measured]
"""Measures the averaged model; every process calls it and gets the same answer."""


def trained_steps(model_folder: Path) -> int | None:
    """Updates behind the model that a run has exported; None without one."""
    path = model_folder / "config.json"
    return read_json(path).get("step") if path.exists() else None


def best_value(model_folder: Path) -> float:
    """What the best model so far has been measured at; infinity without one."""
    path = model_folder / "config.json"
    return read_json(path)["evaluation"]["value"] if path.exists() else float("inf")


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
    evaluate: Evaluate | None = None,
) -> None:
    """Train the networks, or go on from the run's last checkpoint; leaves the averaged model in ``run.model``.

    Its config.json tells the ``step``, the ``images`` seen, and the wall and CPU seconds that these took.

    Args:
        description: what the model's config.json shall hold beside the model's own facts.
        add_files: puts further files (a decoder) into the model folder.
        render: grids [N, *shape] -> one uint8 picture [3, H, W].
        evaluate: called as often as ``config.evaluation`` says; the best model by it is kept in ``run.best``.

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
                _train(trainer, run, description, add_files, render, evaluate, stop_requested)
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
    evaluate: Evaluate | None,
    stop_requested: Callable[[], bool],
) -> None:
    """The loop of `train`, from the last checkpoint to the end."""
    world, training, evaluation = trainer.world, trainer.config.training, trainer.config.evaluation
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

    def export(model: Path, facts: Mapping[str, Any]) -> None:
        with folder_with_checksums(model) as folder:
            save_model(folder, trainer.averaged, {**description, **facts})
            add_files(folder)

    def stop_if_diverged() -> None:
        trouble = watch.verdict(trainer.averaged.parameters())
        if trouble is not None:
            kept = run.last_checkpoint_in_words()
            raise DivergenceError(f"{run.folder}: diverged at step {step}, {trouble}; {kept}")

    def checkpoint() -> None:
        # The last update has not been seen at work yet.
        watch.add(trainer.rehearsal(step - 1))
        stop_if_diverged()
        state = state_now()
        trainer.save(run.checkpoint_path(step), state)
        if world.is_main:
            run.prune_checkpoints()
            export(run.model, state)

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

            # Evaluation.
            if evaluate is not None and evaluation is not None and (step % evaluation.every == 0 or done):
                measured, state = evaluate(trainer.averaged), state_now()
                if log is not None:
                    log.write(step, {measured.name: measured.value})
                    if measured.value < best_value(run.best):
                        export(run.best, {**state, "evaluation": measured._asdict()})

            # Checkpoint.
            if kept:
                checkpoint()
            if stop and not done:
                raise Interrupted.at(step, training.num_steps)

    # A crash may have come between the last checkpoint and its export.
    last_state = state_now()
    if world.is_main and trained_steps(run.model) != step:
        export(run.model, last_state)
    barrier()

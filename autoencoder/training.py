"""Stage one: batch, step, log, reconstruct, checkpoint, resume."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoencoder.model import WEIGHTS, Autoencoder, find_autoencoder, save_autoencoder
from autoencoder.objective import StageOneObjective
from autoencoder.reconstruction import held_out_quality, mean_image_psnr
from cdrl.config import AutoencoderConfig, DataConfig, Section, StageOneTrainingConfig, ThreadCount
from cdrl.data import GridSet, TrainingSet, as_floats, fewer_of_large
from cdrl.runs.checksums import folder_with_checksums, verify_checksums
from cdrl.runs.model_folder import take_over
from cdrl.runs.progress import progress_bar
from cdrl.runs.records import read_checkpoint_record
from cdrl.runs.run import Run, tell_where_it_goes_on, write_json
from cdrl.sampling.noise import ImageNoise, derive_seed
from cdrl.training.engine import (
    Trainee,
    TraineeSettings,
    World,
    barrier,
    by_main,
    check_checkpoint,
    checkpoint_written_whole,
    linear_schedule,
)
from cdrl.training.interruption import (
    Interrupted,
    Stopwatch,
    any_process,
    pictures_of,
    save_picture,
    stop_requests,
)
from cdrl.training.machine import Threads, computes_in_bfloat16, machine_in_words, tell_precision
from cdrl.training.memory import expect_room, kept_bytes, state_bytes
from cdrl.training.monitor import DivergenceError, RunningMeans, load_sums, save_sums, summed_over_processes
from cdrl.training.trackers import opened_log

HELD_OUT = 256
"""Held-out images on which PSNR and SSIM are logged during training; fewer of more than 128 x 128 pixels."""


class StageOneConfig(Section):
    """The settings that a first-stage run is made of."""

    seed: int
    zero_stage: int
    threads: ThreadCount = "auto"
    data: DataConfig
    autoencoder: AutoencoderConfig


class StageOneTrainer:
    """Autoencoder and discriminator in their engines, and one update of both.

    Args:
        initial: the folder of the first stage whose weights are taken over, as far as they fit.

    Raises:
        RunError: a file of that folder is missing or damaged, or nothing of it fits.
    """

    def __init__(self, config: StageOneConfig, data: TrainingSet, world: World, initial: Path | None = None) -> None:
        training = config.autoencoder.training
        assert training is not None
        self.config, self.data, self.world, self.training = config, data, world, training
        (self.rows,) = world.rows(training.batch_size, accumulation=1)
        torch.manual_seed(derive_seed(config.seed, "autoencoder weights"))
        network = Autoencoder(config.autoencoder.architecture, config.data.channels, config.data.image_size)
        if initial is not None:
            verify_checksums(initial)
            told = take_over(network, initial / WEIGHTS)
            if world.is_main:
                print(told, file=sys.stderr, flush=True)
        objective = StageOneObjective(config.autoencoder.objective, config.data.channels, config.data.image_size)
        self.objective = objective.to(world.device)
        self.autoencoder = self._trainee(network, training.ema)
        discriminator = self.objective.discriminator
        self.discriminator = None if discriminator is None else self._trainee(discriminator, 0.0)

    def _trainee(self, module: Any, ema: float) -> Trainee:
        training = self.training
        half = computes_in_bfloat16(training.precision, self.world.device)
        settings = TraineeSettings(
            learning_rate=training.learning_rate,
            lr_factor=linear_schedule(training.num_steps, training.warmup_steps, 0, training.decay_fraction, 0.02),
            gradient_clip=training.gradient_clip,
            batch_size=training.batch_size,
            ema=ema,
            betas=(0.5, 0.9) if self.objective.discriminator is not None else (0.9, 0.99),
            optimizer=training.optimizer,
            # The adaptive weight reads the last layer's gradient, which stage 3 would spread over processes.
            zero_stage=min(self.config.zero_stage, 2),
            autocast=half,
            half_updates=half,
        )
        return Trainee(module, self.world, settings)

    def update(self, step: int) -> dict[str, Tensor]:
        """Make update ``step`` (from 0) of both networks, and return the terms of their losses before it."""
        images, _ = self.data.batch(step, self.rows)
        images = images.to(self.world.device)
        # The posterior's noise belongs to the image, whichever process it is in.
        seeds = [derive_seed(self.config.seed, "autoencoder step", step, row) for row in self.rows]
        noise = ImageNoise(seeds, self.world.device).normal(self.autoencoder.module.latent_shape)
        module = self.autoencoder.module
        with autocast(self.training, self.world.device), module.last_layer_watched() as at_last_layer:
            reconstruction, latent = self.autoencoder.engine(images, noise)
            loss, diagnostics = self.objective.autoencoder_loss(
                images, reconstruction, latent, at_last_layer=at_last_layer, step=step
            )
        self.autoencoder.update(loss)
        if self.discriminator is not None and self.objective.is_adversarial(step):
            with autocast(self.training, self.world.device):
                logits = self.discriminator.engine(images, reconstruction.detach().float())
                loss, more = self.objective.discriminator_loss(*logits)
            self.discriminator.update(loss)
            diagnostics |= more
        return diagnostics

    def weights(self) -> list[Tensor]:
        """Averaged weights of both networks."""
        networks = [self.autoencoder] if self.discriminator is None else [self.autoencoder, self.discriminator]
        return [weight.detach() for network in networks for weight in network.averaged.parameters()]

    def save(self, path: Path, state: Mapping[str, float], sums: Mapping[str, Tensor]) -> None:
        """Write a checkpoint with ``state`` in its state.json and the log's running sums; every process calls it."""
        with checkpoint_written_whole(path, self.world) as folder:
            save_sums(folder, {"terms": sums}, self.world)
            self.autoencoder.save(folder, "autoencoder")
            if self.discriminator is not None:
                self.discriminator.save(folder, "discriminator")
            if self.world.is_main:
                write_json(folder / "state.json", state)

    def load(self, path: Path) -> dict[str, Any]:
        """Take up a checkpoint; returns its state.json, which has ``step``, the number of updates behind it."""
        check_checkpoint(path, self.world)
        self.autoencoder.load(path, "autoencoder")
        if self.discriminator is not None:
            self.discriminator.load(path, "discriminator")
        return read_checkpoint_record(path / "state.json", self.training.num_steps)

    def close(self) -> None:
        """Let go of the engines."""
        self.autoencoder.close()
        if self.discriminator is not None:
            self.discriminator.close()


def autocast(training: StageOneTrainingConfig, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """bfloat16 matrix work where the configuration asks for it."""
    if computes_in_bfloat16(training.precision, device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def train_autoencoder(config: StageOneConfig, run: Run, data: TrainingSet, held_out: GridSet, world: World) -> None:
    """Train the first stage, or go on from the run's last checkpoint; leaves the averaged network in ``run.model``.

    Its autoencoder.json tells the ``step``, the ``images`` seen, and the wall and CPU seconds that these took.

    Raises:
        ConfigError: it needs more than twice the memory that is free.
        Interrupted: after Ctrl-C or SIGTERM, with a checkpoint written.
        DivergenceError: the loss or the weights are not finite, or reconstructions have become or stayed bad, see
            `StageOneWatch`; the last checkpoint stays as it was.
        RunError: there is no first stage in ``autoencoder.training.init``, or it does not fit.
    """
    training = config.autoencoder.training
    assert training is not None
    by_main(world, lambda: _expect_room(config, world))
    test = as_floats(held_out.grids[: fewer_of_large(HELD_OUT, config.data.image_size)]).to(world.device)
    with contextlib.ExitStack() as stack:
        stop_requested = stack.enter_context(stop_requests())
        last = run.last_checkpoint()
        initial = find_autoencoder(training.init) if training.init is not None and last is None else None
        trainer = stack.enter_context(closing(StageOneTrainer(config, data, world, initial)))
        state = trainer.load(last[1]) if last else {"step": 0}
        step, stopwatch = int(state["step"]), Stopwatch(state)
        threads = stack.enter_context(Threads(config.threads, world, state.get("threads")).in_use())
        if world.is_main:
            tell_where_it_goes_on(run, step, "autoencoder.training.num_steps", training.num_steps)
        terms = RunningMeans(world.device)
        terms.sums |= load_sums(last[1], world).get("terms", {}) if last else {}
        watch = StageOneWatch(mean_image_psnr(test), training, best=state.get("best_psnr"))
        log = None
        if world.is_main:
            settings = config.model_dump(mode="json")
            log = stack.enter_context(opened_log(run.folder, step, training.trackers, settings))
        if world.is_main:
            tell_precision("stage one computes", "precision", training.precision, world.device)
        progress = stack.enter_context(progress_bar(training.num_steps, "stage one", initial=step, shown=world.is_main))
        started, since = time.monotonic(), step

        def export() -> None:
            if world.is_main:
                facts = {name: value for name, value in state.items() if name != "best_psnr"}
                facts["machine"] = machine_in_words(world.size)
                with folder_with_checksums(run.model) as folder:
                    save_autoencoder(folder, trainer.autoencoder.averaged, **facts)

        while True:
            # Done?
            if step >= training.num_steps:
                break

            # Update.
            with threads.update():
                terms.add(trainer.update(step))
            step += 1
            progress.update()

            # What is due after this update?
            done = step == training.num_steps
            stop = any_process(stop_requested(), world)
            logged = step % training.log_every == 0 or done
            kept = step % training.checkpoint_every == 0 or done or stop

            # Diverged?
            if logged or kept:
                means = terms.means()
                trouble = watch.verdict(step, means, trainer.weights(), judged=logged)
                if trouble is not None:
                    raise DivergenceError(
                        f"{run.folder}: diverged at step {step}: {trouble}: lower "
                        f"autoencoder.training.learning_rate; {run.last_checkpoint_in_words()}"
                    )

            # Status.
            if logged:
                terms.forget()
                rate = (step - since) * training.batch_size / (time.monotonic() - started)
                started, since = time.monotonic(), step
                if log is not None:
                    log.write(step, {"images": step * training.batch_size, **means, "images_per_second": rate})
                    progress.set_postfix(psnr=f"{means['psnr']:.2f}", images_per_s=f"{rate:.0f}", refresh=False)

            # Reconstructions of held-out images.
            if log is not None and (step % training.picture_every == 0 or done):
                with pictures_of(run, step):
                    quality, picture = held_out_quality(trainer.autoencoder.averaged, test)
                log.write(step, quality)
                log.picture(step, "reconstructions", picture)
                save_picture(run.folder / "reconstructions" / f"step_{step:08d}.png", picture)

            # Checkpoint.
            if kept:
                counts = {"step": step, "images": step * training.batch_size}
                state = {**counts, "processes": world.size, "threads": threads.number, **stopwatch.seconds(world)}
                state |= {} if watch.best is None else {"best_psnr": watch.best}
                trainer.save(run.checkpoint_path(step), state, terms.sums)
                if world.is_main:
                    run.prune_checkpoints()
            if kept and not done:
                export()
            if stop and not done:
                raise Interrupted.at(step, training.num_steps)

        # Also where nothing was left to do: a crash may have come between the last checkpoint and this.
        export()
        barrier()


def _expect_room(config: StageOneConfig, world: World) -> None:
    """Refuse networks or a batch that cannot fit into memory."""
    training = config.autoencoder.training
    assert training is not None
    key = f"autoencoder.training.batch_size={training.batch_size}"
    expect_room(*bytes_for_stage_one(config, world), world, f"{key}: lower it or autoencoder.architecture.channels")


def bytes_for_stage_one(config: StageOneConfig, world: World) -> tuple[int, int]:
    """Bytes that a process needs for networks and optimizers, and for a batch, without those of the objective."""
    training = config.autoencoder.training
    assert training is not None
    # A VQ bottleneck, which is counted as the other kind, asks for a device that computes.
    architecture = config.autoencoder.architecture.model_copy(update={"bottleneck": "kl"})
    with torch.device("meta"):
        network = Autoencoder(architecture, config.data.channels, config.data.image_size)
        micro = training.batch_size // world.size
        images = torch.zeros(micro, network.image_channels, network.image_size, network.image_size)
        noise = torch.zeros(micro, *network.latent_shape)
    kept = kept_bytes(lambda: network(images, noise), network)
    half = computes_in_bfloat16(training.precision, world.device)
    return state_bytes(network, training.optimizer, min(config.zero_stage, 2), world), kept // 2 if half else kept


class StageOneWatch:
    """Detect a failing first stage from the mean loss terms between two log lines.

    Args:
        mean_image: PSNR in dB of the mean of all images in each one's place, which any first stage that learns beats.
        best: highest mean PSNR so far, of a run that goes on.
    """

    UPDATES, TRAVEL = 800, 0.5
    """After so many updates beyond the warm-up, and once so far a weight can have moved (the sum of the learning
    rates), reconstructions must be better than the mean image."""
    MARGIN = 1.0
    """dB by which they then must be."""
    FALL = 6.0
    """dB below their best at which reconstructions have become bad: four times the squared error."""

    def __init__(self, mean_image: float, training: StageOneTrainingConfig, best: float | None = None) -> None:
        self.mean_image, self.best = mean_image, best
        self._patience = training.warmup_steps + max(self.UPDATES, math.ceil(self.TRAVEL / training.learning_rate))

    def verdict(self, step: int, means: Mapping[str, float], weights: list[Tensor], *, judged: bool) -> str | None:
        """Problem found after ``step`` updates, or None; the same in all processes.

        Args:
            means: of the losses' terms, over all processes; ``psnr`` in dB among them.
            weights: must be finite.
            judged: whether the means are those of a whole log line, and so to be compared with others.
        """
        norm = summed_over_processes(torch.nn.utils.get_total_norm(weights))
        if not (torch.isfinite(norm) and all(math.isfinite(mean) for mean in means.values())):
            return "the loss or the weights are not finite"
        if not judged:
            return None
        quality = means["psnr"]
        self.best = quality if self.best is None else max(self.best, quality)
        if quality < self.best - self.FALL:
            return f"reconstructions have got worse, from {self.best:.1f} to {quality:.1f} dB PSNR"
        if step >= self._patience and quality < self.mean_image + self.MARGIN:
            return (
                f"reconstructions of {quality:.1f} dB PSNR are hardly better than the mean of all images, "
                f"{self.mean_image:.1f} dB"
            )
        return None

"""DeepSpeed: start-up, one engine for each network, moving averages, whole checkpoints."""

from __future__ import annotations

import errno
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cdrl.config import ConfigError
from cdrl.runs.checksums import folder_with_checksums, verify_checksums
from cdrl.runs.lock import locked
from cdrl.runs.run import Run, RunError, load_tensors, save_tensors
from cdrl.runs.whole import partial_name
from cdrl.training.optimizer.muon import Muon
from cdrl.training.optimizer.whole_state import (
    take_up_optimizer_state,
    take_up_slices_of_deepspeed,
    take_up_weights,
    whole_optimizer_state,
)

# DeepSpeed 0.19 calls these functions of torch 2.14 by their old names, under which they do the same; the versions that
# pyproject.toml allows have both.
for _name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
    warnings.filterwarnings("ignore", rf"`torch\.distributed\.{_name}` is deprecated", FutureWarning)


@dataclass(frozen=True)
class World:
    """Rank and device of this process, and the number of processes that train together."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def rows(self, batch_size: int, accumulation: int) -> list[range]:
        """This process's rows of a global batch, one range a micro-batch.

        Raises:
            ConfigError: the batch cannot be divided evenly.
        """
        parts = self.size * accumulation
        if batch_size % parts:
            raise ConfigError(
                f"training.batch_size={batch_size} cannot be divided among {self.size} processes "
                f"x {accumulation} micro-batches"
            )
        share, micro = batch_size // self.size, batch_size // parts
        first = self.rank * share
        return [range(first + i * micro, first + (i + 1) * micro) for i in range(accumulation)]


def start() -> World:
    """Join the processes that torchrun or the deepspeed launcher started; alone, be a world of one."""
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(probe.getsockname()[1])
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Otherwise a shared-memory collective is compiled for minutes; gloo serves the CPU well.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(verbose=False)
    return World(rank=dist.get_rank(), size=dist.get_world_size(), device=device)


@dataclass(frozen=True)
class TraineeSettings:
    """How one network is trained.

    Attributes:
        lr_factor: number of updates made -> factor on the learning rate.
        batch_size: the global one, over all processes.
        accumulation: micro-batches of a process that an update sums.
        ema: decay of the moving average after its warm-up, see `ema_decay`; 0 keeps the weights themselves.
        optimizer: ``adam`` or ``muon``; the latter needs ``zero_stage`` 0.
        autocast: the engine's calls happen under torch.autocast, in bfloat16.
        half_updates: Muon orthogonalizes in bfloat16.
    """

    learning_rate: float
    lr_factor: Callable[[int], float]
    gradient_clip: float
    batch_size: int
    accumulation: int = 1
    ema: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    optimizer: str = "adam"
    zero_stage: int = 1
    autocast: bool = False
    half_updates: bool = False


LARGEST_BUCKET = 500_000_000
"""Gradients that are reduced at once at most: DeepSpeed's own number."""


def shared_stage(zero_stage: int, world: World) -> int:
    """The ZeRO stage that processes work at: one alone shares nothing, and goes without the copies that sharing takes.

    On a CPU its engine's step then takes a quarter of the time at CIFAR-10 size, see benchmarks/engine_step.py.
    """
    return zero_stage if world.size > 1 else 0


class Trainee:
    """One network with its optimizer in a DeepSpeed engine, and the moving average of its weights."""

    def __init__(self, module: nn.Module, world: World, settings: TraineeSettings) -> None:
        self.world, self.settings = world, settings
        self.zero_stage = shared_stage(settings.zero_stage, world)
        module = module.to(world.device)
        self.average = MovingAverage(module, settings.ema)
        self.engine = self._new_engine(module)

    def _new_engine(self, module: nn.Module) -> Any:
        world, settings = self.world, self.settings
        rate, betas = settings.learning_rate, settings.betas
        if settings.optimizer == "muon":
            updates: torch.optim.Optimizer = Muon(module.parameters(), rate, betas, bfloat16=settings.half_updates)
        else:
            updates = torch.optim.Adam(module.parameters(), lr=rate, betas=betas, fused=True)
        weights = sum(parameter.numel() for parameter in module.parameters())
        engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=updates,
            lr_scheduler=lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, settings.lr_factor),
            config={
                "train_batch_size": settings.batch_size,
                "train_micro_batch_size_per_gpu": settings.batch_size // (world.size * settings.accumulation),
                "gradient_accumulation_steps": settings.accumulation,
                # Stage 0 clips in `update`.
                "gradient_clipping": settings.gradient_clip if self.zero_stage else 0.0,
                # A bucket is taken at each update in the size that is named, of 2 GB if none is.
                "zero_optimization": {"stage": self.zero_stage, "reduce_bucket_size": min(weights, LARGEST_BUCKET)},
                "zero_allow_untested_optimizer": True,
                "torch_autocast": {"enabled": settings.autocast, "dtype": "bfloat16"},
                "steps_per_print": 2**62,
            },
        )
        # One process has nobody to exchange gradients with, and at stage 0 need not copy them.
        engine.enable_backward_allreduce = world.size > 1 or self.zero_stage > 0
        return engine

    @property
    def module(self) -> Any:
        """The bare network."""
        return self.engine.module

    @contextmanager
    def whole(self) -> Iterator[Any]:
        """The bare network with all of its weights here, also where ZeRO stage 3 spreads them."""
        parameters = list(self.module.parameters()) if self.zero_stage == 3 else []
        with deepspeed.zero.GatheredParameters(parameters, enabled=self.zero_stage == 3):
            yield self.module

    def update(self, loss: Tensor) -> None:
        """Backward pass and, at the end of an accumulation, one optimizer step and the moving average."""
        boundary = self.engine.is_gradient_accumulation_boundary()
        self.engine.backward(loss)
        if boundary and self.zero_stage == 0:
            # All gradients at once: DeepSpeed's own way takes two kernels for each, and looks at what they find.
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), self.settings.gradient_clip, foreach=True)
        self.engine.step()
        if boundary:
            with self.whole() as module:
                self.average.update_parameters(module)

    @property
    def averaged(self) -> Any:
        """The network under its averaged weights."""
        return self.average.module

    def save(self, folder: Path, name: str) -> None:
        """Write weights, optimizer's state and average, whole, below ``folder``; every process calls it.

        Raises:
            OSError: they cannot be written.
        """
        optimizer = whole_optimizer_state(self.engine)
        with self.whole() as module:
            parts = {"weights": module.state_dict(), "optimizer": optimizer, "average": self.average.state_dict()}

            def write() -> None:
                for part, tensors in parts.items():
                    save_tensors(folder / f"{name}_{part}.safetensors", tensors)

            by_main(self.world, write)

    def load(self, folder: Path, name: str) -> None:
        """Take up what `save` wrote, by however many processes and at whichever ZeRO stage; every process calls it.

        By as many processes and at the same stage, training goes on bit for bit.

        Raises:
            RunError: something of it is missing, damaged, or of another network.
        """
        try:
            average = load_tensors(folder / f"{name}_average.safetensors")
            if (folder / name).is_dir():
                self._share_as_set()
                take_up_slices_of_deepspeed(self.engine, folder, name)
            else:
                take_up_weights(self.engine, load_tensors(folder / f"{name}_weights.safetensors"))
                take_up_optimizer_state(self.engine, load_tensors(folder / f"{name}_optimizer.safetensors"))
            self.average.load_state_dict(average)
        except RunError as error:
            raise RunError(f"{error}; {_run_of(folder).way_on_without(folder)}") from None
        except Exception as error:
            # What is damaged may fail in any way at all.
            reason = f"not a whole checkpoint of this network ({' '.join(str(error).split())[:200]})"
            raise RunError(f"{folder / name}: {reason}; {_run_of(folder).way_on_without(folder)}") from None
        # Each update is averaged: the average's count is that of the schedule.
        self.engine.lr_scheduler.last_epoch = int(average["n_averaged"])
        self.refresh_learning_rate()

    def _share_as_set(self) -> None:
        """Share with nobody, but in slices: earlier versions did so where one process trained."""
        if self.zero_stage != self.settings.zero_stage:
            module = self.module
            self.engine.destroy()
            self.zero_stage = self.settings.zero_stage
            self.engine = self._new_engine(module)

    def refresh_learning_rate(self) -> None:
        """Give the next update the learning rate that ``lr_factor`` has for it now."""
        scheduler = self.engine.lr_scheduler
        rates = [base * factor(scheduler.last_epoch) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas)]
        for group, rate in zip(self.engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def close(self) -> None:
        """Let go of what the engine registered in this process."""
        self.engine.destroy()


def ema_decay(ema: float, update: int) -> float:
    """Decay of the moving average at update n = 1, 2, …: (1 + n) / (10 + n), or ``ema`` where that is smaller.

    With this warm-up, that of the paper's authors (and of torch_ema), the average soon forgets the random weights that
    training began with: under a decay of 0.9999 throughout, 61 % of them would be left after 5,000 updates.
    """
    return min(ema, (1 + update) / (10 + update))


class MovingAverage(AveragedModel):
    """Moving average of a network's weights under `ema_decay`; buffers are copied. The first update copies all.

    Its count of updates stays on the host: torch's own update asks a GPU for it, and waits.
    """

    def __init__(self, module: nn.Module, ema: float) -> None:
        super().__init__(module)
        self.ema = ema
        self._weights_here = list[Tensor](self.module.parameters())
        self._buffers_here = list(self.module.buffers())

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Average in the weights of ``model``."""
        updates = int(self.n_averaged)
        share = 1 - ema_decay(self.ema, updates + 1) if updates else 1.0
        torch._foreach_lerp_(self._weights_here, [weight.detach() for weight in model.parameters()], share)
        if self._buffers_here:
            torch._foreach_copy_(self._buffers_here, list(model.buffers()))
        self.n_averaged += 1


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.barrier()


def by_main(world: World, action: Callable[[], object]) -> None:
    """Have the main process do something, for which all wait; every process calls it.

    What goes wrong in the main process is raised in all of them.
    """
    failure: list[Exception | None] = [None]
    if world.is_main:
        try:
            action()
        except Exception as error:
            failure = [error]
    if world.size > 1:
        dist.broadcast_object_list(failure)
    if failure[0] is not None:
        raise failure[0]


@contextmanager
def locked_by_main(folder: Path, world: World) -> Iterator[None]:
    """`locked`, by the main process for all of them; every process calls it.

    Raises:
        RunError: another command writes there; the message says which.
    """
    with ExitStack() as stack:
        by_main(world, lambda: stack.enter_context(locked(folder)))
        yield


@contextmanager
def checkpoint_written_whole(path: Path, world: World) -> Iterator[Path]:
    """A checkpoint folder that all processes write into and that takes its name when all are done.

    Raises:
        OSError: it cannot be written, or the run is not there any more.
    """
    if world.is_main:
        run = _run_of(path)
        if not run.folder.is_dir():
            raise FileNotFoundError(errno.ENOENT, "this run was removed while it was going on", str(run.folder))
        with folder_with_checksums(path) as partial:
            partial.mkdir(parents=True)
            barrier()
            yield partial
            barrier()
    else:
        barrier()
        yield partial_name(path)
        barrier()
    barrier()


def check_checkpoint(path: Path, world: World) -> None:
    """Compare a checkpoint's files with its checksums; every process calls it.

    Raises:
        RunError: one is damaged or missing; the message says how to go on from the checkpoint before.
    """

    def check() -> None:
        try:
            verify_checksums(path)
        except RunError as error:
            raise RunError(f"{error}; {_run_of(path).way_on_without(path)}") from None

    by_main(world, check)


def _run_of(checkpoint: Path) -> Run:
    return Run(checkpoint.parent.parent)


def linear_schedule(
    num_steps: int, warmup_steps: int, head_start: int, decay_fraction: float, floor: float
) -> Callable[[int], float]:
    """Learning-rate factor: linear warm-up (eq. 15), then flat, then linear decay to ``floor`` over the last share."""
    decay_steps = max(1, round(decay_fraction * num_steps)) if decay_fraction else 0

    def factor(step: int) -> float:
        warm = min(1.0, (step + head_start) / warmup_steps) if warmup_steps else 1.0
        if not decay_steps:
            return warm
        left = min(1.0, max(0.0, (num_steps - step) / decay_steps))
        return warm * (floor + (1 - floor) * left)

    return factor

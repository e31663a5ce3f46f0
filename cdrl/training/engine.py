"""DeepSpeed: start-up, one engine for each network, moving averages, whole checkpoints."""

from __future__ import annotations

import errno
import os
import re
import shutil
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
from cdrl.names import counted
from cdrl.runs.checksums import folder_with_checksums, verify_checksums
from cdrl.runs.lock import locked
from cdrl.runs.run import Run, RunError, load_tensors, read_json, save_tensors
from cdrl.runs.whole import partial_name
from cdrl.training.muon import Muon

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
        bfloat16: the engine's calls happen under torch.autocast.
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
    bfloat16: bool = False


class Trainee:
    """One network with its optimizer in a DeepSpeed engine, and the moving average of its weights."""

    def __init__(self, module: nn.Module, world: World, settings: TraineeSettings) -> None:
        self.world, self.zero_stage = world, settings.zero_stage
        # Stage 0 clips here, all gradients at once: DeepSpeed's own way takes two kernels for each, and a look at them.
        self.clips_itself, self.gradient_clip = settings.zero_stage == 0, settings.gradient_clip
        module = module.to(world.device)
        self._weights = list(module.parameters())
        self.average = MovingAverage(module, settings.ema)
        rate, betas = settings.learning_rate, settings.betas
        if settings.optimizer == "muon":
            updates: torch.optim.Optimizer = Muon(module.parameters(), rate, betas)
        else:
            updates = torch.optim.Adam(module.parameters(), lr=rate, betas=betas, fused=True)
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=updates,
            lr_scheduler=lambda opt: torch.optim.lr_scheduler.LambdaLR(opt, settings.lr_factor),
            config={
                "train_batch_size": settings.batch_size,
                "train_micro_batch_size_per_gpu": settings.batch_size // (world.size * settings.accumulation),
                "gradient_accumulation_steps": settings.accumulation,
                "gradient_clipping": 0.0 if self.clips_itself else settings.gradient_clip,
                "zero_optimization": {"stage": settings.zero_stage},
                "zero_allow_untested_optimizer": True,
                "torch_autocast": {"enabled": settings.bfloat16, "dtype": "bfloat16"},
                "steps_per_print": 2**62,
            },
        )
        if settings.zero_stage == 0 and world.size == 1:
            self.engine.enable_backward_allreduce = False  # there is nobody to exchange gradients with

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
        if boundary and self.clips_itself:
            torch.nn.utils.clip_grad_norm_(self._weights, self.gradient_clip, foreach=True)
        self.engine.step()
        if boundary:
            with self.whole() as module:
                self.average.update_parameters(module)

    @property
    def averaged(self) -> Any:
        """The network under its averaged weights."""
        return self.average.module

    def save(self, folder: Path, name: str) -> None:
        """Write engine state and average below ``folder``; every process calls it.

        Raises:
            OSError: they cannot be written.
        """
        with _errors_of_the_disk(folder):
            self.engine.save_checkpoint(str(folder), tag=name, save_latest=False)
        if self.world.is_main:
            save_tensors(folder / f"{name}_average.safetensors", self.average.state_dict())
        barrier()

    def load(self, folder: Path, name: str) -> None:
        """Take up what `save` wrote, bit for bit; every process calls it.

        Raises:
            RunError: something of it is missing, damaged, or of another network.
        """
        average = load_tensors(folder / f"{name}_average.safetensors")
        try:
            with _safe_unpickling():
                found, _ = self.engine.load_checkpoint(str(folder), tag=name)
            self.average.load_state_dict(average)
        except Exception as error:
            # What is damaged may fail in any way at all.
            reason = " ".join(str(error).split())[:200]
            raise self._not_loaded(folder, name, f"not a whole checkpoint of this network ({reason})") from None
        if found is None:
            raise self._not_loaded(folder, name, "not a whole checkpoint: its files are missing")
        self.average.module.to(self.world.device)

    def _not_loaded(self, folder: Path, name: str, reason: str) -> RunError:
        processes = read_json(folder / "state.json").get("processes", self.world.size)
        if processes != self.world.size:
            others = counted(processes, "process", "processes")
            return RunError(
                f"{folder}: written by {others}, cannot be taken up by {self.world.size}: start as many as before "
                f"(torchrun --nproc_per_node {processes}), or train in another folder"
            )
        return RunError(f"{folder / name}: {reason}; {_run_of(folder).way_on_without(folder)}")

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


@contextmanager
def weights_only_unpickling() -> Iterator[None]:
    """Have torch.load read tensors and plain values only, also where other people's code calls it."""
    previous = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    try:
        yield
    finally:
        if previous is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = previous


@contextmanager
def _safe_unpickling() -> Iterator[None]:
    """Let what DeepSpeed writes pass as well."""
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    plain = [LossScaler, ZeroStageEnum, fragment_address]
    with weights_only_unpickling(), torch.serialization.safe_globals(plain):
        yield


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


@contextmanager
def _errors_of_the_disk(folder: Path) -> Iterator[None]:
    """Turn what torch's writer says of a disk that is full or fails into an OSError that names the folder."""
    try:
        yield
    except RuntimeError as error:
        if not re.search("inline_container|PytorchStreamWriter|iostream error", str(error)):
            raise
        full = shutil.disk_usage(folder).free < 2**20
        reason = os.strerror(errno.ENOSPC) if full else "cannot be written whole: a full disk, a quota, or a fault"
        raise OSError(errno.ENOSPC if full else errno.EIO, reason, str(folder)) from error


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

"""What a machine with GPUs makes of this package, in ten minutes: images a second, memory, share of the card's peak.

    python -m benchmarks.gpu runs/gpu

Training updates and sampling at the sizes of the paper's CIFAR-10, ImageNet32 and CelebA-HQ models, random weights on
random images: a plain implementation, this package step by step, with each chain as one CUDA graph, in bfloat16,
compiled; ZeRO stages 0 to 3; 1, 2, 4, … processes. What a run measured is in OUT/gpu.json and, as a table, OUT/gpu.md.
Cases that find no time left are named there, not left out in silence. With ``--small`` small networks show on a CPU
that everything works; their figures say nothing of GPUs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.plain import PlainTrainer
from benchmarks.timing import Arithmetic, Size, new_model, plain_copy
from cdrl.config_files import load_config
from cdrl.data import TrainingSet
from cdrl.runs.run import write_json
from cdrl.runs.whole import written_whole
from cdrl.sampling.noise import ImageNoise
from cdrl.sampling.sampler import sample
from cdrl.sampling.settings import ChainPlan
from cdrl.training.engine import World, start
from cdrl.training.machine import machine_in_words
from cdrl.training.trainer import CooperativeTrainer

CONFIGS = Path(__file__).parents[1] / "configs"
SHAPES = {"cifar10": (3, 32, 32), "imagenet32": (3, 32, 32), "celebahq256_kl_f4": (3, 64, 64)}
SMALL = ("energy.channels=8", "initializer.channels=8", "training.langevin_steps=2")
WARM_UP = 3
"""Updates before the measured ones, of which the first compile, capture and set up."""
LEAST_CALLS = 3
KEEP = 20.0
"""Seconds of the given time that are kept for starting processes."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
        size: name of the configuration whose networks and chains it has.
        what: ``training`` or ``sampling``.
        how: a name for what is special about it.
        changes: settings other than the configuration's, as ``key=value``.
        batch: images an update in each process, or images drawn at once.
    """

    size: str
    what: str
    how: str
    batch: int
    changes: tuple[str, ...] = ()
    processes: int = 1

    @property
    def name(self) -> str:
        """As the tables call it."""
        return f"{self.size} {self.what}, {self.how}, {self.processes} x {self.batch}"


EAGER = ("training.cuda_graph=False", "deepspeed.zero_stage=0")
GRAPH = ("training.cuda_graph=True", "deepspeed.zero_stage=0")
HALF = (*GRAPH, "training.chain_dtype=bfloat16")


class SizeName(StrEnum):
    """What can be measured."""

    cifar10 = "cifar10"
    imagenet32 = "imagenet32"
    celebahq256_kl_f4 = "celebahq256_kl_f4"


def cases(processes: int, batch: int, sizes: Sequence[str] = tuple(SizeName)) -> list[Case]:
    """What is measured with so many processes, the most important first; the last few of the first size alone."""
    found = []
    if processes == 1:
        for size in sizes:
            found += [
                Case(size, "training", "plain", batch),
                Case(size, "training", "step by step", batch, EAGER),
                Case(size, "training", "CUDA graph", batch, GRAPH),
                Case(size, "training", "CUDA graph, bfloat16 chain", batch, HALF),
                Case(size, "sampling", "plain", batch),
                Case(size, "sampling", "step by step", batch),
                Case(size, "sampling", "bfloat16 chain", batch, HALF),
            ]
        size = sizes[0]
        found += [
            Case(size, "training", "compiled, CUDA graph, bfloat16 chain", batch, (*HALF, "training.compile=True")),
            Case(size, "training", "CUDA graph, float32 without TF32", batch, (*GRAPH, "training.tf32=False")),
            Case(size, "training", "CUDA graph, recomputed energy", batch, (*GRAPH, "training.recompute_energy=True")),
        ]
    size = sizes[0]
    stages = range(4) if processes > 1 else range(1, 4)
    found += [
        Case(
            size,
            "training",
            f"bfloat16 chain, ZeRO {stage}",
            batch,
            ("training.cuda_graph=True", "training.chain_dtype=bfloat16", f"deepspeed.zero_stage={stage}"),
        )
        for stage in stages
    ]
    return [dataclasses.replace(case, processes=processes) for case in found]


def size_of(case: Case, *, small: bool) -> Size:
    """Networks, shape of an image and batch of a case."""
    changes = [*case.changes, *(SMALL if small else ()), f"training.batch_size={case.batch * case.processes}"]
    changes += ["training.optimizer=adam", "training.accumulation=1"]
    shape = (*SHAPES[case.size][:1], 16, 16) if small else SHAPES[case.size]
    return Size(load_config(CONFIGS / f"{case.size}.yaml", changes), shape, case.batch)


@contextlib.contextmanager
def action(case: Case, world: World, *, small: bool) -> Iterator[Callable[[], object]]:
    """The update or the draw of samples that a case is about, ready to be called again and again."""
    size, device = size_of(case, small=small), world.device
    if case.what == "sampling":
        yield _sampling(case, size, device)
        return
    grids = torch.randn(4 * case.batch * case.processes, *size.shape)
    data = TrainingSet(grids, case.batch * case.processes, seed=0)
    trainer = CooperativeTrainer(size.config, data, 0, world)
    steps = itertools.count()
    try:
        if case.how != "plain":
            yield lambda: trainer.update(next(steps))
            return
        model = plain_copy(size.config, trainer.averaged).to(device)
        model.schedule = model.schedule.to(device)
        plain, on_device = PlainTrainer(model, size.config.training), grids.to(device)

        def update() -> tuple[Tensor, Tensor]:
            x0 = on_device[torch.randint(len(grids), (case.batch,), device=device)]
            level = torch.randint(model.schedule.num_levels, (case.batch,), device=device)
            return plain.update(x0, level, torch.full_like(level, -1), lambda: torch.randn_like(x0))

        yield update
    finally:
        trainer.close()


def _sampling(case: Case, size: Size, device: torch.device) -> Callable[[], object]:
    model = new_model(size).to(device).eval()
    steps, levels = size.config.training.langevin_steps, size.config.schedule.num_levels
    if case.how == "plain":
        plain = plain_copy(size.config, model).to(device).eval()
        plain.schedule = plain.schedule.to(device)
        label = torch.full((case.batch,), -1, device=device)
        return lambda: plain.sample(label, steps, 2.0, lambda: torch.randn(case.batch, *size.shape, device=device))
    dtype = torch.bfloat16 if "training.chain_dtype=bfloat16" in case.changes else torch.float32
    schedule, plan = model.schedule.to(device), ChainPlan((steps,) * levels)

    def draw() -> Tensor:
        conditioned = model.conditioned(dtype=dtype)
        noise = ImageNoise(range(case.batch), device)
        return sample(schedule, conditioned.propose, conditioned.log_density, noise, model.shape, plan)

    return draw


def measure(case: Case, world: World, seconds: float, *, small: bool) -> dict[str, Any]:
    """Figures of one case: images a second of all processes, seconds a call, peak memory, arithmetic."""
    on_gpu = world.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with action(case, world, small=small) as call:
        flops = 0
        if case.how == "plain":
            with Arithmetic() as arithmetic:
                call()
            flops = arithmetic.flops
        for _ in range(WARM_UP if case.what == "training" else 1):
            call()
        wait(world)
        started, calls = time.perf_counter(), 0
        # Several processes have to make as many calls as each other: none of them looks at its clock.
        while calls < LEAST_CALLS or (case.processes == 1 and time.perf_counter() - started < seconds):
            call()
            calls += 1
            if case.processes == 1:
                wait(world)
        wait(world)
        took = (time.perf_counter() - started) / calls
    return {
        **dataclasses.asdict(case),
        "images_per_second": case.batch * case.processes / took,
        "seconds_per_call": took,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
        "counted_flops": flops,
    }


def wait(world: World) -> None:
    """Wait until the device has done what it was told."""
    if world.device.type == "cuda":
        torch.cuda.synchronize()


def matrix_rate(device: torch.device, dtype: torch.dtype, *, small: bool) -> float:
    """Multiplications and additions a second of a large matrix product: the peak that shares refer to."""
    side = 256 if small else 8192
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(8):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 2 * side**3 / sorted(times)[len(times) // 2]


app = typer.Typer(add_completion=False)


@app.command()
def worker(
    out: Path, processes: int, batch: int, seconds: float, each: float, size: list[SizeName], small: bool = False
) -> None:
    """One process of those that measure; torchrun starts it."""
    begun, world = time.monotonic(), start()
    if world.device.type == "cpu":
        torch.set_num_threads(1)
    lines: list[dict[str, Any]] = []
    if processes == 1:
        torch.set_float32_matmul_precision("high")
        rates = {
            name: matrix_rate(world.device, dtype, small=small)
            for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
        }
        lines.append({"machine": machine_in_words(world.size), "matrix_flops_per_second": rates})
    for case in cases(processes, batch, size):
        late = torch.tensor(time.monotonic() - begun > seconds, dtype=torch.int32, device=world.device)
        if world.size > 1:
            torch.distributed.broadcast(late, 0)
        if late:
            line: dict[str, Any] = {**dataclasses.asdict(case), "left_out": "no time left"}
        else:
            try:
                line = measure(case, world, each, small=small)
            except torch.cuda.OutOfMemoryError:
                line = {**dataclasses.asdict(case), "left_out": "out of memory"}
        lines.append(line)
        if world.is_main:
            write_json(out / f"processes_{processes}.json", {"results": lines})
            figure = line.get("images_per_second")
            print(case.name, line.get("left_out") or f"{figure:.1f} images/s", flush=True)


@app.command()
def main(
    out: Annotated[Path, typer.Argument(help="Folder for gpu.json and gpu.md.")],
    size: Annotated[list[SizeName], typer.Option(help="Sizes to measure.")] = list(SizeName),  # noqa: B006
    seconds: Annotated[float, typer.Option(help="Time for all of it.", min=10)] = 600,
    each: Annotated[float, typer.Option(help="Time for one case, beside its start.", min=0)] = 3,
    batch: Annotated[int, typer.Option(help="Images a process.", min=1)] = 64,
    small: Annotated[bool, typer.Option("--small", help="Small networks, to see that it works.")] = False,
) -> None:
    """Measure with 1, 2, 4, … processes, as many as there are GPUs."""
    out.mkdir(parents=True, exist_ok=True)
    begun, counts = time.monotonic(), [1]
    while 2 * counts[-1] <= max(torch.cuda.device_count(), 2 if small else 1):
        counts.append(2 * counts[-1])
    results: list[dict[str, Any]] = []
    for position, processes in enumerate(counts):
        left = (seconds - (time.monotonic() - begun)) / (len(counts) - position)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command += ["-m", "benchmarks.gpu", "worker", str(out), str(processes), str(batch)]
        command += [str(max(1.0, left - KEEP)), str(each), *size, *(["--small"] if small else [])]
        found = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
        part = out / f"processes_{processes}.json"
        results += json.loads(part.read_text())["results"] if part.exists() else []
        part.unlink(missing_ok=True)
        if found.returncode:
            results.append({"processes": processes, "left_out": f"ended with status {found.returncode}"})
    write_json(out / "gpu.json", {"results": results})
    with written_whole(out / "gpu.md") as path:
        path.write_text(table(results))
    print(f"{table(results)}\nresults: {out / 'gpu.json'}, {out / 'gpu.md'}")


def table(results: list[dict[str, Any]]) -> str:
    """The results in Markdown; shares of the peak refer to the measured rate of bfloat16 matrix products."""
    facts, *_ = [line for line in results if "machine" in line] or [{}]
    rates = facts.get("matrix_flops_per_second", {})
    lines = [facts.get("machine", "unknown machine"), ""]
    lines += ["matrix products: " + ", ".join(f"{name} {rate / 1e12:.2f} TFLOP/s" for name, rate in rates.items()), ""]
    lines += ["| what | images a second | ms a call | peak memory, GiB | share of peak |", "|---|---|---|---|---|"]
    plain = {(x["size"], x["what"]): x["counted_flops"] for x in results if x.get("counted_flops")}
    for line in results:
        if "machine" in line:
            continue
        if "left_out" in line:
            lines.append(f"| {line.get('size', '')} {line.get('how', '')} | {line['left_out']} | | | |")
            continue
        flops = plain.get((line["size"], line["what"]), 0) * line["processes"] / line["seconds_per_call"]
        share = f"{flops / (rates['bfloat16'] * line['processes']):.1%}" if rates and flops else "not measured"
        memory = "not measured" if line["peak_memory_gib"] is None else f"{line['peak_memory_gib']:.2f}"
        fields = {field.name: line[field.name] for field in dataclasses.fields(Case)}
        lines.append(
            f"| {Case(**fields).name} | {line['images_per_second']:.1f} | {1000 * line['seconds_per_call']:.1f} "
            f"| {memory} | {share} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    app()

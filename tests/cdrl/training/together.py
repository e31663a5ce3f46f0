"""What a process of several does in the tests: trainings one after another, each in a folder of its own."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any


def main(kind: str, jobs: str) -> None:
    """Train by each pair of settings and run folder that a JSON file lists.

    Args:
        kind: of numbers, ``float32`` or ``float64``.
    """
    sys.path.insert(0, str(Path(__file__).parents[3]))
    import torch

    from pipelines.jobs.training import run_stage_two
    from tests.helpers import tiny_config

    torch.set_num_threads(1)
    if kind == "float64":
        compute_in_float64()
    for sections, folder in json.loads(Path(jobs).read_text(encoding="utf-8")):
        run_stage_two(tiny_config(**sections), Path(folder))


def compute_in_float64() -> None:
    """Have networks, data, noise, tables and gradients in double precision, whose rounding is seen nowhere."""
    import torch
    import torch.distributed as dist
    from deepspeed.runtime.engine import DeepSpeedEngine

    from cdrl.data import TrainingSet
    from cdrl.sampling.noise import ImageNoise
    from cdrl.schedule import NoiseSchedule

    def averaged(engine: Any, grads: Any = None, elements_per_buffer: int = 0) -> None:
        for parameter in engine.module.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()

    def doubled(kind: Any, name: str) -> None:
        original = getattr(kind, name)

        def method(self: Any, *arguments: Any, **options: Any) -> Any:
            found = original(self, *arguments, **options)
            if isinstance(found, NoiseSchedule):
                tables = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
                floating = {key: t for key, t in tables.items() if torch.is_tensor(t) and t.is_floating_point()}
                return dataclasses.replace(found, **{key: tensor.double() for key, tensor in floating.items()})
            return (found[0].double(), found[1]) if isinstance(found, tuple) else found.double()

        setattr(kind, name, method)

    torch.set_default_dtype(torch.float64)
    for kind, name in ((TrainingSet, "batch"), (ImageNoise, "normal"), (ImageNoise, "uniform"), (NoiseSchedule, "to")):
        doubled(kind, name)
    # DeepSpeed averages gradients of single and half precision only.
    DeepSpeedEngine.buffered_allreduce_fallback = averaged


if __name__ == "__main__":
    main(*sys.argv[1:])

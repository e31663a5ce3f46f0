"""The benchmark for machines with GPUs, at small size on the CPU: that it works, not what it measures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import LEAST_CALLS, Case, cases, measure, size_of, table
from benchmarks.timing import Arithmetic, new_model, plain_copy
from cdrl.config_files import load_config
from cdrl.training.engine import start
from tests.helpers import ROOT


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_case_is_a_configuration_of_its_own(processes: int) -> None:
    found = cases(processes, 64)
    assert len({case.name for case in found}) == len(found)
    stages = {size_of(case, small=False).config.deepspeed.zero_stage for case in found if "ZeRO" in case.how}
    assert stages == (set(range(1, 4)) if processes == 1 else set(range(4)))
    for case in found:
        size = size_of(case, small=False)
        assert size.config.training.batch_size == 64 * processes
        published = load_config(ROOT / "configs" / f"{case.size}.yaml")
        assert (size.config.energy, size.config.initializer) == (published.energy, published.initializer)


@pytest.mark.parametrize(
    ("what", "how", "changes"),
    [
        ("training", "plain", ()),
        ("training", "step by step", ("training.cuda_graph=False",)),
        ("training", "bfloat16", ("training.chain_dtype=bfloat16", "deepspeed.zero_stage=0")),
        ("sampling", "plain", ()),
        ("sampling", "bfloat16 chain", ("training.chain_dtype=bfloat16",)),
    ],
)
def test_a_case_is_measured(what: str, how: str, changes: tuple[str, ...]) -> None:
    case = Case("cifar10", what, how, 2, changes)
    figures = measure(case, start(), 0.0, small=True)
    assert figures["images_per_second"] == pytest.approx(2 / figures["seconds_per_call"])
    assert (figures["counted_flops"] > 0) == (how == "plain")
    assert figures["peak_memory_gib"] is None
    assert LEAST_CALLS > 1


def test_arithmetic_is_counted_forwards_and_backwards() -> None:
    """A convolution of 3x3 over 4x4 pixels from 2 channels to 5, for 3 images, and both of its gradients."""
    x, weight = torch.randn(3, 2, 4, 4, requires_grad=True), torch.randn(5, 2, 3, 3, requires_grad=True)
    with Arithmetic() as counted:
        torch.autograd.grad(torch.nn.functional.conv2d(x, weight, padding=1).sum(), [x, weight])
    assert counted.flops == 3 * 2 * (3 * 16 * 5 * 2 * 9)


@pytest.mark.parametrize("what", ["training", "sampling"])
def test_the_plain_implementation_computes_where_its_weights_are(what: str) -> None:
    """On torch's meta device, where a tensor left on the CPU is as much an error as on a GPU."""
    size = size_of(Case("cifar10", what, "plain", 2), small=True)
    model = plain_copy(size.config, new_model(size)).to("meta")
    model.schedule = model.schedule.to("meta")
    x0, level = torch.zeros(2, *size.shape, device="meta"), torch.zeros(2, dtype=torch.int64, device="meta")
    if what == "training":
        losses = model.losses(x0, level, level - 1, 2, lambda: torch.randn_like(x0))
        assert {loss.device.type for loss in losses} == {"meta"}
    else:
        assert model.sample(level - 1, 2, 2.0, lambda: torch.randn_like(x0)).device.type == "meta"


def test_the_table_tells_rates_shares_and_what_was_left_out() -> None:
    case = {"size": "cifar10", "what": "training", "batch": 8, "changes": (), "processes": 2}
    measured = {"images_per_second": 16.0, "seconds_per_call": 1.0, "peak_memory_gib": 1.5}
    told = table(
        [
            {"machine": "A card", "matrix_flops_per_second": {"float32": 2e12, "bfloat16": 4e12}},
            {**case, "how": "plain", **measured, "counted_flops": 1e12, "processes": 1},
            {**case, "how": "ours", **measured, "counted_flops": 0},
            {**case, "how": "theirs", "left_out": "out of memory"},
        ]
    )
    assert "float32 2.00 TFLOP/s, bfloat16 4.00 TFLOP/s" in told
    assert "| cifar10 training, plain, 1 x 8 | 16.0 | 1000.0 | 1.50 | 25.0% |" in told
    assert "| cifar10 training, ours, 2 x 8 | 16.0 | 1000.0 | 1.50 | 25.0% |" in told, "two cards did twice the work"
    assert "theirs | out of memory" in told


@pytest.mark.slow
def test_the_whole_command_at_small_size(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "main", str(tmp_path), "--small", "--each", "0", "--batch", "2"]
    subprocess.run([*command, "--seconds", "500"], check=True, cwd=ROOT)
    results = json.loads((tmp_path / "gpu.json").read_text())["results"]
    wanted = cases(1, 2) + cases(2, 2)
    assert len([line for line in results if "images_per_second" in line]) == len(wanted)
    assert (tmp_path / "gpu.md").read_text().count("| ") > len(wanted)

"""Time against GPUs, by arithmetic that can be done by hand."""

from __future__ import annotations

import pytest

from benchmarks.gpu import CONFIGS, Case, measure
from benchmarks.nodes import Cost, cost_of, measured_rates, time_of_update
from cdrl.config_files import load_config
from cdrl.training.engine import start
from tests.helpers import ROOT


def test_the_arithmetic_of_an_update_is_that_of_a_real_one() -> None:
    """Counted without computing for one image, and by an update of two, which clips, averages and learns besides."""
    settings = ["energy.channels=8", "initializer.channels=8", "training.langevin_steps=2"]
    cost = cost_of(load_config(CONFIGS / "cifar10.yaml", settings), (3, 16, 16))
    real = measure(Case("cifar10", "training", "plain", 2), start(), 0.0, small=True)["counted_flops"] / 2
    # Dense layers of the condition and products of the spectral norm, which do not grow with the batch, count half.
    assert cost.flops_per_image == pytest.approx(real, rel=0.05)


def test_gradients_are_those_of_all_weights() -> None:
    assert cost_of(load_config(CONFIGS / "cifar10.yaml"), (3, 32, 32)).gradient_bytes == pytest.approx(154e6, rel=0.01)


def test_shares_are_computed_side_by_side_and_gradients_go_round_in_a_ring() -> None:
    cost = Cost(flops_per_image=2e12, gradient_bytes=100)
    alone, four = (time_of_update(cost, 64, gpus, 1e13, 1e3) for gpus in (1, 4))
    assert (alone.computing, alone.exchanging) == (pytest.approx(12.8), 0.0)
    assert (four.computing, four.exchanging) == (pytest.approx(3.2), pytest.approx(0.15))
    assert four.whole == pytest.approx(3.35)


def test_rates_are_read_from_what_was_measured() -> None:
    rates = measured_rates(ROOT / "benchmarks" / "measured" / "h100.json", "CUDA graph, bfloat16 chain")
    assert set(rates) == {"cifar10", "celebahq256_kl_f4"}
    assert rates["cifar10"] == pytest.approx(26218963402752 / 64 * 200.2, rel=1e-3)

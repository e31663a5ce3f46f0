"""What training will take of memory, told before it takes any."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from autoencoder.training import StageOneConfig, _expect_room
from cdrl.config import AutoencoderConfig, ConfigError
from cdrl.config_files import load_config
from cdrl.model import CDRL
from cdrl.training import memory
from cdrl.training.engine import World
from cdrl.training.memory import expect_room_for_training, free_bytes, kept_bytes, state_bytes
from tests.helpers import ROOT, tiny_config

ALONE = World(0, 1, torch.device("cpu"))


def test_what_is_kept_is_what_really_is_kept() -> None:
    """By arithmetic: two layers of a network of points keep their input and the activation between them."""
    with torch.device("meta"):
        network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        x = torch.zeros(10, 4)
    assert kept_bytes(lambda: network(x), network) == 4 * (10 * 4 + 10 * 8)
    weights = 4 * (4 * 8 + 8 + 8 + 1)
    assert state_bytes(network, "adam", 1, ALONE) == 5 * weights
    assert state_bytes(network, "muon", 0, ALONE) == 4 * weights
    assert state_bytes(network, "adam", 1, World(0, 2, ALONE.device)) == 4 * weights


def test_it_grows_with_the_share_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    monkeypatch.setattr(memory, "expect_room", lambda state, kept, world, advice: found.append(kept))
    for size, world, accumulation in ((64, 1, 1), (128, 1, 1), (128, 2, 1), (128, 1, 2)):
        config = tiny_config(training={"batch_size": size, "accumulation": accumulation})
        expect_room_for_training(config, (1, 8, 8), 10, World(0, world, ALONE.device))
    assert found[1] == pytest.approx(2 * found[0], rel=0.05)
    assert found[2] == found[3] == found[0]


def test_only_what_is_clearly_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config()
    expect_room_for_training(config, (1, 8, 8), 10, ALONE)
    model = CDRL.without_weights(config, (1, 8, 8), 10)
    state = state_bytes(model, "adam", 1, ALONE)
    monkeypatch.setattr(memory, "free_bytes", lambda device: state / 4)
    with pytest.raises(ConfigError, match=r"^training\.batch_size=8: lower it, raise training\.accumulation or lower "):
        expect_room_for_training(config, (1, 8, 8), 10, ALONE)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10 * state)
    expect_room_for_training(config, (1, 8, 8), 10, ALONE)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    with pytest.raises(ConfigError, match=r"training\.batch_size=8: "):
        expect_room_for_training(config, (1, 8, 8), 10, ALONE)


@pytest.mark.parametrize("bottleneck", ["kl", "vq"])
def test_a_first_stage_that_cannot_fit_is_refused(bottleneck: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"architecture": {"bottleneck": bottleneck}, "training": {"num_steps": 1, "batch_size": 16}}
    stage_one = AutoencoderConfig.model_validate(settings)
    config = StageOneConfig(seed=0, zero_stage=1, data=tiny_config().data, autoencoder=stage_one)
    _expect_room(config, ALONE)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2**20)
    with pytest.raises(ConfigError, match=r"^autoencoder\.training\.batch_size=16: lower it or autoencoder\.arch"):
        _expect_room(config, ALONE)


def test_the_published_networks_are_measured_on_no_memory_of_their_own() -> None:
    """A batch of 2^20 images on the paper's networks: tens of terabytes, which no machine of today has."""
    config = load_config(ROOT / "configs" / "cifar10.yaml", ["data.path=unused", f"training.batch_size={2**20}"])
    with pytest.raises(ConfigError, match=r"GiB for networks and optimizers and [\d.e+]+ GiB for a batch on its way"):
        expect_room_for_training(config, (3, 32, 32), 0, ALONE)


def test_what_is_free_is_read_off_the_system(tmp_path: Path) -> None:
    assert free_bytes(torch.device("cpu")) > 2**20
    (tmp_path / "meminfo").write_text("MemTotal:  9 kB\nMemAvailable:     7 kB\n")
    assert memory._available(tmp_path / "meminfo") == 7 * 1024
    assert memory._available(tmp_path / "nothing") == float("inf")
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("3\n")
    assert memory._left_to_group(tmp_path) == float("inf")
    (tmp_path / "memory.max").write_text("10\n")
    assert memory._left_to_group(tmp_path) == 7

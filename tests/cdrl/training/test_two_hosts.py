"""Two hosts for real: two network namespaces on one cable, torchrun in each, and what happens when one is lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cdrl.runs.run import Run, load_tensors, read_json
from pipelines.jobs.training import run_stage_two
from tests.helpers import ROOT, metrics, tiny_config, tiny_values, write_config

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make network namespaces"),
    pytest.mark.skipif(shutil.which("ip") is None, reason="no ip (iproute2) to make network namespaces with"),
]
HOSTS = ("one", "two")
SLOW_LEARNING = {"energy_lr": 1e-4, "initializer_lr": 1e-4, "warmup_steps": 0}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


class Cable:
    """Two namespaces, ``cdrl-PID-one`` and ``…-two``, joined by a pair of network devices ``eth0``."""

    def __init__(self) -> None:
        self.names = [f"cdrl-{os.getpid()}-{host}" for host in HOSTS]
        self._begun: list[subprocess.Popen[str]] = []

    def lay(self) -> None:
        one, two = self.names
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", "eth0", "netns", one, "type", "veth", "peer", "name", "eth0", "netns", two)
        for number, name in enumerate(self.names, 1):
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "eth0")
            self.set(name, "up")
            ip("-n", name, "link", "set", "lo", "up")

    def set(self, name: str, state: str) -> None:
        """Plug a host in (``up``) or pull the cable out (``down``)."""
        ip("-n", name, "link", "set", "eth0", state)

    def take_up(self) -> None:
        for process in self._begun:
            process.kill()
            process.communicate()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], check=False)

    def train(self, config: Path, run: Path, restarts: int = 0) -> list[subprocess.Popen[str]]:
        """The same command on both hosts."""
        joined = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        environment = {name: value for name, value in os.environ.items() if name not in joined}
        processes = []
        for number, name in enumerate(self.names):
            launcher = [
                *("-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_id", run.name),
                *("--rdzv_backend", "c10d", "--rdzv_endpoint", "10.77.0.1:29500", "--max-restarts", str(restarts)),
                # A host finds out by its name that it is the meeting point; these two have none.
                *("--rdzv_conf", f"is_host={1 - number}", "--local_addr", f"10.77.0.{number + 1}"),
            ]
            command = [sys.executable, *launcher, str(ROOT / "run.py"), "train", str(config), "--run-folder", str(run)]
            processes.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", name, *command],
                    cwd=ROOT,
                    env={**environment, "GLOO_SOCKET_IFNAME": "eth0"},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        self._begun += processes
        return processes


@pytest.fixture
def cable() -> Iterator[Cable]:
    cable = Cable()
    try:
        cable.lay()
        yield cable
    finally:
        cable.take_up()


def ended(processes: list[subprocess.Popen[str]], within: float) -> list[str]:
    """What each wrote to stderr; they must end in so many seconds."""
    limit = time.monotonic() + within
    return [process.communicate(timeout=max(1.0, limit - time.monotonic()))[1] for process in processes]


def wait_for(condition: Callable[[], object], processes: list[subprocess.Popen[str]]) -> None:
    limit = time.monotonic() + 240
    while not condition():
        assert all(process.poll() is None for process in processes)
        assert time.monotonic() < limit
        time.sleep(0.05)


def children(parent: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def worker_of(launcher: subprocess.Popen[str]) -> int:
    """The process that torchrun has started for training."""
    (worker,) = [
        pid for pid in children(launcher.pid) if "train" in Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    ]
    return worker


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or is left to be asked for its exit code."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def long_values() -> dict[str, Any]:
    return tiny_values(training={**SLOW_LEARNING, "num_steps": 300, "checkpoint_every": 20, "log_every": 10})


def test_two_hosts_train_what_one_process_trains(cable: Cable, tmp_path: Path) -> None:
    values = tiny_values(training={**SLOW_LEARNING, "num_steps": 6})
    processes = cable.train(write_config(tmp_path / "c.yaml", values), tmp_path / "two")
    errors = ended(processes, within=240)
    assert [process.returncode for process in processes] == [0, 0], errors
    run_stage_two(tiny_config(**values), tmp_path / "one")
    assert read_json(Run(tmp_path / "two").checkpoint_path(6) / "state.json")["processes"] == 2
    for network in ("energy", "initializer"):
        ours, alone = (load_tensors(tmp_path / run / "model" / f"{network}.safetensors") for run in ("two", "one"))
        for name, tensor in alone.items():
            torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5)
    for line, alone_line in zip(metrics(tmp_path / "two"), metrics(tmp_path / "one"), strict=True):
        for name, value in alone_line.items():
            assert line[name] == pytest.approx(value, rel=1e-4, abs=1e-5, nan_ok=True), name


@pytest.mark.parametrize("loss", ["host two is cut off", "a process of host two is killed"])
def test_when_a_host_is_lost_the_other_ends_with_a_clear_line_and_the_same_command_goes_on(
    loss: str, cable: Cable, tmp_path: Path
) -> None:
    config, run = write_config(tmp_path / "c.yaml", long_values()), tmp_path / "run"
    processes = cable.train(config, run)
    wait_for(Run(run).checkpoint_path(20).exists, processes)
    worker = worker_of(processes[1])
    if loss == "host two is cut off":
        cable.set(cable.names[1], "down")
        reason = "error: nothing has been heard of process 1 for 30 seconds"
    else:
        os.kill(worker, signal.SIGKILL)
        reason = "error: a process that trains together with this one has ended, or its host is gone ("
    errors = ended(processes[:1], within=60)[0]
    assert processes[0].returncode != 0
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, errors
    assert lines[0].startswith(reason), errors
    last = Run(run).last_checkpoint()
    assert last is not None
    assert f"; the checkpoint of step {last[0]} is kept; the same command on all hosts goes on from there" in lines[0]
    wait_for(lambda: has_ended(worker), [])
    cable.set(cable.names[1], "up")  # for which torchrun itself waits
    ended(processes[1:], within=120)

    again = cable.train(config, run)
    errors_again = ended(again, within=240)
    assert [process.returncode for process in again] == [0, 0], errors_again
    assert [line["step"] for line in metrics(run)] == list(range(10, 301, 10))


def test_with_restarts_it_goes_on_by_itself(cable: Cable, tmp_path: Path) -> None:
    config, run = write_config(tmp_path / "c.yaml", long_values()), tmp_path / "run"
    processes = cable.train(config, run, restarts=3)
    wait_for(Run(run).checkpoint_path(20).exists, processes)
    os.kill(worker_of(processes[1]), signal.SIGKILL)
    errors = ended(processes, within=240)
    assert [process.returncode for process in processes] == [0, 0], errors
    assert [line["step"] for line in metrics(run)] == list(range(10, 301, 10))

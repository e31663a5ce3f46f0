"""The scripts for clusters: read by bash and YAML, and run dry, with stand-ins for what only a cluster has."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from deepspeed.launcher import runner
from torch.distributed.run import get_args_parser

from cdrl.config_files import load_config
from cdrl.runs.run import Run, read_json
from run import app
from tests.helpers import ROOT, tiny_values, write_config

SLURM = ROOT / "examples" / "cluster" / "slurm.sh"
KUBERNETES = ROOT / "examples" / "cluster" / "kubernetes.yaml"


def stand_in(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def what_starts(command: list[str]) -> Any:
    """torchrun's own reading of a command, whose script must be run.py with a verb and arguments that it takes."""
    assert Path(command[0]).name == "torchrun"
    read = get_args_parser().parse_args(command[1:])
    assert (ROOT / read.training_script).samefile(ROOT / "run.py")
    verb, *arguments = read.training_script_args
    verbs = typer.main.get_command(app)
    verbs.commands[verb].make_context(verb, list(arguments))  # type: ignore[attr-defined]
    overrides = [argument for argument in arguments[1:] if "=" in argument and not argument.startswith("--")]
    assert verb == "train"
    load_config(ROOT / arguments[0], overrides)
    return read


def test_slurm_starts_one_torchrun_on_each_host(tmp_path: Path) -> None:
    """As sbatch would: its first host, srun on both, torchrun with what each is given."""
    stand_in(tmp_path, "scontrol", '[ "$*" = "show hostnames node[7-8]" ] && printf "node7\\nnode8\\n"')
    stand_in(tmp_path, "srun", 'for host in $(seq "$SLURM_NNODES"); do "$@"; done')
    stand_in(tmp_path, "torchrun", 'printf "%q " torchrun "$@"; echo')
    environment = {
        **{**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[7-8]"},
        **{"SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "41"},
    }
    command = ["bash", str(SLURM), "configs/imagenet32.yaml", "runs/a folder"]
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    first, second = told.splitlines()
    assert first == second
    read = what_starts(shlex.split(first))
    assert (read.nnodes, read.nproc_per_node, read.max_restarts) == ("2", "8", 3)
    assert (read.rdzv_backend, read.rdzv_endpoint, read.rdzv_id) == ("c10d", "node7:29500", "41")
    assert read.training_script_args == ["train", "configs/imagenet32.yaml", "--run-folder", "runs/a folder"]


def test_slurm_is_told_of_one_task_a_host_and_of_a_warning_before_the_end() -> None:
    lines = SLURM.read_text().splitlines()
    asked = dict(line.removeprefix("#SBATCH --").split("=", 1) for line in lines if line.startswith("#SBATCH"))
    assert asked["ntasks-per-node"] == "1"
    assert asked["signal"].startswith("TERM@")
    assert subprocess.run(["bash", "-n", SLURM], check=False).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["configs/imagenet32.yaml"]])
def test_slurms_script_asks_for_both_arguments(arguments: list[str]) -> None:
    ended = subprocess.run(["bash", str(SLURM), *arguments], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "usage: sbatch examples/cluster/slurm.sh CONFIG RUN" in ended.stderr


def test_kubernetes_starts_one_torchrun_in_each_of_two_pods_that_find_the_first() -> None:
    service, job = yaml.safe_load_all(KUBERNETES.read_text())
    assert (service["kind"], service["apiVersion"], job["kind"], job["apiVersion"]) == (
        "Service",
        "v1",
        "Job",
        "batch/v1",
    )
    name, spec = job["metadata"]["name"], job["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    read = what_starts(container["command"])
    # Pods of an indexed job are called NAME-INDEX, and are found under the subdomain of a service without an address.
    assert spec["completionMode"] == "Indexed"
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["metadata"]["name"] == pod["subdomain"]
    assert read.rdzv_endpoint == f"{name}-0.{pod['subdomain']}:29500"
    assert int(read.nnodes) == spec["completions"] == spec["parallelism"]
    assert int(read.nproc_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def on_the_page(launcher: str) -> list[str]:
    """The words of the one command on the page that a launcher begins."""
    lines = (ROOT / "docs" / "scale.md").read_text().splitlines()
    (command,) = [line for line in lines if line.startswith(f"    {launcher} ")]
    return shlex.split(command)


def test_torchruns_command_on_the_page_is_one_that_it_takes() -> None:
    read = what_starts(on_the_page("torchrun"))
    assert (read.nnodes, read.nproc_per_node, read.rdzv_endpoint, read.max_restarts) == ("2", "8", "host0:29500", 3)


def test_deepspeeds_command_on_the_page_is_one_that_it_takes(tmp_path: Path) -> None:
    _, *words = on_the_page("deepspeed")
    read = runner.parse_args(words)
    (tmp_path / "hosts").write_text("host0 slots=8\nhost1 slots=8\n")
    assert runner.fetch_hostfile(str(tmp_path / read.hostfile)) == {"host0": 8, "host1": 8}
    what_starts(["torchrun", read.user_script, *read.user_args])


@pytest.mark.slow
def test_the_deepspeed_launcher_starts_processes_that_train_together(tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", tiny_values(training={"num_steps": 2}))
    launcher = ["-m", "deepspeed.launcher.runner", "--no_local_rank", "--num_gpus", "2", "--master_port", "29541"]
    command = [sys.executable, *launcher, "run.py", "train", str(config), "--run-folder", str(tmp_path / "run")]
    joined = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in joined}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=400)
    assert ended.returncode == 0, ended.stderr
    assert read_json(Run(tmp_path / "run").checkpoint_path(2) / "state.json")["processes"] == 2

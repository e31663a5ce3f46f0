"""The scripts for clusters: read by bash and YAML, and run dry, with stand-ins for what only a cluster has."""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from torch.distributed.run import get_args_parser

from cdrl.config_files import load_config
from run import app
from tests.helpers import ROOT

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

"""The installed product: its command, what ships with it, and packages of others that have its packages' names."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cdrl import ConfigError, __version__, load_config
from cdrl.installation import PACKAGES, SHIPPED_CONFIGS, check_packages, config_names, program
from tests.helpers import ROOT


def cdrl(
    *arguments: str, at: Path, command: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run the command, in a folder that holds none of the project's files."""
    called = [*(command or (sys.executable, "-m", "cdrl")), *arguments]
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(called, cwd=at, env=settings, capture_output=True, text=True, timeout=300)


def test_the_command_tells_its_version_and_speaks_of_itself(tmp_path: Path) -> None:
    assert cdrl("--version", at=tmp_path).stdout == f"cdrl {__version__}\n"
    assert "cdrl train configs/digits.yaml" in cdrl("train", "--help", at=tmp_path).stdout
    completion = cdrl("--show-completion", "bash", at=tmp_path, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_CDRL_COMPLETE=complete_bash" in completion.stdout
    untrained = cdrl("sample", "runs/mine", at=tmp_path)
    assert untrained.returncode == 2
    assert "train it with: cdrl train CONFIG" in untrained.stderr


@pytest.mark.parametrize("name", ["digits", "digits.yaml", "configs/digits.yaml"])
def test_configurations_are_found_by_name_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()  # a folder is no configuration
    assert load_config(name) == load_config(SHIPPED_CONFIGS / "digits.yaml")
    with pytest.raises(ConfigError, match="digit: no such config file; did you mean 'digits'"):
        load_config("digit")


def test_a_file_of_ones_own_comes_before_one_that_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    own = (SHIPPED_CONFIGS / "digits.yaml").read_text(encoding="utf-8") + "seed: 77\n"
    (tmp_path / "configs" / "digits.yaml").write_text(own, encoding="utf-8")
    assert load_config("configs/digits.yaml").seed == 77


def test_every_configuration_ships_under_its_name() -> None:
    assert {"digits", "quickstart", "ablation/full"} <= set(config_names())
    assert config_names() == sorted(set(config_names()))


def test_in_a_checkout_the_program_is_run_py() -> None:
    check_packages()
    assert program() == "python run.py"


@pytest.mark.parametrize("name", ["pipelines", "autoencoder"])
def test_packages_of_others_with_the_same_name_are_told_of_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("", encoding="utf-8")
    shadowed = cdrl("--version", at=tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert shadowed.returncode == 1
    assert shadowed.stderr.strip().splitlines()[-1] == (
        f"error: cdrl: another package '{name}', {tmp_path / name}, comes before the project's own, {ROOT / name}: "
        "leave that folder out of PYTHONPATH, or uninstall that package"
    )


@pytest.mark.slow
def test_the_wheel_is_a_product(tmp_path: Path) -> None:
    """Built, installed without its dependencies beside those of this environment, and used from another folder."""
    wheels, place, elsewhere = tmp_path / "wheels", tmp_path / "venv", tmp_path / "elsewhere"
    elsewhere.mkdir()
    # From a copy: a build leaves its files beside the sources, and the next one would pack those that are gone since.
    source = tmp_path / "source"
    for name in (*PACKAGES, "configs", "pretrained"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, source], check=True
    )
    (wheel,) = wheels.iterdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", place / "bin" / "python", "install", "--quiet", "--no-deps", wheel],
        check=True,
    )
    dependencies = Path(sysconfig.get_path("purelib"))
    (packages / "dependencies.pth").write_text(f"{dependencies}\n", encoding="utf-8")
    command = (str(place / "bin" / "cdrl"),)

    def run(*arguments: str) -> str:
        done = cdrl(*arguments, at=elsewhere, command=command, PYTHONPATH="")
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("--version") == f"cdrl {__version__}\n"
    for name in PACKAGES:
        assert (packages / name / "py.typed").is_file()
    assert "next: cdrl" in run("train", "digits", "training.num_steps=2", "training.langevin_steps=1")
    run("train", "digits", "training.num_steps=2", "training.langevin_steps=1", "--run", "two", "--processes", "2")
    drawn = run("sample", "digits", "--num-images", "2", "--steps", "1")
    assert str(packages) not in drawn
    assert (elsewhere / "runs" / "pretrained" / "digits" / "generated").is_dir()

"""What the packages offer: every name there is, nothing loaded before it is asked for, versions and types told."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib

import pytest

import autoencoder
import cdrl
import pipelines
from tests.helpers import ROOT

PACKAGES = {package.__name__: package for package in (cdrl, autoencoder, pipelines)}
HEAVY = ("torch", "torchvision", "numpy", "scipy", "sklearn", "matplotlib", "PIL", "taming", "kornia", "deepspeed")
WHOLE = ("pydantic", "yaml", "typer")
"""What ``import cdrl`` has no need of either."""


def loaded(code: str) -> set[str]:
    """Packages that a fresh interpreter has loaded after some code."""
    told = f"import sys, runpy\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}}, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(result.stderr.split())


@pytest.mark.parametrize("name", PACKAGES)
def test_every_name_offered_is_there(name: str) -> None:
    package = PACKAGES[name]
    assert dir(package) == sorted(package.__all__)
    for offered in package.__all__:
        assert getattr(package, offered) is not None
    # Those of `__all__` are those that the package loads on demand, and no submodule has such a name.
    for offered in set(package.__all__) - {"__version__"}:
        assert importlib.util.find_spec(f"{name}.{offered}") is None


@pytest.mark.parametrize("name", PACKAGES)
def test_a_name_that_is_not_offered_is_an_attribute_error(name: str) -> None:
    missing = "Nothing"
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute '{missing}'"):
        getattr(PACKAGES[name], missing)


@pytest.mark.parametrize("name", PACKAGES)
def test_importing_a_package_loads_no_library(name: str) -> None:
    assert not loaded(f"import {name}").intersection((*HEAVY, *WHOLE))


@pytest.mark.parametrize("arguments", [["--help"], ["sample", "--help"], ["evaluate", "--help"]])
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    code = (
        f"sys.argv = ['run.py', *{arguments}]\n"
        "try:\n    runpy.run_path('run.py', run_name='__main__')\nexcept SystemExit as done:\n    assert not done.code"
    )
    assert not loaded(code).intersection(HEAVY)


def test_there_is_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "cdrl.__version__"}
    assert autoencoder.__version__ == pipelines.__version__ == cdrl.__version__


def test_the_packages_say_that_they_are_typed() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    shipped = project["tool"]["setuptools"]["package-data"]
    assert {name: shipped[name] for name in sorted(PACKAGES)} == {name: ["py.typed"] for name in sorted(PACKAGES)}
    assert all((ROOT / name / "py.typed").is_file() for name in PACKAGES)

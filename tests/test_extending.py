"""Every example of docs/extending.md works as it stands there: one file and one line."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import run as door
from cdrl import registry
from cdrl.config import ConfigError
from cdrl.config_files import parse_config
from cdrl.data import DataError, load_images
from pipelines import CDRLPipeline, guidance
from tests.helpers import ROOT, save_tiny_run, tiny_values

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), re.DOTALL)
TABLES: dict[str, dict[str, Any]] = {
    "KERNELS": registry.KERNELS,
    "DATA_SETS": registry.DATA_SETS,
    "GUIDANCE": guidance.GUIDANCE,
}


@pytest.fixture(autouse=True)
def extended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package with all files and lines of the page."""
    for block in BLOCKS:
        heading, _, body = block.partition("\n")
        if heading.startswith("# line: "):
            (entry,) = eval(f"{{{body}}}", {"DataSet": registry.DataSet}).items()
            monkeypatch.setitem(TABLES[heading.removeprefix("# line: ")], *entry)
        else:
            name = heading.removeprefix("# ").removesuffix(".py").replace("/", ".")
            module = ModuleType(name)
            monkeypatch.setitem(sys.modules, name, module)
            exec(compile(body, heading, "exec"), vars(module))


def test_the_page_has_a_file_and_a_line_for_each_of_three() -> None:
    assert [block.partition("\n")[0].startswith("# line: ") for block in BLOCKS] == [False, True] * 3


def test_the_kernel_draws_and_bounds_its_drift(tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    arguments = ["sample", str(tmp_path), "--kernel", "tamed", "--num-images", "2", "--steps", "3"]
    result = CliRunner().invoke(door.app, arguments)
    assert result.exit_code == 0, result.output
    tamed, kernels = (importlib.import_module(f"cdrl.sampling.{name}") for name in ("tamed", "kernels"))
    steep = kernels.with_gradient(lambda y: -1e6 * y.flatten(1).square().sum(dim=1))
    still = type("Still", (), {"normal": lambda self, shape: torch.zeros(2, *shape)})()
    moved = tamed.tamed(kernels.Position(torch.ones(2, 3), steep), torch.tensor(0.1), still)
    assert (moved.y - 1).norm(dim=1).max() < 1


def test_the_guidance_is_classifier_free_at_low_levels_only(tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    pipeline = CDRLPipeline.from_pretrained(tmp_path)
    late = importlib.import_module("pipelines.late_guidance").LateGuidance
    everywhere, nowhere = pipeline(2, label=3, guidance=0.8).grids, pipeline(2, label=3).grids
    assert torch.equal(pipeline(2, label=3, guidance=late(0.8, levels=2)).grids, everywhere)
    assert torch.equal(pipeline(2, label=3, guidance=late(0.8, levels=0)).grids, nowhere)
    assert not torch.equal(pipeline(2, label=3, guidance=late(0.8, levels=1)).grids, nowhere)
    arguments = ["sample", str(tmp_path), "--guidance", "late:0.8", "--label", "3", "--num-images", "2"]
    result = CliRunner().invoke(door.app, arguments)
    assert result.exit_code == 0, result.output


def test_the_data_set_is_read_and_its_mistakes_are_named(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    np.save(tmp_path / "train.npy", images)
    data = {"name": "arrays", "path": str(tmp_path), "labels": "none", "image_size": 8, "channels": 1}
    config = parse_config(tiny_values(data=data), source="test")
    assert torch.equal(load_images(config.data, "train").images[:, 0], torch.from_numpy(images[..., 0]))
    with pytest.raises(DataError, match=r"test\.npy"):
        load_images(config.data, "test")
    with pytest.raises(ConfigError, match=r"data\.path is required for data.name=arrays"):
        parse_config(tiny_values(data={**data, "path": None}), source="test")


def test_a_name_that_is_not_registered_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=r"data\.name.*did you mean 'cifar10'"):
        parse_config(tiny_values(data={"name": "cifar01", "path": "x"}), source="test")

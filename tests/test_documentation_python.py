"""docs/python.md: its examples run in their order on a tiny run, and show all that the packages offer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import autoencoder
import cdrl
import pipelines
from cdrl.runs.run import Run
from tests.helpers import ROOT, save_tiny_run, tiny_config

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_examples_run_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, config = tmp_path / "runs" / "digits", tiny_config(data={"cache": str(tmp_path / "cache")})
    Run(run).open(config)
    save_tiny_run(run, config=config)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"docs/python.md, example {number}", "exec"), names)
    assert (tmp_path / "three.png").exists()
    assert len(BLOCKS) >= 10


@pytest.mark.parametrize("package", [cdrl, autoencoder, pipelines], ids=lambda package: package.__name__)
def test_every_name_that_is_offered_is_shown(package: Any) -> None:
    words = set(re.findall(r"\w+", "".join(BLOCKS)))
    assert sorted(set(package.__all__) - words) == []

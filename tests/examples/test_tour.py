"""The notebook: it runs from start to end on the weights that ship, and its pictures are those of this code."""

from __future__ import annotations

import ast
import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from tests.helpers import ROOT

NOTEBOOK = json.loads((ROOT / "examples" / "tour.ipynb").read_text(encoding="utf-8"))


def test_the_notebook_runs_and_shows_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    pictures = 0
    for number, cell in enumerate(NOTEBOOK["cells"]):
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, f"cell {number}", "exec"), names)
        if not isinstance(last, ast.Expr):
            continue
        value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                with Image.open(io.BytesIO(base64.b64decode(output["data"]["image/png"]))) as held:
                    difference = ImageChops.difference(value, held.convert("L"))
                # Chains amplify rounding, which is another on each processor.
                histogram = difference.histogram()
                assert sum(level * count for level, count in enumerate(histogram)) / sum(histogram) < 8
                pictures += 1
    assert pictures >= 6
    assert not list(tmp_path.iterdir())


def test_it_can_be_opened_and_speaks_of_no_machine() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    assert "/home" not in json.dumps(NOTEBOOK)
    assert "/root" not in json.dumps(NOTEBOOK)

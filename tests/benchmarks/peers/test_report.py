"""Tables of records, and the page that shows them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main

from benchmarks.peers.door import app
from benchmarks.peers.job import RECORD, SHEET
from benchmarks.peers.report import RESULTS, curves, markdown, read_records, rows_of, write_report
from cdrl.runs.run import RunError, read_json, write_json
from cdrl.training.interruption import save_picture
from tests.helpers import ROOT

PAGE = ROOT / "docs" / "peers.md"


def record(method: str, seed: int, budget: float, distance: float, **changes: Any) -> dict[str, Any]:
    figures = {
        "accuracy": 0.9,
        "accepted": 0.8,
        "fd_judge_1k_test": distance,
        "recall_judge_1k_test": 0.5,
        "precision_judge_1k_test": 0.6,
        "fd_lite0_1k_test": 7.0,
    }
    cost = {"forwards": 6, "gradients": 91, "cpu_milliseconds_an_image": 12.3456}
    training = {
        "cpu_seconds": budget,
        "updates": [900, 12],
        "memory_mebibytes": 100.0,
        "parameters": 350_000,
    }
    return {
        "data": "digits",
        "method": method,
        "seed": seed,
        "budget_seconds": budget,
        "images": 1000,
        "recipe": "digits_minute",
        "overrides": [],
        "training": {**training, **changes},
        "samples": {"slow": {**cost, **figures}, "fast": {**cost, **figures, "fd_judge_1k_test": distance + 1}},
        "train_images": figures,
    }


RECORDS = [
    record("ddpm", 0, 60, 4.0),
    record("ddpm", 1, 60, 5.0),
    record("cdrl", 0, 60, 2.0, cpu_seconds=70.0),
    record("cdrl", 0, 30, 8.0),
]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_has_the_largest_budget_sorted_and_all_budgets_below() -> None:
    lines = markdown(RECORDS).splitlines()
    assert lines[0] == "**digits, 8×8**, 60 CPU seconds, 1000 samples, 2 seeds, mean ± half the range"
    heading, best, *rest = [cells(line) for line in lines[2:] if line.startswith("| ") or line.startswith("|  ")]
    assert heading[1:3] == ["sampler", "fd_judge"]
    assert best[:3] == ["CDRL, our recipe", "slow", "2.00"]
    assert best[7:] == ["97 (91)", "12.3", "100", "0.35 M", "900 + 12", "70 (!)"]  # 70 s is no budget of 60
    assert [row[:3] for row in rest[:3]] == [
        ["CDRL, our recipe", "fast", "3.00"],
        ["DDPM", "slow", "4.50 ± 0.50"],
        ["DDPM", "fast", "5.50 ± 0.50"],
    ]
    assert rest[2][-1] == "60"
    assert rest[3][0] == "training images"
    assert rest[4] == ["fd_judge after", "sampler", "30 s", "60 s"]
    assert rest[5] == ["CDRL, our recipe", "slow", "8.00", "2.00"]
    assert rest[7] == ["DDPM", "slow", "", "4.50 ± 0.50"]


def test_rows_are_methods_with_a_sampler_under_a_budget() -> None:
    rows = rows_of(RECORDS)
    assert len(rows) == 6
    ddpm = next(row for row in rows if (row.method, row.sampler) == ("ddpm", "fast"))
    assert (ddpm.figures("fd_judge"), ddpm.mean("fd_judge"), ddpm.mean("fd_lite0")) == ([5.0, 6.0], 5.5, 7.0)


def written(folder: Path, records: list[dict[str, Any]]) -> Path:
    for number, each in enumerate(records):
        write_json(folder / str(number) / RECORD, each)
        save_picture(folder / str(number) / SHEET, torch.zeros(3, 20 + number, 30 + number, dtype=torch.uint8))
    return folder


def test_a_report_holds_records_table_curves_and_sheets(tmp_path: Path) -> None:
    table = write_report(written(tmp_path / "jobs", RECORDS), tmp_path / "out")
    out = tmp_path / "out"
    assert (out / "peers.md").read_text(encoding="utf-8") == table == markdown(read_json(out / RESULTS)["jobs"])
    assert {path.name for path in out.iterdir()} == {
        "peers.json",
        "peers.md",
        "peers_curves.png",
        "peers_samples_digits.png",
    }


def test_a_sheet_has_the_largest_budget_and_first_seed_of_each_method(tmp_path: Path) -> None:
    from benchmarks.peers.report import sheet

    folder = written(tmp_path, RECORDS)
    # Those of records 0 and 2, of 20 and 22 pixels, at the width of the wider.
    assert sheet(folder, RECORDS, "digits").shape == (3, 42, 32)


def test_curves_are_a_picture() -> None:
    picture = curves(RECORDS)
    assert picture.dtype == torch.uint8
    assert picture.shape[0] == 3
    assert picture.float().std() > 5


def test_records_that_do_not_compare_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no job has been done there"):
        read_records(tmp_path)
    other = {"images": 500, "recipe": "digits", "overrides": ["seed=1"]}
    for name, value in other.items():
        written(tmp_path / name, [RECORDS[0], {**RECORDS[1], name: value}])
        with pytest.raises(RunError, match=f"jobs on digits differ in {name}, .*they do not compare"):
            read_records(tmp_path / name)


def test_the_page_shows_the_table_of_its_records() -> None:
    path = ROOT / "docs" / RESULTS
    if not path.exists():
        pytest.skip("the page has no results yet")
    assert markdown(read_json(path)["jobs"]) in PAGE.read_text(encoding="utf-8")


def commands() -> list[str]:
    text = PAGE.read_text(encoding="utf-8").replace("\\\n", " ")
    return re.findall(r"python -m benchmarks\.peers (\S.*)$", text, flags=re.MULTILINE)


def test_the_pages_commands_are_ones_that_the_program_takes() -> None:
    assert {command.split()[0] for command in commands()} == {"run", "judge", "table"}
    verbs: Any = typer.main.get_command(app)
    for command in commands():
        verb, *words = shlex.split(command, comments=True)
        verbs.commands[verb].make_context(verb, words)

"""Progress: where the output is no terminal, nothing of what is soon done, and a line of what takes long."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT

# A minute has passed before the second of three pieces.
SCRIPT = """
from cdrl.runs.progress import progress_bar
for name, seconds, shown in (("short", 0, True), ("long", 60, True), ("hidden", 60, False)):
    with progress_bar(3, name, shown=shown) as bar:
        bar.update()
        if not bar.disable:
            bar.start_t -= seconds
            bar.last_print_t -= seconds
        bar.update(2)
"""


@pytest.mark.parametrize(("disabled", "expected"), [(False, ["long"]), (True, [])])
def test_only_long_work_is_told_of_in_a_log(disabled: bool, expected: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TQDM_DISABLE"}
    environment |= {"TQDM_DISABLE": "1"} if disabled else {}
    command = [sys.executable, "-c", SCRIPT]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert sorted({line.split(":")[0].strip() for line in result.stderr.splitlines()} - {""}) == expected
    assert result.stdout == ""

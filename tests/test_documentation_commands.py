"""Commands in README and docs: each verb is there, and takes what it is given."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from run import app
from tests.helpers import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "heads" / "README.md"]
PROGRAM = re.compile(r"^\s*(?:\$ )?(?:\.venv/bin/)?(?:python run\.py|run\.py|cdrl) (\S.*)$")


def commands(page: Path) -> Iterator[str]:
    """What is typed behind the program's name on each line of a page; lines that go on are joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        found = PROGRAM.match(line)
        if found and not line.startswith("run.py   "):  # the plan of the house has a line for it
            for part in found.group(1).split(" && "):
                yield re.sub(r"^(?:\.venv/bin/)?(?:python run\.py|cdrl) ", "", part)


EVERY = [(page.name, command) for page in PAGES for command in dict.fromkeys(commands(page))]


def test_there_are_commands() -> None:
    assert len(EVERY) > 60
    assert {"README.md", "sampling.md", "your_own_data.md"} <= {page for page, _ in EVERY}


@pytest.mark.parametrize(("page", "command"), EVERY, ids=[f"{page}: {command[:50]}" for page, command in EVERY])
def test_a_command_is_one_that_the_program_takes(page: str, command: str) -> None:
    words = shlex.split(command, comments=True)
    words = words[: words.index(">")] if ">" in words else words
    verbs = typer.main.get_command(app)
    if words[0].startswith("--"):  # of the program itself
        return
    assert words[0] in verbs.commands, f"{page}: no verb {words[0]}"  # type: ignore[attr-defined]
    if words[1:] == ["--help"]:
        return
    verbs.commands[words[0]].make_context(words[0], words[1:])  # type: ignore[attr-defined]

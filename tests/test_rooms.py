"""The plan of the house: imports run downward, nothing goes in circles, rooms and signatures stay small."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import ROOT

FLOORS = {"run": 3, "pipelines": 2, "autoencoder": 1, "cdrl": 0}
"""Imports run from a higher number to a lower one, or stay on their floor."""
OPEN_TO_THE_FIRST_STAGE = ("data", "runs", "training")
"""The rooms of ``cdrl`` that ``autoencoder`` uses, beside what `SHARED` names."""
SHARED = {"cdrl", "cdrl.arguments", "cdrl.config", "cdrl.exports", "cdrl.installation", "cdrl.sampling.noise"}
"""Settings, checks of arguments, the lazy exports, the version, how the project is called, and seeds."""
MOST_FILES = 13
MOST_ARGUMENTS = 8


@cache
def modules() -> dict[str, Path]:
    """Files of the product by the name that imports give them."""
    found = {"run": ROOT / "run.py"}
    for package in ("pipelines", "autoencoder", "cdrl"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """All statements, those of functions too, but what is there for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.stmt):
            yield node
        yield from statements(node)


def imported(source: str) -> Iterator[str]:
    """Modules of the product that some source imports, each by its own name."""
    for node in statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in modules():
                    yield inner
                elif node.module in modules():
                    yield node.module or ""


@cache
def arrows() -> set[tuple[str, str]]:
    """Who imports whom."""
    return {
        (name, other)
        for name, path in modules().items()
        for other in imported(path.read_text(encoding="utf-8"))
        if name != other
    }


def floor(module: str) -> int:
    # The installed command is a door like run.py; it lies where no package of another's name can stand before it.
    return FLOORS["run"] if module == "cdrl.__main__" else FLOORS[module.partition(".")[0]]


def room(module: str) -> str:
    """The folder that a module lies in; what lies at the top of a package is a room for itself."""
    path = modules()[module].relative_to(ROOT)
    return str(path.parent) if len(path.parts) > 2 else module


def circle(pairs: set[tuple[str, str]]) -> list[str]:
    """Those that can be reached from themselves."""
    after: dict[str, set[str]] = {}
    for start, end in pairs:
        after.setdefault(start, set()).add(end)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = after.get(waiting.pop(), set()) - seen
            seen |= new
            waiting += new
        return seen

    return sorted(name for name in after if name in reached(name))


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many a function has: self and cls are not counted, ``*args`` and ``**options`` are one each."""
    own = function.args
    named = [each.arg for each in (*own.posonlyargs, *own.args, *own.kwonlyargs) if each.arg not in ("self", "cls")]
    return len(named) + (own.vararg is not None) + (own.kwarg is not None)


def test_no_import_runs_upward() -> None:
    assert sorted(f"{start} imports {end}" for start, end in arrows() if floor(start) < floor(end)) == []
    assert ("run", "pipelines.verbs") in arrows()
    assert ("pipelines.decoding", "autoencoder.model") in arrows()


def test_the_first_stage_uses_only_rooms_that_are_open_to_it() -> None:
    used = {end for start, end in arrows() if floor(start) == 1 and floor(end) == 0}
    assert sorted(end for end in used - SHARED if end.split(".")[1] not in OPEN_TO_THE_FIRST_STAGE) == []


def test_no_module_imports_itself_through_others() -> None:
    assert circle(arrows()) == []


def test_no_room_needs_itself_through_others() -> None:
    assert circle({(room(start), room(end)) for start, end in arrows() if room(start) != room(end)}) == []


def test_no_folder_is_a_corridor() -> None:
    folders = {path.parent for path in modules().values()} - {ROOT}
    crowded = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {name: count for name, count in crowded.items() if count > MOST_FILES} == {}


@pytest.mark.parametrize("package", ["cdrl", "autoencoder", "pipelines"])
def test_no_function_has_more_than_eight_arguments(package: str) -> None:
    """But verbs, whose options are read off their signature."""
    long = [
        f"{name}.{node.name}: {arguments(node)}"
        for name, path in modules().items()
        if name.partition(".")[0] == package and not name.startswith("pipelines.verbs")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and arguments(node) > MOST_ARGUMENTS
    ]
    assert long == []


def test_the_measures_see_what_they_are_for() -> None:
    assert circle({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")}) == ["a", "b", "c"]
    source = "if TYPE_CHECKING:\n    import cdrl.model\ndef f():\n    from cdrl.runs import run\n"
    assert list(imported(source)) == ["cdrl.runs.run"]
    function = ast.parse("def f(self, a, b=1, *rest, c, **options): ...").body[0]
    assert isinstance(function, ast.FunctionDef)
    assert arguments(function) == 5

"""Weights that ship with the project: model folders known by name, accepted wherever a run is."""

from __future__ import annotations

from pathlib import Path

SHIPPED = Path(__file__).resolve().parents[2] / "pretrained"
"""Beside the packages, in a checkout as in an installation."""


def pretrained_names() -> list[str]:
    """Names of the weights that ship."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))


def is_pretrained(folder: Path) -> bool:
    """Whether ``folder`` is no folder here, but the name of weights that ship."""
    return len(folder.parts) == 1 and not folder.exists() and folder.name in pretrained_names()


def shipped_or(folder: Path) -> Path:
    """The model folder of the weights that ``folder`` names; ``folder`` itself where it names none."""
    return SHIPPED / folder.name if is_pretrained(folder) else folder

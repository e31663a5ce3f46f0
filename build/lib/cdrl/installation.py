"""How the project is installed and called: its packages beside one another, what ships with them, its command."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The folder of the packages, in a checkout as in an installation; configs/ and pretrained/ lie beside them."""
SHIPPED_CONFIGS = ROOT / "configs"
PACKAGES = ("autoencoder", "cdrl", "pipelines")


def check_packages() -> None:
    """See that Python finds the three packages in one place: their names are words that others use as well.

    Raises:
        ImportError: another package has the name of one of them, and comes first; or one of them is missing.
    """
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        places = [] if spec is None else list(spec.submodule_search_locations or ())
        if not places:
            raise ImportError(f"cdrl: its package '{name}' is not in {ROOT}; install the project again")
        if not any(Path(place).resolve() == ROOT / name for place in places):
            raise ImportError(
                f"cdrl: another package '{name}', {places[0]}, comes before the project's own, {ROOT / name}: "
                "leave that folder out of PYTHONPATH, or uninstall that package"
            )


def program() -> str:
    """What a user types before a verb: the installed command, or, in a checkout, run.py unless called otherwise."""
    called = Path(sys.argv[0])
    installed = not (ROOT / "run.py").exists()
    return "cdrl" if installed or called.stem == "cdrl" or called.parent.name == "cdrl" else "python run.py"


def config_file(path: Path) -> Path:
    """``path``, or, where there is no such file, the configuration that ships under this name.

    ``configs/digits.yaml``, ``digits.yaml`` and ``digits`` all name the same one.
    """
    if path.is_absolute() or (path.exists() and not path.is_dir()):
        return path
    named = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    shipped = SHIPPED_CONFIGS / named.with_suffix(".yaml")
    return shipped if path.suffix in ("", ".yaml") and shipped.is_file() else path


def config_names() -> list[str]:
    """Names of the configurations that ship."""
    return sorted(str(path.relative_to(SHIPPED_CONFIGS).with_suffix("")) for path in SHIPPED_CONFIGS.rglob("*.yaml"))

"""The installed command: ``cdrl --help``."""

from __future__ import annotations

import sys

from cdrl.installation import check_packages


def main() -> None:
    """Run the verb that was typed."""
    try:
        check_packages()
    except ImportError as error:
        sys.exit(f"error: {error}")
    from pipelines.verbs import app

    app(prog_name="cdrl")


if __name__ == "__main__":
    main()

"""The one door to everything: ``python run.py --help``."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))

from pipelines.verbs import app

if __name__ == "__main__":
    app()

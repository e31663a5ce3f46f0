"""Progress bars, alike everywhere."""

from __future__ import annotations

import functools
import sys
from typing import NoReturn

from tqdm import tqdm


def progress_bar(
    total: int | None, description: str, *, initial: int = 0, unit: str = "step", shown: bool = True
) -> tqdm[NoReturn]:
    """A progress bar with rate and time left.

    Where the output is no terminal it is a line now and then, and none of what is soon done: logs stay short, and a
    mistake one line.

    Args:
        total: None where nobody knows.
    """
    terminal = sys.stderr.isatty()
    when = {"mininterval": 0.2} if terminal else {"mininterval": 20.0, "delay": 20.0}
    bar = functools.partial(tqdm, total=total, initial=initial, desc=description, unit=unit, **when)
    # Where it is shown, TQDM_DISABLE in the environment decides: giving disable=False would overrule that.
    return bar() if shown else bar(disable=True)

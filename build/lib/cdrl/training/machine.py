"""The machine that something was trained on, in words that name nobody."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def machine_in_words(processes: int = 1) -> str:
    """Processor and its cores, or GPUs, and the versions that numbers depend on; of several processes, how many."""
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        device = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    else:
        device = f"{_processor()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    together = f", {processes} processes" if processes > 1 else ""
    return f"{device}{together}; Python {platform.python_version()}, torch {torch.__version__.partition('+')[0]}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()  # not Linux

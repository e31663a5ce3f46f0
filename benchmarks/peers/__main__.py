"""``python -m benchmarks.peers``: see `benchmarks.peers.door`."""

from __future__ import annotations

import os

# Before torch is imported: what is equal are the CPU seconds of one thread.
os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")

from benchmarks.peers.door import app

app(prog_name="python -m benchmarks.peers")

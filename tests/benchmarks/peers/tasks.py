"""A small task for the tests of the peers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.task import Task
from cdrl.data import class_names, training_images
from tests.helpers import tiny_config, tiny_values, write_config


def digits_task(**sections: Any) -> Task:
    """Digits with the smallest networks."""
    torch.set_num_threads(1)
    config = tiny_config(**sections)
    images = training_images(config.data)
    return Task(config, images, class_names(config.data, images), seed=0)


def tiny_recipe(folder: Path, **sections: Any) -> Path:
    """The same as a file."""
    return write_config(folder / "tiny.yaml", tiny_values(**sections))

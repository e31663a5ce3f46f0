"""What every method is given: the data with their classes, a seed, and the recipe whose size it is to have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.budget import Spent
from cdrl.config import Config, ConfigError
from cdrl.config_files import load_config
from cdrl.data import GridSet, TrainingSet, class_names, image_training_set, training_images
from cdrl.model import new_networks
from cdrl.sampling.noise import derive_seed

RECIPES = {"digits": "digits_minute", "fashion_mnist": "fashion_mnist_minutes", "cifar10": "cifar10_small"}
"""Our configuration for each data set: for minutes of training, where it has one."""


@dataclass(frozen=True)
class Task:
    """One data set under one seed.

    Attributes:
        recipe: our configuration, whose data section all methods share.
        train: the images, with classes.
        class_names: one for each class; no model is trained without.
    """

    recipe: Config
    train: GridSet
    class_names: tuple[str, ...]
    seed: int

    @classmethod
    def of(cls, recipe: Path, overrides: Sequence[str], seed: int) -> Task:
        """Read the data that a recipe is for.

        Args:
            recipe: file or name of a configuration.
            overrides: settings of it to be changed, such as ``data.path=DIR``.

        Raises:
            ConfigError: the configuration cannot be used, or is not one of images with classes on pixels.
            DataError: the data cannot be read.
        """
        config = load_config(recipe, [*overrides, f"seed={seed}"])
        if config.space != "pixel" or config.data.labels != "class":
            raise ConfigError(f"{recipe}: expected space: pixel and data.labels: class, which all methods can learn")
        images = training_images(config.data)
        return cls(config, images, class_names(config.data, images), seed)

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of an image, [C, H, W]."""
        return tuple(self.train.grids.shape[1:])

    @cached_property
    def parameters(self) -> int:
        """Parameters of the recipe's networks: the size that the others' are to have."""
        with torch.device("meta"):
            energy, initializer = new_networks(self.recipe, self.shape, self.num_classes)
        return count_parameters(energy) + (0 if initializer is None else count_parameters(initializer))

    def batches(self, batch_size: int) -> TrainingSet:
        """The images in an order that the seed decides, in [-1, 1], mirrored where the recipe says so."""
        return image_training_set(self.train, self.recipe.data, batch_size, derive_seed(self.seed, "data"))


def count_parameters(network: nn.Module) -> int:
    """Number of trainable weights."""
    return sum(parameter.numel() for parameter in network.parameters())


Draw = Callable[[Tensor, int], Tensor]
"""(class ids int64 [N], seed of the first) -> images of these classes, [N, C, H, W], in [-1, 1] once cut off there."""


@dataclass(frozen=True)
class Sampler:
    """One way to sample a trained model.

    Attributes:
        forwards: passes through a network that an image takes, without those of gradients.
        gradients: of a scalar network by its image, each a pass forward and one back.
    """

    draw: Draw
    forwards: int = 0
    gradients: int = 0

    @property
    def evaluations(self) -> int:
        """Calls of a network, of either kind."""
        return self.forwards + self.gradients


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        samplers: by name, the one that its authors or users would take first.
        spent: on each phase of training.
        settings: what it was trained with, for the record.
    """

    samplers: dict[str, Sampler]
    parameters: int
    spent: tuple[Spent, ...]
    settings: dict[str, Any] = field(default_factory=dict)

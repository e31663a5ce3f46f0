"""Batches for training that depend on the step and the row alone, so that any process can compute any of them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import torch
from kornia.geometry.transform import hflip
from torch import Tensor

from cdrl.config import DataConfig
from cdrl.data.images.eight_bits import as_floats
from cdrl.data.images.sets import DataError, Grids, GridSet, ImageSet, first_not_finite
from cdrl.sampling.noise import derive_seed

_ALL = slice(None)
Item = TypeVar("Item")
_MAX_CACHED_EPOCHS = 2  # a batch may end one epoch and begin the next


class TrainingSet:
    """Training data, served in an endless, exactly resumable order.

    Epoch e is a permutation drawn from (seed, e); row r of step k is element k * batch_size + r of the endless
    chain of permutations. Flips, mirrors and the choice among labels are drawn from (seed, step, row). Nothing
    else is remembered, so resuming needs the step only.

    Args:
        grids: uint8 [N, C, H, W], served as float32 in [-1, 1]; or float32 [N, *shape], served as they are. In memory
            or on disk: the same are served.
        batch_size: rows of a whole step, over all processes.
        seed: of the order and of every draw.
        labels: int64 [N, L], the class ids that each grid may be served with, one drawn at random; None for -1,
            the null class, throughout.
        flip: serve each image or its mirror image, at random.
        mirrors: grids are [N, 2, *shape], a grid and that of its mirror image; one of the two is drawn.
        mean, std: [C] each; grids are served as (x - mean) / std.

    Raises:
        DataError: the grids are empty or hold NaN or infinity, or the arguments contradict each other.
    """

    def __init__(
        self,
        grids: Grids,
        batch_size: int,
        seed: int,
        labels: Tensor | None = None,
        *,
        flip: bool = False,
        mirrors: bool = False,
        mean: Tensor | None = None,
        std: Tensor | None = None,
    ) -> None:
        if not len(grids):
            raise DataError("training data: expected at least one grid, found none")
        broken = first_not_finite(grids)
        if broken is not None:
            raise DataError(f"training data: sample {broken}: expected finite numbers, found NaN or infinity")
        if labels is not None and (labels.ndim != 2 or len(labels) != len(grids) or not labels.shape[1]):
            raise DataError(f"training data: expected labels [{len(grids)}, L], found {list(labels.shape)}")
        if mirrors and (flip or len(grids.shape) < 3 or grids.shape[1] != 2):
            raise DataError(
                f"training data: expected grids [N, 2, …] and no flip with mirrors, found {list(grids.shape)}"
            )
        if (mean is None) != (std is None) or (std is not None and not (std > 0).all()):
            raise DataError("training data: expected a mean and a positive std of every channel, or neither")
        self.batch_size = batch_size
        self._grids = grids
        self._seed = seed
        self._labels = labels
        self._flip = flip
        self._mirrors = mirrors
        self._mean = mean
        self._std = std
        self._permutations: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._grids)

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """The shape of one served grid."""
        return tuple(self._grids.shape[2:] if self._mirrors else self._grids.shape[1:])

    def check_labels(self, num_classes: int) -> None:
        """Check that every class id in the data is below ``num_classes``.

        Raises:
            DataError: one is not; the message names the sample.
        """
        if self._labels is None:
            return
        outside = (self._labels < 0) | (self._labels >= num_classes)
        if outside.any():
            sample = int(outside.any(dim=1).nonzero()[0])
            found = int(self._labels[sample][outside[sample]][0])
            raise DataError(f"training data: sample {sample}: expected class ids 0 … {num_classes - 1}, found {found}")

    def batch(self, step: int, rows: slice | range = _ALL) -> tuple[Tensor, Tensor]:
        """Some rows of a step, all by default: grids float32 [n, *shape] and class ids int64 [n], -1 for none.

        Raises:
            IndexError: a row is outside 0 … batch_size - 1.
        """
        chosen = self._rows(rows)
        elements = self.elements(step, chosen)
        return self._serve(elements, step, chosen), self._choose_labels(elements, step, chosen)

    def elements(self, step: int, rows: range) -> Tensor:
        """Index of the sample behind each row of a step: int64 [n]."""
        positions = torch.tensor([step * self.batch_size + row for row in rows], dtype=torch.int64)
        epochs, places = positions // len(self), positions % len(self)
        elements = torch.empty_like(positions)
        for epoch in sorted(set(epochs.tolist())):
            inside = epochs == epoch
            elements[inside] = self._permutation(epoch)[places[inside]]
        return elements

    def _rows(self, rows: slice | range) -> range:
        chosen = rows if isinstance(rows, range) else range(self.batch_size)[rows]
        if any(not 0 <= row < self.batch_size for row in chosen):
            raise IndexError(f"{chosen}: a step has rows 0 … {self.batch_size - 1}")
        return chosen

    def _permutation(self, epoch: int) -> Tensor:
        permutation = self._permutations.get(epoch)
        if permutation is None:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, "epoch", epoch))
            permutation = torch.randperm(len(self), generator=generator)
            kept = sorted(self._permutations.items())[1 - _MAX_CACHED_EPOCHS :]
            # Another dictionary, because a thread that reads ahead may be reading this one.
            self._permutations = {**dict(kept), epoch: permutation}
        return permutation

    def _draw(self, what: str, num: int, step: int, rows: range) -> Tensor:
        """A number in 0 … num - 1 for each row, whichever rows are asked for together: int64 [n]."""
        return torch.tensor([derive_seed(self._seed, what, step, row) % num for row in rows], dtype=torch.int64)

    def _serve(self, elements: Tensor, step: int, rows: range) -> Tensor:
        grids = self._grids[elements]
        if self._mirrors:
            grids = grids[torch.arange(len(grids)), self._draw("mirror", 2, step, rows)]
        grids = as_floats(grids)
        if self._flip:
            flipped = self._draw("mirror", 2, step, rows).bool()
            grids[flipped] = hflip(grids[flipped])
        if self._mean is not None and self._std is not None:
            per_channel = (-1, *[1] * (grids.ndim - 2))
            grids = (grids - self._mean.view(per_channel)) / self._std.view(per_channel)
        return grids

    def _choose_labels(self, elements: Tensor, step: int, rows: range) -> Tensor:
        if self._labels is None:
            return torch.full_like(elements, -1)
        return self._labels[elements, self._draw("label", self._labels.shape[1], step, rows)]


class StepAhead(Generic[Item]):
    """What each step of training needs, the next step's made on a thread while a step is learned.

    Args:
        make: makes what some rows of a step need.
    """

    def __init__(self, make: Callable[[int, range], Item]) -> None:
        self._make = make
        # A thread of its own team of threads would make those of the networks wait for one another: on two cores a
        # first stage at 256 x 256 took up to twice as long a step.
        self._thread = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        self._ahead: dict[tuple[int, range], Future[Item]] = {}

    def take(self, step: int, rows: range) -> Item:
        """What these rows of a step need; that of the same rows of the next step is begun. Raises as ``make``."""
        # Steps that nobody has asked for after all (training was rolled back) are forgotten.
        self._ahead = {key: item for key, item in self._ahead.items() if key[0] in (step, step + 1)}
        begun = self._ahead.pop((step, rows), None)
        if (step + 1, rows) not in self._ahead:
            self._ahead[step + 1, rows] = self._thread.submit(self._make, step + 1, rows)
        return self._make(step, rows) if begun is None else begun.result()

    def close(self) -> None:
        """Let go of the thread."""
        self._thread.shutdown(cancel_futures=True)


class StreamedTrainingSet(TrainingSet):
    """A `TrainingSet` of grids on disk: the same rows of the next step are read while a step is learned."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._steps = StepAhead(super().batch)

    def batch(self, step: int, rows: slice | range = _ALL) -> tuple[Tensor, Tensor]:
        """As `TrainingSet.batch`."""
        return self._steps.take(step, self._rows(rows))


def check_batch(grids: Tensor, labels: Tensor, num_classes: int, samples: Tensor) -> None:
    """Check a training batch: finite values and valid class ids.

    Args:
        grids: [N, *shape].
        labels: class ids [N], -1 for none.
        samples: which sample of the training data each is, [N].

    Raises:
        DataError: one holds NaN or infinity, or a class id outside -1 … num_classes - 1; the message names the sample.
    """
    broken = first_not_finite(grids)
    if broken is not None:
        raise DataError(f"sample {int(samples[broken])}: expected finite numbers, found NaN or infinity")
    outside = (labels < -1) | (labels >= num_classes)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise DataError(
            f"sample {int(samples[row])}: expected class ids -1 … {num_classes - 1}, found {int(labels[row])}"
        )


def _labels_to_train_on(data: DataConfig, annotated: GridSet) -> Tensor | None:
    """As `possible_labels`, of a training split. Raises DataError, too, where a class would never be trained on."""
    labels = possible_labels(data, annotated)
    if labels is None:
        return None
    names = class_names(data, annotated)
    counts = torch.bincount(labels.flatten(), minlength=len(names))
    missing = [name for name, count in zip(names, counts.tolist(), strict=True) if not count]
    if missing:
        others = f", nor of {len(missing) - 1} others" if len(missing) > 1 else ""
        raise DataError(
            f"data.name={data.name}: no training image is of class {missing[0]}{others}: a class cannot be learned "
            "without"
        )
    return labels


def image_training_set(images: GridSet, data: DataConfig, batch_size: int, seed: int) -> TrainingSet:
    """Images as training data: pixels in [-1, 1], flipped at random where ``data.flip`` is on.

    Raises:
        DataError: the images lack the labels that ``data.labels`` asks for, or all images of a class.
    """
    kind = StreamedTrainingSet if data.stream else TrainingSet
    return kind(images.grids, batch_size, seed, _labels_to_train_on(data, images), flip=data.flip)


def latent_training_set(latents: GridSet, data: DataConfig, batch_size: int, seed: int) -> TrainingSet:
    """Latents as training data, standardized by the ``mean`` and ``std`` (a number a channel) of their metadata.

    With ``mirrors: true`` in the metadata they are [N, 2, C, H, W], each image's latent and its mirror image's.

    Raises:
        DataError: the metadata lack an entry or contradict ``data.flip``, or labels that are asked for are missing,
            or all latents of a class.
    """
    metadata = latents.metadata
    missing = [name for name in ("mirrors", "mean", "std") if name not in metadata]
    if missing:
        raise DataError(f"latents: expected '{missing[0]}' in their metadata")
    if bool(metadata["mirrors"]) != data.flip:
        raise DataError(f"latents: written with mirrors={metadata['mirrors']}, but data.flip={data.flip}: encode again")
    kind = StreamedTrainingSet if data.stream else TrainingSet
    return kind(
        latents.grids,
        batch_size,
        seed,
        _labels_to_train_on(data, latents),
        mirrors=data.flip,
        mean=torch.tensor(metadata["mean"], dtype=torch.float32),
        std=torch.tensor(metadata["std"], dtype=torch.float32),
    )


def possible_labels(data: DataConfig, annotated: ImageSet | GridSet) -> Tensor | None:
    """The class ids that each image may be trained with under ``data.labels``: int64 [N, L], None for no classes.

    For ``attributes``, column i is 2i where the i-th of ``data.attributes`` is false, and 2i + 1 where it is true.

    Raises:
        DataError: there are no labels, or no attribute of such a name.
    """
    if data.labels == "none":
        return None
    if data.labels == "class":
        if annotated.labels is None:
            raise DataError(f"data.name={data.name}: has no classes; data.labels=class needs them")
        return annotated.labels[:, None]
    if annotated.attributes is None:
        raise DataError(f"data.name={data.name}: has no attributes; data.labels=attributes needs them")
    unknown = [name for name in data.attributes if name not in annotated.attribute_names]
    if unknown:
        known = ", ".join(annotated.attribute_names)
        raise DataError(f"data.name={data.name}: has no attribute {', '.join(unknown)}; it has {known}")
    columns = [annotated.attribute_names.index(name) for name in data.attributes]
    return 2 * torch.arange(len(columns)) + annotated.attributes[:, columns].long()


def class_names(data: DataConfig, annotated: ImageSet | GridSet) -> tuple[str, ...]:
    """A name for each class id under ``data.labels``; empty for ``none``. Raises DataError as `possible_labels`."""
    if possible_labels(data, annotated) is None:
        return ()
    if data.labels == "class":
        return annotated.label_names
    return tuple(name for attribute in data.attributes for name in (f"not {attribute}", attribute))


def num_classes(data: DataConfig, annotated: ImageSet | GridSet) -> int:
    """Number of classes under ``data.labels``; 0 for ``none``. Raises DataError as `possible_labels`."""
    return len(class_names(data, annotated))

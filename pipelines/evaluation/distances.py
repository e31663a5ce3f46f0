"""Metrics between sets of images, by torch-fidelity, with names that say what was compared.

``fid`` and ``kid`` are said of Inception's published weights alone. On other features the same formulas are ``fd_X``
and ``kd_X``, with the features' name for X.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from cdrl.data import Grids
from cdrl.foreign.arrays import read_npz
from cdrl.runs.run import RunError, reading
from pipelines.evaluation.features import Features

Statistics = dict[str, np.ndarray]
"""``mu`` [D], float32, and ``sigma`` [D, D], float64: the types that torch-fidelity finds, so that results are its."""

KID_SUBSET = 1000
_MOST_BYTES = 2**28
"""Of one array of statistics; Inception's covariance has 2**25."""


@dataclass(frozen=True)
class Reference:
    """Reference that samples are compared with.

    Attributes:
        name: ``train``, ``test`` or the name of a statistics file; followed by a number if only some images are used.
        images: number of images behind the statistics; None if unknown.
        features: features of those images, or of some of them, [N, D]; None for statistics alone.
    """

    name: str
    images: int | None
    statistics: Statistics
    features: Tensor | None


def frechet_distance(features1: Tensor, features2: Tensor) -> float:
    """Fréchet distance between two sets of features, [N1, D] and [N2, D].

    Gaussians are fitted to both: |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al., 2017).
    """
    return statistics_distance(statistics_of(features1), statistics_of(features2))


def statistics_of(features: Tensor) -> Statistics:
    """Mean and covariance of features [N, D]."""
    return fid_features_to_statistics(features.float().cpu())


class RunningStatistics:
    """`statistics_of` features that come some at a time: memory for their covariance, and for none of them.

    Numbers are those of torch-fidelity: the mean is added up in single precision, row after row, bit for bit as numpy
    does it; the covariance in double precision, around the mean of the first features, which differs from numpy's in
    the last digits alone.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sum, self._shift = np.empty(0, np.float32), np.empty(0)
        self._sum_shifted, self._products = np.empty(0), np.empty((0, 0))

    def add(self, features: Tensor) -> None:
        """Take in features [n, D], n at least 1, of the next images."""
        part = features.float().cpu().numpy()
        if not self._count:
            width = part.shape[1]
            self._shift = part.mean(axis=0, dtype=np.float64)
            self._sum_shifted, self._products = np.zeros(width), np.zeros((width, width))
            self._sum = np.add.reduce(part, axis=0)
        else:
            self._sum = np.add.reduce(np.concatenate([self._sum[None], part]), axis=0)
        shifted = part - self._shift
        self._sum_shifted += shifted.sum(axis=0)
        self._products += shifted.T @ shifted
        self._count += len(part)

    def statistics(self) -> Statistics:
        """Mean and covariance of everything taken in, two images at least."""
        around_mean = self._products - np.outer(self._sum_shifted, self._sum_shifted) / self._count
        return {"mu": self._sum / np.float32(self._count), "sigma": around_mean / (self._count - 1)}


def statistics_distance(first: Statistics, second: Statistics) -> float:
    """Fréchet distance between two Gaussians."""
    (distance,) = fid_statistics_to_metric(first, second, verbose=False).values()
    return float(distance)


def read_statistics(path: Path) -> Reference:
    """Read published statistics, an .npz file with ``mu`` [D] and ``sigma`` [D, D].

    Raises:
        RunError: the file is missing, damaged, or without them.
    """
    try:
        with reading(path):
            stored = read_npz(path, ("mu", "sigma"), _MOST_BYTES)
        missing = [name for name in ("mu", "sigma") if name not in stored]
        if missing:
            raise ValueError(f"it holds no {missing[0]}")
        check_statistics(stored)
    except ValueError as error:
        raise RunError(f"{path}: expected an .npz file with mu [D] and sigma [D, D] ({error})") from None
    mu, sigma = stored["mu"], stored["sigma"]
    return Reference(path.stem, None, {"mu": mu.astype(np.float32), "sigma": sigma.astype(np.float64)}, None)


def check_statistics(statistics: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError for ``mu`` and ``sigma`` that are not the mean and the covariance of anything."""
    mu, sigma = statistics["mu"], statistics["sigma"]
    if mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu), len(mu)):
        raise ValueError(f"mu {list(mu.shape)} and sigma {list(sigma.shape)} do not fit each other")
    if not np.isfinite(mu).all() or not np.isfinite(sigma).all():
        raise ValueError("they hold NaN or infinity")
    if (sigma.diagonal() < 0).any():
        raise ValueError(f"sigma holds a variance of {sigma.diagonal().min():.3g}")


def compared(samples: Features, reference: Reference, *, kernel: bool = True) -> dict[str, float]:
    """Compute all metrics that the features allow, by the short names that `metric_name` takes.

    ``fid`` is the Fréchet distance. With a reference's features, not its statistics alone, there are ``kid``, the
    mean over 100 subsets of 1,000 images or as many as there are (Bińkowski et al., 2018), and ``precision`` and
    ``recall`` with 3 neighbours and no more reference images than samples (Kynkäänniemi et al., 2019). With logits
    there is ``inception_score`` over 10 splits (Salimans et al., 2016).

    Args:
        kernel: compute ``kid``. It tells nothing on features as large as Lite0's, whose cubes drown it.

    Raises:
        RunError: the features of the reference have another size.
    """
    width, expected = samples.pooled.shape[1], len(reference.statistics["mu"])
    if width != expected:
        raise RunError(f"{reference.name}: statistics of {expected} features, but these images have {width}")
    values = {"fid": statistics_distance(statistics_of(samples.pooled), reference.statistics)}
    if reference.features is not None:
        count = min(len(samples.pooled), len(reference.features))
        if kernel:
            subset = min(KID_SUBSET, count)
            kid = kid_features_to_metric(samples.pooled, reference.features, kid_subset_size=subset, verbose=False)
            values["kid"] = kid[KEY_METRIC_KID_MEAN]
        near = prc_features_to_metric(samples.pooled, some_of(reference.features, count), verbose=False)
        values["precision"], values["recall"] = near[KEY_METRIC_PRECISION], near[KEY_METRIC_RECALL]
    if samples.logits is not None:
        values["inception_score"] = isc_features_to_metric(samples.logits)[KEY_METRIC_ISC_MEAN]
    return values


def some_of(rows: Grids, count: int) -> Tensor:
    """Choose ``count`` rows at random, always the same, in their order: data sets may be sorted by class."""
    return rows[chosen_rows(len(rows), count)]


def chosen_rows(total: int, count: int) -> Tensor:
    """The numbers of the rows that `some_of` chooses among so many, ascending: int64 [count]."""
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count].sort().values

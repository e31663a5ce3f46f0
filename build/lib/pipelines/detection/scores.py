"""Out-of-distribution scores from a model's densities (Section 4.4), and the metrics that evaluate them.

A score is one number per image, higher for the likelier image. The paper's is the log density of the lowest noise
level. All scores are computed from the same readings: the log density of every level at the image, and the norm of
its gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cdrl.runs.progress import progress_bar
from cdrl.sampling.kernels import with_gradient
from cdrl.sampling.sampler import LevelLogDensity
from cdrl.schedule import NoiseSchedule

PAPER_SCORE = "level_0"
BATCH = 256


@dataclass(frozen=True)
class Readings:
    """Log densities and gradient norms of N images at every level.

    Attributes:
        log_density: f(y_t) at each level, [N, T].
        gradient_norm: Euclidean norm of the gradient of f in y_t, [N, T].
    """

    log_density: Tensor
    gradient_norm: Tensor


def read_levels(schedule: NoiseSchedule, log_density: LevelLogDensity, grids: Tensor) -> Readings:
    """Evaluate all levels at y_t = alpha_y_t alpha_bar_t x_0, without noise: float64, on the CPU.

    Averaging over noisy draws of y_t changes nothing at level 0, whose noise is below one step of 8 bits; at the other
    levels it detects interpolations less well.

    Args:
        grids: clean grids x_0, [N, *shape].
    """
    schedule = schedule.to(grids.device)
    bar = progress_bar(len(grids), "score", unit="image")
    parts = []
    for part in grids.split(BATCH):
        readings = []
        for level in range(schedule.num_levels):

            def at_level(y: Tensor, level: int = level) -> Tensor:
                return log_density(y, level)

            value, gradient = with_gradient(at_level)(schedule.alpha_y[level] * schedule.alpha_bar[level] * part)
            readings.append(torch.stack([value, gradient.flatten(1).norm(dim=1)]))
        parts.append(torch.stack(readings, dim=2).double().cpu())
        bar.update(len(part))
    bar.close()
    return Readings(*torch.cat(parts, dim=1))


def all_scores(readings: Readings, reference: Readings) -> dict[str, Tensor]:
    """Compute all scores of N images, by name: [N] each, higher for the likelier image.

    ``level_t``: the log density of level t; at t = 0 the paper's score.
    ``gradient``: minus the norm of level 0's gradient, small near a mode of the density (Grathwohl et al., 2020).
    ``ratio``: level 0's log density minus the highest level's, each in standard deviations over training images, as
    level 0's spread would otherwise dominate: how likely the details are given the whole (the likelihood ratio of Ren
    et al., 2019, between levels).
    ``typicality``: minus the distance of level 0's log density from its mean over training images (Nalisnick et al.,
    2019).
    ``joint``: minus the squared Mahalanobis distance of all readings, log densities and norms of every level, from
    those of training images (after Mahmood et al., 2021).

    Args:
        reference: readings of training images.
    """
    values, known = readings.log_density, reference.log_density
    mean, std = known.mean(dim=0), known.std(dim=0)
    standard = (values - mean) / std
    return {
        **{f"level_{level}": values[:, level] for level in range(values.shape[1])},
        "gradient": -readings.gradient_norm[:, 0],
        "ratio": standard[:, 0] - standard[:, -1],
        "typicality": -(values[:, 0] - mean[0]).abs(),
        "joint": -_mahalanobis(
            torch.cat([values, readings.gradient_norm], dim=1), torch.cat([known, reference.gradient_norm], dim=1)
        ),
    }


def _mahalanobis(features: Tensor, reference: Tensor) -> Tensor:
    """Squared Mahalanobis distance, [N], of features [N, D] from the mean of a reference [M, D]."""
    mean, std = reference.mean(dim=0), reference.std(dim=0)
    offset = (features - mean) / std
    # Standardized first: the readings' scales differ too much for the pseudo-inverse's cutoff.
    precision = torch.linalg.pinv(torch.cov(((reference - mean) / std).T), hermitian=True)
    return ((offset @ precision) * offset).sum(dim=1)


def detection_figures(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """AUROC, AUPR and FPR95 of scores of in-distribution images [N] against others [M].

    ``auroc`` is the probability that an in-distribution image scores higher than another, ties counting half.
    ``aupr_in`` and ``aupr_out`` are average precisions with the in-distribution images or the others as positives;
    both depend on the sizes of the two sets. ``fpr95`` is the share of the others accepted at the threshold that
    accepts 95 % of the in-distribution images.
    """
    # Imported here: this alone takes a second.
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    scores = torch.cat([inside, outside]).numpy()
    is_inside = np.repeat([True, False], [len(inside), len(outside)])
    false_positive, true_positive, _ = roc_curve(is_inside, scores, drop_intermediate=False)
    return {
        "auroc": float(roc_auc_score(is_inside, scores)),
        "aupr_in": float(average_precision_score(is_inside, scores)),
        "aupr_out": float(average_precision_score(~is_inside, -scores)),
        "fpr95": float(false_positive[np.argmax(true_positive >= 0.95)]),
    }

"""Densities that are quickly fitted, for the same noisy images: a Gaussian, and mixtures of Gaussians."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

COMPONENTS = (1, 2, 5, 10, 20, 50, 100)
_HELD_BACK = 4
"""One image in so many of the training images chooses among mixtures."""


@dataclass(frozen=True)
class Fitted:
    """A baseline and what it says of images.

    Attributes:
        name: in words.
        log_density: of each image, float64 [N].
    """

    name: str
    log_density: Tensor


def gaussian(train: Tensor, images: Tensor, alpha: float, sigma: float) -> Fitted:
    """A Gaussian of full covariance with the moments of alpha x + sigma eps: N(alpha mean, alpha^2 Cov + sigma^2 I).

    Args:
        train: clean training images, [N, D].
        images: noisy images, [M, D].
    """
    train, images = train.double(), images.double()
    covariance = alpha**2 * torch.cov(train.T, correction=0) + sigma**2 * torch.eye(train.shape[1]).double()
    mean = alpha * train.mean(dim=0)
    log_density = torch.distributions.MultivariateNormal(mean, covariance).log_prob(images)
    return Fitted("Gaussian, full covariance", log_density)


def mixture(train: Tensor, images: Tensor, alpha: float, sigma: float, seed: int = 0) -> Fitted:
    """The best of mixtures of 1 to 100 Gaussians, with full or diagonal covariances, fitted by scikit-learn's EM.

    sigma^2 is added to all variances, as the noise adds it. A quarter of the training images, noised, chooses the
    number and kind; the chosen mixture is fitted to all of them.

    Args:
        train: clean training images, [N, D].
        images: noisy images, [M, D].
    """
    # Imported here: this alone takes a second.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    clean = alpha * train.double().numpy()
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(clean))
    back, rest = np.split(order, [len(clean) // _HELD_BACK])
    noisy = clean[back] + sigma * generator.standard_normal(clean[back].shape)

    def fitted(rows: np.ndarray, components: int, kind: str) -> GaussianMixture:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return GaussianMixture(components, covariance_type=kind, reg_covar=sigma**2, random_state=seed).fit(rows)

    found = {
        (components, kind): fitted(clean[rest], components, kind).score(noisy)
        for components in COMPONENTS
        for kind in ("full", "diag")
        if components <= len(rest)
    }
    components, kind = max(found, key=lambda each: found[each])
    best = fitted(clean, components, kind)
    log_density = torch.from_numpy(best.score_samples(images.double().numpy()))
    words = {"full": "full", "diag": "diagonal"}[kind]
    return Fitted(
        f"mixture of {components} Gaussians, {words} covariances (the best of 1 to {COMPONENTS[-1]})", log_density
    )

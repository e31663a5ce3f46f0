"""Densities that are quickly fitted, for the same noisy images: a Gaussian, mixtures of Gaussians, and a flow.

Images are turned into the principal directions of the training images first, which changes no density.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cdrl.runs.progress import progress_bar
from cdrl.runs.run import RunError

COMPONENTS = (1, 2, 5, 10, 20, 50, 100)
MIXED = 100
"""Principal directions in which the components of a mixture differ; in the others all share one Gaussian."""
_CHOOSING = 10_000
"""Training images at most among which mixtures are chosen."""
_HELD_BACK = 4
"""One image in so many of the training images chooses among mixtures, and how long a flow is trained."""

_TRANSFORMS, _WIDTH = 3, 256
_BATCH, _LEARNING_RATE = 128, 1e-3
_JUDGED_EVERY, _PATIENCE, _LONGEST = 50, 10, 4000
"""Updates between looks at what is held back, looks without progress that end training, and updates at most."""


@dataclass(frozen=True)
class Fitted:
    """A baseline and what it says of images.

    Attributes:
        name: in words.
        log_density: of each image, float64 [N].
    """

    name: str
    log_density: Tensor


@dataclass(frozen=True)
class Principal:
    """Coordinates along the principal directions of alpha x, from its mean, the widest direction first.

    Attributes:
        mean: [D].
        directions: one a column, [D, D].
        variances: of alpha x along each, [D].
        sigma: standard deviation of the noise, which no direction changes.
    """

    mean: Tensor
    directions: Tensor
    variances: Tensor
    sigma: float

    @classmethod
    def of(cls, train: Tensor, alpha: float, sigma: float) -> Principal:
        """Those of clean training images, [N, D]."""
        covariance = alpha**2 * torch.cov(train.double().T, correction=0)
        variances, directions = torch.linalg.eigh(covariance)
        mean = alpha * train.double().mean(dim=0)
        return cls(mean, directions.flip(1), variances.flip(0).clamp(min=0), sigma)

    @property
    def noisy_std(self) -> Tensor:
        """Standard deviation of noisy images along each direction, [D]."""
        return (self.variances + self.sigma**2).sqrt()

    def coordinates(self, images: Tensor) -> Tensor:
        """Of images [N, D], noisy ones or alpha x: float64 [N, D]."""
        return (images.double() - self.mean) @ self.directions


def gaussian(train: Tensor, images: Tensor, alpha: float, sigma: float) -> Fitted:
    """A Gaussian of full covariance with the moments of alpha x + sigma eps: N(alpha mean, alpha^2 Cov + sigma^2 I).

    Args:
        train: clean training images, [N, D].
        images: noisy images, [M, D].
    """
    principal = Principal.of(train, alpha, sigma)
    return Fitted("Gaussian, full covariance", _normal(principal.coordinates(images), principal.noisy_std))


def mixture(train: Tensor, images: Tensor, alpha: float, sigma: float) -> Fitted:
    """The best of mixtures of 1 to 100 Gaussians, with full or diagonal covariances, fitted by scikit-learn's EM.

    Components differ in the first 100 principal directions. sigma^2 is added to all variances, as the noise adds it. A
    quarter of up to 10,000 training images, noised, chooses the number and kind; the chosen mixture is fitted to all.

    Args:
        train: clean training images, [N, D].
        images: noisy images, [M, D].
    """
    # Imported here: this alone takes a second.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    principal = Principal.of(train, alpha, sigma)
    clean = principal.coordinates(alpha * train)[:, :MIXED].numpy()
    generator = np.random.default_rng(0)
    order = generator.permutation(len(clean))[:_CHOOSING]
    back, rest = np.split(order, [len(order) // _HELD_BACK])
    noisy = clean[back] + sigma * generator.standard_normal(clean[back].shape)

    def fitted(rows: np.ndarray, components: int, kind: str) -> GaussianMixture:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            return GaussianMixture(components, covariance_type=kind, reg_covar=sigma**2, random_state=0).fit(rows)

    found = {
        (components, kind): fitted(clean[rest], components, kind).score(noisy)
        for components in COMPONENTS
        for kind in ("full", "diag")
        if components <= len(rest)
    }
    components, kind = max(found, key=lambda each: found[each])
    best = fitted(clean, components, kind)
    coordinates = principal.coordinates(images)
    log_density = torch.from_numpy(best.score_samples(coordinates[:, :MIXED].numpy()))
    log_density = log_density + _normal(coordinates[:, MIXED:], principal.noisy_std[MIXED:])
    words = {"full": "full", "diag": "diagonal"}[kind]
    where = f" in {MIXED} principal directions" if coordinates.shape[1] > MIXED else ""
    return Fitted(
        f"mixture of {components} Gaussians{where}, {words} covariances (the best of 1 to {COMPONENTS[-1]})",
        log_density,
    )


def flow(train: Tensor, images: Tensor, alpha: float, sigma: float) -> Fitted:
    """A masked autoregressive flow (Papamakarios et al. 2017), zuko's, where what `gaussian` fits is standard noise.

    It is trained with fresh noise in every batch. A quarter of the training images tells after how many updates it is
    best; then it is trained anew for as many on all.

    Args:
        train: clean training images, [N, D].
        images: noisy images, [M, D].
    """
    from zuko.flows import MAF  # not at the top: an extra

    principal = Principal.of(train, alpha, sigma)
    clean = principal.coordinates(alpha * train)
    std = principal.noisy_std
    dimension = clean.shape[1]

    def trained(rows: Tensor, updates: int, held_back: Tensor | None) -> tuple[nn.Module, int]:
        """A flow, and the number of updates after which it was best on what is held back, if anything is."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = MAF(dimension, transforms=_TRANSFORMS, hidden_features=(min(_WIDTH, 8 * dimension),) * 2)
        generator = torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE)
        best, best_after = -math.inf, 0
        progress = progress_bar(updates, "flow")
        for update in range(1, updates + 1):
            batch = rows[torch.randint(len(rows), (_BATCH,), generator=generator)]
            noise = torch.randn(batch.shape, generator=generator, dtype=batch.dtype)
            optimizer.zero_grad(set_to_none=True)
            (-network().log_prob(((batch + sigma * noise) / std).float()).mean()).backward()
            nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            progress.update()
            if held_back is not None and update % _JUDGED_EVERY == 0:
                found = float(_under(network, held_back).mean())
                if found > best:
                    best, best_after = found, update
                elif update - best_after >= _PATIENCE * _JUDGED_EVERY:
                    break
        progress.close()
        return network, best_after

    order = torch.randperm(len(clean), generator=torch.Generator().manual_seed(0))
    back, rest = order.tensor_split([len(clean) // _HELD_BACK])
    back = back[:_CHOOSING]
    noise = torch.randn(len(back), dimension, generator=torch.Generator().manual_seed(1), dtype=clean.dtype)
    _, updates = trained(clean[rest], _LONGEST, ((clean[back] + sigma * noise) / std).float())
    network, _ = trained(clean, updates, None)
    log_density = _under(network, (principal.coordinates(images) / std).float()) - std.log().sum()
    return Fitted(f"masked autoregressive flow of {_TRANSFORMS} transforms, {updates} updates", log_density)


BASELINES: dict[str, Callable[[Tensor, Tensor, float, float], Fitted]] = {
    "gaussian": gaussian,
    "mixture": mixture,
    "flow": flow,
}


def check_baselines(names: tuple[str, ...]) -> None:
    """Raise ValueError for a name that is unknown or stands twice, RunError where a package is missing."""
    for name in names:
        if name not in BASELINES:
            raise ValueError(f"baseline: expected one of {', '.join(BASELINES)}, found {name}")
        if names.count(name) > 1:
            raise ValueError(f"baseline: {name} stands twice")
        if name == "flow" and importlib.util.find_spec("zuko") is None:
            raise RunError("baseline: flow needs a package that is not installed: pip install 'cdrl[flow]'")


@torch.no_grad()
def _under(network: nn.Module, standardized: Tensor) -> Tensor:
    """Log density of standardized coordinates [N, D] under a flow: float64 [N]."""
    return torch.cat([network().log_prob(part).double() for part in standardized.split(500)])


def _normal(coordinates: Tensor, std: Tensor) -> Tensor:
    """Log density of coordinates [N, D] under independent N(0, std^2), [D]: [N]."""
    return torch.distributions.Normal(0.0, std).log_prob(coordinates).sum(dim=1)

"""Feature networks for evaluation, in torch-fidelity's form: Inception from a file, and packaged Lite0."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.registry import register_feature_extractor

from autoencoder.lite0 import PACKAGE, Lite0
from cdrl.data import Grids, as_floats, image_batches, to_bytes
from cdrl.runs.archives import check_finite, check_is_there, weights_only_unpickling
from cdrl.runs.progress import progress_bar
from cdrl.runs.run import RunError

FeaturesName = Literal["inception", "lite0"]

INCEPTION_FILE = URL_INCEPTION_V3.rpartition("/")[2]
_INCEPTION_HASH = Path(INCEPTION_FILE).stem.rpartition("-")[2]
"""How the SHA-256 of the published file begins: its name ends with that."""
_INCEPTION_LAYERS = [FeatureExtractorInceptionV3.get_default_feature_layer_for_metric(m) for m in ("fid", "isc")]
_POOLED = "pooled"
_BATCH = 64  # torch-fidelity's own


class Lite0Extractor(FeatureExtractorBase):
    """EfficientNet-Lite0's pooled features as a torch-fidelity extractor, registered as ``lite0``."""

    def __init__(self, name: str, features_list: list[str], **options: Any) -> None:
        super().__init__(name, features_list)
        self.network = Lite0()

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return (_POOLED,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return {"fid": _POOLED, "kid": _POOLED, "prc": _POOLED}[metric]

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Features [N, 112] of uint8 images [N, 1 or 3, H, W]."""
        return (lite0_features_of_bytes(images, self.network),)


register_feature_extractor("lite0", Lite0Extractor)


def lite0_features_of_bytes(images: Tensor, network: Lite0) -> Tensor:
    """EfficientNet-Lite0's pooled stage-5 features of uint8 images [N, 1 or 3, H, W]: [N, 112]."""
    return network.pooled_features(as_floats(images))


@torch.no_grad()
def lite0_features(images: Grids, network: Lite0) -> Tensor:
    """The same features of images uint8, or in [-1, 1] and rounded to 8 bits.

    Their distance is ``fd_lite0``, which is not FID.
    """
    parts = image_batches(images, _BATCH)
    return torch.cat([lite0_features_of_bytes(to_bytes(part), network) for part in parts])


@dataclass(frozen=True)
class Features:
    """Features of N images, on the CPU.

    Attributes:
        pooled: [N, D].
        logits: [N, 1008], of Inception alone.
    """

    pooled: Tensor
    logits: Tensor | None = None

    def __getitem__(self, rows: slice) -> Features:
        return Features(self.pooled[rows], None if self.logits is None else self.logits[rows])


@dataclass(frozen=True)
class Extractor:
    """A feature network, with the label that metrics on its features carry.

    Attributes:
        label: part of the metrics' names; None for Inception with its published weights, whose Fréchet distance
            alone is FID.
        weights: identifies the weights, in caches and records.
    """

    network: FeatureExtractorBase
    label: str | None
    weights: str
    device: torch.device

    def __call__(self, images: Grids, *, progress: str | None = None) -> Features:
        """Features of uint8 images [N, 1 or 3, H, W], in memory or on disk; grey ones are repeated to three channels.

        Args:
            progress: title of the progress bar; None for no bar.
        """
        parts = list(self.parts(images, progress=progress))
        logits = [part.logits for part in parts if part.logits is not None]
        return Features(torch.cat([part.pooled for part in parts]), torch.cat(logits) if logits else None)

    @torch.no_grad()
    def parts(self, images: Grids, *, progress: str | None = None) -> Iterator[Features]:
        """The same, some images at a time."""
        bar = progress_bar(len(images), progress or "", unit="image", shown=progress is not None)
        for start in range(0, len(images), _BATCH):
            part = images[start : start + _BATCH]
            answers = self.network(part.expand(-1, 3, -1, -1).to(self.device))
            yield Features(*(answer.cpu() for answer in answers))
            bar.update(len(part))
        bar.close()


def load_extractor(name: FeaturesName, weights: Path, device: torch.device) -> Extractor:
    """Load the feature network of this name.

    Args:
        weights: the file of Inception's weights; Lite0's weights come with its package.

    Raises:
        RunError: the file is missing, or holds something else.
        ConfigError: the package is not installed.
    """
    if name == "lite0":
        lite0 = Lite0Extractor("lite0", [_POOLED]).to(device)
        return Extractor(lite0, "lite0", PACKAGE, device)
    return _inception(weights, device)


def _inception(path: Path, device: torch.device) -> Extractor:
    if not path.exists():
        raise RunError(
            f"{path}: no Inception weights there: fetch {URL_INCEPTION_V3} and put it there, or name its place with "
            "--weights; distances on features that need no download: --features lite0"
        )
    check_is_there(path)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        with weights_only_unpickling():
            network = FeatureExtractorInceptionV3(
                "inception-v3-compat", list(_INCEPTION_LAYERS), feature_extractor_weights_path=str(path)
            )
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(f"{path}: expected Inception weights as {URL_INCEPTION_V3} has them ({reason})") from error
    check_finite(path, network.state_dict())
    label = None if found.startswith(_INCEPTION_HASH) else f"inception_{found[:8]}"
    return Extractor(network.to(device), label, found, device)

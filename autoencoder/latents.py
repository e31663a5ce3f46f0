"""Encoding of a data set into shards of latents, with their mean and standard deviation per channel."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from kornia.geometry.transform import hflip
from pydantic import ValidationError
from torch import Tensor

from autoencoder.model import WEIGHTS, Autoencoder, QuantizedLatent
from cdrl.data import (
    LEFT_OUT,
    DataError,
    GridSet,
    Sample,
    as_floats,
    data_facts,
    read_shards,
    stream_shards,
    write_grids_resumably,
)
from cdrl.installation import program
from cdrl.runs.progress import progress_bar
from cdrl.runs.records import Deviations, Record, Statistics, first_fault
from cdrl.sampling.noise import ImageNoise, derive_seed

BATCH = 50
"""Images at a time: full shards hold a multiple of them, so that a call that goes on cuts the same batches."""
_IMAGES = "images"


class _Metadata(Record):
    """What the index of latents says of them."""

    mirrors: bool
    kind: str
    autoencoder: str
    mean: Statistics
    std: Deviations


@torch.no_grad()
def latents_of(autoencoder: Autoencoder, images: Tensor, noise: ImageNoise | None) -> Tensor:
    """Encode images [N, C, H, W] in [-1, 1] into the latents that the second stage models: [N, c, h, w].

    With a KL bottleneck, a draw from the posterior, as the decoder was trained on, or its mean if ``noise`` is None;
    with a VQ bottleneck, the latent before quantization, which decoding does again (Rombach et al. 2022, sec. 4.1).
    """
    latent = autoencoder.encode(images)
    if isinstance(latent, QuantizedLatent):
        return latent.pre_quantization
    if noise is None:
        return latent.mean
    return latent.mean + torch.exp(0.5 * latent.logvar) * noise.normal(latent.mean.shape[1:])


def fingerprint(model: Path) -> str:
    """SHA-256 of a first stage's weights: latents are only good for the decoder they were made with."""
    return hashlib.sha256((model / WEIGHTS).read_bytes()).hexdigest()


def encode_images(
    autoencoder: Autoencoder,
    model: Path,
    images: GridSet,
    folder: Path,
    *,
    kind: str,
    mirrors: bool,
    device: torch.device,
) -> bool:
    """Write the latents of ``images`` as shards into ``folder``, each a ``sample`` or the ``mean`` of its posterior.

    With ``mirrors`` a sample holds two latents, [2, c, h, w]: the image's and its mirror image's. The shards'
    metadata hold ``mean`` and ``std`` a channel over the whole set, and the fingerprints of the first stage and of the
    images. A call that was cut short is gone on with, shard by shard.

    Returns:
        Whether there was anything to do: latents that an earlier call made of the same are left as they are.
    """
    metadata: dict[str, Any] = {
        "mirrors": mirrors,
        "kind": kind,
        "autoencoder": fingerprint(model),
        _IMAGES: hashlib.sha256(json.dumps(data_facts(images), sort_keys=True).encode()).hexdigest(),
        # What the images' reader left out is told of their latents, too.
        **{name: images.metadata[name] for name in (LEFT_OUT,) if name in images.metadata},
    }
    channels, *_ = shape = autoencoder.latent_shape
    sums, count = torch.zeros(2, channels, dtype=torch.float64), 0

    def take_into_account(latents: Tensor) -> None:
        nonlocal count
        values = latents.double().movedim(-3, 0).flatten(1)
        sums.add_(torch.stack([values.sum(dim=1), values.square().sum(dim=1)]))
        count += values.shape[1]
        mean = sums[0] / count
        metadata["mean"], metadata["std"] = mean.tolist(), (sums[1] / count - mean**2).clamp(min=0).sqrt().tolist()

    return write_grids_resumably(
        folder,
        lambda first: _encoded(autoencoder, images, first, f"encode {folder.name}", kind, mirrors, device),
        (2, *shape) if mirrors else shape,
        metadata,
        observe=take_into_account,
        label_names=images.label_names,
        attribute_names=images.attribute_names,
    )


def _encoded(
    autoencoder: Autoencoder, images: GridSet, first: int, what: str, kind: str, mirrors: bool, device: torch.device
) -> Iterator[Sample]:
    """The images' latents, from the image of number ``first`` on."""
    progress = progress_bar(len(images), what, unit="image", initial=first)
    for start in range(first, len(images), BATCH):
        part = as_floats(images.grids[start : start + BATCH].to(device))
        noise = None
        if kind == "sample":
            noise = ImageNoise([derive_seed("posterior", start + row) for row in range(len(part))], device)
        latents = latents_of(autoencoder, part, noise).cpu()
        if mirrors:
            latents = torch.stack([latents, latents_of(autoencoder, hflip(part), noise).cpu()], dim=1)
        for row, latent in enumerate(latents, start=start):
            label = None if images.labels is None else int(images.labels[row])
            attributes = () if images.attributes is None else tuple(images.attributes[row].tolist())
            yield Sample(latent.float(), label, attributes)
        progress.update(len(part))
    progress.close()


def read_latents(folder: Path, model: Path, kind: str, *, stream: bool = False) -> GridSet:
    """The latents in ``folder``, of the wanted ``kind`` and made by the first stage in ``model``.

    With ``stream`` they are left on disk.

    Raises:
        DataError: there are none, they are damaged, or another first stage made them, or they are of another kind.
    """
    if not (folder / "index.json").exists():
        raise DataError(f"{folder}: no latents there; make them with: {program()} encode CONFIG")
    latents = stream_shards(folder) if stream else read_shards(folder)
    channels = latents.grids.shape[-3] if len(latents.grids.shape) > 3 else 0
    try:
        statistics = _Metadata.model_validate(dict(latents.metadata))
    except ValidationError as error:
        raise DataError(f"{folder / 'index.json'}: metadata: {first_fault(error)}") from None
    if not len(statistics.mean) == len(statistics.std) == channels:
        raise DataError(f"{folder / 'index.json'}: metadata: expected mean and std of {channels} channels")
    if latents.metadata.get("autoencoder") != fingerprint(model):
        raise DataError(
            f"{folder}: made by another first stage than {model}; make them anew: {program()} encode CONFIG"
        )
    if latents.metadata.get("kind") != kind:
        raise DataError(
            f"{folder}: not made with autoencoder.latents={kind}; make them anew: {program()} encode CONFIG"
        )
    # A run is bound to its latents, not to where their images lie.
    return replace(latents, metadata={name: told for name, told in latents.metadata.items() if name != _IMAGES})

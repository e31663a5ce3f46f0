"""The first stage: images to latents and back, through a KL or a VQ bottleneck.

The architecture is that of VQGAN (Esser et al. 2021) and latent diffusion (Rombach et al. 2022), on taming's
Encoder, Decoder and VectorQuantizer2. The modules carry the names they have there (``encoder``, ``quant_conv``,
``quantize``, ``post_quant_conv``, ``decoder``), so that published weights fit as they are.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, ValidationError
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.vqvae.quantize import VectorQuantizer2
from torch import Tensor, nn

from cdrl.arguments import check_grids, check_image_range, check_kind, device_of, folder_of, whole_number
from cdrl.config import BottleneckConfig, ConfigError
from cdrl.installation import program
from cdrl.runs.checksums import verify_checksums
from cdrl.runs.model_folder import load_weights, replaced_model
from cdrl.runs.pretrained import shipped_or
from cdrl.runs.records import Record, first_fault, read_record
from cdrl.runs.run import RunError, save_tensors, write_json

FORMAT = 1
WEIGHTS = "autoencoder.safetensors"
DESCRIPTION = "autoencoder.json"
_PLACES = (".", "model", "autoencoder/model", "model/autoencoder", "autoencoder")
"""Where a first stage lies in its own folder, its run, a second stage's run, and the model folder of the latter."""

# Commitment weight of the codebook loss (van den Oord et al. 2017, eq. 3).
_COMMITMENT = 0.25


@dataclass(frozen=True)
class GaussianLatent:
    """Diagonal Gaussian posterior q(z | image) of a KL bottleneck; all tensors are float32.

    Attributes:
        mean: [N, c, h, w].
        logvar: natural logarithm of the variance, [N, c, h, w], within [-30, 20].
    """

    mean: Tensor
    logvar: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """A draw from the posterior, [N, c, h, w], differentiable in mean and logvar."""
        return self.under(torch.randn(self.mean.shape, generator=generator, device=self.mean.device))

    def under(self, noise: Tensor) -> Tensor:
        """Latent for given standard normal noise [N, c, h, w], differentiable in mean and logvar."""
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def kl(self) -> Tensor:
        """KL divergence to the standard normal distribution, in nats an image: [N]."""
        terms = self.mean.square() + self.logvar.exp() - 1.0 - self.logvar
        return 0.5 * terms.sum(dim=(1, 2, 3))


@dataclass(frozen=True)
class QuantizedLatent:
    """Output of a VQ bottleneck.

    Attributes:
        mean: the nearest codebook entries, [N, c, h, w]; gradients pass straight through to ``pre_quantization``.
        pre_quantization: what was quantized, [N, c, h, w].
        codes: indices of the entries, [N, h, w].
        codebook_loss: mean squared distance of entries and ``pre_quantization``, each pulled to the other, the
            latter with weight 0.25; a scalar.
    """

    mean: Tensor
    pre_quantization: Tensor
    codes: Tensor
    codebook_loss: Tensor

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """The quantized latent: this bottleneck has no noise. [N, c, h, w]."""
        return self.mean

    def under(self, noise: Tensor) -> Tensor:
        """The quantized latent, whatever the noise."""
        return self.mean


LatentDistribution = GaussianLatent | QuantizedLatent


class Autoencoder(nn.Module):
    """Encoder, bottleneck and decoder for square images of one size.

    Args:
        config: architecture and kind of bottleneck.
        image_channels: channels of the images, C.
        image_size: side of the images in pixels.

    Attributes:
        latent_shape: (c, h, w) of a latent.

    Raises:
        ConfigError: ``image_size`` cannot be folded and halved as often as ``config`` says.
    """

    def __init__(self, config: BottleneckConfig, image_channels: int, image_size: int) -> None:
        super().__init__()
        check_kind("config", config, BottleneckConfig, "a cdrl.BottleneckConfig")
        image_channels = whole_number("image_channels", image_channels, least=1)
        image_size = whole_number("image_size", image_size, least=1)
        factor = config.shrinks_by
        if image_size % factor:
            raise ConfigError(
                f"data.image_size={image_size} must be a multiple of {factor}, "
                "by which autoencoder.architecture shrinks the image"
            )
        self.config, self.image_channels, self.image_size = config, image_channels, image_size
        self.fold = config.pixel_unshuffle
        self.latent_shape = (config.latent_channels, image_size // factor, image_size // factor)
        is_kl = config.bottleneck == "kl"
        channels = image_channels * self.fold**2
        z_channels = config.latent_channels if config.z_channels is None else config.z_channels
        shared = {
            "ch": config.channels,
            "out_ch": channels,
            "ch_mult": config.multipliers,
            "num_res_blocks": config.num_blocks,
            "attn_resolutions": config.attention_resolutions,
            "in_channels": channels,
            "resolution": image_size // self.fold,
            "z_channels": z_channels,
        }
        moments = 2 if is_kl else 1  # mean and log-variance, or what is quantized
        self.encoder = Encoder(**shared, double_z=is_kl)
        with contextlib.redirect_stdout(io.StringIO()):  # taming's Decoder prints its latent's shape
            self.decoder = Decoder(**shared)
        self.quant_conv = nn.Conv2d(moments * z_channels, moments * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, z_channels, 1)
        self.quantize: VectorQuantizer2 | None = None
        if not is_kl:
            # legacy=False puts the commitment weight on the encoder's term, as the papers have it.
            self.quantize = VectorQuantizer2(
                config.codebook_size, config.latent_channels, _COMMITMENT, sane_index_shape=True, legacy=False
            )

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> Autoencoder:
        """Open a first stage: a run folder of either stage, or a folder that `save_pretrained` wrote.

        It is in evaluation mode, its weights fixed.

        Raises:
            RunError: there is no first stage, or a file of it is missing or damaged.
            TypeError, ValueError: what was given is no folder, or no device of this machine.
        """
        found = device_of(device)
        return load_autoencoder(find_autoencoder(folder_of("folder", folder))).to(found)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write weights in safetensors, and autoencoder.json, into a folder that `from_pretrained` opens.

        A first stage that lies there is replaced as a whole.

        Raises:
            RunError: the folder holds something else.
        """
        with replaced_model(folder_of("folder", folder), WEIGHTS) as partial:
            save_autoencoder(partial, self)

    @contextlib.contextmanager
    def last_layer_watched(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Within it, one forward pass is watched, of which losses' gradients at the last layer are wanted.

        Yields:
            gradient of a loss at the reconstruction, [N, C, H, W] -> its gradient at the weight of the decoder's last
            convolution. It touches no other part of the graph, and so none of the hooks by which an engine that trains
            the network notices its backward pass.
        """
        last, outputs = self.decoder.conv_out, list[Tensor]()

        def at_last_layer(gradient: Tensor) -> Tensor:
            (output,) = outputs
            folded = F.pixel_unshuffle(gradient, self.fold).to(output.dtype)
            return torch.autograd.grad(output, last.weight, folded, retain_graph=True)[0]

        handle = last.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        try:
            yield at_last_layer
        finally:
            handle.remove()

    def encode(self, images: Tensor) -> LatentDistribution:
        """Latent distribution of ``images`` [N, C, H, W] in [-1, 1].

        Raises:
            TypeError: they are no tensor of floats.
            ValueError: they have other channels, or a side that is no multiple of what the network shrinks it by; or,
                in evaluation mode, they leave [-1, 1] or are not finite.
        """
        check_grids("images", images, (self.image_channels, "H", "W"))
        factor = self.config.shrinks_by
        if images.shape[2] % factor or images.shape[3] % factor:
            raise ValueError(f"images: expected H and W to be multiples of {factor}, found {list(images.shape)}")
        if not self.training:  # where a look at the values, for which a GPU is waited for, costs little beside the rest
            check_image_range(images, rounding=1e-3)
        moments = self.quant_conv(
            self.encoder(F.pixel_unshuffle(images.to(self.quant_conv.weight.dtype), self.fold))
        ).float()
        if self.quantize is not None:
            return self._quantized(moments)
        mean, logvar = moments.chunk(2, dim=1)
        return GaussianLatent(mean, logvar.clamp(-30.0, 20.0))

    def decode(self, latents: Tensor) -> Tensor:
        """Images [N, C, H, W], about [-1, 1] but not clamped, of ``latents`` [N, c, h, w].

        A VQ model replaces each latent vector by the nearest codebook entry first, as latent diffusion does:
        samples of the second stage need not lie on the codebook.

        Raises:
            TypeError: they are no tensor of floats.
            ValueError: they have other channels.
        """
        check_grids("latents", latents, (self.latent_shape[0], "h", "w"))
        if self.quantize is not None:
            latents = self._quantized(latents.float()).mean
        return self._decode(latents.to(self.post_quant_conv.weight.dtype))

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, LatentDistribution]:
        """Reconstruction [N, C, H, W] of ``images`` from one draw of their latents, and the latents' distribution.

        Args:
            noise: standard normal draws, [N, *latent_shape].
        """
        latent = self.encode(images)
        return self._decode(latent.under(noise)), latent

    def _decode(self, latents: Tensor) -> Tensor:
        return F.pixel_shuffle(self.decoder(self.post_quant_conv(latents)), self.fold)

    def _quantized(self, latents: Tensor) -> QuantizedLatent:
        assert self.quantize is not None
        # In bfloat16 the distances would round, and the entry found would often not be the nearest.
        with torch.autocast(latents.device.type, enabled=False):
            quantized, loss, (_, _, codes) = self.quantize(latents)
        return QuantizedLatent(quantized, latents, codes, loss)


class AutoencoderRecord(Record):
    """autoencoder.json; it also tells of the training."""

    format: Literal[1]
    architecture: dict[str, Any]
    image_channels: Literal[1, 3]
    image_size: Annotated[int, Field(ge=1, le=65_536)]


def save_autoencoder(folder: Path, autoencoder: Autoencoder, **facts: Any) -> None:
    """Write weights, what is needed to rebuild the network, and ``facts`` of its training into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors(folder / WEIGHTS, autoencoder.state_dict())
    description = {
        "format": FORMAT,
        "architecture": autoencoder.config.model_dump(mode="json"),
        "image_channels": autoencoder.image_channels,
        "image_size": autoencoder.image_size,
        **facts,
    }
    write_json(folder / DESCRIPTION, description)


def find_autoencoder(folder: Path) -> Path:
    """The folder of the first stage of a run or model folder, or of weights that ship under this name.

    Raises:
        RunError: there is none.
    """
    folder = shipped_or(folder)
    for place in _PLACES:
        if (folder / place / DESCRIPTION).exists():
            return folder / place
    raise RunError(f"{folder}: no trained first stage there; train it with: {program()} train-autoencoder CONFIG")


def load_autoencoder(folder: Path) -> Autoencoder:
    """The autoencoder in evaluation mode, its weights fixed.

    Raises:
        RunError: a file is missing, damaged or of another model.
    """
    verify_checksums(folder)
    path = folder / DESCRIPTION
    record = read_record(path, AutoencoderRecord)
    try:
        architecture = BottleneckConfig.model_validate(record.architecture)
        with torch.device("meta"):
            autoencoder = Autoencoder(architecture, record.image_channels, record.image_size)
    except ValidationError as error:
        raise RunError(f"{path}: architecture: {first_fault(error)}") from None
    except ConfigError as error:
        raise RunError(f"{path}: {error}") from None
    load_weights(autoencoder, folder / WEIGHTS)
    return autoencoder.eval().requires_grad_(False)

"""First stages as others publish them, made from taming's own modules: their answers, and their files."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.vqvae.quantize import VectorQuantizer2
from torch import Tensor, nn

from tests.helpers import scrambled


class Touch:
    """Unpickled the usual way, makes a file: what a hostile checkpoint might hold."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


@dataclass(frozen=True)
class Sizes:
    """The settings of a first stage, by the names that latent diffusion's configuration files have for them."""

    vq: bool = False
    ch: int = 32
    ch_mult: tuple[int, ...] = (1, 1)
    num_res_blocks: int = 1
    attn_resolutions: tuple[int, ...] = ()
    z_channels: int = 3
    embed_dim: int = 3
    n_embed: int = 16
    channels: int = 3
    resolution: int = 16


@dataclass
class Answers:
    """What a published model says of some images, computed step by step from its modules."""

    moments: Tensor
    mean: Tensor
    logvar: Tensor = field(default_factory=lambda: torch.empty(0))
    codes: Tensor = field(default_factory=lambda: torch.empty(0))
    decoded: Tensor = field(default_factory=lambda: torch.empty(0))


def published_model(sizes: Sizes, seed: int = 0) -> Any:
    """A first stage of random weights, put together as latent diffusion does."""
    torch.manual_seed(seed)
    shared: dict[str, Any] = {
        "ch": sizes.ch,
        "out_ch": sizes.channels,
        "ch_mult": sizes.ch_mult,
        "num_res_blocks": sizes.num_res_blocks,
        "attn_resolutions": sizes.attn_resolutions,
        "in_channels": sizes.channels,
        "resolution": sizes.resolution,
        "z_channels": sizes.z_channels,
        "double_z": not sizes.vq,
    }
    model: Any = nn.Module()
    moments = 1 if sizes.vq else 2
    with contextlib.redirect_stdout(io.StringIO()):
        model.encoder, model.decoder = Encoder(**shared), Decoder(**shared)
    model.quant_conv = nn.Conv2d(moments * sizes.z_channels, moments * sizes.embed_dim, 1)
    model.post_quant_conv = nn.Conv2d(sizes.embed_dim, sizes.z_channels, 1)
    if sizes.vq:
        model.quantize = VectorQuantizer2(sizes.n_embed, sizes.embed_dim, beta=0.25)
        nn.init.normal_(model.quantize.embedding.weight)
    return scrambled(model, scale=0.03, seed=seed).eval()


@torch.no_grad()
def answers(model: Any, images: Tensor) -> Answers:
    """The latents and the reconstruction of ``images`` [N, C, H, W]."""
    moments = model.quant_conv(model.encoder(images))
    if hasattr(model, "quantize"):
        entries = model.quantize.embedding.weight
        codes = torch.cdist(moments.permute(0, 2, 3, 1).flatten(1, 2), entries).argmin(dim=-1)
        mean = entries[codes].movedim(-1, 1).reshape(moments.shape)
        return Answers(moments, mean, codes=codes, decoded=model.decoder(model.post_quant_conv(mean)))
    mean, logvar = moments.chunk(2, dim=1)
    logvar = logvar.clamp(-30, 20)
    return Answers(moments, mean, logvar=logvar, decoded=model.decoder(model.post_quant_conv(mean)))


def diffusers_weights(model: Any, *, old_names: bool, dense: bool) -> dict[str, Tensor]:
    """The weights by the names that diffusers gives the same modules, found by walking through them.

    Args:
        old_names: attention as in early releases.
        dense: attention with dense layers in the place of 1x1 convolutions.
    """
    found: dict[str, Tensor] = {}

    def put(name: str, layer: Any) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = layer.weight.detach(), layer.bias.detach()

    def put_block(name: str, block: Any) -> None:
        for part in ("norm1", "conv1", "norm2", "conv2"):
            put(f"{name}.{part}", getattr(block, part))
        if hasattr(block, "nin_shortcut"):
            put(f"{name}.conv_shortcut", block.nin_shortcut)

    def put_attention(name: str, attention: Any) -> None:
        put(f"{name}.group_norm", attention.norm)
        theirs = ("query", "key", "value", "proj_attn") if old_names else ("to_q", "to_k", "to_v", "to_out.0")
        for part, ours in zip(theirs, (attention.q, attention.k, attention.v, attention.proj_out), strict=True):
            put(f"{name}.{part}", ours)
            if dense:
                found[f"{name}.{part}.weight"] = found[f"{name}.{part}.weight"].flatten(1).clone()

    def put_level(name: str, level: Any) -> None:
        for index, block in enumerate(level.block):
            put_block(f"{name}.resnets.{index}", block)
        for index, attention in enumerate(level.attn):
            put_attention(f"{name}.attentions.{index}", attention)

    def put_ends(name: str, network: Any) -> None:
        put(f"{name}.conv_in", network.conv_in)
        put_block(f"{name}.mid_block.resnets.0", network.mid.block_1)
        put_attention(f"{name}.mid_block.attentions.0", network.mid.attn_1)
        put_block(f"{name}.mid_block.resnets.1", network.mid.block_2)
        put(f"{name}.conv_norm_out", network.norm_out)
        put(f"{name}.conv_out", network.conv_out)

    put_ends("encoder", model.encoder)
    for index, level in enumerate(model.encoder.down):
        put_level(f"encoder.down_blocks.{index}", level)
        if hasattr(level, "downsample"):
            put(f"encoder.down_blocks.{index}.downsamplers.0.conv", level.downsample.conv)
    put_ends("decoder", model.decoder)
    for index, level in enumerate(reversed(model.decoder.up)):
        put_level(f"decoder.up_blocks.{index}", level)
        if hasattr(level, "upsample"):
            put(f"decoder.up_blocks.{index}.upsamplers.0.conv", level.upsample.conv)
    put("quant_conv", model.quant_conv)
    put("post_quant_conv", model.post_quant_conv)
    if hasattr(model, "quantize"):
        found["quantize.embedding.weight"] = model.quantize.embedding.weight.detach()
    return found


def write_diffusers(folder: Path, weights: dict[str, Tensor], **settings: Any) -> Path:
    """A diffusers folder; ``settings`` add to its config.json or replace what is there."""
    folder.mkdir()
    config = {"_class_name": "AutoencoderKL", "act_fn": "silu", "norm_num_groups": 32, "scaling_factor": 0.18215}
    (folder / "config.json").write_text(json.dumps(config | settings), encoding="utf-8")
    contiguous = {name: value.contiguous() for name, value in weights.items()}
    save_file(contiguous, folder / "diffusion_pytorch_model.safetensors")
    return folder

"""Import of published first stages: latent diffusion, taming, diffusers.

Two layouts are read. Latent diffusion's and taming's checkpoints name their weights as `Autoencoder` does; around them
lie losses and discriminators (``loss.``), in some a moving average of the weights (``model_ema.``, names without their
dots), which is what they are worth and is taken unless the raw weights are asked for, and in checkpoints of a whole
latent diffusion model everything else: the first stage's names then begin with ``first_stage_model.``. Folders of
diffusers' AutoencoderKL and VQModel hold config.json and renamed weights; their scaling factor is left out, as latents
are standardized by their measured mean and standard deviation.

Sizes are read off the weights. The size of the images is not in them: a convolutional network takes any.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from autoencoder.archives import read_description, read_tensors
from autoencoder.model import Autoencoder
from cdrl.config import BottleneckConfig
from cdrl.runs.run import RunError, load_tensors, read_json

IMAGE_SIZE = 256
"""Side of the images if neither the user nor the checkpoint names one: most published first stages learned this."""

State = dict[str, Tensor]

_FIRST_STAGE = "first_stage_model."
_AVERAGES = "model_ema."
_LOSS = "loss."
_DIFFUSERS_CLASSES = ("AutoencoderKL", "VQModel")
_DIFFUSERS_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
# Patterns that turn diffusers' names, of new and of old releases, into ours; up blocks are counted backwards besides.
_DIFFUSERS_NAMES = {
    r"\bdown_blocks\b": "down",
    r"\bresnets\b": "block",
    r"\battentions\b": "attn",
    r"\bdownsamplers\.0\b": "downsample",
    r"\bupsamplers\.0\b": "upsample",
    r"\bmid_block\.block\.0\b": "mid.block_1",
    r"\bmid_block\.block\.1\b": "mid.block_2",
    r"\bmid_block\.attn\.0\b": "mid.attn_1",
    r"\bconv_norm_out\b": "norm_out",
    r"\bconv_shortcut\b": "nin_shortcut",
    r"\bgroup_norm\b": "norm",
    r"\b(to_q|query)\b": "q",
    r"\b(to_k|key)\b": "k",
    r"\b(to_v|value)\b": "v",
    r"\b(to_out\.0|proj_attn)\b": "proj_out",
}


def load_published_autoencoder(path: Path, *, average: bool = True, image_size: int | None = None) -> Autoencoder:
    """Load the first stage in ``path``, in evaluation mode; no code in the file is executed.

    Args:
        path: a checkpoint of latent diffusion or taming (.ckpt, .pt or .safetensors), or a diffusers folder, which
            may be named by its file of weights.
        average: use the moving average of the weights if the checkpoint has one, instead of the raw weights.
        image_size: side of the images. By default what the checkpoint says in plain form, or else 256.

    Raises:
        RunError: the file is missing, damaged, or of another kind of model; the message names what does not fit.
    """
    folder = path.parent if path.name in _DIFFUSERS_WEIGHTS else path
    weights, stored_size = _read_diffusers(folder) if folder.is_dir() else _read_checkpoint(path, average)
    size = image_size or stored_size or IMAGE_SIZE
    # Attention's 1x1 convolutions are dense layers in some releases.
    dense = re.compile(r"\.attn(_1|\.\d+)\.(q|k|v|proj_out)\.weight$")
    weights = {
        name: (value[:, :, None, None] if value.ndim == 2 and dense.search(name) else value).float()
        for name, value in weights.items()
    }
    try:
        return _fitted(weights, size).eval().requires_grad_(False)
    except ValueError as error:
        raise RunError(f"{path}: {error}") from None


def _read_checkpoint(path: Path, average: bool) -> tuple[State, int | None]:
    """Read the weights of a latent diffusion or taming checkpoint, and its image size if recorded."""
    if path.suffix == ".safetensors":
        return _first_stage(path, load_tensors(path), average), None
    entries = _named(path, read_description(path))
    if "pi_state_dict" in entries:
        raise RunError(f"{path}: a CDRL checkpoint, not a first stage; python run.py import-cdrl reads it")
    state = _named(path, entries.get("state_dict", entries))
    settings: Any = entries
    for name in ("hyper_parameters", "ddconfig", "resolution"):
        settings = settings.get(name) if isinstance(settings, dict) else None
    return read_tensors(path, _first_stage(path, state, average)), settings if isinstance(settings, int) else None


def _named(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise RunError(f"{path}: expected named weights, as checkpoints have them")
    return value


def _first_stage(path: Path, state: Mapping[str, Any], average: bool) -> dict[str, Any]:
    """The encoder's, bottleneck's and decoder's entries of a state dict, whatever they are, by their own names."""
    state = _below(state, _FIRST_STAGE) or state
    averages = _below(state, _AVERAGES)
    weights = {name: value for name, value in state.items() if not name.startswith((_LOSS, _AVERAGES))}
    if not (average and averages):
        return weights
    flat = {name.replace(".", ""): name for name in weights}
    missing = flat.keys() - averages.keys()
    known = {"decay", "num_updates", *flat, *(name for name in averages if name.startswith("loss"))}
    if missing or averages.keys() - known:
        raise RunError(f"{path}: {_AVERAGES[:-1]}: {_lacks_and_holds(missing, averages.keys() - known)}")
    return {name: averages[short] for short, name in flat.items()}


def _below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _read_diffusers(folder: Path) -> tuple[State, int | None]:
    """Weights of a diffusers folder by our names, and the size of its images where it tells."""
    path = folder / "config.json"
    if not path.exists():
        raise RunError(
            f"{folder}: expected config.json and {_DIFFUSERS_WEIGHTS[0]} of a diffusers AutoencoderKL there; "
            "a whole pipeline keeps them in its folder vae"
        )
    config = read_json(path)
    if config.get("_class_name") not in _DIFFUSERS_CLASSES:
        expected = " or ".join(_DIFFUSERS_CLASSES)
        raise RunError(f"{path}: expected a model of class {expected}, found {config.get('_class_name')!r}")
    # Two things that shape the network and leave no trace in its weights.
    for name, known in (("norm_num_groups", (32,)), ("act_fn", ("silu", "swish"))):
        if config.get(name, known[0]) not in known:
            raise RunError(f"{path}: {name!r} is {config[name]!r}, only {known[0]!r} can be imported")
    file = next((folder / name for name in _DIFFUSERS_WEIGHTS if (folder / name).exists()), None)
    if file is None:
        raise RunError(f"{folder}: expected {_DIFFUSERS_WEIGHTS[0]} there")
    pickled = file.suffix != ".safetensors"
    state = read_tensors(file, _named(file, read_description(file))) if pickled else load_tensors(file)
    levels = _count(state, r"decoder\.up_blocks\.(\d+)\.")
    weights = {_renamed(name, levels): value for name, value in state.items()}
    moments = weights.get("encoder.conv_out.bias", torch.empty(0)).numel()
    for name, channels in (("quant_conv", moments), ("post_quant_conv", moments // 2)):
        if config.get(f"use_{name}") is False:
            # A 1x1 convolution that changes nothing stands for the one that is not there.
            weights[f"{name}.weight"] = torch.eye(channels)[:, :, None, None]
            weights[f"{name}.bias"] = torch.zeros(channels)
    size = config.get("sample_size")
    return weights, size if isinstance(size, int) else None


def _renamed(name: str, levels: int) -> str:
    for pattern, ours in _DIFFUSERS_NAMES.items():
        name = re.sub(pattern, ours, name)
    return re.sub(r"\bup_blocks\.(\d+)\b", lambda match: f"up.{levels - 1 - int(match[1])}", name)


def _fitted(weights: State, size: int) -> Autoencoder:
    """Build an autoencoder of the sizes found in ``weights``, and load them.

    Raises:
        ValueError: they are not those of a first stage, or the image size does not fit them.
    """
    config, image_channels = _sizes(weights, size)
    if image_channels not in (1, 3):
        raise ValueError(f"a first stage of images with {image_channels} channels, only 1 or 3 can be imported")
    factor = 2 ** (len(config.multipliers) - 1)
    if size % factor:
        raise ValueError(f"shrinks images by {factor}: the image size {size} must be a multiple of it")
    autoencoder = Autoencoder(config, image_channels, size)
    expected = autoencoder.state_dict()
    if weights.keys() != expected.keys():
        raise ValueError(_lacks_and_holds(expected.keys() - weights.keys(), weights.keys() - expected.keys()))
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            raise ValueError(f"{name!r} is {list(value.shape)}, expected {list(expected[name].shape)}")
    autoencoder.load_state_dict(weights)
    return autoencoder


def _sizes(weights: State, size: int) -> tuple[BottleneckConfig, int]:
    """Infer the architecture and the number of image channels from the weights."""

    def shape(name: str) -> tuple[int, int]:
        if name not in weights:
            raise ValueError(_lacks_and_holds({name}, set()))
        if weights[name].ndim < 2 or not weights[name].numel():
            raise ValueError(f"{name!r} is {list(weights[name].shape)}, expected a layer's weight")
        return weights[name].shape[0], weights[name].shape[1]

    channels, image_channels = shape("encoder.conv_in.weight")
    levels = range(max(1, _count(weights, r"encoder\.down\.(\d+)\.block\.")))
    widths = [shape(f"encoder.down.{level}.block.0.conv1.weight")[0] for level in levels]
    if any(width % channels for width in widths):
        raise ValueError(f"its levels are {widths} channels wide, expected multiples of the first layer's {channels}")
    z_channels, latent_channels = shape("post_quant_conv.weight")
    values = {
        "bottleneck": "kl",
        "channels": channels,
        "multipliers": [width // channels for width in widths],
        "num_blocks": _count(weights, r"encoder\.down\.0\.block\.(\d+)\."),
        "attention_resolutions": [size // 2**at for at in levels if _count(weights, rf"encoder\.down\.({at})\.attn\.")],
        "latent_channels": latent_channels,
        "z_channels": None if z_channels == latent_channels else z_channels,
    }
    if any(name.startswith("quantize.") for name in weights):
        values |= {"bottleneck": "vq", "codebook_size": shape("quantize.embedding.weight")[0]}
    try:
        return BottleneckConfig.model_validate(values), image_channels
    except ValidationError as error:
        (item, *_) = error.errors()
        raise ValueError(f"has {item['loc'][0]}={item['input']}, which cannot be imported: {item['msg']}") from None


def _count(names: Iterable[str], pattern: str) -> int:
    """Count the different values that the group in ``pattern`` takes."""
    return len({match[1] for name in names if (match := re.match(pattern, name))})


def _lacks_and_holds(missing: Set[str], unexpected: Set[str]) -> str:
    """Describe missing and unexpected names, giving the first of each."""

    def some(names: Set[str]) -> str:
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return ", ".join(f"{name!r}" for name in sorted(names)[:4]) + more

    parts = [f"{verb} {some(names)}" for verb, names in (("lacks", missing), ("also holds", unexpected)) if names]
    return f"not a first stage that can be imported: it {' and '.join(parts)}"

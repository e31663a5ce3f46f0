"""Import of published first stages: latent diffusion, taming, diffusers.

Two layouts are read. Latent diffusion's and taming's checkpoints name their weights as `Autoencoder` does; around them
lie losses and discriminators (``loss.``), in some a moving average of the weights (``model_ema.``, names without their
dots), which is what they are worth and is taken unless the raw weights are asked for, and in checkpoints of a whole
latent diffusion model everything else: the first stage's names then begin with ``first_stage_model.``, as others begin
with ``module.``, ``_orig_mod.`` or ``vae.``. Folders of diffusers' AutoencoderKL and VQModel hold config.json and
renamed weights, in one file or in shards, or a variant such as fp16 alone; their scaling factor is left out, as latents
are standardized by their measured mean and standard deviation.

Sizes are read off the weights. The size of the images is not in them: a convolutional network takes any.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from autoencoder.model import Autoencoder
from cdrl.config import BottleneckConfig
from cdrl.installation import program
from cdrl.runs.archives import check_finite, check_is_there, read_description, read_tensors
from cdrl.runs.records import Record, read_record
from cdrl.runs.run import RunError, load_tensors, read_json

IMAGE_SIZE = 256
"""Side of the images if neither the user nor the checkpoint names one: most published first stages learned this."""

State = dict[str, Tensor]

_FIRST_WEIGHT = "encoder.conv_in.weight"
_AVERAGES = "model_ema."
_LOSS = "loss."
_DIFFUSERS_CLASSES = ("AutoencoderKL", "VQModel")
_DIFFUSERS_STEM = "diffusion_pytorch_model"
_DIFFUSERS_ENDS = (".safetensors", ".bin")
_INDEX_END = ".index.json"
_MOST_CHANNELS = 2048
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
    if not path.exists():
        raise RunError(f"{path}: no such file")
    if path.is_dir():
        weights, stored_size = _read_diffusers(_diffusers_folder(path), None)
    elif _is_of_diffusers(path):
        weights, stored_size = _read_diffusers(path.parent, path)
    else:
        weights, stored_size = _read_checkpoint(path, average)
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
        return _floats(path, _first_stage(path, _load_safetensors(path), average)), None
    entries = _named(path, read_description(path))
    if "pi_state_dict" in entries:
        raise RunError(f"{path}: a CDRL checkpoint, not a first stage; {program()} import-cdrl reads it")
    settings: Any = entries
    for name in ("hyper_parameters", "ddconfig", "resolution"):
        settings = settings.get(name) if isinstance(settings, dict) else None
    return read_tensors(path, _first_stage(path, _state_dict(path, entries), average)), _side(settings)


def _load_safetensors(path: Path) -> State:
    check_is_there(path)
    return load_tensors(path)


def _floats(path: Path, tensors: Mapping[str, Any]) -> State:
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise RunError(f"{path}: {name!r} is not a tensor of floating-point numbers")
    check_finite(path, tensors)
    return dict(tensors)


def _side(value: Any) -> int | None:
    """A side of images that a file tells, if it is one."""
    return value if type(value) is int and 0 < value <= 65_536 else None


def _named(path: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise RunError(
            f"{path}: expected named weights, as checkpoints have them; of a whole module save module.state_dict()"
        )
    return value


def _state_dict(path: Path, entries: dict[str, Any]) -> dict[str, Any]:
    """The named weights among the entries of a file: its state_dict, or all of it."""
    if "state_dict" in entries:
        return _named(path, entries["state_dict"])
    sets = sorted(name for name, value in entries.items() if isinstance(value, dict) and _prefixes(value))
    if sets:
        raise RunError(
            f"{path}: holds first stages under {', '.join(map(repr, sets))}, expected one under 'state_dict' or the "
            "weights alone: save the entry that is meant in a file of its own"
        )
    return _named(path, entries)


def _prefixes(state: Mapping[Any, Any]) -> list[str]:
    """What stands before the names of a first stage's weights, such as ``module.``; more than one for several."""
    names = (name for name in state if isinstance(name, str) and not name.startswith((_LOSS, _AVERAGES)))
    found = [name.removesuffix(_FIRST_WEIGHT) for name in names if name.endswith(_FIRST_WEIGHT)]
    return sorted(prefix for prefix in found if not prefix or prefix.endswith("."))


def _first_stage(path: Path, state: Mapping[str, Any], average: bool) -> dict[str, Any]:
    """The encoder's, bottleneck's and decoder's entries of a state dict, whatever they are, by their own names."""
    prefixes = _prefixes(state)
    if len(prefixes) > 1:
        known = ", ".join(repr(prefix) for prefix in prefixes)
        raise RunError(f"{path}: holds several first stages, under the prefixes {known}: save one in a file of its own")
    if not prefixes:
        found = ", ".join(repr(name[:60]) for name in sorted(state)[:3]) or "none"
        raise RunError(
            f"{path}: not a first stage that can be imported: it lacks {_FIRST_WEIGHT!r}; its {len(state)} entries "
            f"begin with {found}"
        )
    state = _below(state, prefixes[0])
    averages = _below(state, _AVERAGES)
    weights = {name: value for name, value in state.items() if not name.startswith((_LOSS, _AVERAGES))}
    if not (average and averages):
        return weights
    flat = {name.replace(".", ""): name for name in weights}
    missing = flat.keys() - averages.keys()
    known_averages = {"decay", "num_updates", *flat, *(name for name in averages if name.startswith("loss"))}
    if missing or averages.keys() - known_averages:
        raise RunError(f"{path}: {_AVERAGES[:-1]}: {_lacks_and_holds(missing, averages.keys() - known_averages)}")
    return {name: averages[short] for short, name in flat.items()}


def _below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _is_of_diffusers(path: Path) -> bool:
    """Whether a file is one of diffusers' weights, which need the config.json beside them."""
    return path.name.startswith(f"{_DIFFUSERS_STEM}.") and path.name.endswith((*_DIFFUSERS_ENDS, _INDEX_END))


def _diffusers_folder(folder: Path) -> Path:
    """The folder itself, or that of the first stage in the folder of a whole pipeline."""
    whole = not (folder / "config.json").exists() and (folder / "vae" / "config.json").exists()
    return folder / "vae" if whole else folder


def _diffusers_file(folder: Path) -> Path:
    """The weights in a diffusers folder: the plain ones, whole or in shards, or the one variant that is there."""
    plain = [f"{_DIFFUSERS_STEM}{end}{index}" for index in ("", _INDEX_END) for end in _DIFFUSERS_ENDS]
    for name in plain:
        if (folder / name).exists():
            return folder / name
    shard = re.compile(r"-\d+-of-\d+\.")
    there = sorted(file for file in folder.glob(f"{_DIFFUSERS_STEM}.*") if _is_of_diffusers(file))
    there = [file for file in there if not shard.search(file.name)]
    # Of a variant in both forms the one that needs no pickle is taken.
    safe = [file for file in there if ".safetensors" in file.name]
    if len(safe or there) == 1:
        return (safe or there)[0]
    if there:
        names = ", ".join(file.name for file in there)
        raise RunError(f"{folder}: holds several variants of the weights ({names}): name one of these files")
    found = ", ".join(sorted(file.name for file in folder.iterdir())[:5]) or "nothing"
    raise RunError(f"{folder}: expected {plain[0]} there, or a variant of it; found {found}")


class _ShardIndex(Record):
    """Which file holds which of the weights that are in several."""

    weight_map: dict[str, Annotated[str, Field(pattern=r"^[^/\\]+$", max_length=255)]]


def _load_diffusers(file: Path) -> State:
    if file.name.endswith(_INDEX_END):
        weight_map = read_record(file, _ShardIndex).weight_map
        shards = {name: _load_diffusers(file.parent / name) for name in sorted(set(weight_map.values()))}
        for name, shard in weight_map.items():
            if name not in shards[shard]:
                raise RunError(f"{file.parent / shard}: lacks {name!r}, which {file.name} says is in it")
        return {name: shards[shard][name] for name, shard in weight_map.items()}
    if file.suffix == ".safetensors":
        return _floats(file, _load_safetensors(file))
    return read_tensors(file, _named(file, read_description(file)))


def _read_diffusers(folder: Path, file: Path | None) -> tuple[State, int | None]:
    """Weights of a diffusers folder by our names, and the size of its images where it tells."""
    path = folder / "config.json"
    if not path.exists():
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
        raise RunError(
            f"{folder}: expected config.json and {_DIFFUSERS_STEM}.safetensors of a diffusers AutoencoderKL there; "
            f"a whole pipeline keeps them in its folder vae; found {found}"
        )
    config = read_json(path)
    if config.get("_class_name") not in _DIFFUSERS_CLASSES:
        expected = " or ".join(_DIFFUSERS_CLASSES)
        raise RunError(f"{path}: expected a model of class {expected}, found {repr(config.get('_class_name'))[:60]}")
    # Two things that shape the network and leave no trace in its weights.
    for name, known in (("norm_num_groups", (32,)), ("act_fn", ("silu", "swish"))):
        if config.get(name, known[0]) not in known:
            raise RunError(f"{path}: {name!r} is {repr(config[name])[:60]}, only {known[0]!r} can be imported")
    state = _load_diffusers(file or _diffusers_file(folder))
    levels = _count(state, r"decoder\.up_blocks\.(\d+)\.")
    weights = {_renamed(name, levels): value for name, value in state.items()}
    moments = weights.get("encoder.conv_out.bias", torch.empty(0)).numel()
    for name, channels in (("quant_conv", moments), ("post_quant_conv", moments // 2)):
        if config.get(f"use_{name}") is False and channels <= _MOST_CHANNELS:
            # A 1x1 convolution that changes nothing stands for the one that is not there.
            weights[f"{name}.weight"] = torch.eye(channels)[:, :, None, None]
            weights[f"{name}.bias"] = torch.zeros(channels)
    return weights, _side(config.get("sample_size"))


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
    # Without memory, until the weights are found to be those of this network.
    with torch.device("meta"):
        autoencoder = Autoencoder(config, image_channels, size)
    expected = autoencoder.state_dict()
    if weights.keys() != expected.keys():
        raise ValueError(_lacks_and_holds(expected.keys() - weights.keys(), weights.keys() - expected.keys()))
    for name, value in weights.items():
        if value.shape != expected[name].shape:
            raise ValueError(f"{name!r} is {list(value.shape)}, expected {list(expected[name].shape)}")
    autoencoder.to_empty(device="cpu").load_state_dict(weights)
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

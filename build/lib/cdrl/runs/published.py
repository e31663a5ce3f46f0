"""Checkpoints in the format of the paper's authors, turned into models of ours.

Their file holds, for the energy (``pi``) and the initializer (``p``), a state dict of a wrapped module (keys begin with
``module.``), spectral norm in torch's old form (``weight_orig``, ``weight_u``, ``weight_v``), and the state of
torch_ema: averaged parameters in parameter order. Buffers are not averaged: averaged weights go with the raw vectors.
Shapes, depths and classes are read off the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cdrl.config import Config
from cdrl.config_files import parse_config
from cdrl.model import CDRL
from cdrl.runs.archives import StoredTensor, read_description, read_tensors
from cdrl.runs.run import RunError

State = dict[str, StoredTensor | Tensor]
"""Weights by name, still in their file; of old files, which cannot leave them there, in memory."""

_BUFFERS = (".weight_u", ".weight_v")
_ENERGY_NAMES = {
    "temb_map1": "embed1",
    "temb_map2": "embed2",
    "y_map": "classes",
    "temb_final": "head",
    "module_list.0": "stem",
}
_ENERGY_PARTS = {
    "conv1": "layer1",
    "conv2": "layer2",
    "temb_map": "condition",
    "short_cut": "shortcut",
    "weight_orig": "weight",
    "weight_u": "left",
    "weight_v": "right",
    "g": "gain",
}
_INITIALIZER_NAMES = {
    "init_conv": "stem",
    "time_mlp.1": "embedding.dense1",
    "time_mlp.3": "embedding.dense2",
    "y_mlp.0": "embedding.classes",
    "mid_block1": "middle1",
    "mid_attn": "middle_attention",
    "mid_block2": "middle2",
    "final_conv": "out",
    "norm": "norm",
}
_INITIALIZER_PARTS = {"mlp": "condition", "res_conv": "shortcut", "to_qkv": "qkv", "to_out": "out"}


@dataclass(frozen=True)
class PublishedModel:
    """A converted checkpoint: the model with its weights, and the configuration it amounts to."""

    model: CDRL
    config: Config


def load_published(path: Path, *, average: bool = True, image_size: int | None = None) -> PublishedModel:
    """Read a checkpoint of the authors' format; nothing in it is executed.

    Args:
        average: take the averaged (EMA) weights, or the raw ones.
        image_size: side of the images. By default it is read off the resolution at which attention begins, which
            the authors place at 16.

    Raises:
        RunError: the file is missing, damaged, or not of this format.
    """
    checkpoint = _read(path)
    try:
        energy = _weights(checkpoint, "pi", average)
        initializer = _weights(checkpoint, "p", average)
        layout = _EnergyLayout.of(energy)
        unet = _UNetLayout.of(initializer)
        size = image_size or 16 * 2**unet.first_attention
        config = _config(layout, unet, size)
        model = CDRL.without_weights(config, (layout.image_channels, size, size), layout.num_classes)
        assert model.initializer is not None
        found = (_renamed_energy(energy, layout), _renamed_initializer(initializer, unet))
        for network, renamed in zip((model.energy, model.initializer), found, strict=True):
            _check_fit(network, renamed)
    except ValueError as error:
        raise RunError(
            f"{path}: not a CDRL checkpoint of the authors' format ({' '.join(str(error).split())[:300]})"
        ) from None
    for network, renamed in zip((model.energy, model.initializer), found, strict=True):
        tensors = read_tensors(path, renamed)
        network.to_empty(device="cpu")
        shapes = network.state_dict()
        network.load_state_dict({name: value.reshape(shapes[name].shape) for name, value in tensors.items()})
    return PublishedModel(model.eval().requires_grad_(False), config)


def _read(path: Path) -> dict[str, Any]:
    checkpoint = read_description(path)
    if not isinstance(checkpoint, dict) or not {"pi_state_dict", "p_state_dict"} <= checkpoint.keys():
        raise RunError(f"{path}: expected entries pi_state_dict and p_state_dict, as the authors' checkpoints have")
    return checkpoint


def _weights(checkpoint: dict[str, Any], network: str, average: bool) -> State:
    """A network's entries by name: tensors all, of sizes that are none of them 0."""
    entries = checkpoint[f"{network}_state_dict"]
    if not isinstance(entries, dict):
        raise ValueError(f"{network}_state_dict: expected named weights")
    state: State = {}
    for name, value in entries.items():
        if not isinstance(name, str):
            raise ValueError(f"{network}_state_dict: expected the names of weights, found {type(name).__name__}")
        state[name.removeprefix("module.")] = _tensor(value, f"{network}: '{name[:80]}'")
    if not average:
        return state
    names = [name for name in state if not name.endswith(_BUFFERS)]
    averages = checkpoint.get(f"{network}_ema_state_dict")
    averages = averages.get("shadow_params") if isinstance(averages, dict) else None
    if not isinstance(averages, list):
        raise ValueError(f"{network}_ema_state_dict: expected a list 'shadow_params'; the raw weights need none: --raw")
    if len(names) != len(averages):
        raise ValueError(f"{network}: {len(averages)} averaged parameters for {len(names)} parameters")
    for name, value in zip(names, averages, strict=True):
        shape = _tensor(value, f"{network}: the averaged '{name[:80]}'").shape
        if shape != state[name].shape:
            raise ValueError(f"{network}: the averaged '{name}' is {list(shape)}, not {list(state[name].shape)}")
        state[name] = value
    return state


def _tensor(value: Any, name: str) -> StoredTensor | Tensor:
    if not isinstance(value, StoredTensor | Tensor) or not value.dtype.is_floating_point or 0 in value.shape:
        raise ValueError(f"{name} is not a tensor of floating-point numbers")
    return value


def _check_fit(network: nn.Module, found: State) -> None:
    """Make sure that the entries are a network's weights. Raises ValueError naming the first that is not."""
    expected = network.state_dict()
    for name in sorted(expected.keys() | found.keys()):
        if name not in found or name not in expected:
            raise ValueError(f"it {'lacks' if name in expected else 'also holds'} what is '{name[:80]}' here")
        shape = found[name].shape
        # The gains have dimensions of 1 around them there.
        if [side for side in shape if side != 1] != [side for side in expected[name].shape if side != 1]:
            raise ValueError(f"'{name}' is {list(shape)}, expected {list(expected[name].shape)}")


def _sizes(state: State, name: str) -> tuple[int, int]:
    """Outputs and inputs of a layer."""
    if name not in state:
        raise ValueError(f"it lacks '{name}'")
    if len(state[name].shape) < 2:
        raise ValueError(f"'{name}' is {list(state[name].shape)}, expected a layer's weight")
    return state[name].shape[0], state[name].shape[1]


@dataclass(frozen=True)
class _EnergyLayout:
    image_channels: int
    channels: int
    num_classes: int
    stages: list[list[int]]
    """Positions of the residual blocks in the authors' list, a list a resolution; pooling stands in the gaps."""
    widths: list[int]

    @classmethod
    def of(cls, state: State) -> _EnergyLayout:
        channels, image_channels = _sizes(state, "module_list.0.weight_orig")
        positions = sorted({int(m[1]) for name in state if (m := re.match(r"module_list\.(\d+)\.conv1\.", name))})
        stages: list[list[int]] = []
        for position in positions:
            if not stages or position != stages[-1][-1] + 1:
                stages.append([])
            stages[-1].append(position)
        if len({len(stage) for stage in stages}) != 1:
            raise ValueError("the energy has no resolutions, or they differ in depth")
        classes = _sizes(state, "y_map.weight_orig")[1] - 1 if "y_map.weight_orig" in state else 0
        widths = [_sizes(state, f"module_list.{stage[-1]}.conv2.weight_orig")[0] for stage in stages]
        return cls(image_channels, channels, classes, stages, widths)


@dataclass(frozen=True)
class _UNetLayout:
    channels: int
    widths: list[int]
    num_blocks: int
    first_attention: int
    """The first level with attention."""
    attention: list[bool]
    conditional: bool

    @classmethod
    def of(cls, state: State) -> _UNetLayout:
        levels = len({m[1] for name in state if (m := re.match(r"downs\.(\d+)\.", name))})
        if not 1 <= levels <= 12:
            raise ValueError(f"the initializer has {levels} resolutions, expected 1 to 12")
        attention = [bool(_positions(state, f"downs.{level}", "to_qkv")) for level in range(levels)]
        blocks = [len(_positions(state, f"downs.{level}", "norm1")) for level in range(levels)]
        if any(count - 1 != blocks[-1] for count in blocks[:-1]) or not blocks[-1]:
            raise ValueError("the initializer's resolutions differ in depth")
        if True not in attention:
            raise ValueError("the initializer has no attention")
        firsts = [_positions(state, f"downs.{level}", "norm1")[0] for level in range(levels)]
        widths = [_sizes(state, f"downs.{level}.{first}.conv1.weight")[0] for level, first in enumerate(firsts)]
        return cls(
            channels=_sizes(state, "init_conv.weight")[0],
            widths=widths,
            num_blocks=blocks[-1],
            first_attention=attention.index(True),
            attention=attention,
            conditional="y_mlp.0.weight" in state,
        )


def _positions(state: State, level: str, part: str) -> list[int]:
    pattern = re.compile(rf"{re.escape(level)}\.(\d+)\.{part}\.")
    return sorted({int(m[1]) for name in state if (m := pattern.match(name))})


def _config(energy: _EnergyLayout, unet: _UNetLayout, size: int) -> Config:
    values = {
        "space": "pixel",
        "data": {
            "name": "folder",
            "path": "data/images",
            "image_size": size,
            "channels": energy.image_channels,
            "labels": "class" if energy.num_classes else "none",
        },
        "energy": {
            "channels": energy.channels,
            "multipliers": [width // energy.channels for width in energy.widths],
            "num_blocks": len(energy.stages[0]),
        },
        "initializer": {
            "channels": unet.channels,
            "multipliers": [width // unet.channels for width in unet.widths],
            "num_blocks": unet.num_blocks,
            "attention_resolutions": [size // 2**level for level, has in enumerate(unet.attention) if has],
            "conditional": unet.conditional,
        },
    }
    return parse_config(values, source="the checkpoint")


def _renamed_energy(state: State, layout: _EnergyLayout) -> State:
    names = dict(_ENERGY_NAMES)
    for index, stage in enumerate(layout.stages):
        names |= {f"module_list.{position}": f"stages.{index}.{block}" for block, position in enumerate(stage)}
    renamed: State = {}
    for name, value in state.items():
        head, tail = _split(name, names)
        parts = [_ENERGY_PARTS.get(part, part) for part in tail.split(".")]
        renamed[".".join([head, *parts])] = value
    return renamed


def _renamed_initializer(state: State, layout: _UNetLayout) -> State:
    names = dict(_INITIALIZER_NAMES)
    levels = len(layout.widths)
    for way, theirs, count in (("down", "downs", layout.num_blocks), ("up", "ups", layout.num_blocks + 1)):
        for level in range(levels):
            blocks = _positions(state, f"{theirs}.{level}", "norm1")
            for index, position in enumerate(blocks):
                place = f"blocks.{index}" if index < count else "resample"
                names[f"{theirs}.{level}.{position}"] = f"{way}.{level}.{place}"
            for index, position in enumerate(_positions(state, f"{theirs}.{level}", "to_qkv")):
                names[f"{theirs}.{level}.{position}"] = f"{way}.{level}.attentions.{index}"
    renamed: State = {}
    for name, value in state.items():
        head, tail = _split(name, names)
        parts = [_INITIALIZER_PARTS.get(part, part) for part in tail.split(".")]
        renamed[".".join([head, *(part for part in parts if part != "1")])] = value
    return renamed


def _split(name: str, names: dict[str, str]) -> tuple[str, str]:
    """The renamed head of a key and its tail; the longest known head counts."""
    pieces = name.split(".")
    for length in range(len(pieces) - 1, 0, -1):
        head = ".".join(pieces[:length])
        if head in names:
            return names[head], ".".join(pieces[length:])
    raise ValueError(f"it holds an unknown weight '{name[:80]}'")

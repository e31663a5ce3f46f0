"""The authors' reference: their checkpoint's names turned into ours, and what their code answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from cdrl.config import parse_config
from cdrl.model import CDRL
from tests.helpers import FIXTURES

NUM_CLASSES = {"uncond": 0, "cond": 10}
SHAPE = (3, 16, 16)

_ENERGY = {
    "temb_map1.": "embed1.",
    "temb_map2.": "embed2.",
    "y_map.": "classes.",
    "temb_final.": "head.",
    "module_list.0.": "stem.",
    "module_list.1.": "stages.0.0.",
    "module_list.3.": "stages.1.0.",
    "module_list.5.": "stages.2.0.",
}
_ENERGY_LAYER = {
    "conv1": "layer1",
    "conv2": "layer2",
    "temb_map": "condition",
    "short_cut": "shortcut",
    "weight_orig": "weight",
    "weight_u": "left",
    "weight_v": "right",
}
_INITIALIZER = {
    "init_conv": "stem",
    "time_mlp.1": "embedding.dense1",
    "time_mlp.3": "embedding.dense2",
    "y_mlp.0": "embedding.classes",
    "final_conv": "out",
    "mid_block1": "middle1",
    "mid_block2": "middle2",
    "mid_attn": "middle_attention",
    "mlp.1": "condition",
    "res_conv": "shortcut",
    "to_qkv": "qkv",
    "to_out": "out",
}


def energy_name(theirs: str) -> str:
    """Our name of a tensor of their energy."""
    name = theirs.removeprefix("module.")
    for old, new in _ENERGY.items():
        if name.startswith(old):
            name = new + name.removeprefix(old)
            break
    for old, new in _ENERGY_LAYER.items():
        name = name.replace(old, new)
    return f"{name.removesuffix('.g')}.gain" if name.endswith(".g") else name


def initializer_name(theirs: str) -> str:
    """Our name of a tensor of their initializer; their ways down and up hold 1 and 2 blocks a resolution."""
    name = theirs.removeprefix("module.")
    for old, new in _INITIALIZER.items():
        name = name.replace(old, new)
    way, *rest = name.split(".")
    if way not in ("downs", "ups"):
        return name
    blocks = {"downs": 1, "ups": 2}[way]
    level, index, *tensor = rest
    kind = "resample" if int(index) >= 2 * blocks else ("blocks", "attentions")[int(index) % 2] + f".{int(index) // 2}"
    return ".".join([way.removesuffix("s"), level, kind, *tensor])


def reference_model(condition: str, weights: str = "raw") -> CDRL:
    """Our model under their ``raw`` or ``ema`` weights; ``condition`` is ``uncond`` or ``cond``."""
    checkpoint = torch.load(FIXTURES / f"official_{condition}_tiny.pth.tar", weights_only=True)
    config = parse_config(
        {
            "space": "pixel",
            "data": {"name": "digits"},
            "energy": {"channels": 16, "multipliers": [1, 2, 2], "num_blocks": 1},
            "initializer": {"channels": 32, "multipliers": [1, 1], "num_blocks": 1},
        },
        source="reference",
    )
    model = CDRL.from_config(config, SHAPE, NUM_CLASSES[condition])
    for network, ours, prefix in ((model.energy, energy_name, "pi"), (model.initializer, initializer_name, "p")):
        theirs: dict[str, Tensor] = dict(checkpoint[f"{prefix}_state_dict"])
        if weights == "ema":
            # torch_ema keeps the parameters in their order; u and v are not averaged.
            names = [name for name in theirs if not name.endswith(("weight_u", "weight_v"))]
            theirs.update(zip(names, checkpoint[f"{prefix}_ema_state_dict"]["shadow_params"], strict=True))
        shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
        network.load_state_dict({ours(name): tensor.reshape(shapes[ours(name)]) for name, tensor in theirs.items()})
    return model.eval()


def reference_answers(condition: str, weights: str = "raw") -> dict[str, Any]:
    """What their code answers, as tensors; class ids are ours (-1 for null)."""
    with np.load(FIXTURES / f"official_{condition}_tiny.npz") as file:
        answers = {
            name.removeprefix(f"{weights}_"): torch.tensor(file[name])
            for name in file.files
            if name.startswith(f"{weights}_")
        }
    return {name: tensor - 1 if "label" in name else tensor for name, tensor in answers.items()}

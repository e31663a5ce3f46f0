"""Checkpoints in the authors' format: their sizes, and files that are none. Their numbers: see test_reference."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cdrl.config_files import load_config
from cdrl.model import CDRL
from cdrl.runs.published import load_published
from cdrl.runs.run import RunError

FIXTURES = Path(__file__).parents[2] / "fixtures"
CONFIGS = Path(__file__).parents[3] / "configs"


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.pth.tar"
    path.write_bytes((FIXTURES / "official_uncond_tiny.pth.tar").read_bytes()[:5000])
    with pytest.raises(RunError, match=r"broken\.pth\.tar"):
        load_published(path)
    with pytest.raises(RunError, match="no such file"):
        load_published(tmp_path / "missing.pth.tar")


def test_a_pickle_that_names_foreign_classes_is_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "hostile.pth.tar"
    torch.save({"pi_state_dict": Path("/"), "p_state_dict": {}}, path)
    with pytest.raises(RunError, match="pi_state_dict: expected named weights"):
        load_published(path)


def as_published(model: CDRL) -> dict[str, Any]:
    """A checkpoint as the authors' training writes it, of our model; the average is the raw weights times 1.01."""
    energy, unet = _authors_energy(model.energy), _authors_unet(model.initializer)
    checkpoint: dict[str, Any] = {}
    for name, weights in (("pi", energy), ("p", unet)):
        checkpoint[f"{name}_state_dict"] = {f"module.{key}": value.clone() for key, value in weights.items()}
        averages = [1.01 * value for key, value in weights.items() if not key.endswith(("weight_u", "weight_v"))]
        checkpoint[f"{name}_ema_state_dict"] = {"decay": 0.9999, "num_updates": 7, "shadow_params": averages}
    return checkpoint


def _spectral(name: str, layer: Any) -> dict[str, Tensor]:
    return {
        f"{name}.bias": layer.bias,
        f"{name}.weight_orig": layer.weight,
        f"{name}.weight_u": layer.left,
        f"{name}.weight_v": layer.right,
    }


def _plain(name: str, layer: Any) -> dict[str, Tensor]:
    return {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}


def _authors_energy(energy: Any) -> dict[str, Tensor]:
    weights = _spectral("temb_map1", energy.embed1) | _spectral("temb_map2", energy.embed2)
    if energy.classes is not None:
        weights |= _spectral("y_map", energy.classes)
    weights |= _spectral("module_list.0", energy.stem)
    position = 1
    for stage in energy.stages:
        for block in stage:
            name = f"module_list.{position}"
            weights |= {f"{name}.g": block.gain.reshape(1, -1, 1, 1)}
            weights |= _spectral(f"{name}.conv1", block.layer1) | _spectral(f"{name}.conv2", block.layer2)
            weights |= _spectral(f"{name}.temb_map", block.condition)
            if block.shortcut is not None:
                weights |= _spectral(f"{name}.short_cut", block.shortcut)
            position += 1
        position += 1  # the pooling, which has no weights
    return weights | {"temb_final.weight": energy.head.weight}


def _authors_unet(unet: Any) -> dict[str, Tensor]:
    weights = _plain("init_conv", unet.stem)
    weights |= _plain("time_mlp.1", unet.embedding.dense1) | _plain("time_mlp.3", unet.embedding.dense2)
    if unet.embedding.classes is not None:
        weights |= _plain("y_mlp.0", unet.embedding.classes)
    for ways, resolutions in (("downs", unet.down), ("ups", unet.up)):
        for level, resolution in enumerate(resolutions):
            position = 0
            for index, block in enumerate(resolution.blocks):
                weights |= _authors_block(f"{ways}.{level}.{position}", block)
                position += 1
                if resolution.attentions is not None:
                    weights |= _authors_attention(f"{ways}.{level}.{position}", resolution.attentions[index])
                    position += 1
            if resolution.resample is not None:
                weights |= _authors_block(f"{ways}.{level}.{position}", resolution.resample)
    weights |= _authors_block("mid_block1", unet.middle1) | _authors_attention("mid_attn", unet.middle_attention)
    weights |= _authors_block("mid_block2", unet.middle2)
    return weights | _plain("norm", unet.norm) | _plain("final_conv", unet.out)


def _authors_block(name: str, block: Any) -> dict[str, Tensor]:
    parts = {"norm1": block.norm1, "norm2": block.norm2, "conv1": block.conv1, "conv2": block.conv2}
    if isinstance(block.shortcut, torch.nn.Conv2d):
        parts["res_conv"] = block.shortcut
    parts["mlp.1"] = block.condition
    return {key: value for part, layer in parts.items() for key, value in _plain(f"{name}.{part}", layer).items()}


def _authors_attention(name: str, block: Any) -> dict[str, Tensor]:
    return (
        _plain(f"{name}.norm", block.norm) | _plain(f"{name}.to_qkv", block.qkv) | _plain(f"{name}.to_out", block.out)
    )


SIZES: dict[str, tuple[tuple[int, int, int], int, list[str]]] = {
    # shape, classes, network settings
    "32x32, attention at 16 and 8, three blocks": (
        (3, 32, 32), 0,
        ["energy.channels=16", "energy.num_blocks=3", "energy.multipliers=[1,2,2,2]",
         "initializer.channels=32", "initializer.num_blocks=3", "initializer.multipliers=[1,1,1]"],
    ),
    "a hundred classes, wider levels, gray": (
        (1, 32, 32), 100,
        ["energy.channels=8", "energy.num_blocks=2", "energy.multipliers=[1,2]",
         "initializer.channels=32", "initializer.num_blocks=2", "initializer.multipliers=[1,2,2]"],
    ),
    "64x64, four resolutions": (
        (3, 64, 64), 5,
        ["energy.channels=8", "energy.num_blocks=1", "energy.multipliers=[1,1,2,2,4]",
         "initializer.channels=32", "initializer.num_blocks=1", "initializer.multipliers=[1,1,1,1]"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("name", SIZES)
def test_sizes_are_read_off_the_file(tmp_path: Path, name: str, weights: str) -> None:
    shape, classes, settings = SIZES[name]
    config = load_config(CONFIGS / "cifar10.yaml", settings)
    torch.manual_seed(0)
    model = CDRL.from_config(config, shape, classes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    path = tmp_path / "checkpoint.pth.tar"
    torch.save(as_published(model), path)
    if weights == "ema":
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.01)
    loaded = load_published(path, average=weights == "ema").model
    assert (loaded.shape, loaded.num_classes) == (shape, classes)
    y = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    label = torch.tensor([-1, classes - 1]) if classes else None
    torch.testing.assert_close(loaded.log_density(y, 2, label), model.log_density(y, 2, label))
    torch.testing.assert_close(loaded.propose(y, 2, label), model.propose(y, 2, label))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("p_state_dict"), "expected entries pi_state_dict and p_state_dict"),
        (lambda c: c.update(pi_state_dict=5), "pi_state_dict: expected named weights"),
        (lambda c: c.update(pi_state_dict={}, pi_ema_state_dict={"shadow_params": []}), "it lacks 'module_list.0"),
        (lambda c: c["pi_state_dict"].update({7: torch.ones(1)}), "expected the names of weights, found int"),
        (lambda c: c["pi_state_dict"].update(odd=torch.ones(1)), "averaged parameters for"),
        (lambda c: c["pi_state_dict"].update({"module.x": "text"}), "'module.x' is not a tensor of floating-point"),
        (lambda c: c.update(pi_ema_state_dict=None), "pi_ema_state_dict: expected a list 'shadow_params'"),
        (lambda c: c["p_ema_state_dict"]["shadow_params"].pop(), "averaged parameters for"),
        (lambda c: c["p_ema_state_dict"]["shadow_params"].__setitem__(0, 3), "the averaged .* is not a tensor"),
        (
            lambda c: c["pi_state_dict"].update({"module.module_list.0.weight_orig": torch.ones(3)}),
            "is .*, not|expected a layer's weight",
        ),
    ],
)
def test_checkpoints_of_another_layout_are_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    checkpoint = torch.load(FIXTURES / "official_cond_tiny.pth.tar", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "x.pth.tar")
    with pytest.raises(RunError, match=rf"x\.pth\.tar: .*({message})"):
        load_published(tmp_path / "x.pth.tar")


@pytest.mark.parametrize("name", ["downs.99999999999.0.norm1.weight", "downs.7.0.norm1.weight", "module_list.x", "a"])
def test_names_that_nobody_knows_are_named(tmp_path: Path, name: str) -> None:
    checkpoint = torch.load(FIXTURES / "official_cond_tiny.pth.tar", weights_only=True)
    for network in ("pi", "p"):
        checkpoint[f"{network}_state_dict"][f"module.{name}"] = torch.ones(8)
        checkpoint[f"{network}_ema_state_dict"]["shadow_params"].append(torch.ones(8))
    torch.save(checkpoint, tmp_path / "x.pth.tar")
    with pytest.raises(RunError, match=r"x\.pth\.tar: not a CDRL checkpoint of the authors' format"):
        load_published(tmp_path / "x.pth.tar")

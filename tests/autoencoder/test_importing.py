"""Published first stages give the answers of the code they come from, whatever their sizes and their packing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from autoencoder.importing import load_published_autoencoder
from autoencoder.model import Autoencoder, GaussianLatent, QuantizedLatent
from cdrl.runs.run import RunError
from tests.helpers import FIXTURES, scrambled
from tests.published import Answers, Sizes, Touch, answers, diffusers_weights, published_model, write_diffusers

SMALL = Sizes()
OTHERS = {
    "f8 with attention": Sizes(
        ch_mult=(1, 2, 2, 3), num_res_blocks=2, attn_resolutions=(2, 4), z_channels=4, embed_dim=4
    ),
    "f2, fewer latent channels": Sizes(num_res_blocks=3, z_channels=8, embed_dim=2),
    "f4 of grey images": Sizes(ch_mult=(2, 1, 2), channels=1, z_channels=2, embed_dim=5, attn_resolutions=(16,)),
    "vq f8 with attention": Sizes(vq=True, ch_mult=(1, 1, 2, 2), attn_resolutions=(2,), z_channels=4, embed_dim=4),
    "vq f4, fewer latent channels": Sizes(vq=True, ch=64, ch_mult=(1, 1, 1), z_channels=16, embed_dim=3, n_embed=40),
    "vq f1": Sizes(vq=True, ch_mult=(1,), num_res_blocks=2, channels=1),
}  # fmt: skip


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Equal to 1e-4, relative and absolute."""
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def images(sizes: Sizes) -> Tensor:
    shape = (2, sizes.channels, sizes.resolution, sizes.resolution)
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def check(autoencoder: Autoencoder, images: Tensor, expected: Answers) -> None:
    """Latents and reconstructions are the expected ones."""
    latent = autoencoder.encode(images)
    assert close(latent.mean, expected.mean)
    assert close(autoencoder.decode(latent.mean), expected.decoded)
    if isinstance(latent, QuantizedLatent):
        assert close(latent.pre_quantization, expected.moments)
        assert torch.equal(latent.codes.flatten(), expected.codes.flatten())
        # What the second stage learns is decoded through the codebook.
        assert close(autoencoder.decode(latent.pre_quantization), expected.decoded)
    else:
        assert close(latent.logvar, expected.logvar)


def reference(name: str) -> tuple[Tensor, Answers]:
    """Images and the answers that the original code gave."""
    stored = {key: torch.from_numpy(value) for key, value in np.load(FIXTURES / name).items()}
    if "indices" in stored:
        moments, mean = stored["latent_prequant"], stored["latent_quantized"]
        return stored["image"], Answers(moments, mean, codes=stored["indices"], decoded=stored["decoded"])
    mean, logvar = stored["latent_mean"], stored["latent_logvar"]
    return stored["image"], Answers(mean, mean, logvar=logvar, decoded=stored["decoded"])


def lightning(path: Path, state: dict[str, Any], **entries: Any) -> Path:
    """A checkpoint as Lightning writes it."""
    torch.save({"epoch": 3, "global_step": 7, "state_dict": state, "optimizer_states": [], **entries}, path)
    return path


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return published_model(SMALL)


@pytest.mark.parametrize(
    ("weights", "expected", "size"),
    [
        ("compvis_vq_f4_tiny.ckpt", "compvis_vq_f4_tiny.npz", 256),
        ("compvis_kl_f4_tiny.ckpt", "compvis_kl_f4_tiny.npz", 256),
        ("diffusers_kl_tiny", "diffusers_kl_tiny/expected.npz", 32),
        ("diffusers_kl_tiny/diffusion_pytorch_model.safetensors", "diffusers_kl_tiny/expected.npz", 32),
    ],
)
def test_answers_of_the_original_code(weights: str, expected: str, size: int) -> None:
    autoencoder = load_published_autoencoder(FIXTURES / weights)
    check(autoencoder, *reference(expected))
    assert autoencoder.image_size == size
    assert not autoencoder.training
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())


def test_samples_follow_the_published_posterior() -> None:
    autoencoder = load_published_autoencoder(FIXTURES / "compvis_kl_f4_tiny.ckpt")
    image, expected = reference("compvis_kl_f4_tiny.npz")
    latent = autoencoder.encode(image)
    assert isinstance(latent, GaussianLatent)
    noise = torch.randn(expected.mean.shape, generator=torch.Generator().manual_seed(2))
    drawn = latent.sample(torch.Generator().manual_seed(2))
    assert close(drawn, expected.mean + (0.5 * expected.logvar).exp() * noise)


@pytest.mark.parametrize("name", OTHERS)
def test_other_sizes_are_read_off_the_weights(name: str, tmp_path: Path) -> None:
    sizes = OTHERS[name]
    model = published_model(sizes)
    path = lightning(tmp_path / "model.ckpt", model.state_dict())
    autoencoder = load_published_autoencoder(path, image_size=sizes.resolution)
    check(autoencoder, images(sizes), answers(model, images(sizes)))
    side = sizes.resolution // 2 ** (len(sizes.ch_mult) - 1)
    assert autoencoder.latent_shape == (sizes.embed_dim, side, side)
    assert autoencoder.image_channels == sizes.channels
    assert set(autoencoder.config.attention_resolutions) == set(sizes.attn_resolutions)


@pytest.mark.parametrize(
    ("name", "old_names", "dense"),
    [
        ("f8 with attention", True, True),
        ("f8 with attention", True, False),
        ("f8 with attention", False, True),
        ("f8 with attention", False, False),
        ("f2, fewer latent channels", True, False),
        ("f4 of grey images", False, True),
    ],
)
def test_diffusers_names_of_all_releases_are_read(name: str, old_names: bool, dense: bool, tmp_path: Path) -> None:
    sizes = OTHERS[name]
    model = published_model(sizes)
    weights = diffusers_weights(model, old_names=old_names, dense=dense)
    folder = write_diffusers(tmp_path / "vae", weights, sample_size=sizes.resolution)
    check(load_published_autoencoder(folder), images(sizes), answers(model, images(sizes)))


def test_a_vq_model_of_diffusers_is_read(tmp_path: Path) -> None:
    sizes = OTHERS["vq f8 with attention"]
    model = published_model(sizes)
    weights = diffusers_weights(model, old_names=True, dense=False)
    folder = write_diffusers(tmp_path / "vqvae", weights, _class_name="VQModel", sample_size=16)
    check(load_published_autoencoder(folder), images(sizes), answers(model, images(sizes)))


def test_older_diffusers_folders_hold_a_pickle(small: nn.Module, tmp_path: Path) -> None:
    folder = write_diffusers(tmp_path / "vae", {})
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(diffusers_weights(small, old_names=True, dense=True), folder / "diffusion_pytorch_model.bin")
    check(load_published_autoencoder(folder), images(SMALL), answers(small, images(SMALL)))


@pytest.mark.parametrize("kind", ["fp16", "bin", "shards", "pickled shards", "pipeline", "file"])
def test_diffusers_weights_in_other_variants_are_read(kind: str, small: nn.Module, tmp_path: Path) -> None:
    weights = {k: v.contiguous() for k, v in diffusers_weights(small, old_names=False, dense=False).items()}
    folder = write_diffusers(tmp_path / "vae", weights)
    whole, path = folder / "diffusion_pytorch_model.safetensors", folder
    if kind == "fp16":
        whole.rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    elif kind == "bin":
        whole.unlink()
        torch.save(weights, folder / "diffusion_pytorch_model.fp16.bin")
    elif kind.endswith("shards"):
        end = "bin" if kind == "pickled shards" else "safetensors"
        names, files = sorted(weights), [f"diffusion_pytorch_model-{part:05d}-of-00002.{end}" for part in (1, 2)]
        for part, file in enumerate(files):
            write = torch.save if end == "bin" else save_file
            write({name: weights[name] for name in names[part::2]}, folder / file)
        index = {"metadata": {}, "weight_map": {name: files[at % 2] for at, name in enumerate(names)}}
        whole.unlink()
        (folder / f"diffusion_pytorch_model.{end}.index.json").write_text(json.dumps(index))
    elif kind == "pipeline":
        path = tmp_path
    else:
        path = whole
    check(load_published_autoencoder(path), images(SMALL), answers(small, images(SMALL)))


def test_a_diffusers_folder_without_one_clear_file_of_weights_says_what_is_there(tmp_path: Path) -> None:
    folder = write_diffusers(tmp_path / "vae", {})
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(RunError, match=r"vae: expected diffusion_pytorch_model.safetensors .* found config.json"):
        load_published_autoencoder(folder)
    for variant in ("fp16", "non_ema"):
        (folder / f"diffusion_pytorch_model.{variant}.safetensors").touch()
    with pytest.raises(RunError, match=r"several variants .*fp16.safetensors, .*non_ema.safetensors"):
        load_published_autoencoder(folder)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret"}}))
    with pytest.raises(RunError, match=r"index.json: weight_map.a: "):
        load_published_autoencoder(folder)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "vae.", "module.first_stage_model.", "a.b.c."])
def test_weights_under_a_prefix_are_read(prefix: str, small: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    weights = {f"{prefix}{name}": value for name, value in small.state_dict().items()}
    torch.save({"state_dict": {**weights, f"{prefix}loss.logvar": torch.zeros(()), "betas": torch.ones(3)}}, path)
    check(load_published_autoencoder(path, image_size=16), images(SMALL), answers(small, images(SMALL)))


def test_several_first_stages_in_one_file_are_named(small: nn.Module, tmp_path: Path) -> None:
    path, weights = tmp_path / "x.ckpt", small.state_dict()
    torch.save({"model": weights, "ema": weights, "step": 5}, path)
    with pytest.raises(RunError, match=r"x\.ckpt: holds first stages under 'ema', 'model'"):
        load_published_autoencoder(path)
    torch.save({f"{prefix}.{name}": value for name, value in weights.items() for prefix in ("a", "b")}, path)
    with pytest.raises(RunError, match=r"x\.ckpt: holds several first stages, under the prefixes 'a\.', 'b\.'"):
        load_published_autoencoder(path)


def test_weights_that_are_not_finite_are_refused(small: nn.Module, tmp_path: Path) -> None:
    weights = {name: value.clone() for name, value in small.state_dict().items()}
    weights["decoder.conv_out.bias"][0] = float("nan")
    torch.save({"state_dict": weights}, tmp_path / "x.ckpt")
    save_file(weights, tmp_path / "x.safetensors")
    for name in ("x.ckpt", "x.safetensors"):
        with pytest.raises(RunError, match=rf"{name}: 'decoder.conv_out.bias' holds NaN or infinity"):
            load_published_autoencoder(tmp_path / name)


def test_a_diffusers_model_without_quantization_convolutions_is_read(tmp_path: Path) -> None:
    model = published_model(SMALL)
    weights = diffusers_weights(model, old_names=False, dense=True)
    weights = {name: value for name, value in weights.items() if "quant_conv" not in name}
    model.quant_conv = model.post_quant_conv = nn.Identity()
    settings = {"use_quant_conv": False, "use_post_quant_conv": False}
    folder = write_diffusers(tmp_path / "vae", weights, **settings)
    check(load_published_autoencoder(folder), images(SMALL), answers(model, images(SMALL)))


@pytest.mark.parametrize("kind", ["ckpt", "safetensors", "pt"])
@pytest.mark.parametrize("whole", [True, False])
def test_the_first_stage_is_found_among_losses_and_other_models(
    kind: str, whole: bool, small: nn.Module, tmp_path: Path
) -> None:
    prefix = "first_stage_model." if whole else ""
    state = {prefix + name: value for name, value in small.state_dict().items()}
    state |= {f"{prefix}loss.discriminator.main.0.weight": torch.ones(3), f"{prefix}loss.logvar": torch.zeros(())}
    if whole:
        state |= {
            "model.diffusion_model.out.2.weight": torch.ones(3),
            "model_ema.diffusion_modelout2weight": torch.ones(3),
            "cond_stage_model.encoder.weight": torch.ones(3),
            "betas": torch.ones(3),
        }
    path = tmp_path / f"model.{kind}"
    if kind == "ckpt":
        lightning(path, state)
    elif kind == "pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    check(load_published_autoencoder(path), images(SMALL), answers(small, images(SMALL)))


def test_a_hostile_entry_beside_the_weights_is_passed_over_and_one_among_them_refused(
    small: nn.Module, tmp_path: Path
) -> None:
    trace, state = tmp_path / "trace", small.state_dict()
    path = lightning(tmp_path / "beside.ckpt", state, callbacks={"x": Touch(trace)}, hyper_parameters=Touch(trace))
    check(load_published_autoencoder(path), images(SMALL), answers(small, images(SMALL)))
    path = lightning(tmp_path / "among.ckpt", {**state, "encoder.evil": Touch(trace)})
    with pytest.raises(RunError, match=r"'encoder\.evil' is not a tensor"):
        load_published_autoencoder(path)
    assert not trace.exists()


def test_half_precision_weights_become_float32(small: nn.Module, tmp_path: Path) -> None:
    state = {name: value.half() for name, value in small.state_dict().items()}
    autoencoder = load_published_autoencoder(lightning(tmp_path / "model.ckpt", state))
    for name, value in autoencoder.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[name].float())


def averaged(model: nn.Module) -> tuple[dict[str, Tensor], nn.Module]:
    """Weights with the moving average of latent diffusion beside them, and a model that has the average."""
    average = scrambled(published_model(SMALL), scale=0.05, seed=9)
    shadow = {f"model_ema.{name.replace('.', '')}": value.detach() for name, value in average.named_parameters()}
    own = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5, dtype=torch.int)}
    losses = {"loss.logvar": torch.zeros(()), "model_ema.losslogvar": torch.zeros(())}
    return {**model.state_dict(), **shadow, **own, **losses}, average


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_the_moving_average_is_taken_unless_the_raw_weights_are_asked_for(
    prefix: str, small: nn.Module, tmp_path: Path
) -> None:
    state, average = averaged(small)
    path = lightning(tmp_path / "model.ckpt", {prefix + name: value for name, value in state.items()})
    check(load_published_autoencoder(path), images(SMALL), answers(average, images(SMALL)))
    check(load_published_autoencoder(path, average=False), images(SMALL), answers(small, images(SMALL)))


@pytest.mark.parametrize(
    ("lost", "added", "message"),
    [
        ("model_ema.quant_convbias", (), "model_ema: .*lacks 'quant_convbias'"),
        (None, ("model_ema.encoderextra",), "model_ema: .*also holds 'encoderextra'"),
    ],
)
def test_a_moving_average_of_something_else_is_refused(
    lost: str | None, added: tuple[str, ...], message: str, small: nn.Module, tmp_path: Path
) -> None:
    state, _ = averaged(small)
    state = {name: value for name, value in state.items() if name != lost} | dict.fromkeys(added, torch.ones(2))
    with pytest.raises(RunError, match=message):
        load_published_autoencoder(lightning(tmp_path / "model.ckpt", state))


@pytest.mark.parametrize(
    ("settings", "given", "expected"),
    [
        ({}, None, 256),
        ({"hyper_parameters": {"ddconfig": {"resolution": 64}}}, None, 64),
        ({"hyper_parameters": {"ddconfig": {"resolution": 64}}}, 32, 32),
        ({"hyper_parameters": {"ddconfig": "a text"}}, None, 256),
        ({"hyper_parameters": Path("/")}, None, 256),
    ],
)
def test_the_image_size_is_what_the_user_says_or_the_checkpoint_or_256(
    settings: dict[str, Any], given: int | None, expected: int, small: nn.Module, tmp_path: Path
) -> None:
    path = lightning(tmp_path / "model.ckpt", small.state_dict(), **settings)
    autoencoder = load_published_autoencoder(path, image_size=given)
    assert autoencoder.image_size == expected
    assert autoencoder.latent_shape == (3, expected // 2, expected // 2)


def test_attention_stays_at_its_level_whatever_the_image_size(tmp_path: Path) -> None:
    sizes = OTHERS["f8 with attention"]
    model = published_model(sizes)
    path = lightning(tmp_path / "model.ckpt", model.state_dict())
    autoencoder = load_published_autoencoder(path, image_size=48)
    assert set(autoencoder.config.attention_resolutions) == {6, 12}
    larger = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    check(autoencoder, larger, answers(model, larger))


def changed(state: dict[str, Tensor], *, lost: str = "$^", **added: Tensor) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if not re.match(lost, name)} | added


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lost": "encoder.mid.attn_1.q.weight"}, r"lacks 'encoder\.mid\.attn_1\.q\.weight'$"),
        ({"lost": "decoder.up.1.upsample"}, r"lacks 'decoder\.up\.1\.upsample\.conv\.bias', 'decoder.*weight'$"),
        ({"lost": "encoder.conv_in"}, r"lacks 'encoder\.conv_in\.weight'"),
        ({"lost": "encoder.down"}, r"lacks 'encoder\.down\.0\.block\.0\.conv1\.weight'$"),
        ({"lost": "encoder"}, r"lacks 'encoder\.conv_in\.weight'"),
        ({"lost": "decoder.(mid|up)"}, r"lacks 'decoder\.mid\.attn_1\.k\.bias', .* and \d+ more$"),
        ({"colorize": torch.ones(2)}, r"also holds 'colorize'$"),
        ({"quantize.embed.weight": torch.ones(2, 3)}, r"lacks 'quantize\.embedding\.weight'$"),
        ({"quant_conv.bias": torch.ones(5)}, r"'quant_conv\.bias' is \[5\], expected \[6\]"),
        ({"post_quant_conv.weight": torch.ones(3)}, r"'post_quant_conv\.weight' is \[3\]"),
        ({"encoder.conv_in.weight": torch.ones(32, 5, 3, 3)}, "images with 5 channels, only 1 or 3"),
        ({"encoder.conv_in.weight": torch.ones(16, 3, 3, 3)}, "has channels=16, .* multiple of 32"),
        ({"encoder.down.1.block.0.conv1.weight": torch.ones(48, 32, 3, 3)}, r"\[32, 48\] channels wide.* of .* 32"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    changes: dict[str, Any], message: str, small: nn.Module, tmp_path: Path
) -> None:
    path = lightning(tmp_path / "model.ckpt", changed(small.state_dict(), **changes))
    with pytest.raises(RunError, match=rf"model\.ckpt: .*{message}"):
        load_published_autoencoder(path)


def test_an_empty_weight_is_named(small: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({**small.state_dict(), "encoder.conv_in.weight": torch.ones(0, 3, 3, 3)}, path)
    with pytest.raises(RunError, match=r"'encoder\.conv_in\.weight' is \[0, 3, 3, 3\]"):
        load_published_autoencoder(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_class_name": "UNet2DModel"}, r"class AutoencoderKL or VQModel, found 'UNet2DModel'"),
        ({"norm_num_groups": 16}, "'norm_num_groups' is 16, only 32"),
        ({"act_fn": "relu"}, "'act_fn' is 'relu', only 'silu'"),
    ],
)
def test_a_diffusers_model_of_another_kind_is_refused(
    settings: dict[str, Any], message: str, small: nn.Module, tmp_path: Path
) -> None:
    weights = diffusers_weights(small, old_names=False, dense=True)
    with pytest.raises(RunError, match=rf"config\.json: .*{message}"):
        load_published_autoencoder(write_diffusers(tmp_path / "vae", weights, **settings))


def test_a_diffusers_folder_lacks_a_file(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"expected config\.json and diffusion_pytorch_model\.safetensors .*vae"):
        load_published_autoencoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}), encoding="utf-8")
    with pytest.raises(RunError, match=r"expected diffusion_pytorch_model\.safetensors there"):
        load_published_autoencoder(tmp_path)


def test_an_image_size_that_cannot_be_halved_is_refused(small: nn.Module, tmp_path: Path) -> None:
    path = lightning(tmp_path / "model.ckpt", small.state_dict())
    with pytest.raises(RunError, match=r"model\.ckpt: shrinks images by 2: the image size 33 must be a multiple"):
        load_published_autoencoder(path, image_size=33)

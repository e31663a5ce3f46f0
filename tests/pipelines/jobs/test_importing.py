"""An imported first stage is a run like one trained here: a latent run names it, encodes with it and learns."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor

from autoencoder.importing import load_published_autoencoder
from autoencoder.model import GaussianLatent, QuantizedLatent, load_autoencoder
from cdrl.config import Config
from cdrl.data import read_shards
from cdrl.runs.run import RunError, load_tensors, save_tensors
from pipelines import CDRLPipeline
from pipelines.jobs.importing import import_autoencoder, import_cdrl
from pipelines.jobs.training import run_encoding, run_stage_one, run_stage_two, stage_two_data
from tests.helpers import FIXTURES, tiny_config
from tests.killing import killed_before

COUNT = 40


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """A folder of noisy gradients, and the pictures in the order of the data set: [N, 3, 32, 32] in [-1, 1]."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    ramp = np.linspace(0, 200, 32)[:, None, None] * generator.random((COUNT, 1, 1, 3))
    images = (ramp + generator.integers(0, 55, (COUNT, 32, 32, 3))).astype(np.uint8)
    for split, part in (("train", images), ("test", images[:2])):
        (folder / split).mkdir()
        for index, image in enumerate(part):
            Image.fromarray(image).save(folder / split / f"{index:03d}.png")
    return folder, torch.from_numpy(images).movedim(-1, 1).contiguous() / 127.5 - 1


def latent_config(folder: Path, first_stage: Path) -> Config:
    return tiny_config(
        space="latent",
        data={"name": "folder", "path": str(folder), "image_size": 32, "channels": 3, "labels": "none"},
        autoencoder={"run": str(first_stage)},
        training={"num_steps": 2},
    )


@pytest.mark.parametrize("name", ["compvis_vq_f4_tiny.ckpt", "compvis_kl_f4_tiny.ckpt", "diffusers_kl_tiny"])
def test_a_latent_run_through_an_imported_first_stage(name: str, pictures: tuple[Path, Tensor], tmp_path: Path) -> None:
    folder, images = pictures
    imported = import_autoencoder(FIXTURES / name, tmp_path / "first", average=True, image_size=32)
    config, run = latent_config(folder, tmp_path / "first"), tmp_path / "run"
    run_encoding(config, run)
    latents = read_shards(run / "latents" / "train")
    grids = latents.grids

    # What is encoded are the published model's latents, on their own scale.
    published = load_published_autoencoder(FIXTURES / name, image_size=32)
    latent = published.encode(images)
    if isinstance(latent, QuantizedLatent):
        assert torch.allclose(grids, latent.pre_quantization, atol=1e-4)
    else:
        assert isinstance(latent, GaussianLatent)
        noise = (grids - latent.mean) / torch.exp(0.5 * latent.logvar)
        assert noise.mean().item() == pytest.approx(0, abs=4 / noise.numel() ** 0.5)
        assert noise.var().item() == pytest.approx(1, abs=4 * (2 / noise.numel()) ** 0.5)

    # They are standardized by their measured mean and standard deviation, and restored before decoding.
    values = grids.double().movedim(1, 0).flatten(1)
    mean, std = latents.metadata["mean"], latents.metadata["std"]
    assert mean == pytest.approx(values.mean(dim=1).tolist(), abs=1e-6)
    assert std == pytest.approx(values.std(dim=1, correction=0).tolist(), rel=1e-6)
    data = stage_two_data(config, run)
    standard = (grids[:3] - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    expected = published.decode(grids[:3]).clamp(-1, 1)
    assert torch.allclose(data.decoder.images(standard), expected, atol=1e-3)

    run_stage_two(config, run)
    generated = CDRLPipeline.from_pretrained(run)(2)
    assert generated.grids.shape == (2, *imported.latent_shape)
    assert generated.tensors.shape == (2, 3, 32, 32)


def test_the_run_holds_the_first_stage_and_says_what_it_is(tmp_path: Path) -> None:
    run = tmp_path / "deep" / "run"
    imported = import_autoencoder(FIXTURES / "compvis_vq_f4_tiny.ckpt", run, average=True, image_size=None)
    settings = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert settings["source"] == "compvis_vq_f4_tiny.ckpt"
    assert settings["image_size"] == 256
    assert settings["architecture"]["codebook_size"] == 64
    kept = load_autoencoder(run / "model")
    assert kept.config == imported.config
    for name, value in kept.state_dict().items():
        assert torch.equal(value, imported.state_dict()[name])
    assert sorted(path.name for path in run.parent.iterdir()) == ["run"]


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="exists already; name another folder"):
        import_autoencoder(FIXTURES / "diffusers_kl_tiny", tmp_path, average=True, image_size=None)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_training_does_not_overwrite_an_imported_first_stage(tmp_path: Path) -> None:
    """It would, were the import taken for a run of its own that may be gone on with."""
    folder = tmp_path / "run" / "autoencoder"
    import_autoencoder(FIXTURES / "diffusers_kl_tiny", folder, average=True, image_size=None)
    config = tiny_config(space="latent", autoencoder={"training": {"num_steps": 1}})
    with pytest.raises(RunError, match=r"holds a run with other settings .*source is 'diffusers_kl_tiny' there"):
        run_stage_one(config, tmp_path / "run")


def test_images_of_another_size_are_refused(pictures: tuple[Path, Tensor], tmp_path: Path) -> None:
    import_autoencoder(FIXTURES / "compvis_kl_f4_tiny.ckpt", tmp_path / "first", average=True, image_size=64)
    with pytest.raises(RunError, match=r"a first stage of 3 x 64\^2 images, but data has 3 x 32\^2"):
        run_encoding(latent_config(pictures[0], tmp_path / "first"), tmp_path / "run")


def test_an_import_that_was_killed_anywhere_is_finished_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after its last change of a file, when there is nothing left to do."""
    autoencoder = load_published_autoencoder(FIXTURES / "diffusers_kl_tiny")
    monkeypatch.setattr("pipelines.jobs.importing.load_published_autoencoder", lambda *_, **__: autoencoder)
    run = tmp_path / "run"

    def make() -> None:
        import_autoencoder(FIXTURES / "diffusers_kl_tiny", run, average=True, image_size=None)

    for event in itertools.count(step=5):
        killed = killed_before(event, make)
        make()
        assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "model"]
        kept = load_autoencoder(run / "model").state_dict()
        assert all(torch.equal(value, kept[name]) for name, value in autoencoder.state_dict().items())
        if not killed:
            break
        shutil.rmtree(run)
    assert event > 10


def test_other_weights_are_not_imported_over_it(tmp_path: Path) -> None:
    source = tmp_path / "vae"
    shutil.copytree(FIXTURES / "diffusers_kl_tiny", source)
    import_autoencoder(source, tmp_path / "run", average=True, image_size=None)
    weights = source / "diffusion_pytorch_model.safetensors"
    save_tensors(weights, {name: tensor + 1 for name, tensor in load_tensors(weights).items()})
    with pytest.raises(RunError, match="holds a trained model already; name another folder"):
        import_autoencoder(source, tmp_path / "run", average=True, image_size=None)


def test_published_weights_are_imported_once_and_again(tmp_path: Path) -> None:
    for _ in range(2):
        import_cdrl(FIXTURES / "official_uncond_tiny.pth.tar", tmp_path / "run", average=True, image_size=None)
    with pytest.raises(RunError, match="holds a trained model already"):
        import_cdrl(FIXTURES / "official_uncond_tiny.pth.tar", tmp_path / "run", average=False, image_size=None)

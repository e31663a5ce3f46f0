"""The pipeline: an image from its seed alone, opened from a run or from a model folder, mistakes named."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cdrl.config import ConfigError
from cdrl.runs.run import RunError, read_json, write_json
from cdrl.sampling.kernels import hmc, langevin, mala
from cdrl.sampling.noise import ImageNoise, derive_seed
from cdrl.sampling.sampler import sample
from pipelines import CDRLPipeline
from pipelines.decoding import LatentDecoder
from tests.helpers import chain_plan, save_tiny_run, tiny_config

LABELS = [i % 10 for i in range(64)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of class-conditional pixels, and one of class-conditional latents."""
    folder = tmp_path_factory.mktemp("runs")
    for space in ("pixel", "latent"):
        save_tiny_run(folder / space, latent=space == "latent")
    return {space: folder / space for space in ("pixel", "latent")}


@pytest.fixture(params=["pixel", "latent"])
def pipeline(request: pytest.FixtureRequest, runs: dict[str, Path]) -> CDRLPipeline:
    return CDRLPipeline.from_pretrained(runs[request.param])


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_image_17_is_the_same_in_any_batch(pipeline: CDRLPipeline, batch_size: int) -> None:
    alone = pipeline(1, seeds=[17], label=LABELS[17], steps=3)
    among = pipeline(64, label=LABELS, steps=3, batch_size=batch_size)
    torch.testing.assert_close(among.grids[17], alone.grids[0], rtol=0, atol=1e-4)
    torch.testing.assert_close(among.tensors[17], alone.tensors[0], rtol=0, atol=1e-4)
    assert (among.grids[16] - among.grids[17]).abs().max() > 0.1


def test_the_order_of_seeds_is_the_order_of_images(pipeline: CDRLPipeline) -> None:
    images = pipeline(3, seeds=[5, 2, 9], steps=2).grids
    again = pipeline(3, seeds=[9, 5, 2], steps=2).grids
    torch.testing.assert_close(images, again[[1, 2, 0]], rtol=0, atol=1e-4)


def test_label_and_steps_change_the_image(pipeline: CDRLPipeline) -> None:
    base = pipeline(2, label=3, steps=2).grids
    assert (pipeline(2, label=4, steps=2).grids - base).abs().max() > 1e-4
    assert (pipeline(2, label=3, steps=0).grids - base).abs().max() > 1e-3


def test_samples_are_those_of_algorithm_2_on_the_model(pipeline: CDRLPipeline) -> None:
    conditioned = pipeline.model.conditioned(4)
    noise = ImageNoise([derive_seed("sample", seed) for seed in range(3)])
    expected = sample(
        pipeline.model.schedule,
        conditioned.propose,
        conditioned.log_density,
        noise,
        pipeline.model.shape,
        chain_plan(pipeline.model.schedule, steps=8, step_scale=0.5, denoise=1.0),
    )
    ours = pipeline(3, label=4, steps=8, step_adjustment=True, denoise=1.0).grids
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_the_kernel_is_the_one_asked_for(pipeline: CDRLPipeline) -> None:
    conditioned = pipeline.model.conditioned(4)
    for name, kernel in (("mala", mala), ("hmc", hmc(2)), ("langevin", langevin)):
        expected = sample(
            pipeline.model.schedule,
            conditioned.propose,
            conditioned.log_density,
            ImageNoise([derive_seed("sample", seed) for seed in range(3)]),
            pipeline.model.shape,
            chain_plan(pipeline.model.schedule, steps=3, kernel=kernel),
        )
        leapfrog = {"leapfrog_steps": 2} if name == "hmc" else {}
        ours = pipeline(3, label=4, steps=3, kernel=name, **leapfrog).grids
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_the_runs_configuration_may_name_the_kernel(pipeline: CDRLPipeline) -> None:
    config = tiny_config(sampling={"steps": 3, "kernel": "hmc", "leapfrog_steps": 2})
    other = CDRLPipeline(pipeline.model, pipeline.decoder, config, pipeline.class_names)
    expected = pipeline(2, steps=3, kernel="hmc", leapfrog_steps=2).grids
    assert torch.equal(other(2).grids, expected)
    assert not torch.equal(other(2, kernel="mala").grids, expected)


def test_a_run_without_initializer_samples_from_its_chains_alone(tmp_path: Path) -> None:
    """Langevin from x_{t+1} itself, with no noise of a proposal; nothing of an initializer is on disk."""
    model = save_tiny_run(tmp_path, config=tiny_config(initializer=None))
    assert model.initializer is None
    assert not (tmp_path / "model" / "initializer.safetensors").exists()
    pipeline = CDRLPipeline.from_pretrained(tmp_path)
    assert pipeline.model.initializer is None
    starts: dict[int, Tensor] = {}
    ends: dict[int, Tensor] = {}

    def remember(*, level: int, step: int, y: Tensor) -> None:
        (ends if step else starts)[level] = y

    pipeline(3, label=1, steps=1, callback=remember)
    noise = ImageNoise([derive_seed("sample", seed) for seed in range(3)])
    torch.testing.assert_close(starts[1], noise.normal((1, 8, 8)))
    torch.testing.assert_close(starts[0], ends[1])
    with pytest.raises(ValueError, match="steps: 0 leaves the initializer alone, but this run has none"):
        pipeline(3, steps=0)


def test_defaults_come_from_the_runs_configuration(pipeline: CDRLPipeline) -> None:
    moves: list[tuple[int, int]] = []

    def remember(*, level: int, step: int, y: Tensor) -> None:
        moves.append((level, step))

    pipeline(2, callback=remember)
    assert moves == [(1, 0), (1, 1), (0, 0), (0, 1)]


def test_images_are_in_range_and_8_bit(pipeline: CDRLPipeline) -> None:
    generated = pipeline(3)
    assert generated.tensors.shape == (3, 1, 8, 8)
    assert generated.tensors.abs().max() <= 1
    assert [(image.mode, image.size) for image in generated.images] == [("L", (8, 8))] * 3


def test_latents_are_restored_before_they_are_decoded(runs: dict[str, Path]) -> None:
    decoder = CDRLPipeline.from_pretrained(runs["latent"]).decoder
    assert isinstance(decoder, LatentDecoder)
    standardized = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 0.5])
    expected = decoder.autoencoder.decode(standardized * std[:, None, None] + mean[:, None, None]).clamp(-1, 1)
    torch.testing.assert_close(decoder.images(standardized), expected)


@pytest.mark.parametrize("space", ["pixel", "latent"])
def test_the_model_folder_alone_is_enough(runs: dict[str, Path], space: str, tmp_path: Path) -> None:
    shutil.copytree(runs[space] / "model", tmp_path / "elsewhere")
    moved, original = (CDRLPipeline.from_pretrained(path) for path in (tmp_path / "elsewhere", runs[space]))
    assert moved.class_names == original.class_names == tuple("0123456789")
    assert moved.config == original.config
    torch.testing.assert_close(moved(2, label=3).tensors, original(2, label=3).tensors, rtol=0, atol=0)


def test_a_folder_without_a_model_says_how_to_train_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no trained model there; train it with: python run\.py train"):
        CDRLPipeline.from_pretrained(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "file", ["energy.safetensors", "initializer.safetensors", "config.json", "autoencoder/autoencoder.safetensors"]
)
def test_a_damaged_file_is_named(runs: dict[str, Path], file: str, tmp_path: Path) -> None:
    shutil.copytree(runs["latent"], tmp_path / "run")
    path = tmp_path / "run" / "model" / file
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(RunError, match=file):
        CDRLPipeline.from_pretrained(tmp_path / "run")


@pytest.mark.parametrize("key", ["class_names", "latent_mean", "latent_std"])
def test_a_description_that_lacks_something_is_refused(runs: dict[str, Path], key: str, tmp_path: Path) -> None:
    shutil.copytree(runs["latent"], tmp_path / "run")
    path = tmp_path / "run" / "model" / "config.json"
    write_json(path, {name: value for name, value in read_json(path).items() if name != key})
    with pytest.raises(RunError, match=rf"config\.json: .*{key}"):
        CDRLPipeline.from_pretrained(tmp_path / "run")


def test_a_configuration_that_is_not_ours_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(runs["pixel"], tmp_path / "run")
    path = tmp_path / "run" / "model" / "config.json"
    description = read_json(path)
    description["config"]["energy"]["width"] = 3
    write_json(path, description)
    with pytest.raises(ConfigError, match=r"config\.json: unknown key 'energy\.width'"):
        CDRLPipeline.from_pretrained(tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 3, "seeds": [1, 2]}, "seeds: expected one for each of 3 images .* found 2"),
        ({"num_images": 0}, "at least 1"),
        ({"num_images": 2, "label": 10}, r"class ids are -1 … 9, found \[10\]"),
        ({"num_images": 2, "kernel": "gibbs"}, "kernel: unknown 'gibbs'; expected one of langevin, mala, hmc"),
        ({"num_images": 2, "label": -2}, r"found \[-2\]"),
        ({"num_images": 2, "label": [1, 2, 3]}, "expected one class id or 2 of them"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(pipeline: CDRLPipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)

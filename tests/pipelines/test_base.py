"""The pipeline: an image from its seed alone, opened from a run or from a model folder, mistakes named."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cdrl.config import ConfigError
from cdrl.runs.run import RunError, read_json, write_json
from cdrl.sampling.kernels import hmc, langevin, mala
from cdrl.sampling.noise import ImageNoise, derive_seed
from cdrl.sampling.sampler import sample
from pipelines import CDRLPipeline, ClassifierFree
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


NAN = float("nan")
WHOLE = "expected a whole number"
SEVERAL = r"seeds: expected a list, such as \[1, 2, 3\], found "
WEIGHT = "guidance: expected a weight of 0 or more, or a Guidance, found "
UNNAMED = "class ids are numbers, -1 … 9, not in quotation marks"
WRONG_KINDS: list[tuple[dict[str, Any], str]] = [
    *(({"num_images": each}, f"num_images: {WHOLE} of at least 1, found ") for each in (True, "3", [1, 2], np.True_)),
    *(({"seed": each}, f"seed: {WHOLE}, found ") for each in ("a", True, [1, 2])),
    *(({"seeds": each}, SEVERAL) for each in ({1, 2}, "12", {1: 2}, True)),
    *(({"seeds": each}, "seeds: expected whole numbers, found ") for each in ([True, 2], ["a"], [None], [[1], [2]])),
    *(({"label": each}, "label: class ids are whole numbers, found ") for each in (True, [True], {1}, b"1", object())),
    *(({"label": 1, "guidance": each}, WEIGHT) for each in ("0.5", None, True, [1.0], ClassifierFree, lambda x: x)),
    ({"guidance": "0.5"}, WEIGHT),
    *(({"callback": each}, "callback: expected a function of level, step and y by name") for each in (3, lambda x: x)),
    *(({"batch_size": each}, f"batch_size: {WHOLE} of at least 1, found ") for each in (True, "2", None)),
    ({"progress": "no"}, "progress: expected True or False, found 'no'"),
]
WRONG_VALUES: list[tuple[dict[str, Any], str]] = [
    *(({"num_images": each}, f"num_images: {WHOLE} of at least 1, found ") for each in (2.0, 0, -1, NAN)),
    ({"seed": 1.5}, f"seed: {WHOLE}, found 1.5"),
    ({"seeds": torch.tensor([1.0])}, r"seeds: expected whole numbers, found a tensor of float32, \[1\]"),
    *(({"label": each}, f"label: no class has the name '{each}'; {UNNAMED}") for each in ("-1", "12")),
    ({"label": [1.0]}, r"label: class ids are whole numbers, found \[1.0\]"),
    ({"batch_size": 2.0}, f"batch_size: {WHOLE} of at least 1, found 2.0"),
    ({"label": 1, "guidance": NAN}, f"{WEIGHT}nan"),
    *(({"steps": each}, "steps: Input should be a valid integer, found ") for each in (True, "3", 2.5)),
    *(({"temperature": each}, "temperature: Input should be a valid number, found ") for each in (True, "0.5")),
    ({"step_adjustment": 1}, "step_adjustment: Input should be a valid boolean, found 1"),
]


@pytest.fixture(scope="module")
def pixels(runs: dict[str, Path]) -> CDRLPipeline:
    return CDRLPipeline.from_pretrained(runs["pixel"])


@pytest.mark.parametrize(
    ("arguments", "fault", "message"),
    [
        *((values, TypeError, message) for values, message in WRONG_KINDS),
        *((values, ValueError, message) for values, message in WRONG_VALUES),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(
    pixels: CDRLPipeline, arguments: dict[str, Any], fault: type[Exception], message: str
) -> None:
    with pytest.raises(fault, match=f"^{message}"):
        pixels(**arguments)


def test_numbers_of_numpy_and_torch_are_numbers(pixels: CDRLPipeline) -> None:
    expected = pixels(2, seed=3, label=[1, -1], steps=1, batch_size=1).grids
    options = {"label": [np.int64(1), None], "steps": np.int64(1), "batch_size": np.int64(1)}
    assert torch.equal(pixels(np.int64(2), seed=np.int64(3), **options).grids, expected)
    assert torch.equal(pixels(seeds=torch.tensor([3, 4]), **options).grids, expected)
    assert torch.equal(pixels(seeds=np.array([3, 4]), **{**options, "label": np.array([1, -1])}).grids, expected)
    guided = pixels(1, label=1, guidance=np.float32(0.5))
    assert torch.equal(guided.grids, pixels(1, label=1, guidance=0.5).grids)
    drawn = pixels(2)
    assert torch.equal(pixels.log_density(drawn, np.int64(1)), pixels.log_density(drawn.grids.double(), 1))


def test_a_run_without_classes_says_so_of_a_name(pixels: CDRLPipeline) -> None:
    with pytest.raises(ValueError, match="label: this run has no classes, found 'three'"):
        CDRLPipeline(pixels.model, pixels.decoder, pixels.config, ()).class_ids("three", 1)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 0, None, np.zeros(3), torch.float16])
def test_a_device_that_is_not_there_is_refused(runs: dict[str, Path], device: Any) -> None:
    pipeline = CDRLPipeline.from_pretrained(runs["latent"])
    for move in (pipeline.to, lambda where: CDRLPipeline.from_pretrained(runs["latent"], where)):
        with pytest.raises((TypeError, ValueError), match=r"^device: expected cpu, .*found "):
            move(device)
    assert pipeline.device.type == "cpu"


def test_a_folder_is_a_path(pixels: CDRLPipeline) -> None:
    folder: Any
    for folder in (None, 3):
        for ask in (CDRLPipeline.from_pretrained, pixels.save_pretrained):
            with pytest.raises(TypeError, match=f"^folder: expected a folder, found {folder}"):
                ask(folder)


@pytest.mark.parametrize(
    ("values", "fault", "message"),
    [
        ({"level": 1.0}, ValueError, "level: expected a whole number, found 1.0"),
        ({"level": True}, TypeError, "level: expected a whole number, found True"),
        ({"level": [0, 1]}, TypeError, r"level: expected a whole number, found \[0, 1\]"),
        ({"level": -1}, ValueError, "level: this model has 2 levels, 0 … 1; found -1"),
        ({"log_z": "a"}, TypeError, "log_z: expected a finite number, found 'a'"),
        ({"log_z": True}, TypeError, "log_z: expected a finite number, found True"),
        ({"log_z": NAN}, ValueError, "log_z: expected a finite number, found nan"),
        ({"label": "-1"}, ValueError, "label: no class has the name '-1'"),
    ],
)
def test_a_density_of_what_cannot_be_is_refused(
    pipeline: CDRLPipeline, values: dict[str, Any], fault: type[Exception], message: str
) -> None:
    with pytest.raises(fault, match=f"^{message}"):
        pipeline.log_density(torch.zeros(2, *pipeline.model.shape), **values)


def test_samples_and_grids_of_another_model_are_refused(runs: dict[str, Path]) -> None:
    pixels, latents = (CDRLPipeline.from_pretrained(runs[space]) for space in ("pixel", "latent"))
    for pipeline, other in ((pixels, latents), (latents, pixels)):
        expected = f"[N, {', '.join(map(str, pipeline.model.shape))}]"
        with pytest.raises(ValueError, match=re.escape(f"grids: expected {expected}, found [2, ")):
            pipeline.log_density(other(2))
        with pytest.raises(
            ValueError, match=re.escape(f"grids: expected {expected} with nothing of size 0, found [0, ")
        ):
            pipeline.log_density(torch.zeros(0, *pipeline.model.shape))

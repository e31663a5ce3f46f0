"""What users expect of Python: a slip of a name is an error, seeds and names are taken, results can be given back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

import run as door
from cdrl.config import SamplerSettings
from cdrl.runs.run import read_json, write_json
from pipelines import (
    Averaged,
    CDRLPipeline,
    ClassifierFree,
    Comparison,
    Hidden,
    compose,
    detect,
    evaluate_run,
    fill,
    interpolated,
)
from pipelines.evaluation.attributes import run_composition
from pipelines.generation import run_sample
from pipelines.interpolation import run_interpolation
from pipelines.studies.guidance_sweep import run_guidance_sweep
from pipelines.studies.long_chains import run_chains
from pipelines.studies.roles import run_roles
from tests.helpers import save_tiny_run, tiny_config

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
RIGHT = torch.zeros(8, 8, dtype=torch.bool)
RIGHT[:, 4:] = True


def save_named_run(folder: Path, *, latent: bool = False) -> Path:
    """A tiny run whose classes have names that are no numbers."""
    sections: dict[str, Any] = {"space": "latent", "autoencoder": {}} if latent else {}
    save_tiny_run(folder, latent=latent, config=tiny_config(**sections, data={"cache": str(folder / "cache")}))
    path = folder / "model" / "config.json"
    write_json(path, {**read_json(path), "class_names": NAMES})
    return folder


@pytest.fixture(scope="module", params=["pixel", "latent"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_named_run(tmp_path_factory.mktemp(request.param), latent=request.param == "latent")


@pytest.fixture(scope="module")
def pixel_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_named_run(tmp_path_factory.mktemp("named"))


@pytest.fixture
def pixels(pixel_run: Path) -> CDRLPipeline:
    return CDRLPipeline.from_pretrained(pixel_run)


def in_8_bits(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).round().to(torch.uint8)


# ---- names of options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temprature": 0.1}, "unknown option 'temprature': did you mean 'temperature'?"),
        ({"labels": [1, 2]}, "unknown option 'labels': did you mean 'label'?"),
        ({"step": 3}, "unknown option 'step': did you mean 'steps'?"),
        ({"guidance_scale": 3}, "unknown option 'guidance_scale': did you mean 'guidance'?"),
        ({"n_images": 3}, "unknown option 'n_images': did you mean 'num_images'?"),
        ({"generator": torch.Generator()}, "generator: not taken: images have seeds of their own"),
        ({"xyzzy": 1}, "unknown option 'xyzzy': expected one of num_images, seeds, seed, label, guidance, steps, "),
    ],
)
def test_an_unknown_keyword_names_the_nearest(pixels: CDRLPipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError) as error:
        pixels(**options)
    assert str(error.value).startswith(message)


def test_guidance_is_never_without_effect(pixels: CDRLPipeline) -> None:
    with pytest.raises(ValueError, match="guidance: needs a class"):
        pixels(2, guidance=3)
    assert not torch.equal(pixels(2, label=1, guidance=3).grids, pixels(2, label=1).grids)


Everywhere = Callable[[CDRLPipeline, Path], Callable[..., Any]]

EVERYWHERE: dict[str, Everywhere] = {
    "compose": lambda pipe, run: lambda **options: compose(pipe, 2, [1, 2], **options),
    "fill": lambda pipe, run: lambda **options: fill(pipe, pipe(2), Hidden(RIGHT), **options),
    "interpolated": lambda pipe, run: lambda **options: interpolated(pipe, [1, 2], 3, **options),
    "run_sample": lambda pipe, run: lambda **options: run_sample(run, 2, **options),
    "run_interpolation": lambda pipe, run: lambda **options: run_interpolation(run, (1, 2), 3, **options),
    "run_roles": lambda pipe, run: lambda **options: run_roles(run, 2, fresh=1, **options),
    "run_chains": lambda pipe, run: lambda **options: run_chains(run, 2, **options),
    "run_guidance_sweep": lambda pipe, run: lambda **options: run_guidance_sweep(run, [0], 10, blocks=1, **options),
    "run_composition": lambda pipe, run: lambda **options: run_composition(run, [0], 10, **options),
    "evaluate_run": lambda pipe, run: (
        lambda **options: evaluate_run(run, 10, Comparison(features="lite0", blocks=1), **options)
    ),
}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_an_unknown_keyword_is_an_error_wherever_images_are_drawn(name: str, pixel_run: Path) -> None:
    draw = EVERYWHERE[name](CDRLPipeline.from_pretrained(pixel_run), pixel_run)
    with pytest.raises(TypeError, match=r"unknown option 'temprature': did you mean 'temperature'\?"):
        draw(temprature=0.1)
    with pytest.raises(TypeError, match="generator: not taken"):
        draw(generator=torch.Generator())


@pytest.mark.parametrize("name", EVERYWHERE)
def test_an_option_without_effect_is_refused_wherever_images_are_drawn(name: str, pixel_run: Path) -> None:
    draw = EVERYWHERE[name](CDRLPipeline.from_pretrained(pixel_run), pixel_run)
    with pytest.raises(ValueError, match="leapfrog_steps: would change nothing with the kernel langevin"):
        draw(leapfrog_steps=3)


def test_a_message_speaks_of_the_function_that_was_called(pixels: CDRLPipeline, pixel_run: Path) -> None:
    with pytest.raises(TypeError, match=r"unknown option 'pases': did you mean 'passes'\?"):
        fill(pixels, pixels(1), Hidden(RIGHT), pases=3)
    with pytest.raises(TypeError, match=r"unknown option 'concept': did you mean 'concepts'\?"):
        compose(pixels, 1, [1], concept=3)
    with pytest.raises(TypeError, match="unknown option 'guidance': expected one of"):
        run_roles(pixel_run, 2, guidance=3)
    with pytest.raises(TypeError, match=r"unknown option 'label': did you mean 'labels'\?"):
        interpolated(pixels, [1, 2], 3, label=3)


# ---- options without effect ----------------------------------------------------------------------------------------

IDLE: list[tuple[dict[str, Any], str]] = [
    ({"leapfrog_steps": 3}, "leapfrog_steps: would change nothing with the kernel langevin"),
    ({"kernel": "mala", "leapfrog_steps": 3}, "leapfrog_steps: would change nothing with the kernel mala"),
    ({"steps": "auto", "step_adjustment": True}, "step_adjustment: would change nothing with steps auto"),
    ({"steps": 0, "temperature": 0.5}, "temperature: would change nothing with 0 steps"),
    ({"steps": 0, "kernel": "mala"}, "kernel: would change nothing with 0 steps"),
    ({"steps": 0, "step_adjustment": True}, "step_adjustment: would change nothing with 0 steps"),
]


@pytest.mark.parametrize(("options", "message"), IDLE)
def test_an_option_without_effect_is_refused(pixels: CDRLPipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pixels(2, **options)


@pytest.mark.parametrize(("options", "message"), IDLE)
def test_an_option_without_effect_is_refused_on_the_command_line(
    pixel_run: Path, options: dict[str, Any], message: str
) -> None:
    words: list[str] = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        words += [option] if value is True else [option, str(value)]
    result = CliRunner().invoke(door.app, ["sample", str(pixel_run), "--num-images", "2", *words])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")


def test_long_chains_refuse_what_they_set_themselves(pixel_run: Path) -> None:
    for options in ({"denoise": 1.0}, {"step_adjustment": True}):
        with pytest.raises(ValueError, match=f"{next(iter(options))}: not taken: long chains"):
            run_chains(pixel_run, 1, steps=2, **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"statistics": Path("x.npz"), "reference_images": 3}, "would change nothing with statistics"),
        ({"statistics": Path("x.npz"), "split": "test"}, "would change nothing with statistics"),
        ({"features": "lite0", "weights": Path("x.pth")}, "weights: would change nothing with features lite0"),
    ],
)
def test_a_comparison_refuses_what_changes_nothing(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Comparison(**values)


# ---- seeds and classes ---------------------------------------------------------------------------------------------


def test_seeds_alone_say_how_many(pixels: CDRLPipeline) -> None:
    drawn = pixels(seeds=[1, 2, 3])
    assert (len(drawn), drawn.seeds) == (3, (1, 2, 3))
    assert len(pixels()) == 1
    assert compose(pixels, None, [1], seeds=[4, 5]).seeds == (4, 5)


def test_a_seed_is_that_of_the_first_image(pixels: CDRLPipeline) -> None:
    drawn = pixels(3, seed=42)
    assert drawn.seeds == (42, 43, 44)
    assert torch.equal(drawn.grids, pixels(seeds=[42, 43, 44]).grids)
    filled = fill(pixels, pixels(2), Hidden(RIGHT), seed=7).grids
    assert torch.equal(filled, fill(pixels, pixels(2), Hidden(RIGHT), seeds=[7, 8]).grids)
    assert compose(pixels, 2, [1], seed=7).seeds == (7, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": [1, 2], "seed": 3}, "seeds and seed: expected one of them, found both"),
        ({"seeds": 5}, r"seeds: expected one for each image, such as \[5\]; seed=5 is that of the first"),
        ({"seeds": [1.5]}, r"seeds: expected whole numbers, found \[1.5\]"),
        ({"seeds": []}, "seeds: expected one for each of 0 images"),
        ({"num_images": 2, "label": 1.5}, r"label: class ids are whole numbers, found \[1.5\]"),
        ({"label": "tree"}, "label: unknown 'tree'; did you mean 'three'?"),
        ({"label": ["one", "tree"], "num_images": 2}, "label: unknown 'tree'; did you mean 'three'?"),
    ],
)
def test_seeds_and_classes_that_cannot_be_are_refused(
    pixels: CDRLPipeline, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pixels(**arguments)


def test_classes_have_names(pixels: CDRLPipeline) -> None:
    by_id, by_name = pixels(2, label=[3, 5]), pixels(2, label=["three", "five"])
    assert by_id.labels == by_name.labels == (3, 5)
    assert torch.equal(by_id.grids, by_name.grids)
    assert pixels(2, label=["three", 5]).labels == (3, 5)
    assert pixels(2, label="three").labels == (3, 3)
    assert torch.equal(compose(pixels, 1, ["one", "two"]).grids, compose(pixels, 1, [1, 2]).grids)
    ends = interpolated(pixels, [1, 2], 3, ["one", "two"]).grids
    assert torch.equal(ends, interpolated(pixels, [1, 2], 3, [1, 2]).grids)
    given = pixels(1)
    named = fill(pixels, given, Hidden(RIGHT), label="three").grids
    assert torch.equal(named, fill(pixels, given, Hidden(RIGHT), label=3).grids)
    assert torch.equal(pixels.log_density(given, label="three"), pixels.log_density(given, label=3))


@pytest.mark.parametrize(
    "words",
    [
        "sample RUN --num-images 2",
        "chains RUN --num-images 1 --steps 2",
        "interpolate RUN --from-seed 1 --to-seed 2 --num-images 2",
        "inpaint RUN IMAGE --box right --fills 1",
        "evaluate RUN --num-images 10 --blocks 1 --features lite0 --reference-images 20",
        "roles RUN --num-images 1 --fresh 1",
    ],
)
def test_every_verb_takes_a_class_by_name(words: str, pixel_run: Path, tmp_path: Path) -> None:
    pipeline, image = CDRLPipeline.from_pretrained(pixel_run), tmp_path / "digit.png"
    pipeline(1).images[0].save(image)
    arguments = [{"RUN": str(pixel_run), "IMAGE": str(image)}.get(word, word) for word in words.split()]
    refused = CliRunner().invoke(door.app, [*arguments, "--label", "tree"])
    assert refused.exit_code == 2
    assert refused.stderr == "error: label: unknown 'tree'; did you mean 'three'?\n"
    taken = CliRunner().invoke(door.app, [*arguments, "--label", "three"])
    assert taken.exit_code == 0, taken.output


def test_a_class_named_on_the_command_line_is_the_one_of_that_id(pixel_run: Path, tmp_path: Path) -> None:
    for label in ("three", "3"):
        words = ["sample", str(pixel_run), "--num-images", "2", "--label", label, "--out", str(tmp_path / label)]
        assert CliRunner().invoke(door.app, words).exit_code == 0
    named, numbered = (read_json(tmp_path / label / "sampling.json") for label in ("three", "3"))
    assert named == numbered
    assert named["label"] == 3
    assert (tmp_path / "three" / "000001.png").read_bytes() == (tmp_path / "3" / "000001.png").read_bytes()


def test_a_level_that_is_not_there_says_how_many_are(pixels: CDRLPipeline, pixel_run: Path) -> None:
    message = "level: this model has 2 levels, 0 … 1; found 9"
    for ask in (
        lambda: pixels.log_density(pixels(1), level=9),
        lambda: pixels.model.log_density(torch.zeros(1, 1, 8, 8), 9),
        lambda: pixels.model.propose(torch.zeros(1, 1, 8, 8), 9),
        lambda: run_chains(pixel_run, 1, level=9, steps=1),
    ):
        with pytest.raises(ValueError, match=message):
            ask()
    words = ["chains", str(pixel_run), "--level", "9"]
    assert CliRunner().invoke(door.app, words).stderr == f"error: {message}\n"


# ---- results -------------------------------------------------------------------------------------------------------


def test_samples_know_how_they_were_drawn(run: Path) -> None:
    pipeline = CDRLPipeline.from_pretrained(run)
    drawn = pipeline(seeds=[4, 9], label=["three", 5], guidance=0.5, steps=2, kernel="mala")
    assert (drawn.seeds, drawn.labels, drawn.guidance) == ((4, 9), (3, 5), 0.5)
    expected = SamplerSettings(steps=2, temperature=1.0, kernel="mala")
    assert drawn.settings == expected
    assert repr(drawn).startswith("Generated(2 of shape (")
    assert "seeds=(4, 9), labels=(3, 5), guidance=0.5" in repr(drawn)
    again = pipeline(seeds=drawn.seeds, label=drawn.labels, guidance=drawn.guidance, steps=2, kernel="mala")
    assert torch.equal(again.grids, drawn.grids)
    other = ClassifierFree(0.5)
    assert pipeline(1, label=1, guidance=other).guidance is other
    assert pipeline(2).labels == (-1, -1)


@pytest.mark.parametrize("observation", [Hidden(RIGHT), Averaged(2)], ids=["hidden", "averaged"])
def test_samples_can_be_filled_in_as_they_are(run: Path, observation: Hidden | Averaged) -> None:
    pipeline = CDRLPipeline.from_pretrained(run)
    drawn = pipeline(2, label="three")
    as_given, as_tensors = (fill(pipeline, images, observation) for images in (drawn, drawn.tensors))
    assert torch.equal(as_given.tensors, as_tensors.tensors)
    as_pil, as_bytes = (fill(pipeline, images, observation) for images in (drawn.images, in_8_bits(drawn.tensors)))
    assert torch.equal(as_pil.tensors, as_bytes.tensors)
    alone = fill(pipeline, drawn.images[0], observation)
    torch.testing.assert_close(alone.tensors[0], as_pil.tensors[0], rtol=0, atol=1e-4)
    again = fill(pipeline, drawn, observation, seeds=drawn.seeds, label=drawn.labels)
    assert again.tensors.shape == drawn.tensors.shape


def test_samples_have_densities_as_they_are(run: Path) -> None:
    pipeline = CDRLPipeline.from_pretrained(run)
    drawn = pipeline(3)
    assert torch.equal(pipeline.log_density(drawn), pipeline.log_density(drawn.grids))
    as_pil, as_bytes = (pipeline.log_density(images) for images in (drawn.images, in_8_bits(drawn.tensors)))
    assert torch.equal(as_pil, as_bytes)
    torch.testing.assert_close(pipeline.log_density(drawn.images[0]), as_pil[:1])


def test_samples_can_be_told_from_data_as_they_are(run: Path) -> None:
    pipeline = CDRLPipeline.from_pretrained(run)
    drawn = pipeline(12)
    forms = {"samples": drawn, "tensors": drawn.tensors, "pil": drawn.images, "bytes": in_8_bits(drawn.tensors)}
    outside = detect(pipeline, images=forms, num_images=20).outside
    assert torch.equal(outside["samples"], outside["tensors"])
    assert torch.equal(outside["pil"], outside["bytes"])
    assert outside["samples"].shape == (12,)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 1, 16, 16), r"images: expected \[N, 1, 8, 8\], found \[2, 1, 16, 16\]"),
        (torch.full((2, 1, 8, 8), 7.0), r"images: expected values in \[-1, 1\], or uint8, found 7 … 7"),
        (torch.zeros(8, 8), r"images: expected \[N, C, H, W\], found \[8, 8\]"),
    ],
)
def test_images_that_do_not_fit_are_refused(pixels: CDRLPipeline, images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fill(pixels, images, Hidden(RIGHT))
    with pytest.raises(ValueError, match=message):
        detect(pixels, images={"mine": images}, num_images=10)


def test_images_that_mean_something_else_are_refused_or_shown_as_people_see_them(pipeline: CDRLPipeline) -> None:
    channels = pipeline.config.data.channels
    size = (pipeline.config.data.image_size,) * 2
    clear, white = Image.new("RGBA", size, (0, 0, 0, 0)), Image.new("RGB", size, "white")
    assert torch.equal(pipeline.log_density(clear), pipeline.log_density(white))
    for image in (Image.new("I;16", size), Image.new("F", size)):
        with pytest.raises(ValueError, match="8 bits a channel"):
            pipeline.log_density(image)
    with pytest.raises(ValueError, match=r"float in \[-1, 1\] or uint8"):
        pipeline.images_of(torch.zeros(1, channels, *size, dtype=torch.int64))
    with pytest.raises(ValueError, match="NaN"):
        pipeline.log_density(torch.full((1, *pipeline.model.shape), float("nan")))


def test_numbers_that_cannot_be_are_named(pipeline: CDRLPipeline) -> None:
    for options, message in (
        ({"num_images": 2.5}, "num_images"),
        ({"num_images": -1}, "num_images"),
        ({"batch_size": 0}, "batch_size"),
        ({"label": 1, "guidance": float("nan")}, "guidance"),
        ({"label": 1, "guidance": -1.0}, "guidance"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(**options)
    with pytest.raises(ValueError, match="num_images"):
        detect(pipeline, ["noise"], num_images=1)


def test_a_home_folder_is_meant_by_a_tilde(
    pipeline: CDRLPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    pipeline.save_pretrained("~/mine")
    assert (tmp_path / "mine" / "config.json").exists()
    assert CDRLPipeline.from_pretrained("~/mine").config == pipeline.config

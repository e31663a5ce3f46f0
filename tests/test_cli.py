"""The one door: help that teaches by example, mistakes in one line, training and sampling end to end."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import run as door
from autoencoder.checkpoint import save_autoencoder
from cdrl.runs import Run
from tests.helpers import save_tiny_run, start_command, tiny_autoencoder, tiny_config, tiny_values, write_config

VERBS = sorted(command.name or "" for command in door.app.registered_commands)


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(door.app, [str(argument) for argument in arguments])


def mistake(*arguments: str | Path) -> str:
    """The one line that a refused command prints, with exit code 2."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml", tiny_values())


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb_teaches_by_an_example_of_it(verb: str) -> None:
    result = call(verb, "--help")
    assert result.exit_code == 0
    assert re.search(r"Examples?:", result.output)
    assert f"python run.py {verb}" in result.output


def test_help_names_the_verbs_and_the_order_in_which_they_are_used() -> None:
    result = call("--help")
    assert result.exit_code == 0
    assert {"train", "sample", "encode", "train-autoencoder"} <= set(VERBS)
    assert all(verb in result.output for verb in VERBS)
    text = " ".join(result.output.split())
    assert "Latents: train-autoencoder, encode, train, sample" in text
    assert "torchrun" in text


def test_no_verb_shows_the_help() -> None:
    assert "Usage" in call().output


@pytest.mark.parametrize("verb", ["sample", "judge", "density"])
def test_a_missing_run_is_one_line(verb: str, tmp_path: Path) -> None:
    line = mistake(verb, tmp_path / "nowhere")
    assert "nowhere: no trained model there; train it with: python run.py train" in line


@pytest.mark.parametrize("verb", ["train", "encode", "train-autoencoder"])
def test_a_missing_config_is_one_line(verb: str, tmp_path: Path) -> None:
    assert mistake(verb, tmp_path / "nowhere.yaml").endswith("nowhere.yaml: no such config file")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training.num_step=3", "unknown key 'training.num_step'"),
        ("training.batch_size=many", "training.batch_size"),
        ("training.batch_size", "expected section.key=value"),
        ("training.accumulation=3", "training.batch_size=8 cannot be divided"),
        ("initializer.multipliers=[1,1,1,1,1]", "initializer.multipliers"),
        ("data.labels=attributes", "data.attributes"),
    ],
)
def test_a_bad_override_is_one_line_with_its_key(config: Path, override: str, expected: str, tmp_path: Path) -> None:
    assert expected in mistake("train", config, override, "--run", tmp_path / "run")


def test_missing_latents_are_one_line_that_says_how_to_make_them(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_autoencoder(run / "autoencoder" / "model", tiny_autoencoder())
    line = mistake("train", config, "space=latent", "autoencoder={}", "--run", run)
    assert line.endswith("latents/train: no latents there; make them with: python run.py encode CONFIG")


def test_a_run_of_other_settings_is_one_line_with_the_key(config: Path, tmp_path: Path) -> None:
    Run(tmp_path / "run").open(tiny_config(training={"ema": 0.5}))
    line = mistake("train", config, "--run", tmp_path / "run")
    assert "training.ema is 0.5 there, 0.9 here" in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(("--label", "10"), "class ids are -1 … 9, found [10]"), (("--label", "-2"), "found [-2]")],
)
def test_a_class_that_does_not_exist_is_one_line(arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    assert expected in mistake("sample", tmp_path, *arguments)


def test_a_damaged_model_is_one_line_with_the_file(tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    (tmp_path / "model" / "energy.safetensors").write_bytes(b"junk")
    assert "energy.safetensors: not a whole safetensors file" in mistake("sample", tmp_path)


@pytest.mark.parametrize("arguments", [("--num-images", "0"), ("--steps", "-1"), ("--label", "seven"), ("--nonsense",)])
def test_arguments_that_cannot_be_are_refused(arguments: tuple[str, ...], tmp_path: Path) -> None:
    result = call("sample", tmp_path, *arguments)
    assert result.exit_code == 2
    assert arguments[0] in result.stderr


def test_training_and_sampling_end_to_end(config: Path, tmp_path: Path) -> None:
    """As a user types it, in processes of their own."""
    run, out = tmp_path / "run", tmp_path / "pictures"
    for arguments in (
        ("train", config, "training.num_steps=4", "--run", run),
        ("sample", run, "--num-images", "3", "--seed", "5", "--out", out),
    ):
        command = start_command(*arguments)
        output, errors = command.communicate(timeout=240)
        assert command.returncode == 0, errors
    assert f"3 samples in {out}" in output
    assert sorted(path.name for path in out.iterdir()) == ["000000.png", "000001.png", "000002.png", "grid.png"]
    assert Image.open(out / "000000.png").size == (8, 8)


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("0*.png")}


def test_samples_go_below_the_run_and_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    assert call("sample", tmp_path, "--num-images", "5").exit_code == 0
    default = pictures(tmp_path / "generated")
    assert sorted(default) == [f"{index:06d}.png" for index in range(5)]
    assert call("sample", tmp_path, "--num-images", "5", "--batch-size", "2", "--out", tmp_path / "b").exit_code == 0
    assert pictures(tmp_path / "b") == default


def test_options_reach_the_sampler(tmp_path: Path) -> None:
    save_tiny_run(tmp_path)

    def sampled(*options: Any) -> dict[str, bytes]:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert call("sample", tmp_path, "--num-images", "2", "--out", tmp_path / "out", *options).exit_code == 0
        return pictures(tmp_path / "out")

    base = sampled()
    for options in (("--seed", 3), ("--label", 4), ("--steps", 0), ("--denoise", 0), ("--steps", 9)):
        assert sampled(*options) != base, options
    assert sampled("--steps", 9, "--step-adjustment") != sampled("--steps", 9)
    # Without a label the classes come in turn: image 0 is of class 0.
    assert sampled("--label", 0)["000000.png"] == base["000000.png"]


def test_a_traceback_is_shown_to_those_who_ask_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDRL_TRACEBACK", "1")
    result = call("sample", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "no trained model there" in str(result.exception)

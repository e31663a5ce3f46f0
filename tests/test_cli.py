"""The one door: help that teaches by example, mistakes in one line, training and sampling end to end."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner, Result

import run as door
from autoencoder.model import load_autoencoder, save_autoencoder
from cdrl.data import read_shards
from cdrl.runs.checksums import verify_checksums
from cdrl.runs.lock import locked
from cdrl.runs.run import Run, read_json
from pipelines.report.run_facts import gaps_in_words
from pipelines.verbs.common import clear_errors
from tests.helpers import (
    FIXTURES,
    metrics,
    save_tiny_run,
    start_command,
    tiny_autoencoder,
    tiny_config,
    tiny_values,
    write_config,
)
from tests.killing import held_elsewhere
from tests.published import Sizes, published_model

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


@pytest.mark.parametrize(
    "verb",
    [
        "sample",
        "judge",
        "judge-composition",
        "sweep-guidance",
        "roles",
        "evaluate",
        "density",
        "likelihood",
        "chains",
        "compare-steps",
        "detect --against noise",
        "interpolate --from-seed 1 --to-seed 2",
    ],
)
def test_a_missing_run_is_one_line(verb: str, tmp_path: Path) -> None:
    line = mistake(*verb.split(), tmp_path / "nowhere")
    assert "nowhere: no trained model there; train it with: python run.py train" in line


@pytest.mark.parametrize("verb", ["prepare", "train", "encode", "train-autoencoder", "compare"])
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


def test_prepared_digits_train_like_the_published_ones(config: Path, tmp_path: Path) -> None:
    prepared = f"data.prepared={tmp_path / 'prepared'}"
    assert "data.prepared must name the folder" in mistake("prepare", config)
    line = mistake("train", config, prepared, "--run", tmp_path / "run")
    assert line.endswith("prepared/train: no prepared shards there; make them with: python run.py prepare CONFIG")
    for _ in range(2):
        result = call("prepare", config, prepared)
        assert result.exit_code == 0, result.output
        assert result.stdout.count("split in") == 2
    for name, overrides in {"published": [], "streamed": [prepared, "data.stream=true"]}.items():
        assert call("train", config, *overrides, "--run", tmp_path / name).exit_code == 0
    assert metrics(tmp_path / "streamed") == metrics(tmp_path / "published")


def test_a_run_of_other_settings_is_one_line_with_the_key(config: Path, tmp_path: Path) -> None:
    Run(tmp_path / "run").open(tiny_config(training={"ema": 0.5}))
    Run(tmp_path / "run").checkpoint_path(3).mkdir(parents=True)
    line = mistake("train", config, "--run", tmp_path / "run")
    assert "training.ema is 0.5 there, 0.9 here" in line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(("--label", "10"), "class ids are -1 … 9, found [10]"), (("--label", "-2"), "found [-2]")],
)
def test_a_class_that_does_not_exist_is_one_line(arguments: tuple[str, ...], expected: str, tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    assert expected in mistake("sample", tmp_path, *arguments)


def test_a_kernel_that_does_not_exist_is_one_line(tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    assert "kernel: unknown 'gibbs'; expected one of langevin, mala, hmc" in mistake(
        "sample", tmp_path, "--kernel", "gibbs"
    )


def test_a_damaged_model_is_one_line_with_the_file(tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    (tmp_path / "model" / "energy.safetensors").write_bytes(b"junk")
    assert "energy.safetensors: not a whole safetensors file" in mistake("sample", tmp_path)


def test_an_imported_first_stage_encodes(tmp_path: Path) -> None:
    first, run = tmp_path / "first", tmp_path / "run"
    result = call("import-autoencoder", FIXTURES / "diffusers_kl_tiny", first, "--image-size", "8")
    assert result.stdout.splitlines() == [
        f"{first}: images 3 x 8 x 8 to latents 4 x 2 x 2 (kl)",
        f"next: python run.py encode CONFIG autoencoder.run={first}",
    ]
    values = tiny_values(
        space="latent", data={"channels": 3, "labels": "none"}, autoencoder={"run": str(tmp_path / "other")}
    )
    config = write_config(tmp_path / "latent.yaml", values)
    assert call("encode", config, f"autoencoder.run={first}", "--run", run).exit_code == 0
    latents = read_shards(run / "latents" / "test")
    assert latents.grids.shape[1:] == (4, 2, 2)
    assert torch.allclose(torch.tensor(latents.metadata["mean"]), latents.grids.mean(dim=(0, 2, 3)), atol=1e-5)


def test_the_raw_weights_of_a_first_stage_are_asked_for(tmp_path: Path) -> None:
    state = published_model(Sizes()).state_dict()
    shadow = {f"model_ema.{name.replace('.', '')}": value + 1 for name, value in state.items()}
    torch.save({"state_dict": {**state, **shadow}}, tmp_path / "model.ckpt")
    for options, shift in (((), 1), (("--raw",), 0)):
        run = tmp_path / f"run{shift}"
        assert call("import-autoencoder", tmp_path / "model.ckpt", run, *options).exit_code == 0
        kept = load_autoencoder(run / "model").state_dict()
        assert all(torch.equal(kept[name], value + shift) for name, value in state.items())


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("nowhere.ckpt", "nowhere.ckpt: no such file"),
        ("nowhere.safetensors", "nowhere.safetensors: no such file"),
        ("official_uncond_tiny.pth.tar", "a CDRL checkpoint, not a first stage; python run.py import-cdrl reads it"),
        ("official_uncond_tiny.npz", "not a whole checkpoint that can be read without executing code"),
        ("schedule.json", "not a whole checkpoint that can be read without executing code"),
        (".", "expected config.json and diffusion_pytorch_model.safetensors of a diffusers AutoencoderKL there"),
        ("damaged.ckpt", "damaged.ckpt: is cut short: its end is missing"),
        ("damaged.safetensors", "damaged.safetensors: is cut short: its end is missing"),
    ],
)
def test_a_first_stage_that_cannot_be_imported_is_one_line_and_leaves_nothing(
    source: str, expected: str, tmp_path: Path
) -> None:
    path = FIXTURES / source
    if source.startswith("damaged"):
        path = tmp_path / source
        path.write_bytes((FIXTURES / "compvis_vq_f4_tiny.ckpt").read_bytes()[:100_000])
    assert expected in mistake("import-autoencoder", path, tmp_path / "runs" / "new")
    assert not (tmp_path / "runs").exists()


def test_a_first_stage_is_not_imported_over_another_run(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    line = mistake("import-autoencoder", FIXTURES / "diffusers_kl_tiny", tmp_path)
    assert line.endswith("exists already; name another folder")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@pytest.mark.parametrize("arguments", [("--num-images", "0"), ("--steps", "-1"), ("--nonsense",)])
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
    images = ["000000.png", "000001.png", "000002.png"]
    assert sorted(path.name for path in out.iterdir()) == [*images, "grid.png", "sampling.json"]
    assert read_json(out / "sampling.json")["model_step"] == 4
    assert Image.open(out / "000000.png").size == (8, 8)


def next_command(result: Result) -> list[str]:
    """The words behind ``python run.py`` of the command that a verb's last line names."""
    assert result.exit_code == 0, result.output
    words = shlex.split(result.stdout.splitlines()[-1])
    assert words[:3] == ["next:", "python", "run.py"]
    return words[3:]


def test_every_verb_of_training_says_where_its_results_are_and_what_comes_next(tmp_path: Path) -> None:
    first = {
        "architecture": {"channels": 32, "multipliers": [1], "num_blocks": 1, "pixel_unshuffle": 2},
        "training": {"num_steps": 1, "batch_size": 2},
    }
    values = tiny_values(space="latent", autoencoder=first, training={"num_steps": 1})
    config = write_config(tmp_path / "my run.yaml", values)
    run, prepared = tmp_path / "run", f"data.prepared={tmp_path / 'prepared'}"
    verbs, command = [], ["prepare", str(config), prepared]
    for _ in range(5):
        verbs.append(command[0])
        command = next_command(call(*command))
        if command[0] == "train-autoencoder":
            command += ["--run", str(run)]
    assert verbs == ["prepare", "train-autoencoder", "encode", "train", "sample"]
    assert command == ["report", str(run)]
    again = call("train", config, prepared, "--run", run)  # at its last step already
    gaps = gaps_in_words(run / "metrics.jsonl").splitlines()
    told = again.stdout.splitlines()
    assert told[: len(gaps)] == gaps
    assert told[len(gaps) :] == [
        f"trained to the end, step 1: {run / 'model'}; pictures in {run / 'samples'}",
        f"next: python run.py sample {run}",
    ]


def test_an_imported_model_says_what_comes_next(tmp_path: Path) -> None:
    result = call("import-cdrl", FIXTURES / "official_uncond_tiny.pth.tar", tmp_path / "run")
    assert next_command(result) == ["sample", str(tmp_path / "run")]
    assert str(tmp_path / "run" / "model") in result.stdout


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
    assert sampled("--kernel", "mala") != base
    assert sampled("--kernel", "hmc", "--leapfrog-steps", 4) != sampled("--kernel", "hmc", "--leapfrog-steps", 2)
    # Without a label the classes come in turn: image 0 is of class 0.
    assert sampled("--label", 0)["000000.png"] == base["000000.png"]


def test_a_traceback_is_shown_to_those_who_ask_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDRL_TRACEBACK", "1")
    result = call("sample", tmp_path / "nowhere")
    assert result.exit_code == 1
    assert "no trained model there" in str(result.exception)


@pytest.mark.parametrize(
    ("command", "folder", "name"),
    [
        (("train", "CONFIG", "--run", "RUN"), "RUN", ""),
        (("sample", "RUN"), "RUN/generated", "sampling.json"),
        (("evaluate", "RUN", "--features", "lite0"), "RUN/evaluation", ""),
        (("detect", "RUN", "--against", "noise"), "RUN", "detection.json"),
        (("report", "RUN", "--neighbours", "0"), "RUN", "report.html"),
        (("prepare", "CONFIG", "data.prepared=PREPARED"), "PREPARED", ""),
        (("compare", "CONFIG", "--runs", "PREPARED"), "PREPARED", ""),
        (("import-cdrl", str(FIXTURES / "official_uncond_tiny.pth.tar"), "PREPARED"), "PREPARED", ""),
    ],
)
def test_a_folder_in_use_is_one_line_that_says_by_whom(
    command: tuple[str, ...], folder: str, name: str, config: Path, tmp_path: Path
) -> None:
    save_tiny_run(tmp_path / "run")

    def filled(text: str) -> str:
        for word, path in {"CONFIG": config, "RUN": tmp_path / "run", "PREPARED": tmp_path / "prepared"}.items():
            text = text.replace(word, str(path))
        return text

    with held_elsewhere(locked(Path(filled(folder)), name)) as process:
        assert f"{filled(folder)}: is being written by process {process} on " in mistake(*map(filled, command))


def test_a_file_where_a_folder_should_be_is_one_line(config: Path, tmp_path: Path) -> None:
    save_tiny_run(tmp_path / "run")
    (tmp_path / "file").touch()
    assert f"{tmp_path / 'file'}: a file lies where a folder is to be; there is no checkpoint" in mistake(
        "train", config, "--run", tmp_path / "file"
    )
    assert mistake("sample", tmp_path / "run", "--out", tmp_path / "file").endswith(
        "file: a file lies where a folder is to be"
    )


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)], check=False)
    if made.returncode:
        pytest.skip("only root may make a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a small disk")
def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_kept(config: Path, tmp_path: Path) -> None:
    """In checkpoints, and in pictures."""
    with small_disk(tmp_path / "disk", 1200) as disk:
        line = mistake("train", config, "training.num_steps=30", "training.checkpoint_every=2", "--run", disk / "run")
        assert re.search(r"disk/run/.*: No space left on device; the checkpoint of step \d+ is kept in ", line)
        kept = list((disk / "run" / "checkpoints").iterdir())
        assert kept
        for step in kept:
            verify_checksums(step)
        (disk / "rest").write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 8192))
        line = mistake("sample", disk / "run", "--num-images", "64")
        assert re.search(r"disk/run/generated.*: No space left on device", line)
        assert not list((disk / "run" / "generated").glob("*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a disk read-only")
def test_a_run_that_is_read_only_is_one_line(config: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4000) as disk:
        save_tiny_run(disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for command in (
            ("train", config, "--run", disk / "new"),
            ("sample", disk / "run"),
            ("report", disk / "run", "--neighbours", "0"),
            ("evaluate", disk / "run", "--features", "lite0", "--num-images", "50"),
        ):
            assert "Read-only file system" in mistake(*command)
        assert call("sample", disk / "run", "--num-images", "1", "--out", tmp_path / "out").exit_code == 0


def test_of_several_processes_one_tells_what_is_wrong_first_and_last(config: Path, tmp_path: Path) -> None:
    Run(tmp_path / "run").open(tiny_config(training={"ema": 0.5}))
    Run(tmp_path / "run").checkpoint_path(3).mkdir(parents=True)
    command = start_command("train", config, "--run-folder", tmp_path / "run", processes=2)
    _, errors = command.communicate(timeout=240)
    assert command.returncode == 1
    told = [line for line in errors.splitlines() if "training.ema is 0.5 there, 0.9 here" in line]
    assert len(told) == 2, errors
    assert re.match(r"error: .* \[process \d of 2; with CDRL_TRACEBACK=1 each shows where it ended\]", told[0])
    assert errors.index(told[0]) < errors.index("ChildFailedError") < errors.index(told[1])


def test_processes_that_run_py_starts_print_one_line_and_nothing_else(config: Path, tmp_path: Path) -> None:
    Run(tmp_path / "run").open(tiny_config(training={"ema": 0.5}))
    Run(tmp_path / "run").checkpoint_path(3).mkdir(parents=True)
    command = start_command("train", config, "--run", tmp_path / "run", "--processes", "2")
    output, errors = command.communicate(timeout=240)
    assert (command.returncode, output) == (2, "")
    (line,) = errors.splitlines()
    assert re.fullmatch(r"error: .*training\.ema is 0\.5 there, 0\.9 here.* \[process \d of 2; with CDRL_.*\]", line)


def test_processes_that_run_py_starts_train_together(config: Path, tmp_path: Path) -> None:
    command = start_command("train", config, "training.num_steps=2", "--run", tmp_path / "run", "--processes", "2")
    output, errors = command.communicate(timeout=240)
    assert command.returncode == 0, errors
    assert output.splitlines()[-1] == f"next: python run.py sample {tmp_path / 'run'}"
    assert errors.count("500 images read") <= 1
    assert "Warning" not in errors
    assert read_json(Run(tmp_path / "run").checkpoint_path(2) / "state.json")["processes"] == 2


def test_what_fails_after_another_process_has_nothing_to_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "1" / "error.json"))
    with pytest.raises(RuntimeError, match="closed by peer"), clear_errors():
        raise RuntimeError("Connection closed by peer")
    (tmp_path / "told").touch()
    with pytest.raises(typer.Exit), clear_errors():
        raise RuntimeError("Connection closed by peer")


def test_runs_are_compared_side_by_side_and_one_that_fails_is_a_row(tmp_path: Path) -> None:
    values = tiny_values(space="point", data={"name": "checkerboard", "labels": "none"})
    steady = write_config(tmp_path / "steady.yaml", values)
    wild = write_config(
        tmp_path / "wild.yaml", {**values, "training": {**values["training"], "energy_lr": 1e30, "warmup_steps": 0}}
    )
    runs = tmp_path / "runs"
    result = call("compare", wild, steady, "--images", "24", "--samples", "10", "--processes", "2", "--runs", runs)
    assert result.exit_code == 0, result.output
    assert "24 training images a run, seed 0. Figures of 10 samples" in result.stdout
    lines = {line.split(" | ")[0]: line for line in result.stdout.splitlines()}
    assert re.search(r"seed 0: DivergenceError: .*wild/seed_0.*lower training.energy_lr", lines["| wild"])
    assert re.fullmatch(r"\| steady \| [01]\.\d{3} \| [01]\.\d{3} \| \d+ \| \d+ \|  \|", lines["| steady"])
    assert (runs / "comparison.md").read_text() in result.stdout
    assert (runs / "steady" / "seed_0" / "model" / "energy.safetensors").exists()


def test_settings_that_cannot_be_compared_are_one_line(config: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    assert "images: 9 are no whole number of batches" in mistake("compare", config, "--images", "9", "--runs", runs)
    assert "seeds: expected different whole numbers" in mistake("compare", config, "--seeds", "0-3", "--runs", runs)
    assert not runs.exists()


def test_chains_and_interpolations_are_pictures_below_the_run(tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    result = call("chains", tmp_path, "--num-images", "2", "--steps", "4", "--every", "2", "--kernel", "mala")
    assert result.exit_code == 0, result.output
    assert re.match(r"level 1: mean \|y\| drifts by [+-]\d\.\d{4}, accepted [01]\.\d{3}\nlevel 0: ", result.stdout)
    assert sorted(path.name for path in (tmp_path / "chains").iterdir()) == [
        "mala_4_steps_level_0.json",
        "mala_4_steps_level_0.png",
    ]
    result = call("interpolate", tmp_path, "--from-seed", "3", "--to-seed", "8", "--num-images", "4")
    assert result.stdout == f"{tmp_path / 'interpolations' / '3_to_8.png'} and 3_to_8.json\n"
    assert "level: this model has 2 levels, 0 … 1; found 2" in mistake("chains", tmp_path, "--level", "2")
    refused = call("interpolate", tmp_path, "--from-seed", "3", "--to-seed", "8", "--num-images", "1")
    assert refused.exit_code == 2


def test_a_run_is_evaluated_and_reported(tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_tiny_run(run, config=tiny_config(data={"cache": str(tmp_path)}))
    arguments = ("--num-images", "10", "--blocks", "1", "--split", "test", "--guidance", "1")
    result = call("evaluate", run, "--features", "lite0", *arguments)
    assert result.exit_code == 0, result.output
    assert re.match(r"fd_lite0_10_test_w1: \d+\.?\d*\nprecision_lite0_10_test_w1: ", result.stdout)
    assert "10 samples of seeds 0 … 9" in result.stdout
    assert "no Inception weights there: fetch https://" in mistake("evaluate", run, *arguments)
    assert call("report", run, "--neighbours", "0").stdout == f"{run / 'report.html'}\n"
    assert "fd_lite0_10_test_w1" in (run / "report.html").read_text()
    assert "nowhere: no run there" in mistake("report", tmp_path / "nowhere")


def test_paths_may_begin_with_the_home_folder(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    save_tiny_run(home / "run")
    sampled = call("sample", "~/run", "--num-images", "1", "--out=~/out")
    assert sampled.exit_code == 0, sampled.output
    assert (home / "out" / "000000.png").exists()
    assert not list(tmp_path.rglob("~*"))
    assert "~nobody-at-all" in call("sample", "~nobody-at-all/run").output

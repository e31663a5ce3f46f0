"""Model cards: what training left, nothing of the machine's paths, and what a person wrote is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from cdrl import load_config
from cdrl.runs.checksums import verify_checksums
from cdrl.runs.run import RunError, write_json
from pipelines import CDRLPipeline
from pipelines.jobs.exporting import export_model
from pipelines.jobs.training import run_stage_two
from pipelines.report.card import TO_WRITE, write_card
from pipelines.report.run_facts import gaps_in_words
from run import app
from tests.helpers import save_tiny_run, tiny_config

SECTIONS = ("## What it is", "## How it was trained", "## Data and licence", "## Figures", "## What it is bad at")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "mine"
    config = tiny_config(data={"cache": str(run / "cache")}, training={"num_steps": 3, "sample_every": 2})
    run_stage_two(config, run)
    write_json(run / "judge.json", {"accuracy_samples": 0.25, "seed": 0})
    (run / "stages").mkdir()
    write_json(run / "stages" / "figures.json", {"psnr": 27.5, "files": ["worst.png"]})
    return run


def test_a_card_tells_what_training_left(trained: Path, tmp_path: Path) -> None:
    folder, unfinished = write_card(trained, tmp_path / "card")
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert unfinished
    assert [line for line in text.splitlines() if line.startswith("## ")] == list(SECTIONS)
    assert text.startswith("# mine\n")
    assert "2 noise levels, grids of 1 × 8 × 8, 10 classes" in text
    assert "3 updates, 24 images" in text
    assert "torch 2." in text
    assert "scikit-learn's digits" in text.replace("Scikit", "scikit")
    assert "| judge: accuracy_samples | 0.25 |" in text
    assert "| stages: psnr | 27.5 |" in text
    newest = Image.open(trained / "samples" / "step_00000003.png")
    assert Image.open(folder / "samples.png").tobytes() == newest.tobytes()
    assert str(trained.parent) not in text + (folder / "config.yaml").read_text(encoding="utf-8")
    assert load_config(folder / "config.yaml").training.num_steps == 3


def test_what_a_person_wrote_goes_with_the_weights_and_may_change_there(trained: Path, tmp_path: Path) -> None:
    write_card(trained)
    path = trained / "card" / "README.md"
    path.write_text(path.read_text(encoding="utf-8").replace(TO_WRITE, "Hands."), encoding="utf-8")
    given = tmp_path / "given"
    export_model(trained, given, half=False)
    assert "Hands." in (given / "README.md").read_text(encoding="utf-8")
    (given / "README.md").write_text("Another text.", encoding="utf-8")
    verify_checksums(given)
    export_model(given, tmp_path / "again", half=True)
    assert (tmp_path / "again" / "README.md").read_text(encoding="utf-8") == "Another text."
    assert CDRLPipeline.from_pretrained(tmp_path / "again").model.num_classes == 10


def test_weights_without_a_card_get_one_when_they_are_given_away(tmp_path: Path) -> None:
    save_tiny_run(tmp_path / "run", latent=True)
    export_model(tmp_path / "run", tmp_path / "given", half=False)
    text = (tmp_path / "given" / "README.md").read_text(encoding="utf-8")
    assert "images, through latents of a first stage," in text
    assert "cdrl encode config.yaml" in text
    figures = text.split("## Figures\n")[1].split("## ")[0].strip()
    assert figures == (
        "Samples were not compared with real images: `cdrl evaluate RUN`, `cdrl judge RUN` and "
        "`cdrl judge-stages RUN` do."
    )
    assert not (tmp_path / "given" / "samples.png").exists()


def test_a_card_tells_apart_what_training_measured_and_what_nobody_did(tmp_path: Path) -> None:
    save_tiny_run(tmp_path / "run", latent=True)
    (tmp_path / "run" / "autoencoder").mkdir(exist_ok=True)
    line = json.dumps({"step": 5, "held_out_psnr": 25.22, "held_out_ssim": 0.8553})
    (tmp_path / "run" / "autoencoder" / "metrics.jsonl").write_text(line + "\n", encoding="utf-8")
    write_card(tmp_path / "run", tmp_path / "card")
    text = (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    first, samples = text.split("## Figures\n")[1].split("## ")[0].strip().split("\n\n")
    assert first == "First stage, on held-out images at the end of its training: PSNR 25.22, SSIM 0.8553."
    assert samples.startswith("Samples were not compared with real images: ")
    # With figures of the samples it says nothing of the kind.
    write_json(tmp_path / "run" / "judge.json", {"accuracy_samples": 0.25})
    write_card(tmp_path / "run", tmp_path / "card")
    text = (tmp_path / "card" / "README.md").read_text(encoding="utf-8")
    assert "not compared" not in text
    assert "| judge: accuracy_samples | 0.25 |" in text


def test_the_verb_says_where_the_card_is_and_a_folder_without_a_run_is_named(trained: Path, tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["card", str(trained), "--out", str(tmp_path / "card")])
    assert answer.exit_code == 0, answer.output
    assert f"card in {tmp_path / 'card' / 'README.md'}; finish what is marked" in answer.output
    with pytest.raises(RunError, match="nowhere: no run there"):
        write_card(tmp_path / "nowhere")


def test_a_card_that_was_finished_by_hand_is_not_written_over(trained: Path, tmp_path: Path) -> None:
    folder, _ = write_card(trained, tmp_path / "card")
    write_card(trained, tmp_path / "card")  # as it was made: it may be made anew
    path = folder / "README.md"
    path.write_text(path.read_text(encoding="utf-8").replace(TO_WRITE, "Hands."), encoding="utf-8")
    with pytest.raises(RunError, match=r"README\.md: was written in by hand since, which would be lost: move it away"):
        write_card(trained, tmp_path / "card")
    assert "Hands." in path.read_text(encoding="utf-8")


def test_energy_gaps_are_averaged_over_the_end_of_the_log(tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    assert gaps_in_words(log) == ""
    lines = [{"step": step, "energy_gap": [10.0 if step < 8 else 0.01 * step, float("nan")]} for step in range(10)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert gaps_in_words(log).startswith("energy gaps by level, over the last fifth of the log: +0.085, none (healthy")


@pytest.mark.parametrize(
    ("gaps", "outside"),
    [
        ([0.0404, -0.0395, 0.0], None),
        ([0.03, float("nan"), -0.05], "level 2 is"),
        ([0.06, 0.01, -0.3], "levels 0, 2 are"),
    ],
)
def test_of_gaps_that_are_not_healthy_one_line_says_which_and_what_helps(
    gaps: list[float], outside: str | None, tmp_path: Path
) -> None:
    log = tmp_path / "metrics.jsonl"
    # Of a single line one cannot tell.
    log.write_text(json.dumps({"step": 1, "energy_gap": gaps}) + "\n", encoding="utf-8")
    assert gaps_in_words(log).endswith("; from 1 line, too few to judge by")
    log.write_text("".join(json.dumps({"step": i, "energy_gap": gaps}) + "\n" for i in range(25)), encoding="utf-8")
    _, *advice = gaps_in_words(log).splitlines()
    if outside is None:
        assert advice == []
        return
    (line,) = advice
    assert line.startswith(f"{outside} not there yet: more updates (a larger training.num_steps)")
    assert "training.energy_lr" in line

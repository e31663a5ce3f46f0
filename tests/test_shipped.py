"""Weights that ship: each opens by its name, draws, and has a card; together they stay small, and name no machine."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from cdrl.runs.checksums import CHECKSUMS, verify_checksums
from cdrl.runs.pretrained import SHIPPED, pretrained_names
from pipelines import CDRLPipeline
from pipelines.detection.known_images import shipped_known
from tests.helpers import ROOT

NAMES = pretrained_names()
MOST_BYTES = 120 * 10**6
SECTIONS = ("## What it is", "## How it was trained", "## Data and licence", "## Figures", "## What it is bad at")


def test_they_lie_in_the_project_and_are_small() -> None:
    assert Path("pretrained").resolve() == SHIPPED == ROOT / "pretrained"
    digits, clothes = {"digits", "digits_density"}, {"fashion_mnist", "fashion_mnist_density", "fashion_mnist_latent"}
    faces = {"faces256", "heads256", "heads256_attributes"}
    assert digits | clothes | faces | {"checkerboard", "cifar10_small"} <= set(NAMES)
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()) <= MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_they_open_by_name_and_draw(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify_checksums(SHIPPED / name)
    assert (SHIPPED / name / CHECKSUMS).exists()
    monkeypatch.chdir(tmp_path)
    pipeline = CDRLPipeline.from_pretrained(name)
    label = 0 if pipeline.model.num_classes else None
    drawn = pipeline(2, seed=1, label=label, steps=1)
    assert torch.isfinite(drawn.grids).all()
    if pipeline.config.space != "point":
        assert drawn.bytes.float().std() > 10
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_card_says_what_they_are(name: str) -> None:
    card = (SHIPPED / name / "README.md").read_text(encoding="utf-8")
    assert card.startswith(f"# {name}\n")
    assert [line for line in card.splitlines() if line.startswith("## ")] == list(SECTIONS)
    assert "run.py train" in card
    for path in (SHIPPED / name).rglob("*"):
        if path.suffix in (".md", ".json"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r'["\s](/[\w.-]+){2,}|~/|[A-Z]:\\', text), path


@pytest.mark.parametrize("name", ["faces256", "heads256", "heads256_attributes"])
def test_heads_bring_held_out_images_which_few_people_have(name: str) -> None:
    known = shipped_known(Path(name), CDRLPipeline.from_pretrained(name))
    assert known is not None
    assert known.held_out.shape == (8, 3, 256, 256)
    # Half of the training images are less likely than their median: of held-out ones it must be about half.
    middle = known.train_log_density[:, 0].median()
    assert 0.2 < (known.held_out_log_density[:, 0] < middle).double().mean() < 0.8

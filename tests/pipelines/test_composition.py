"""Composition: each image under its own concepts, and figures of what is read off them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cdrl.config import Config, DataConfig
from cdrl.runs.run import RunError, read_json
from pipelines import CDRLPipeline, ClassifierFree
from pipelines.composition import compose, composed, parse_concepts
from pipelines.evaluation.attributes import (
    AttributeReferee,
    asked_attributes,
    composition_lines,
    composition_picture,
    judged_composition,
    readings,
    run_composition,
    shown_values,
    values_in_turn,
)
from pipelines.evaluation.judge import AttributeJudge, JudgeNetwork
from pipelines.generation import run_sample
from tests.helpers import save_tiny_run, tiny_config

ATTRIBUTES = ("Smiling", "Eyeglasses", "Long_Hair")
DATA = DataConfig(name="faces", image_size=8, channels=1, labels="attributes", attributes=ATTRIBUTES)


def attribute_config() -> Config:
    return tiny_config(data=DATA.model_dump(mode="json"), initializer={"conditional": False})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    save_tiny_run(folder, config=attribute_config())
    return folder


@pytest.fixture
def pipeline(run: Path) -> CDRLPipeline:
    return CDRLPipeline.from_pretrained(run)


@pytest.mark.parametrize("weight", [None, 0.0, 0.7])
def test_every_image_has_concepts_of_its_own(pipeline: CDRLPipeline, weight: float | None) -> None:
    """Eq. 14 written out, term by term and image by image."""
    model = pipeline.model
    y = torch.randn(3, *model.shape, generator=torch.Generator().manual_seed(0))
    _, log_density = composed(model, [[0, 1, 1], 2, [5, 4, 5]], weight, 3)
    for image, concepts in enumerate([(0, 2, 5), (1, 2, 4), (1, 2, 5)]):
        alone = y[image : image + 1]
        terms = torch.cat([model.log_density(alone, 1, concept) for concept in concepts])
        if weight is None:
            expected = terms.sum()
        else:
            expected = (1 + weight) * terms.sum() - (3 * weight + 2) * model.log_density(alone, 1, None)[0]
        torch.testing.assert_close(log_density(y, 1)[image], expected, rtol=1e-4, atol=1e-2)


def test_one_concept_under_an_unconditional_initializer_is_guidance(pipeline: CDRLPipeline) -> None:
    composed_images = compose(pipeline, 3, [[0, 3, 5]], seeds=[4, 5, 6], guidance=0.7, steps=2).grids
    guided_images = pipeline(3, seeds=[4, 5, 6], label=[0, 3, 5], guidance=0.7, steps=2).grids
    torch.testing.assert_close(composed_images, guided_images, rtol=0, atol=1e-4)


def test_an_image_depends_on_its_seed_and_concepts_alone(pipeline: CDRLPipeline) -> None:
    concepts = [[0, 1, 0, 1, 0], [2, 2, 3, 3, 2]]
    whole = compose(pipeline, 5, concepts, guidance=1.0, steps=2).grids
    torch.testing.assert_close(
        compose(pipeline, 5, concepts, guidance=1.0, steps=2, batch_size=2).grids, whole, rtol=0, atol=1e-4
    )
    alone = compose(pipeline, 1, [1, 3], seeds=[3], guidance=1.0, steps=2).grids
    torch.testing.assert_close(alone[0], whole[3], rtol=0, atol=1e-4)


def test_concepts_are_values_of_attributes() -> None:
    assert parse_concepts(DATA, ["Long_Hair=1", "Smiling=0"]) == [5, 0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["Smiling"], "concept 'Smiling': expected NAME=1 or NAME=0"),
        (["Smiling=2"], "concept 'Smiling=2': expected NAME=1 or NAME=0"),
        (["Beard=1"], "one of the attributes Smiling, Eyeglasses, Long_Hair"),
        (["Smiling=1", "Smiling=0"], "concept 'Smiling=0': Smiling is there already"),
    ],
)
def test_other_words_are_refused(words: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        parse_concepts(DATA, words)


def test_classes_that_are_no_attributes_are_refused(tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    with pytest.raises(ValueError, match=r"this run has data\.labels=class"):
        run_sample(tmp_path, 1, concepts=["Smiling=1"])
    with pytest.raises(RunError, match=r"two or more of data\.attributes, found 0"):
        run_composition(tmp_path, [0.0], 8)


def test_samples_of_concepts_bear_their_names(run: Path, pipeline: CDRLPipeline, tmp_path: Path) -> None:
    folder = run_sample(run, 3, concepts=["Smiling=1", "Eyeglasses=0"], guidance=1.0, out=tmp_path, steps=1)
    expected = compose(pipeline, 3, [1, 2], guidance=1.0, steps=1).images
    for index, image in enumerate(expected):
        assert Image.open(folder / f"{index:06d}.png").tobytes() == image.tobytes()
    assert Image.open(folder / "grid.png").size == (3 * 66 + 2, 66 + 2 + 20)
    record = read_json(folder / "sampling.json")
    assert (record["concepts"], record["guidance"], "label" in record) == (["Smiling=1", "Eyeglasses=0"], 1.0, False)
    with pytest.raises(ValueError, match="expected one of them, found both"):
        run_sample(run, 1, concepts=["Smiling=1"], label=0)


def test_readings_are_shares_of_right_answers() -> None:
    read = torch.tensor([[1, 1], [1, 0], [0, 0], [1, 1]]).bool()
    asked = torch.tensor([[1, 1], [1, 1], [0, 1], [0, 1]]).bool()
    assert readings(read, asked, ("a", "b")) == {"a": 0.75, "b": 0.5, "all": 0.25}


def test_all_values_come_in_turn_and_all_sets_are_asked_for() -> None:
    values = values_in_turn(16, 3)
    assert len({tuple(row) for row in values[:8].tolist()}) == 8
    assert torch.equal(values[:8], values[8:])
    assert asked_attributes(2) == [(0, 1)]
    assert asked_attributes(3) == [(0, 1), (0, 2), (1, 2), (0, 1, 2)]
    assert len(shown_values(3)) == 7


class MeanJudge(JudgeNetwork):
    """Reads the sign of the mean of three rows of pixels."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, 0, :3].mean(dim=2)


def test_the_figure_is_the_share_that_the_judge_reads_as_asked(pipeline: CDRLPipeline) -> None:
    referee = AttributeReferee(AttributeJudge(MeanJudge(1, 8, 3)), ATTRIBUTES, {}, None)
    figures = judged_composition(pipeline, referee, (0, 2), 0.5, range(4, 12), steps=1)
    asked = [(0, 0), (1, 0), (0, 1), (1, 1)] * 2
    right = []
    for seed, (smiling, long_hair) in zip(range(4, 12), asked, strict=True):
        image = compose(pipeline, 1, [smiling, 4 + long_hair], seeds=[seed], guidance=0.5, steps=1).tensors
        means = image[0, 0, :3].mean(dim=1)
        right.append((bool(means[0] > 0) == bool(smiling), bool(means[2] > 0) == bool(long_hair)))
    assert figures == {
        "Smiling": sum(first for first, _ in right) / 8,
        "Long_Hair": sum(second for _, second in right) / 8,
        "all": sum(first and second for first, second in right) / 8,
    }


def test_the_picture_has_a_row_for_every_set_of_concepts(pipeline: CDRLPipeline) -> None:
    assert composition_picture(pipeline, 0.0, [0, 1], steps=0).shape == (3, 7 * (66 + 2 + 20), 2 * 66 + 2)


def test_judging_a_run_writes_figures_and_a_picture_a_weight(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    referee = AttributeReferee(AttributeJudge(MeanJudge(1, 8, 3)), ATTRIBUTES, {"all": 0.5}, None)
    monkeypatch.setattr(AttributeReferee, "of", lambda data, autoencoder: referee)
    figures = run_composition(run, [0.0, 2.0], 8, steps=0)
    assert json.loads((run / "composition" / "figures.json").read_text(encoding="utf-8")) == {
        **figures,
        "files": ["guidance_0.png", "guidance_2.png"],
    }
    assert {path.name for path in (run / "composition").glob("*.png")} == {"guidance_0.png", "guidance_2.png"}
    assert list(figures["composed"]["Smiling+Long_Hair"]) == ["w=0", "w=2", "sum"]
    assert "judge on real test: all 0.500" in composition_lines(figures)


WEIGHT = "guidance: expected a weight of 0 or more, or None, found "


@pytest.mark.parametrize(
    ("values", "fault", "message"),
    [
        *(({"concepts": each}, TypeError, "concepts: expected a list, such as ") for each in (3, "38", {3, 8}, None)),
        ({"concepts": []}, ValueError, "concepts: expected at least one class id or name, found none"),
        ({"concepts": [True, 3]}, TypeError, "label: class ids are whole numbers, found True"),
        *(({"guidance": each}, TypeError, WEIGHT) for each in ("1", True, ClassifierFree(1.0))),
        ({"guidance": -1}, ValueError, f"{WEIGHT}-1"),
        ({"num_images": True}, TypeError, "num_images: expected a whole number of at least 1, found True"),
        ({"pipeline": 3}, TypeError, "pipeline: expected a CDRLPipeline, found 3"),
    ],
)
def test_what_cannot_be_composed_is_refused(
    pipeline: CDRLPipeline, values: dict[str, Any], fault: type[Exception], message: str
) -> None:
    with pytest.raises(fault, match=f"^{message}"):
        compose(**{"pipeline": pipeline, "num_images": 2, "concepts": [3, 8], **values})


def test_one_word_is_no_list_of_concepts(tmp_path: Path) -> None:
    words: Any = "Smiling=1"
    for ask in (lambda: parse_concepts(DATA, words), lambda: run_sample(tmp_path, 1, concepts=words)):
        with pytest.raises(TypeError, match=r"^concepts: expected a list, such as \['Smiling=1'\], found 'Smiling=1'"):
            ask()
    numbers: Any = [3]
    with pytest.raises(TypeError, match=r"^concepts: expected words such as 'Smiling=1', found 3"):
        parse_concepts(DATA, numbers)

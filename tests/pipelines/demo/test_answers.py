"""What the page shows, without the page: the same images as by the pipelines, and words for mistakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdrl import DataError, RunError
from cdrl.data import to_bytes
from pipelines import CDRLPipeline, compose, parse_concepts
from pipelines.decoding import to_pil
from pipelines.demo import answers
from pipelines.demo.runs import DemoRuns
from pipelines.detection.known_images import measured
from tests.helpers import save_tiny_run, tiny_config


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> CDRLPipeline:
    folder = tmp_path_factory.mktemp("digits")
    save_tiny_run(folder, config=tiny_config(data={"cache": str(folder / "cache")}))
    return CDRLPipeline.from_pretrained(folder)


def shrunk(image: Image.Image, side: int) -> np.ndarray:
    """The pixels of an enlarged image."""
    factor = image.width // side
    return np.asarray(image)[::factor, ::factor]


def test_images_are_those_of_the_pipeline_under_the_same_settings(digits: CDRLPipeline) -> None:
    drawn = answers.generated(digits, 3, 5, "4", 0.5, 3)
    expected = digits(3, seed=5, label="4", guidance=0.5, steps=3).images
    for image, other in zip(drawn.images, expected, strict=True):
        np.testing.assert_array_equal(shrunk(image, 8), np.asarray(other))
    way = answers.generated(digits, 1, 5, "4", 0.5, 3).way
    assert np.array_equal(np.asarray(way), np.asarray(drawn.way))  # it is the first image's, whatever goes beside it
    assert not np.array_equal(np.asarray(way), np.asarray(answers.generated(digits, 1, 6, "4", 0.5, 3).way))


def test_composed_images_are_those_of_compose(tmp_path: Path) -> None:
    data = {"name": "faces", "image_size": 8, "channels": 1, "labels": "attributes", "attributes": ["Smiling", "Bald"]}
    config = tiny_config(data={**data, "cache": str(tmp_path), "num_train": 8, "num_test": 4})
    save_tiny_run(tmp_path / "run", config=config)
    pipe = CDRLPipeline.from_pretrained(tmp_path / "run")
    concepts = ["Smiling=1", "Bald=0"]
    drawn = answers.composed(pipe, 2, 1, concepts, 1.5, 2)
    expected = compose(pipe, 2, parse_concepts(pipe.config.data, concepts), seed=1, guidance=1.5, steps=2).images
    for image, other in zip(drawn.images, expected, strict=True):
        np.testing.assert_array_equal(shrunk(image, 8), np.asarray(other))
    (offered,) = [DemoRuns([tmp_path / "run"]).offer("run")]
    assert offered.attributes == ("Smiling", "Bald")
    assert not offered.class_names


def test_what_is_known_stays_as_it_is_in_every_fill(digits: CDRLPipeline) -> None:
    image = torch.randint(256, (1, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (picture,) = answers.enlarged(to_pil(image))
    layer = np.zeros((*picture.size, 4), dtype=np.uint8)
    layer[40:70, 100:120, 3] = 255  # rows 1 and 2, column 3
    hidden = torch.zeros(8, 8, dtype=torch.bool)
    hidden[1:3, 3] = True
    assert torch.equal(answers.hole(digits, [Image.fromarray(layer)]), hidden)
    known, fills = answers.filled(digits, picture.convert("RGB"), [Image.fromarray(layer)], 3, 0)
    assert len({fill.tobytes() for fill in fills}) == 3
    for each in (known, *fills):
        assert torch.equal(torch.from_numpy(shrunk(each, 8).copy())[~hidden], image[0, 0][~hidden])


def test_a_hole_of_nothing_is_told(digits: CDRLPipeline) -> None:
    with pytest.raises(DataError, match="the painted hole: hides nothing"):
        answers.hole(digits, [Image.new("RGBA", (64, 64))])


def test_an_enlarged_picture_is_taken_back_exactly_and_others_are_cropped_and_resized(digits: CDRLPipeline) -> None:
    image = torch.randint(256, (1, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    (picture,) = answers.enlarged(to_pil(image))
    assert torch.equal(answers.fitted(digits, picture.convert("RGB")), image)
    wide = Image.new("L", (40, 16), 255)
    wide.paste(0, (12, 0, 28, 16))  # its central square
    assert answers.fitted(digits, wide).max() == 0


def test_the_place_among_training_images_is_that_of_the_densities(digits: CDRLPipeline) -> None:
    known = measured(digits, 40)
    least, most = known.held_out_log_density[:8, 0].argmin(), known.held_out_log_density[:8, 0].argmax()
    for index in (int(least), int(most)):
        found = answers.likelihood(digits, known, to_pil(known.held_out[index][None])[0])
        share = 100 * (known.train_log_density[:, 0] < known.held_out_log_density[index, 0]).float().mean().item()
        assert f"likelier than {share:.0f} % of 40 training images" in found.words
        assert to_bytes(digits.images_of(known.held_out[index][None])).shape == (1, 1, 8, 8)


def test_the_ends_of_the_way_are_the_two_samples(digits: CDRLPipeline) -> None:
    images = answers.between(digits, 3, 9, "2", 2)
    expected = digits(seeds=[3, 9], label="2", steps=2).images
    np.testing.assert_array_equal(shrunk(images[0], 8), np.asarray(expected[0]))
    np.testing.assert_array_equal(shrunk(images[-1], 8), np.asarray(expected[1]))


def test_weights_that_ship_are_offered_the_largest_images_first() -> None:
    runs = DemoRuns(())
    assert "checkerboard" not in runs.names
    assert set(runs.names[-2:]) == {"digits", "digits_density"}
    assert runs.offer("digits").class_names == tuple("0123456789")


def test_points_are_refused_before_the_page_opens() -> None:
    with pytest.raises(RunError, match="checkerboard: a run of 2-D points"):
        DemoRuns([Path("checkerboard")])

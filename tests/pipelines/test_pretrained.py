"""Models kept in a folder and opened from it: the same to the bit, on the device asked for, nothing else lost."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cdrl.runs.model_folder import save_model
from cdrl.runs.run import RunError
from pipelines import CDRLPipeline
from pipelines.decoding import LatentDecoder
from tests.helpers import save_tiny_run, tiny_config, tiny_model

SPACES = ["pixel", "latent", "point"]


def save_point_run(run: Path) -> None:
    config = tiny_config(
        space="point", data={"name": "checkerboard", "labels": "none"}, energy={"spectral_norm": False}
    )
    save_model(
        run / "model", tiny_model(config, (2,), 0), {"config": config.model_dump(mode="json"), "class_names": []}
    )


@pytest.fixture(params=SPACES)
def any_run(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    run = tmp_path / request.param
    if request.param == "point":
        save_point_run(run)
    else:
        save_tiny_run(run, latent=request.param == "latent")
    return run


def test_a_pipeline_comes_back_the_same_to_the_bit(any_run: Path, tmp_path: Path) -> None:
    pipeline = CDRLPipeline.from_pretrained(any_run)
    pipeline.save_pretrained(tmp_path / "kept")
    pipeline.save_pretrained(tmp_path / "kept")  # in place of the model that lies there
    again = CDRLPipeline.from_pretrained(str(tmp_path / "kept"))
    first, second = pipeline(3, seed=5), again(3, seed=5)
    assert torch.equal(first.grids, second.grids)
    assert (again.class_names, again.config) == (pipeline.class_names, pipeline.config)
    assert torch.equal(pipeline.log_density(first), again.log_density(second))
    if pipeline.config.space != "point":
        assert torch.equal(first.tensors, second.tensors)
    again.save_pretrained(tmp_path / "twice")
    files = {path.relative_to(tmp_path / "kept") for path in (tmp_path / "kept").rglob("*") if path.is_file()}
    assert files == {path.relative_to(tmp_path / "twice") for path in (tmp_path / "twice").rglob("*") if path.is_file()}
    assert all((tmp_path / "kept" / file).read_bytes() == (tmp_path / "twice" / file).read_bytes() for file in files)


def test_a_pipeline_is_not_kept_in_place_of_a_run(any_run: Path) -> None:
    pipeline = CDRLPipeline.from_pretrained(any_run)
    with pytest.raises(RunError, match="holds something else than a model, which would be lost"):
        pipeline.save_pretrained(any_run)
    CDRLPipeline.from_pretrained(any_run)
    pipeline.save_pretrained(any_run / "model")
    CDRLPipeline.from_pretrained(any_run)


def test_to_moves_the_networks_and_returns_the_pipeline(any_run: Path) -> None:
    pipeline = CDRLPipeline.from_pretrained(any_run)
    assert pipeline.to("meta") is pipeline
    assert pipeline.device.type == "meta"
    parameters = list(pipeline.model.parameters())
    if isinstance(pipeline.decoder, LatentDecoder):
        parameters += pipeline.decoder.autoencoder.parameters()
    assert {parameter.device.type for parameter in parameters} == {"meta"}


def test_a_pipeline_tells_what_it_is(any_run: Path) -> None:
    told = repr(CDRLPipeline.from_pretrained(any_run))
    expected = {
        "pixel": "CDRLPipeline(pixel (1, 8, 8) of digits, 10 classes, 2 levels, ",
        "latent": "CDRLPipeline(latent (3, 4, 4) of digits, 10 classes, 2 levels, ",
        "point": "CDRLPipeline(point (2,) of checkerboard, no classes, 2 levels, ",
    }
    assert told.startswith(expected[any_run.name])
    assert told.endswith(" M parameters, on cpu)")

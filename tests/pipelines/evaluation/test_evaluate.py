"""Evaluation: figures that are a second computation's, work that is not done twice, the best model kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity import calculate_metrics, feature_extractor_inceptionv3
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from cdrl.config import ConfigError, DataConfig
from cdrl.data import GridSet, load_images, to_bytes
from cdrl.runs.model_folder import save_model
from cdrl.runs.run import RunError, load_tensors, save_tensors
from cdrl.training.loop import Measured
from pipelines import CDRLPipeline
from pipelines.evaluation.distances import frechet_distance, some_of, statistics_of
from pipelines.evaluation.evaluate import Comparison, evaluate_run, figure_lines, read_reference, real_images
from pipelines.evaluation.features import INCEPTION_FILE, Extractor, lite0_features, load_extractor
from pipelines.evaluation.sample_store import SampleStore
from pipelines.generation import labels_in_turn
from pipelines.jobs.training import run_stage_two
from tests.helpers import metrics, save_tiny_run, tiny_config, tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_tiny_run(tmp_path / "run", config=tiny_config(data={"cache": str(tmp_path / "cache")}))
    return tmp_path / "run"


def own_distance(model: Path, count: int, split: Any) -> float:
    """``fd_lite0`` of a run's samples by hand: no store, no cache."""
    pipeline = CDRLPipeline.from_pretrained(model)
    seeds = range(count)
    samples = pipeline(count, seeds=seeds, label=labels_in_turn(pipeline, seeds)).tensors
    real = load_images(DataConfig(name="digits", image_size=8, channels=1), split).images
    network = load_extractor("lite0", Path("unused"), CPU).network.network
    return frechet_distance(lite0_features(samples, network), lite0_features(real / 127.5 - 1, network))


def test_figures_are_what_a_plain_computation_gives_and_nothing_is_done_twice(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = evaluate_run(run, 40, Comparison(split="test", features="lite0", blocks=4))
    assert list(figures) == [f"{kind}_lite0_40_test" for kind in ("fd", "precision", "recall")]
    figure = figures["fd_lite0_40_test"]
    assert figure["value"] == pytest.approx(own_distance(run, 40, "test"), rel=1e-3)
    assert (figure["samples"], figure["first_seed"], figure["reference_images"]) == (40, 0, 500)
    assert (figure["steps"], figure["guidance"], figure["label"]) == (1, 0.0, "in turn")
    assert figure["blocks"]["images"] == 10
    assert len(figure["blocks"]["values"]) == 4
    assert json.loads((run / "evaluation.json").read_text()) == figures
    assert "fd_lite0_40_test: " in figure_lines(figures)

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("done before")

    monkeypatch.setattr(SampleStore, "_draw_batch", refuse)
    monkeypatch.setattr("pipelines.evaluation.evaluate.save_tensors", refuse)
    assert evaluate_run(run, 40, Comparison(split="test", features="lite0", blocks=4)) == figures
    fewer = evaluate_run(run, 30, Comparison(split="test", features="lite0", blocks=1), seed=10)
    assert next(iter(fewer)) == "fd_lite0_30_test_seed10"
    assert fewer["fd_lite0_30_test_seed10"]["blocks"] is None
    assert json.loads((run / "evaluation.json").read_text()) == {**figures, **fewer}


def test_a_name_says_how_the_samples_differ_from_the_runs_own(run: Path) -> None:
    against = Comparison(split="test", features="lite0", blocks=1, reference_images=20)
    figures = evaluate_run(run, 10, against, guidance=0.5, label=3, steps=2, kernel="mala")
    assert next(iter(figures)) == "fd_lite0_10_test_20_steps2_mala_w0.5_class3"
    assert next(iter(evaluate_run(run, 10, against, steps=1))) == "fd_lite0_10_test_20"
    # Settings that change no image are in neither the name nor the facts.
    alone = evaluate_run(run, 10, against, steps=0)
    assert not {"leapfrog_steps", "kernel", "temperature"} & next(iter(alone.values())).keys()
    assert next(iter(alone)) == "fd_lite0_10_test_20_steps0"
    assert "initializer alone, guidance 0" in figure_lines(alone)


def test_reference_features_are_cached_by_the_images_themselves(tmp_path: Path) -> None:
    data = DataConfig(name="digits", image_size=8, channels=1, cache=tmp_path)
    extractor = load_extractor("lite0", Path("unused"), CPU)
    name, images = real_images(data, "test", 30)
    reference = read_reference(data, name, images, extractor)
    (path,) = (tmp_path / "features").glob("*.safetensors")
    assert path.name.startswith("digits_test_30_")
    assert reference.features is not None
    assert len(reference.features) == reference.images == 30
    assert (
        read_reference(data, name, images, extractor).statistics["mu"].tolist() == reference.statistics["mu"].tolist()
    )
    altered = images.grids[:].clone()
    altered[29, 0, 7, 7] += 1
    changed = GridSet(altered)
    others = [
        (*real_images(data, "test", 31), extractor),
        (*real_images(data, "train", 30), extractor),
        (*real_images(data.model_copy(update={"channels": 3}), "test", 30), extractor),
        (name, changed, extractor),
        (name, images, Extractor(extractor.network, "lite0", "other weights", CPU)),
    ]
    for count, asked in enumerate(others, start=2):
        read_reference(data, *asked)
        assert len(list((tmp_path / "features").glob("*.safetensors"))) == count
    assert real_images(data, "test", 500)[0] == real_images(data, "test")[0] == "test"
    with pytest.raises(ValueError, match="the test split has 500 images, found 501"):
        real_images(data, "test", 501)


@pytest.mark.parametrize(
    "change",
    [
        lambda stored: {name: tensor for name, tensor in stored.items() if name != "mu"},
        lambda stored: {name: tensor for name, tensor in stored.items() if name != "features"},
        lambda stored: {**stored, "sigma": stored["sigma"][1:]},
        lambda stored: {**stored, "mu": stored["mu"] * float("nan")},
        lambda stored: {**stored, "mu": stored["mu"].bfloat16()},
        lambda stored: {**stored, "features": stored["features"][:, 1:]},
        lambda stored: {**stored, "features": stored["features"] * float("nan")},
    ],
)
def test_damaged_reference_features_are_named_with_what_helps(tmp_path: Path, change: Callable[..., Any]) -> None:
    data = DataConfig(name="digits", image_size=8, channels=1, cache=tmp_path)
    asked = (data, *real_images(data, "test", 20), load_extractor("lite0", Path("unused"), CPU))
    read_reference(*asked)
    (path,) = (tmp_path / "features").glob("*.safetensors")
    save_tensors(path, change(load_tensors(path)))
    with pytest.raises(RunError, match=rf"{path.name}: damaged: .*; remove {path.name} to have it made anew"):
        read_reference(*asked)
    path.unlink()
    assert read_reference(*asked).images == 20


def test_a_reference_in_one_pass_is_that_of_all_features_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.evaluation.evaluate.MOST_KEPT", 150)
    data = DataConfig(name="digits", image_size=8, channels=1, cache=tmp_path)
    extractor = load_extractor("lite0", Path("unused"), CPU)
    found = read_reference(data, *real_images(data, "test"), extractor)
    pooled = extractor(load_images(data, "test").images).pooled
    expected = statistics_of(pooled)
    assert np.array_equal(found.statistics["mu"], expected["mu"])
    np.testing.assert_allclose(
        found.statistics["sigma"], expected["sigma"], rtol=0, atol=1e-12 * expected["sigma"].max()
    )
    assert found.features is not None
    assert torch.equal(found.features, some_of(pooled, 150))
    assert found.images == len(pooled)


@pytest.fixture
def inception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Inception of random weights in a file of the published form.

    For speed it looks at 75 pixels, the least it can, and distances are on its first 64 features.
    """
    with monkeypatch.context() as patch:
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("random", ["2048"])
    path = tmp_path / "random.pth"
    torch.save(network.state_dict(), path)
    monkeypatch.setattr(FeatureExtractorInceptionV3, "INPUT_IMAGE_SIZE", 75)
    monkeypatch.setattr("pipelines.evaluation.features._INCEPTION_LAYERS", ["64", "logits_unbiased"])
    return path


class Grey(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images.expand(-1, 3, -1, -1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def test_inception_gives_torch_fidelitys_figures_and_is_called_fid_with_published_weights_alone(
    run: Path, inception: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    against = Comparison(split="test", reference_images=14, weights=inception, blocks=1)
    figures = evaluate_run(run, 12, against)
    found = hashlib.sha256(inception.read_bytes()).hexdigest()[:8]
    assert list(figures) == [
        f"fd_inception_{found}_12_test_14",
        f"kd_inception_{found}_12_test_14",
        f"precision_inception_{found}_12_test_14",
        f"recall_inception_{found}_12_test_14",
        f"score_inception_{found}_12",
    ]
    data = CDRLPipeline.from_pretrained(run).config.data
    real = load_images(data, "test").images
    chosen = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[:14].sort().values
    samples = SampleStore(run, run / "model", CDRLPipeline.from_pretrained(run)).read(range(12))[0][:]
    theirs = calculate_metrics(
        input1=Grey(samples),
        input2=Grey(real[chosen]),
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception),
        fid=True,
        kid=True,
        isc=True,
        feature_layer_fid="64",
        feature_layer_kid="64",
        kid_subset_size=12,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    values = [figure["value"] for figure in figures.values()]
    assert values[0] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert values[1] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert values[4] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    monkeypatch.setattr("pipelines.evaluation.features._INCEPTION_HASH", found)
    named = evaluate_run(run, 12, against)
    assert list(named) == [
        "fid_12_test_14",
        "kid_12_test_14",
        "precision_inception_12_test_14",
        "recall_inception_12_test_14",
        "inception_score_12",
    ]
    assert [figure["value"] for figure in named.values()] == values


def test_missing_inception_weights_are_named_with_what_to_do(run: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        evaluate_run(run, 100)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'cache' / INCEPTION_FILE}: no Inception weights there: fetch https://")
    assert "--weights" in message
    assert "--features lite0" in message
    assert not (run / "evaluation").exists()


def test_a_weight_file_runs_no_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "sprung",)

    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": Trap()}, path)
    with pytest.raises(RunError, match=r"weights.pth: expected Inception weights as https://"):
        load_extractor("inception", path, CPU)
    assert not (tmp_path / "sprung").exists()


def test_runs_that_cannot_be_measured_say_so(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 blocks need 50 at least, found 20"):
        evaluate_run(run, 20, Comparison(features="lite0"))
    with pytest.raises(RunError, match="no trained model there"):
        evaluate_run(run, 100, Comparison(features="lite0"), best=True)
    point = tiny_config(space="point", data={"name": "checkerboard", "labels": "none"}, energy={"spectral_norm": False})
    described = {"config": point.model_dump(mode="json"), "class_names": []}
    save_model(tmp_path / "model", tiny_model(point, (2,), 0), described)
    with pytest.raises(RunError, match=r"2-D points: python run\.py density"):
        evaluate_run(tmp_path, 100, Comparison(features="lite0"))


def test_training_is_measured_without_being_changed_and_keeps_its_best_model(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "training": {"num_steps": 6, "checkpoint_every": 3, "energy_lr": 0.05},
        "data": {"cache": str(tmp_path / "cache")},
    }
    run_stage_two(tiny_config(**sections), tmp_path / "plain")
    measured = tiny_config(**sections, evaluation={"every": 2, "num_samples": 100, "split": "test"})
    run_stage_two(measured, tmp_path / "measured")
    name = "fd_lite0_100_test"
    lines = metrics(tmp_path / "measured")
    values = {line["step"]: line[name] for line in lines if name in line}
    assert list(values) == [2, 4, 6]
    assert [line for line in lines if name not in line] == metrics(tmp_path / "plain")
    for file in ("energy.safetensors", "initializer.safetensors"):
        first, second = (load_tensors(tmp_path / run / "model" / file) for run in ("plain", "measured"))
        assert all(torch.equal(first[key], second[key]) for key in first)

    best = min(values, key=values.__getitem__)
    description = json.loads((tmp_path / "measured" / "best" / "config.json").read_text())
    assert description["step"] == best
    assert description["evaluation"] == {"name": name, "value": values[best]}
    assert own_distance(tmp_path / "measured" / "best", 100, "test") == pytest.approx(values[best], rel=1e-3)


def test_the_best_model_stays_when_training_goes_on_and_gets_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = iter([5.0, 3.0, 4.0])
    monkeypatch.setattr(
        "pipelines.jobs.training.TrainingEvaluation", lambda *_: lambda model: Measured("x", next(figures))
    )
    config = tiny_config(training={"num_steps": 6, "checkpoint_every": 2}, evaluation={"every": 2})
    stop = iter([False] * 3 + [True] + [False] * 9)
    with monkeypatch.context() as patch:
        patch.setattr("cdrl.training.loop.any_process", lambda *_: next(stop))
        with pytest.raises(Exception, match="stopped at step 4"):
            run_stage_two(config, tmp_path)
    run_stage_two(config, tmp_path)
    description = json.loads((tmp_path / "best" / "config.json").read_text())
    assert (description["step"], description["evaluation"]["value"]) == (4, 3.0)
    best, last = (CDRLPipeline.from_pretrained(folder).model.energy for folder in (tmp_path / "best", tmp_path))
    assert not all(torch.equal(*pair) for pair in zip(best.parameters(), last.parameters(), strict=True))


def test_training_without_inceptions_weights_says_so_once_where_they_are_optional(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fid = {"every": 1, "metric": "fid", "num_samples": 100}
    sections: dict[str, Any] = {"training": {"num_steps": 2}, "data": {"cache": str(tmp_path / "cache")}}
    with pytest.raises(RunError, match="no Inception weights there"):
        run_stage_two(tiny_config(**sections, evaluation=fid), tmp_path / "refused")
    run_stage_two(tiny_config(**sections, evaluation={**fid, "optional": True}), tmp_path / "run")
    lines = [line for line in capfd.readouterr().err.splitlines() if "evaluation off" in line]
    assert len(lines) == 1
    assert f"no Inception weights at {tmp_path / 'cache' / INCEPTION_FILE}" in lines[0]
    assert (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "best").exists()


def test_points_have_no_evaluation() -> None:
    with pytest.raises(ConfigError, match="evaluation compares images"):
        tiny_config(space="point", data={"name": "checkerboard", "labels": "none"}, evaluation={"every": 2})


def test_bytes_are_rounded_as_the_published_images_are() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(levels / 127.5 - 1), levels)
    assert to_bytes(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]

"""Distances against closed forms and torch-fidelity's own run over folders; features that see blur and noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from kornia.filters import gaussian_blur2d
from scipy.linalg import sqrtm
from torch import Tensor
from torch_fidelity import calculate_metrics

from cdrl.config import DataConfig
from cdrl.data import DataError, ImageSet, load_images, to_bytes
from cdrl.runs.run import RunError
from pipelines.decoding import to_pil
from pipelines.evaluation.distances import (
    Reference,
    RunningStatistics,
    chosen_rows,
    compared,
    frechet_distance,
    read_statistics,
    some_of,
    statistics_of,
)
from pipelines.evaluation.features import Extractor, Features, load_extractor
from pipelines.evaluation.figure_names import metric_name


@pytest.fixture(scope="module")
def lite0() -> Extractor:
    return load_extractor("lite0", Path("unused"), torch.device("cpu"))


@pytest.fixture(scope="module")
def digits() -> Tensor:
    return load_images(DataConfig(name="digits", image_size=8, channels=1), "train").images


def features(count: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(6, 6, generator=generator)
    return scale * torch.randn(count, 6, generator=generator) @ mixing + shift


def closed_form(a: Tensor, b: Tensor) -> float:
    # Means in the features' own single precision, as torch-fidelity takes them: 1e-5 of a small distance hangs on that.
    (mean_a, cov_a), (mean_b, cov_b) = ((f.numpy().mean(0), np.cov(f.double().numpy().T)) for f in (a, b))
    return np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a + cov_b - 2 * sqrtm(cov_a @ cov_b).real)


def blurred(images: Tensor, sigma: float) -> Tensor:
    side = 2 * int(3 * sigma) + 1
    return gaussian_blur2d(images.float(), (side, side), (sigma, sigma)).round().clamp(0, 255).to(torch.uint8)


def noisy(images: Tensor, std: float) -> Tensor:
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return to_bytes(images / 127.5 - 1 + std * noise)


def reference(pooled: Tensor) -> Reference:
    return Reference("test", len(pooled), statistics_of(pooled), pooled)


def test_the_frechet_distance_is_its_closed_form() -> None:
    a, b = features(400, 0), features(300, 1, scale=1.5, shift=0.7)
    assert frechet_distance(a, b) == pytest.approx(closed_form(a, b), rel=1e-6)


def test_the_frechet_distance_of_shifted_features_is_the_squared_shift() -> None:
    a = features(500, 0)
    assert frechet_distance(a, a + 2.0) == pytest.approx(6 * 4.0, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_what_is_printed_is_what_torch_fidelity_says_of_two_folders_and_the_closed_form(
    lite0: Extractor, digits: Tensor, tmp_path: Path
) -> None:
    sides = {"samples": noisy(digits[:200], 0.3), "real": digits[200:400]}
    for name, images in sides.items():
        (tmp_path / name).mkdir()
        for index, image in enumerate(to_pil(images / 127.5 - 1)):
            image.save(tmp_path / name / f"{index:04d}.png")
    theirs = calculate_metrics(
        input1=str(tmp_path / "samples"),
        input2=str(tmp_path / "real"),
        feature_extractor="lite0",
        fid=True,
        kid=True,
        prc=True,
        kid_subset_size=200,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    samples, real = lite0(sides["samples"]), lite0(sides["real"]).pooled
    ours = compared(samples, reference(real))
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert ours["fid"] == pytest.approx(closed_form(samples.pooled, real), rel=1e-6)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-6)
    assert (ours["precision"], ours["recall"]) == (theirs["precision"], theirs["recall"])


def test_lite0_finds_two_halves_alike_and_sees_blur_and_noise_grow(lite0: Extractor, digits: Tensor) -> None:
    first, second = lite0(digits[::2]).pooled, digits[1::2]

    def distance(images: Tensor) -> float:
        return frechet_distance(lite0(images).pooled, first)

    halves = distance(second)
    blurs = [distance(blurred(second, sigma)) for sigma in (0.5, 0.8)]
    noises = [distance(noisy(second, std)) for std in (0.4, 0.6)]
    assert halves < blurs[0] / 4
    assert halves < noises[0] / 4
    assert blurs[0] < blurs[1] / 1.5
    assert noises[0] < noises[1] / 1.5


def fashion() -> ImageSet:
    try:
        return load_images(DataConfig(name="fashion_mnist", channels=1), "test")
    except DataError as error:
        pytest.skip(str(error))


@pytest.mark.slow
def test_halves_of_fashion_mnist_are_ten_times_nearer_than_blurred_copies(lite0: Extractor) -> None:
    images = fashion().images
    first = lite0(images[::2]).pooled
    halves, blur = (
        frechet_distance(lite0(other).pooled, first) for other in (images[1::2], blurred(images[1::2], 1.0))
    )
    assert halves < blur / 10


def test_precision_and_recall_are_not_taken_for_one_another() -> None:
    """Samples of one mode of two: all are realistic, half of the real images are not reached."""
    generator = torch.Generator().manual_seed(0)
    modes = torch.randn(400, 4, generator=generator) + 100 * (torch.arange(400) % 2)[:, None]
    one = torch.randn(200, 4, generator=generator)
    values = compared(Features(one), reference(modes))
    assert values["precision"] > 0.9
    assert 0.4 < values["recall"] <= 0.5


def test_the_inception_score_is_the_number_of_classes_that_are_told_apart_for_sure() -> None:
    logits = 50 * torch.eye(7)[torch.arange(7000) % 7]
    bare = Reference("test", 100, statistics_of(features(100, 1)), None)
    values = compared(Features(features(7000, 0), logits), bare)
    assert values["inception_score"] == pytest.approx(7, rel=0.02)


def test_published_statistics_stand_for_their_images(tmp_path: Path) -> None:
    real = features(300, 1)
    path = tmp_path / "cifar10_train.npz"
    np.savez(path, mu=real.double().numpy().mean(0), sigma=np.cov(real.double().numpy().T), images=np.zeros(3))
    samples = Features(features(200, 0))
    published = read_statistics(path)
    assert published.name == "cifar10_train"
    assert compared(samples, published) == {"fid": pytest.approx(frechet_distance(samples.pooled, real), rel=1e-5)}
    with pytest.raises(RunError, match="statistics of 6 features, but these images have 5"):
        compared(Features(samples.pooled[:, :5]), published)


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": np.zeros(3)},
        {"mu": np.zeros(3), "sigma": np.eye(2)},
        {"mu": np.array([{}])},
        {"mu": np.zeros(0), "sigma": np.zeros((0, 0))},
        {"mu": np.array([0, np.nan]), "sigma": np.eye(2)},
        {"mu": np.zeros(2), "sigma": np.array([[1, np.inf], [0, 1]])},
        {"mu": np.zeros(2), "sigma": np.diag([1.0, -1.0])},
    ],
)
def test_statistics_that_are_none_are_refused_with_their_path(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "broken.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"broken.npz: expected an .npz file with mu \[D\] and sigma \[D, D\]"):
        read_statistics(path)
    with pytest.raises(RunError, match=r"nowhere.npz: no such file"):
        read_statistics(tmp_path / "nowhere.npz")


def test_names_say_what_was_compared() -> None:
    assert metric_name("fid", None, 50_000, "train") == "fid_50k_train"
    assert metric_name("kid", None, 10_000, "test_5k") == "kid_10k_test_5k"
    assert metric_name("inception_score", None, 50_000, "train") == "inception_score_50k"
    assert metric_name("precision", None, 2500, "train") == "precision_inception_2500_train"
    assert metric_name("fid", "lite0", 3000, "test") == "fd_lite0_3k_test"
    assert metric_name("kid", "inception_00112233", 300, "test") == "kd_inception_00112233_300_test"
    # Nothing but Inception's published weights may be called FID.
    for metric in ("fid", "kid", "precision", "recall", "inception_score"):
        assert "fid" not in metric_name(metric, "lite0", 1000, "train")


@pytest.mark.parametrize("sizes", [(300,), (2, 1, 297), (64, 64, 64, 64, 44)])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_statistics_of_features_that_come_in_parts_are_those_of_all_of_them(
    sizes: tuple[int, ...], shift: float
) -> None:
    whole, running = features(300, 3, shift=shift), RunningStatistics()
    for part in whole.split(sizes):
        running.add(part)
    expected, found = statistics_of(whole), running.statistics()
    assert {name: array.dtype for name, array in found.items()} == {
        name: array.dtype for name, array in expected.items()
    }
    assert np.array_equal(found["mu"], expected["mu"])  # bit by bit: a small distance hangs on its rounding
    scale = np.abs(expected["sigma"]).max()
    assert np.abs(found["sigma"] - expected["sigma"]).max() < 1e-12 * scale
    assert np.abs(found["sigma"] - np.cov(whole.double().numpy().T)).max() < 1e-12 * scale


def test_the_rows_that_are_chosen_are_those_of_some_of_a_set() -> None:
    rows = torch.arange(100) * 7
    assert torch.equal(some_of(rows, 30), rows[chosen_rows(100, 30)])
    assert torch.equal(chosen_rows(100, 30), chosen_rows(100, 30).unique())


def test_some_of_a_set_are_the_same_each_time_and_of_all_of_its_classes() -> None:
    for labels in (torch.arange(1000) % 2, torch.arange(1000) // 500):
        some = some_of(labels, 500)
        assert torch.equal(some, some_of(labels, 500))
        assert some.float().mean() == pytest.approx(0.5, abs=0.07)
    assert torch.equal(some_of(torch.arange(7), 7), torch.arange(7))

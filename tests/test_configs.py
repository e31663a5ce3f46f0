"""Every configuration that is shipped: it loads, its networks can be built, and they have the size they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from autoencoder.model import Autoencoder
from cdrl.config import Config
from cdrl.config_files import load_config
from cdrl.model import CDRL
from cdrl.schedule import NoiseSchedule
from tests.helpers import ROOT

CONFIGS = sorted(path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml"))

NUM_CLASSES = {"digits": 10, "fashion_mnist": 10, "cifar10": 10, "imagenet32": 1000}

ABLATIONS: dict[str, dict[str, Any]] = {
    "full": {},
    "no_initializer": {"initializer": None},
    "independent_noise": {"training": {"pairs": "independent_noise"}},
    "initializer_on_data": {"initializer": {"target": "data"}},
    "predict_x0": {"initializer": {"predicts": "x0"}},
    "predict_epsilon": {"initializer": {"predicts": "epsilon"}},
    "drl_schedule": {"schedule": {"kind": "drl", "step_coefficient": 1.61e-3}},
    "levels_5": {"schedule": {"num_levels": 5}},
    "k_10": {
        "schedule": {"step_coefficient": 6e-4},
        "training": {"langevin_steps": 10},
        "sampling": {"steps": 30},
    },
}
"""What each ablation changes of digits.yaml."""

MILLIONS = {
    "celeba64_composition.yaml": (11.68, 4.914),
    "celeba64_inpainting.yaml": (45.33, 4.914),
    "celebahq256_kl_f4.yaml": (45.33, 4.914),
    "celebahq256_vq_f4.yaml": (45.33, 4.914),
    "drl_cifar10.yaml": (34.83, 0),
    "checkerboard.yaml": (0.1528, 0.1612),
    "cifar10.yaml": (34.83, 3.77),
    "cifar10_large.yaml": (139.3, 3.77),
    "digits.yaml": (0.2179, 0.1298),
    "digits_density.yaml": (0.2179, 0.1298),
    "digits_minute.yaml": (0.2179, 0.1298),
    "digits_unconditional.yaml": (0.2163, 0.1290),
    "fashion_mnist.yaml": (0.1928, 0.1298),
    "fashion_mnist_density.yaml": (0.1921, 0.1290),
    "fashion_mnist_latent.yaml": (0.1933, 0.1306),
    "fashion_mnist_minutes.yaml": (0.1928, 0.1298),
    "imagenet32.yaml": (139.3, 3.77),
    "imagenet32_conditional.yaml": (35.34, 3.181),
    "faces_composition.yaml": (1.820, 0.0880),
    "faces256.yaml": (0.8644, 0.1332),
    "heads256.yaml": (3.449, 0.5245),
    "heads256_attributes.yaml": (3.4532, 0.5245),
    "faces256_long.yaml": (3.449, 0.5245),
    "cifar10_small.yaml": (1.725, 0.5126),
    "cifar10_small_latent.yaml": (1.727, 0.5155),
    "faces64.yaml": (0.8633, 0.1293),
    "quickstart.yaml": (0.8644, 0.1332),
    **{f"ablation/{name}.yaml": (0.2179, 0.1298) for name in ABLATIONS},
    "ablation/no_initializer.yaml": (0.2179, 0),
}
"""Parameters in millions of the energy and of the initializer."""


def grid_shape(config: Config) -> tuple[int, ...]:
    """What stage two learns: points, pixels or latents."""
    if config.space == "point":
        return (2,)
    if config.space == "pixel":
        return (config.data.channels, config.data.image_size, config.data.image_size)
    assert config.autoencoder is not None
    with torch.device("meta"):
        return Autoencoder(config.autoencoder.architecture, config.data.channels, config.data.image_size).latent_shape


def num_classes(config: Config) -> int:
    return {
        "none": 0,
        "class": NUM_CLASSES.get(config.data.name, 0),
        "attributes": 2 * len(config.data.attributes),
    }[config.data.labels]


def model_of(config: Config) -> CDRL:
    with torch.device("meta"):
        shape = grid_shape(config)
        # The tables are numbers, not weights: they are made outside.
        with torch.device("cpu"):
            schedule = NoiseSchedule.from_config(config.schedule)
        built = CDRL.from_config(config, shape, num_classes(config))
    return CDRL(schedule, built.energy, built.initializer, shape, num_classes(config))


def millions(module: torch.nn.Module | None) -> float:
    return 0.0 if module is None else sum(parameter.numel() for parameter in module.parameters()) / 1e6


def test_there_are_configurations() -> None:
    assert len(CONFIGS) >= 12


@pytest.mark.parametrize("name", CONFIGS, ids=str)
def test_a_configuration_loads_and_says_what_it_is(name: Path) -> None:
    path = ROOT / "configs" / name
    load_config(path)
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("name", CONFIGS, ids=str)
def test_its_networks_can_be_built_and_have_the_expected_size(name: Path) -> None:
    model = model_of(load_config(ROOT / "configs" / name))
    energy, initializer = MILLIONS[str(name)]
    assert millions(model.energy) == pytest.approx(energy, rel=0.005)
    assert millions(model.initializer) == pytest.approx(initializer, rel=0.005)


@pytest.mark.parametrize("name", CONFIGS, ids=str)
def test_a_batch_goes_through_both_networks(name: Path) -> None:
    config = load_config(ROOT / "configs" / name)
    model = model_of(config).eval()
    with torch.device("meta"):
        grids, logsnr = torch.zeros(2, *model.shape), torch.zeros(2)
        label = torch.zeros(2, dtype=torch.int64)
        if model.initializer is not None:
            assert model.initializer(grids, logsnr, label).shape == grids.shape
        assert model.energy(grids, logsnr, label).shape == (2,)


def test_the_table_of_sizes_speaks_of_every_configuration_and_no_other() -> None:
    assert set(MILLIONS) == {str(name) for name in CONFIGS}


def test_the_papers_cifar10_model_has_its_published_size() -> None:
    model = model_of(load_config(ROOT / "configs" / "cifar10.yaml"))
    assert millions(model.energy) == pytest.approx(34.8, abs=0.05)
    assert millions(model.initializer) == pytest.approx(3.8, abs=0.05)


@pytest.mark.parametrize(
    "name", ["cifar10", "cifar10_large", "drl_cifar10", "imagenet32", "imagenet32_conditional", "celebahq256_vq_f4"]
)
def test_the_papers_runs_keep_their_best_model_as_the_authors_did(name: str) -> None:
    evaluation = load_config(ROOT / "configs" / f"{name}.yaml").evaluation
    assert evaluation is not None
    assert (evaluation.every, evaluation.num_samples, evaluation.metric) == (20_000, 5_000, "fid")
    assert evaluation.optional


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_what_it_says_and_nothing_else(name: str) -> None:
    full = load_config(ROOT / "configs" / "digits.yaml").model_dump(mode="json")
    ours = load_config(ROOT / "configs" / "ablation" / f"{name}.yaml").model_dump(mode="json")
    for section, changes in ABLATIONS[name].items():
        full[section] = changes if changes is None else {**full[section], **changes}
    assert ours == full


def test_the_ablated_schedules_take_the_steps_that_their_comments_promise() -> None:
    def tables(name: str) -> NoiseSchedule:
        return NoiseSchedule.from_config(load_config(ROOT / "configs" / name).schedule)

    for name, factor in (("digits", 0.16), ("ablation/drl_schedule", 0.16), ("ablation/k_10", 0.08)):
        schedule = tables(f"{name}.yaml")
        ratio = schedule.step_size**2 / (schedule.sigma_bar[:-1] * schedule.sigma_step**2)
        torch.testing.assert_close(ratio, torch.full_like(ratio, factor), rtol=0.02, atol=0)


def test_drl_has_its_own_settings() -> None:
    config = load_config(ROOT / "configs" / "drl_cifar10.yaml")
    assert config.initializer is None
    assert (config.schedule.kind, config.schedule.num_levels, config.schedule.step_coefficient) == ("drl", 6, 2e-4)
    assert (config.training.langevin_steps, config.training.pairs) == (30, "independent_noise")


def test_a_latent_run_is_the_pixel_run_with_its_space_changed() -> None:
    of_sampling_alone = ["sampling.temperature=0.8", "sampling.denoise=1.0"]
    assert load_config(ROOT / "configs" / "fashion_mnist.yaml", ["space=latent", *of_sampling_alone]) == load_config(
        ROOT / "configs" / "fashion_mnist_latent.yaml"
    )

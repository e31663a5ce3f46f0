"""The bound through a decoder, against a linear model whose likelihood is known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cdrl.data import as_floats
from cdrl.sampling.noise import ImageNoise
from pipelines import CDRLPipeline
from pipelines.likelihood.decoder_bound import Coded, bound_seeds, coded, dequantized, run_posterior
from pipelines.likelihood.figures import Question
from pipelines.likelihood.images import chosen_images
from pipelines.likelihood.likelihood import likelihood_table, run_likelihood
from pipelines.likelihood.normalizer import Effort
from tests.helpers import save_tiny_run, tiny_config

PIXEL_STD, SCALE = 0.3, 1.7
LATENT, PIXELS = 3, 8
CPU = torch.device("cpu")


def columns() -> Tensor:
    """Orthogonal directions of the pixels, of one length: the exact posterior is as wide in all of them."""
    return SCALE * torch.linalg.qr(torch.randn(PIXELS, LATENT, generator=torch.Generator().manual_seed(1)))[0]


def decoded(z: Tensor) -> Tensor:
    return (z.flatten(1) @ columns().T).view(-1, 1, 2, 4)


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(count, LATENT, 1, 1, generator=generator)
    return decoded(z) + PIXEL_STD * torch.randn(count, 1, 2, 4, generator=generator)


def log_prior(found: Coded) -> Tensor:
    return -found.latents.flatten(1).double().square().sum(dim=1) / 2 - LATENT * math.log(2 * math.pi) / 2


def log_likelihood(x: Tensor) -> Tensor:
    covariance = columns() @ columns().T + PIXEL_STD**2 * torch.eye(PIXELS)
    return torch.distributions.MultivariateNormal(torch.zeros(PIXELS), covariance).log_prob(x.flatten(1)).double()


def posterior_of(width: float, shift: float = 0.0) -> object:
    precision = 1 + SCALE**2 / PIXEL_STD**2

    def posterior(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = (x.flatten(1) @ columns() / PIXEL_STD**2 / precision).view(-1, LATENT, 1, 1) + shift
        return mean, torch.full_like(mean, width * precision**-0.5)

    return posterior


def test_under_the_exact_posterior_every_draw_is_the_likelihood() -> None:
    x = images(40)
    found = coded(x, posterior_of(1.0), decoded, range(40), CPU)  # type: ignore[arg-type]
    torch.testing.assert_close(found.bound(log_prior(found), PIXEL_STD), log_likelihood(x), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("width", "shift"), [(1.5, 0.0), (0.6, 0.0), (1.0, 0.1)])
def test_under_another_posterior_it_is_lower_by_the_divergence(width: float, shift: float) -> None:
    x = images(4000)
    found = coded(x, posterior_of(width, shift), decoded, range(4000), CPU)  # type: ignore[arg-type]
    missing = log_likelihood(x) - found.bound(log_prior(found), PIXEL_STD)
    precision = 1 + SCALE**2 / PIXEL_STD**2
    divergence = LATENT * ((width**2 - 1) / 2 - math.log(width) + precision * shift**2 / 2)
    assert float(missing.mean()) == pytest.approx(divergence, abs=4 * float(missing.std()) / 4000**0.5)
    assert float(missing.mean()) > 0.1


def test_the_best_std_is_the_likeliest() -> None:
    x = images(500)
    found = coded(x, posterior_of(1.0), decoded, range(500), CPU)  # type: ignore[arg-type]
    values = [float(found.bound(log_prior(found), found.best_std * factor).mean()) for factor in (0.9, 1.0, 1.1)]
    assert values[1] > max(values[0], values[2])


def test_bytes_become_continuous_within_their_step() -> None:
    bytes_ = torch.randint(256, (200, 1, 2, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    shown, x = dequantized(bytes_, ImageNoise(range(200)))
    torch.testing.assert_close(shown, as_floats(bytes_))
    steps = (x - shown) * 255 / 2
    assert -0.5001 <= float(steps.min()) < -0.49
    assert 0.49 < float(steps.max()) <= 0.5001
    assert float(steps.std()) == pytest.approx(12**-0.5, rel=0.05)


@pytest.fixture(scope="module")
def latent_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of 8x8 through a first stage of random weights to latents of 4x4, whose energies can be normalized."""
    folder = tmp_path_factory.mktemp("run")
    values = {"energy": {"reference": "gaussian"}, "schedule": {"num_levels": 2, "temperature": "one"}}
    save_tiny_run(folder, latent=True, config=tiny_config(space="latent", autoencoder={}, **values))
    return folder


@pytest.mark.parametrize("latents", ["sample", "mean"])
def test_a_runs_posterior_is_what_its_latents_are_made_of(latent_run: Path, latents: str) -> None:
    pipeline = CDRLPipeline.from_pretrained(latent_run)
    stage_one = pipeline.config.autoencoder
    assert stage_one is not None
    stage_one = stage_one.model_copy(update={"latents": latents})
    config = pipeline.config.model_copy(update={"autoencoder": stage_one})
    schedule = pipeline.model.schedule
    x = as_floats(chosen_images(pipeline, "test", 1, 0)[0])
    mean, std = run_posterior(config, pipeline.decoder, schedule)(x)  # type: ignore[arg-type]
    pipeline.config = config
    drawn = pipeline.grids_of(x.expand(64, -1, -1, -1))
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0))
    z = float(schedule.alpha_bar[0]) * drawn + float(schedule.sigma_bar[0]) * noise
    whitened = (z - mean) / std
    assert float(whitened.mean()) == pytest.approx(0, abs=4 / len(whitened.flatten()) ** 0.5)
    assert float(whitened.std()) == pytest.approx(1, abs=0.05)


def test_a_latent_run_tells_a_bound_for_its_images(latent_run: Path) -> None:
    effort = Effort(chains=4, temperatures=12, leapfrog_steps=1, equilibration=2)
    question = Question(num_images=20, label=-1, against=("noise", "constant"))
    report = run_likelihood(latent_run, question, effort)
    found = report["image_at_least"]
    assert found["bits_per_dimension_of_8_bit_steps"] == pytest.approx(
        -found["nats"] / 64 / math.log(2) + math.log2(127.5)
    )
    assert 0 < found["decoder_std"] < 2
    assert set(report["detection"]) == {"noise", "constant"}
    assert set(report["detection"]["noise"]["auroc"]) == {"likelihood", "typicality"}
    table = likelihood_table(report)
    assert "the image itself, through the decoder: at least" in table
    assert "noise (20): " in table
    assert json.loads((latent_run / "likelihood.json").read_text(encoding="utf-8"))["image_at_least"] == found
    higher = run_likelihood(latent_run, Question(num_images=20, level=1), effort)
    assert "image_at_least" not in higher


def test_the_draws_are_an_images_own() -> None:
    assert bound_seeds("test", 3, 0) == bound_seeds("test", 5, 0)[:3]
    assert set(bound_seeds("test", 3, 0)).isdisjoint(bound_seeds("train", 3, 0))

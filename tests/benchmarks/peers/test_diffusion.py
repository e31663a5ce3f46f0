"""DDPM and DDIM with a network that knows the answer for Gaussian images."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from diffusers import DDIMScheduler, DDPMScheduler

from benchmarks.peers.diffusion import SCHEDULE, TIMES, NoisePrediction, sampler
from tests.benchmarks.peers.tasks import digits_task

STD = 0.3
ALPHA_BAR = DDPMScheduler(TIMES, beta_schedule=SCHEDULE).alphas_cumprod


class Knowing:
    """E[noise | x_t] for images of N(0, STD^2)."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, time: Tensor, class_labels: Tensor) -> SimpleNamespace:
        self.calls += 1
        alpha_bar = ALPHA_BAR[int(time)]
        return SimpleNamespace(sample=(1 - alpha_bar).sqrt() * x / (alpha_bar * STD**2 + 1 - alpha_bar))


@pytest.mark.parametrize(("kind", "steps"), [(DDIMScheduler, 50), (DDPMScheduler, 250)])
def test_samples_are_spread_as_the_data_are(kind: type, steps: int) -> None:
    network = Knowing()
    scheduler = kind(TIMES, beta_schedule=SCHEDULE, timestep_spacing="trailing")
    made = sampler(digits_task(), network, scheduler, steps)
    images = made.draw(torch.zeros(300, dtype=torch.int64), 0)
    assert images.shape == (300, 1, 8, 8)
    assert float(images.mean()) == pytest.approx(0, abs=0.02)
    assert float(images.std()) == pytest.approx(STD, rel=0.06)
    assert network.calls == steps == made.evaluations
    torch.testing.assert_close(made.draw(torch.zeros(300, dtype=torch.int64), 0), images)


def test_the_network_is_shown_the_noise_that_it_is_to_find() -> None:
    seen = []

    class Spying(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, time: Tensor, class_labels: Tensor) -> SimpleNamespace:
            seen.append((x, time, class_labels))
            return SimpleNamespace(sample=self.weight * x)

    from benchmarks.peers.unet import Optimization

    task = digits_task()
    learner = NoisePrediction(task, Spying(), Optimization(batch_size=64), updates=10)
    images, label = task.batches(64).batch(0)
    loss = learner.loss(images, label)
    ((x, time, classes),) = seen
    alpha_bar = ALPHA_BAR[time][:, None, None, None]
    noise = (x - alpha_bar.sqrt() * images) / (1 - alpha_bar).sqrt()
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    assert float(loss.detach()) == pytest.approx(float(noise.square().mean()), rel=1e-3)  # the prediction is 0
    assert torch.equal(classes, label)
    assert len(time.unique()) > 40

"""DDPM and DDIM with a network that knows the answer for Gaussian images."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from diffusers import DDIMScheduler, DDPMScheduler

from benchmarks.peers.diffusion import SCHEDULE, TIMES, VelocityPrediction, sampler
from tests.benchmarks.peers.tasks import digits_task

STD = 0.3
ALPHA_BAR = DDPMScheduler(TIMES, **SCHEDULE).alphas_cumprod


class Knowing:
    """E[v | x_t] for images of N(0, STD^2): v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) x_0."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, time: Tensor, class_labels: Tensor) -> SimpleNamespace:
        self.calls += 1
        alpha_bar = ALPHA_BAR[int(time)]
        noise = (1 - alpha_bar).sqrt() * x / (alpha_bar * STD**2 + 1 - alpha_bar)
        image = alpha_bar.sqrt() * STD**2 * x / (alpha_bar * STD**2 + 1 - alpha_bar)
        return SimpleNamespace(sample=alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * image)


@pytest.mark.parametrize(("kind", "steps"), [(DDIMScheduler, 50), (DDPMScheduler, 250)])
def test_samples_are_spread_as_the_data_are(kind: type, steps: int) -> None:
    network = Knowing()
    scheduler = kind(TIMES, **SCHEDULE)
    made = sampler(digits_task(), network, scheduler, steps)
    images = made.draw(torch.zeros(300, dtype=torch.int64), 0)
    assert images.shape == (300, 1, 8, 8)
    assert float(images.mean()) == pytest.approx(0, abs=0.02)
    assert float(images.std()) == pytest.approx(STD, rel=0.06)
    assert network.calls == steps == made.evaluations
    torch.testing.assert_close(made.draw(torch.zeros(300, dtype=torch.int64), 0), images)


def test_the_network_is_to_find_the_velocity_of_what_it_is_shown() -> None:
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
    learner = VelocityPrediction(task, Spying(), Optimization(batch_size=64), updates=10)
    images, label = task.batches(64).batch(0)
    loss = learner.loss(images, label)
    ((x, time, classes),) = seen
    alpha_bar = ALPHA_BAR[time][:, None, None, None]
    noise = (x - alpha_bar.sqrt() * images) / (1 - alpha_bar).sqrt()
    assert float(noise.std()) == pytest.approx(1, abs=0.05)
    velocity = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * images
    assert float(loss.detach()) == pytest.approx(float(velocity.square().mean()), rel=1e-3)  # the prediction is 0
    assert torch.equal(classes, label)
    assert len(time.unique()) > 40

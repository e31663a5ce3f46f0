"""The peers' network has our networks' size, and their updates are what they say."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers")

from benchmarks.peers.flow import VelocityPrediction
from benchmarks.peers.task import Task, count_parameters
from benchmarks.peers.unet import Optimization, Peer, like_sized_channels, new_unet, unet
from cdrl.config_files import load_config
from tests.benchmarks.peers.tasks import digits_task
from tests.helpers import ROOT


def recipe_task(name: str) -> Task:
    base = digits_task()
    return Task(load_config(ROOT / "configs" / f"{name}.yaml"), base.train, base.class_names, 0)


def test_the_network_is_as_large_as_ours() -> None:
    task = recipe_task("digits")
    assert task.parameters == pytest.approx(0.2179e6 + 0.1298e6, rel=0.01)
    channels = like_sized_channels(task)
    sizes = {width: count_parameters(unet(width, task)) for width in (channels - 8, channels, channels + 8)}
    errors = {width: abs(math.log(size / task.parameters)) for width, size in sizes.items()}
    assert min(errors, key=lambda width: errors[width]) == channels
    assert 0.6 < sizes[channels] / task.parameters < 1.6


def test_the_network_sees_time_and_class() -> None:
    network = new_unet(8, digits_task()).eval()
    with torch.no_grad():
        network.conv_out.weight.normal_()
    x = torch.randn(1, 1, 8, 8)

    def output(time: int, label: int) -> Tensor:
        return network(x, time, class_labels=torch.tensor([label])).sample

    assert output(5, 3).shape == x.shape
    assert not torch.allclose(output(5, 3), output(500, 3))
    assert not torch.allclose(output(5, 3), output(5, 4))


def test_the_same_seed_is_the_same_training_and_another_is_another() -> None:
    def trained(seed: int) -> Tensor:
        base = digits_task()
        task = Task(base.recipe, base.train, base.class_names, seed)
        learner = VelocityPrediction(task, new_unet(8, task), Optimization(batch_size=8), updates=4)
        for step in range(4):
            learner.update(step)
        return torch.cat([value.flatten() for value in learner.averaged().parameters()])

    assert torch.equal(trained(0), trained(0))
    assert not torch.equal(trained(0), trained(1))


class Line(Peer):
    """Loss -w: the gradient is always the same."""

    def loss(self, images: Tensor, label: Tensor) -> Tensor:
        return -self.network.weight.sum()


def test_the_learning_rate_warms_up_and_falls_to_nothing_and_the_average_lags() -> None:
    updates, network = 200, torch.nn.Linear(1, 1, bias=False)
    learner = Line(digits_task(), network, Optimization(batch_size=8, learning_rate=0.1, weight_decay=0.0), updates)
    path = [float(network.weight.detach())]
    for step in range(updates):
        learner.update(step)
        path.append(float(network.weight.detach()))
    # Adam moves by the learning rate where the gradient never changes.
    moves = torch.tensor(path).diff()
    assert float(moves[0]) == pytest.approx(0, abs=1e-6)
    assert float(moves.max()) == pytest.approx(0.1, rel=0.01)
    assert int(moves.argmax()) in range(8, 14)
    assert float(moves[-1]) < 0.001
    # The average of a path that rises lies below its end.
    end = path[-1]
    assert path[100] < float(learner.averaged().weight) < end
    assert not network.weight.requires_grad

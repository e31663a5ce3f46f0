"""One training step against the authors' own loop: refined samples, losses and every gradient, under equal noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cdrl.networks.energy import NormalizedLayer
from cdrl.runs import published
from cdrl.runs.published import load_published
from cdrl.sampling import sampler
from cdrl.sampling.noise import ImageNoise
from cdrl.schedule import NoiseSchedule
from cdrl.training.objective import LossSettings, Networks, cooperative_losses
from tests.helpers import FIXTURES

Answers = dict[str, Tensor]
EXACT = torch.float64


class RecordedDraws(ImageNoise):
    """The authors' draws, in their order."""

    def __init__(self, answers: Answers) -> None:
        super().__init__(range(len(answers["x0"])))
        self._answers, self._normals = answers, iter(answers["normals"])  # type: ignore[assignment]

    def normal(self, shape: Sequence[int]) -> Tensor:
        return next(self._normals)  # type: ignore[call-overload, no-any-return]

    def uniform(self) -> Tensor:
        return self._answers["uniform"]

    def integers(self, high: int) -> Tensor:
        return self._answers["level"]


def iterate_as_theirs(layer: NormalizedLayer) -> None:
    """The power iteration of torch's old spectral norm, which moves the right vector first."""
    matrix = layer.weight.detach().flatten(1)
    layer.right.copy_(F.normalize(layer.left @ matrix, dim=0, eps=1e-12))
    layer.left.copy_(F.normalize(matrix @ layer.right, dim=0, eps=1e-12))


def our_names(condition: str) -> tuple[dict[str, str], dict[str, str]]:
    """What the authors' parameters of the energy and of the initializer are called here."""
    checkpoint = torch.load(FIXTURES / f"official_{condition}_step.pth.tar", weights_only=True)
    energy, initializer = (published._weights(checkpoint, network, average=False) for network in ("pi", "p"))
    numbered = [{name: torch.tensor([i]) for i, name in enumerate(state)} for state in (energy, initializer)]
    renamed = (
        published._renamed_energy(numbered[0], published._EnergyLayout.of(energy)),
        published._renamed_initializer(numbered[1], published._UNetLayout.of(initializer)),
    )
    names = [{list(state)[int(number)]: ours for ours, number in to.items()} for state, to in zip(numbered, renamed)]
    return names[0], names[1]


@pytest.mark.parametrize("dtype", [torch.float32, EXACT], ids=["float32", "float64"])
@pytest.mark.parametrize("condition", ["uncond", "cond"])
def test_a_training_step_is_the_authors(condition: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    with np.load(FIXTURES / f"official_{condition}_step.npz") as file:
        answers = {name: torch.tensor(file[name]) for name in file.files}
    answers |= {name: answers[name].to(dtype) for name in ("x0", "normals")}
    converted = load_published(FIXTURES / f"official_{condition}_step.pth.tar", average=False)
    model = converted.model.requires_grad_(True).to(dtype)
    for layer in model.energy.modules():
        if isinstance(layer, NormalizedLayer):
            iterate_as_theirs(layer)
    schedule = NoiseSchedule.from_config(converted.config.schedule, dtype=dtype)
    alpha = schedule.alpha_y[answers["level"]].reshape(-1, 1, 1, 1)

    def as_theirs(position: Any, step_size: Tensor, noise: ImageNoise, steps: int) -> Any:
        """They keep x = y / (alpha + 1e-8) of a refined sample, and compare alpha x."""
        end = sampler.refine(position, step_size, noise, steps)
        return end.moved(end.y * (alpha / (alpha + 1e-8))) if steps == 1 else end

    monkeypatch.setattr("cdrl.training.chains.refine", as_theirs)
    label = answers["class_id"] if condition == "cond" else torch.full_like(answers["class_id"], -1)
    networks = Networks(model.energy, model.initializer, model.energy.fold().detach())
    settings = LossSettings(langevin_steps=15, label_dropout=0.1)
    losses = cooperative_losses(answers["x0"], label, RecordedDraws(answers), networks, schedule, settings)

    tolerance = 1e-10 if dtype == EXACT else 1e-5

    def assert_close(ours: Tensor, theirs: Tensor, scale: float) -> None:
        assert (ours.double() - theirs).abs().max() <= tolerance * scale

    assert {losses.chain.end.y.dtype, losses.energy.dtype} == {dtype}
    assert_close(losses.chain.start, answers["proposed"], scale=1)
    # Values of a few units each: in float32 one rounding of a value of 6 is 5e-7.
    assert_close(losses.chain.end.y, answers["refined"], scale=1 if dtype == EXACT else 6)
    assert losses.initializer is not None
    assert_close(losses.energy.detach(), answers["energy_loss"], scale=1)
    assert_close(losses.initializer.detach(), answers["initializer_loss"], scale=answers["initializer_loss"].item())
    losses.energy.backward()
    losses.initializer.backward()
    compared = 0
    for network, theirs, names in zip((model.energy, model.initializer), ("pi", "p"), our_names(condition)):
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        whole = torch.stack([gradient.double().norm() for gradient in gradients.values()]).norm().item()
        for name, ours in names.items():
            if f"gradient/{theirs}/{name}" not in answers:
                assert name.endswith(("_u", "_v"))
                continue
            norm, weighted_sum = answers[f"gradient/{theirs}/{name}"]
            gradient = gradients[ours].flatten().double()
            weights = torch.arange(len(gradient), dtype=torch.float64).cos()
            # Some are zero but for rounding: biases that a normalization takes away again.
            scale = max(norm.item(), 1e-2 * whole)
            assert_close(gradient.norm(), norm, scale)
            assert_close(gradient @ weights, weighted_sum, scale * weights.norm().item())
            compared += 1
    assert compared == sum(name.startswith("gradient/") for name in answers)
    assert compared == sum(1 for network in (model.energy, model.initializer) for _ in network.parameters())

"""Published weights give the authors' numbers: the noise-free trajectory and its end, guided where conditional."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cdrl.published import load_published
from cdrl.runs import RunError
from cdrl.sampler import sample
from pipelines.guidance import guided

FIXTURES = Path(__file__).parents[1] / "fixtures"


class NoNoise:
    """Starts the chain at a given x_T; every later draw is zero."""

    device = torch.device("cpu")

    def __init__(self, start: Tensor) -> None:
        self.draws = iter([start])
        self.zero = torch.zeros_like(start)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return next(self.draws, self.zero)


def relative_error(ours: Tensor, theirs: np.ndarray) -> float:
    return float((ours - torch.from_numpy(theirs)).abs().max() / np.abs(theirs).max())


@pytest.mark.parametrize("name", ["uncond", "cond"])
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_trajectory_of_published_weights_equals_the_authors(name: str, weights: str) -> None:
    expected = np.load(FIXTURES / f"official_{name}_tiny.npz")
    published = load_published(FIXTURES / f"official_{name}_tiny.pth.tar", average=weights == "ema")
    model, start = published.model, torch.from_numpy(expected[f"{weights}_x6"])
    conditional = name == "cond"
    label = torch.from_numpy(expected[f"{weights}_sample_label"]) - 1 if conditional else None
    weight = float(expected[f"{weights}_sample_guidance"]) if conditional else 0.0
    propose, log_density = guided(model, label, weight, count=len(start))
    states: dict[int, Tensor] = {}

    def keep(*, level: int, step: int, y: Tensor) -> None:
        states[level] = y / model.schedule.alpha_y[level]

    final = sample(
        model.schedule,
        propose,
        log_density,
        NoNoise(start),
        model.shape,
        steps=15,
        callback=keep,  # type: ignore[arg-type]
    )
    for level in range(6):
        assert relative_error(states[level], expected[f"{weights}_x{level}"]) <= 1e-4
    assert relative_error(final, expected[f"{weights}_final"]) <= 1e-4


def test_energies_gradients_and_proposals_of_averaged_weights_equal_the_authors() -> None:
    expected = np.load(FIXTURES / "official_cond_tiny.npz")
    model = load_published(FIXTURES / "official_cond_tiny.pth.tar").model
    inputs = torch.from_numpy(expected["ema_input"])
    for level in range(6):
        label = torch.from_numpy(expected[f"ema_label_level{level}"]) - 1
        y = inputs.clone().requires_grad_()
        f_hat = model.log_density(y, level, label) * model.schedule.step_size[level] ** 2
        (gradient,) = torch.autograd.grad(f_hat.sum(), y)
        assert relative_error(f_hat.detach(), expected[f"ema_energy_out_level{level}"]) <= 1e-4
        assert relative_error(gradient, expected[f"ema_energy_grad_level{level}"]) <= 1e-4
        assert relative_error(model.propose(inputs, level, label), expected[f"ema_proposal_level{level}"]) <= 1e-4


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.pth.tar"
    path.write_bytes((FIXTURES / "official_uncond_tiny.pth.tar").read_bytes()[:5000])
    with pytest.raises(RunError, match=r"broken\.pth\.tar"):
        load_published(path)
    with pytest.raises(RunError, match="no such file"):
        load_published(tmp_path / "missing.pth.tar")


def test_a_pickle_that_names_foreign_classes_is_not_executed(tmp_path: Path) -> None:
    path = tmp_path / "hostile.pth.tar"
    torch.save({"pi_state_dict": Path("/"), "p_state_dict": {}}, path)
    with pytest.raises(RunError, match="without executing code"):
        load_published(path)

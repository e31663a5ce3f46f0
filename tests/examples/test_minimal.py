"""The example for readers: it runs, and its arithmetic is the package's."""

from __future__ import annotations

import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from cdrl.config import ScheduleConfig
from cdrl.data.readers.points import inside_squares, sample_checkerboard
from cdrl.sampling.kernels import Position, langevin, recovery, with_gradient
from cdrl.sampling.noise import ImageNoise
from cdrl.schedule import NoiseSchedule
from tests.helpers import ROOT

EXAMPLE = ROOT / "examples" / "minimal.py"


@pytest.fixture(scope="module")
def minimal() -> SimpleNamespace:
    """The names of the example."""
    return SimpleNamespace(**runpy.run_path(str(EXAMPLE)))


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    """The package's tables under the settings of the example."""
    config = ScheduleConfig(
        logsnr_max=6.0, logsnr_min=-2.0, step_coefficient=0.03, step_scaling="constant", temperature="one"
    )
    return NoiseSchedule.from_config(config)


class GivenNoise(ImageNoise):
    """Serves one normal draw, [N, *shape]."""

    def __init__(self, draw: Tensor) -> None:
        super().__init__([])
        self._draw = draw

    def normal(self, shape: Sequence[int]) -> Tensor:
        return self._draw


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """What ``python examples/minimal.py`` does with arguments."""
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), *arguments])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    finally:
        torch.set_num_threads(threads)


def test_it_ends_with_a_picture_and_a_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "squares.png"
    run(monkeypatch, "--steps=2", "--seed=1", f"--out={picture}")
    assert picture.read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step    1/2: energy loss ")
    assert 0 < float(lines[-2].removesuffix(" of 5000 samples are inside the squares")) < 1
    assert lines[-1] == f"the picture is in {picture}"


def test_help_names_every_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run(monkeypatch, "--help")
    text = capsys.readouterr().out
    assert all(option in text for option in ("--steps", "--seed", "--out"))


@pytest.mark.parametrize("option", ["--out=missing/squares.png", "--out=squares.xyz", "--steps=-1"])
def test_what_cannot_be_done_is_refused_before_training(
    option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, option)
    output = capsys.readouterr()
    assert option.partition("=")[0] in output.err.splitlines()[-1]
    assert not output.out


def test_it_is_short_and_imports_nothing_of_the_package() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    imports = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imports <= {"argparse", "copy", "math", "matplotlib", "pathlib", "torch"}


def test_the_data_are_the_packages(minimal: SimpleNamespace) -> None:
    torch.manual_seed(0)
    assert inside_squares(minimal.checkerboard(2000)).all()
    assert minimal.inside(sample_checkerboard(2000, torch.Generator().manual_seed(0))).all()
    anywhere = 3 * torch.rand(2000, 2) - 1.5
    assert torch.equal(minimal.inside(anywhere), inside_squares(anywhere))


def test_the_schedule_is_the_packages(minimal: SimpleNamespace, schedule: NoiseSchedule) -> None:
    tables = vars(minimal.Schedule())
    assert set(tables) == {
        "logsnr", "alpha_bar", "sigma_bar", "alpha_y", "precision", "step_size", "proposal_std", "loss_weight",
    }  # fmt: skip
    for name, table in tables.items():
        torch.testing.assert_close(table[:, 0], getattr(schedule, name), rtol=1e-6, atol=1e-6)


def test_a_langevin_step_is_the_packages(minimal: SimpleNamespace, schedule: NoiseSchedule) -> None:
    torch.manual_seed(0)
    tables = minimal.Schedule()
    energy = minimal.Energy(tables.logsnr, 1, damped=True)
    t = torch.arange(24) % minimal.T
    y, x_next, noise = torch.randn(3, 24, 2)
    target = recovery(with_gradient(lambda points: energy(points, t)), x_next, schedule.precision[t])
    expected = langevin(Position(y, target), schedule.step_size[t], GivenNoise(noise)).y
    found = minimal.langevin(energy, tables, y, x_next, t, noise)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_the_chains_leave_no_gradient_behind(minimal: SimpleNamespace) -> None:
    torch.manual_seed(0)
    tables = minimal.Schedule()
    networks = minimal.Energy(tables.logsnr, 1, damped=True), minimal.Initializer(tables.logsnr, 2, damped=False)
    energy_loss, initializer_loss = minimal.losses(*networks, tables, minimal.checkerboard(20))
    energy_loss.backward(retain_graph=True)
    assert all(parameter.grad is None for parameter in networks[1].parameters())
    energy_gradient = [parameter.grad.clone() for parameter in networks[0].parameters() if parameter.grad is not None]
    initializer_loss.backward()
    after = [parameter.grad for parameter in networks[0].parameters() if parameter.grad is not None]
    assert all(torch.equal(*pair) for pair in zip(energy_gradient, after, strict=True))


def test_every_excerpt_of_the_tutorial_stands_in_the_file() -> None:
    page = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    excerpts = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    source = EXAMPLE.read_text(encoding="utf-8")
    assert len(excerpts) >= 8
    assert [excerpt for excerpt in excerpts if excerpt not in source] == []

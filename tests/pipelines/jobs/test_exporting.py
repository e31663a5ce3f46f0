"""Weights given away, and weights that ship: the same model from any folder, by name, with no path of a machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from autoencoder import Autoencoder
from cdrl.runs import pretrained
from cdrl.runs.run import RunError, load_tensors, save_tensors
from pipelines import CDRLPipeline
from pipelines.jobs import exporting
from pipelines.jobs.exporting import export_model, run_of_pretrained
from run import app
from tests.helpers import save_tiny_run, tiny_config


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shelf of weights in place of the project's own, far from where the user is."""
    shelf, elsewhere = tmp_path / "shelf", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    monkeypatch.setattr(pretrained, "SHIPPED", shelf)
    monkeypatch.setattr(exporting, "SHIPPED", shelf)
    return shelf


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("latent", [False, True])
def test_an_exported_model_draws_the_same_images(tmp_path: Path, latent: bool, half: bool) -> None:
    data = {"cache": str(tmp_path / "cache")}
    config = tiny_config(space="latent", autoencoder={}, data=data) if latent else tiny_config(data=data)
    save_tiny_run(tmp_path / "run", latent=latent, config=config)
    export_model(tmp_path / "run", tmp_path / "given", half=half)
    first, second = (CDRLPipeline.from_pretrained(tmp_path / name)(4, seed=1).tensors for name in ("run", "given"))
    assert torch.equal(first, second) != half
    torch.testing.assert_close(first, second, atol=0.02, rtol=0)
    sizes = [sum(f.stat().st_size for f in (tmp_path / n).rglob("*.safetensors")) for n in ("run", "given")]
    assert sizes[1] < (0.7 if half else 1.01) * sizes[0]
    assert all(str(tmp_path) not in path.read_text() for path in (tmp_path / "given").rglob("*.json"))


def test_what_is_there_is_not_written_over_and_half_precision_not_overrun(tmp_path: Path) -> None:
    save_tiny_run(tmp_path / "run")
    (tmp_path / "given").mkdir()
    with pytest.raises(RunError, match="given: exists already; name another folder"):
        export_model(tmp_path / "run", tmp_path / "given", half=False)
    path = tmp_path / "run" / "model" / "energy.safetensors"
    tensors = load_tensors(path)
    next(iter(tensors.values())).fill_(1e6)
    save_tensors(path, tensors)
    with pytest.raises(RunError, match="holds numbers beyond half precision: export without --half"):
        export_model(tmp_path / "run", tmp_path / "half", half=True)
    assert not (tmp_path / "half").exists()


def test_weights_that_ship_are_named_wherever_a_run_is(shelf: Path, tmp_path: Path) -> None:
    save_tiny_run(tmp_path / "run", latent=True)
    export_model(tmp_path / "run", shelf / "tiny", half=False)
    (shelf / "tiny" / "README.md").write_text("a card")
    expected = CDRLPipeline.from_pretrained(tmp_path / "run")(2).grids
    assert torch.equal(CDRLPipeline.from_pretrained("tiny")(2).grids, expected)
    assert Autoencoder.from_pretrained("tiny").latent_shape == (3, 4, 4)
    answer = CliRunner().invoke(app, ["sample", "tiny", "--num-images", "1"])
    assert answer.exit_code == 0, answer.output
    assert (Path("runs") / "pretrained" / "tiny" / "generated" / "000000.png").exists()
    assert not (shelf / "tiny" / "generated").exists()
    # Newer weights take the place of those of an older installation; the same are left.
    model = run_of_pretrained("tiny") / "model"
    before = model.stat().st_ino
    assert run_of_pretrained("tiny").joinpath("model").stat().st_ino == before
    export_model(tmp_path / "run", tmp_path / "half", half=True)
    for path in (tmp_path / "half").rglob("*"):
        if path.is_file():
            (shelf / "tiny" / path.relative_to(tmp_path / "half")).write_bytes(path.read_bytes())
    assert load_tensors(run_of_pretrained("tiny") / "model" / "energy.safetensors").popitem()[1].dtype == torch.float16


def test_a_folder_of_that_name_is_a_folder(shelf: Path, tmp_path: Path) -> None:
    save_tiny_run(tmp_path / "run")
    export_model(tmp_path / "run", shelf / "tiny", half=False)
    Path("tiny").mkdir()
    with pytest.raises(RunError, match="tiny: no trained model there"):
        CDRLPipeline.from_pretrained("tiny")
    with pytest.raises(RunError, match="or name weights that ship: tiny"):
        CDRLPipeline.from_pretrained("huge")

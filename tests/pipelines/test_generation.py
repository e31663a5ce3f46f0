"""Files of samples: their record is enough to draw them again, and stands beside no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cdrl.runs.run import read_json
from pipelines import CDRLPipeline
from pipelines.generation import run_sample


@pytest.mark.parametrize(
    "arguments",
    [{}, {"label": 3, "guidance": 0.5, "steps": 4, "step_adjustment": True}, {"label": -1, "steps": "auto"}],
    ids=["run's own", "guided", "auto"],
)
def test_what_the_record_says_draws_the_same_images(run: Path, tmp_path: Path, arguments: dict[str, Any]) -> None:
    folder = run_sample(run, 3, seed=8, out=tmp_path / "out", **arguments)
    record = read_json(folder / "sampling.json")
    pipeline = CDRLPipeline.from_pretrained(run)
    seeds = range(record["seed"], record["seed"] + record["num_images"])
    label = [seed % 10 for seed in seeds] if record["label"] == "in turn" else record["label"]
    again = pipeline(3, seeds=seeds, label=label, guidance=record["guidance"], **record["sampling"])
    for index, image in enumerate(again.images):
        image.save(tmp_path / "again.png")
        assert (tmp_path / "again.png").read_bytes() == (folder / f"{index:06d}.png").read_bytes()
    assert record["model_step"] is None


def test_fewer_images_leave_none_of_an_earlier_call(run: Path, tmp_path: Path) -> None:
    run_sample(run, 5, out=tmp_path / "out")
    folder = run_sample(run, 2, label=3, out=tmp_path / "out")
    files = ["000000.png", "000001.png", "grid.png"]
    assert sorted(path.name for path in folder.iterdir()) == [*files, "sampling.json"]
    assert read_json(folder / "sampling.json")["files"] == files


def test_images_that_were_cut_short_leave_those_of_the_call_before(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_sample(run, 2, out=tmp_path / "out")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def cut_short(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pipelines.generation.write_images", cut_short)
    with pytest.raises(KeyboardInterrupt):
        run_sample(run, 2, seed=5, out=tmp_path / "out")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

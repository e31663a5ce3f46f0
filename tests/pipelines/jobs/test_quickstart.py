"""The quickstart's record: what all of its calls have taken, and files of one call."""

from __future__ import annotations

from pathlib import Path

import pytest

from cdrl.config import Config
from cdrl.runs.run import read_json, write_json
from pipelines.jobs import quickstart
from tests.helpers import tiny_values, write_config


def test_seconds_are_those_of_all_calls_and_files_those_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    calls = 0

    def train(name: str, seconds: float, config: Config, folder: Path) -> None:
        write_json(folder / name, {"wall_seconds": seconds * calls})

    def draw(run: Path, folder: Path, *_: object, **__: object) -> dict[str, object]:
        for name in ["samples.png", "old.png"][: 3 - calls]:
            (folder / name).write_text(str(calls))
        return {"psnr": 20.0}

    monkeypatch.setattr(
        quickstart, "run_stage_one", lambda *call: train("autoencoder/model/autoencoder.json", 10.5, *call)
    )
    monkeypatch.setattr(quickstart, "run_stage_two", lambda *call: train("model/config.json", 100.5, *call))
    monkeypatch.setattr(quickstart, "run_encoding", lambda config, run: None)
    monkeypatch.setattr(quickstart, "stage_figures", draw)
    config = write_config(tmp_path / "tiny.yaml", tiny_values())
    for calls in (1, 2):
        quickstart.run_quickstart(config, run, short=False)
        figures = read_json(run / "figures.json")
        assert figures["seconds"]["stage_one"] == 10.5 * calls
        assert figures["seconds"]["stage_two"] == 100.5 * calls
        assert figures["psnr"] == 20.0
    assert figures["files"] == ["samples.png"]
    assert sorted(path.name for path in run.iterdir()) == ["autoencoder", "figures.json", "model", "samples.png"]
    assert (run / "samples.png").read_text() == "2"

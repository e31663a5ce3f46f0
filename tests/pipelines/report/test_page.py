"""The page of runs: whole in itself, with what the folders hold; neighbours that are the nearest."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from cdrl.data import load_images
from cdrl.runs.run import RunError, write_json
from cdrl.training.interruption import save_picture
from pipelines.evaluation.neighbours import nearest, nearest_images
from pipelines.report.page import thinned, write_report
from pipelines.report.run_facts import read_curves
from tests.helpers import save_tiny_run, tiny_config, write_config


class Page(HTMLParser):
    """Tags that are closed in order, and what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "one<two"
    config = tiny_config(data={"cache": str(tmp_path)})
    save_tiny_run(folder, config=config)
    write_config(folder / "config.yaml", config.model_dump(mode="json"))
    lines = [{"step": s, "images": 8 * s, "energy_loss": 1 / s, "energy_gap": [s, math.nan]} for s in range(1, 5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 5, "en')
    for step in (2, 4):
        save_picture(folder / "samples" / f"step_{step:08d}.png", torch.full((3, 5, 7), 50 * step, dtype=torch.uint8))
    blocks = {"count": 2, "images": 50, "mean": 13.25, "std": 0.5, "values": [13.75, 12.75]}
    write_json(folder / "evaluation.json", {"fd_lite0_100_test": {"value": 12.5, "blocks": blocks}})
    asked = {"num_images": 4321, "seed": 8765, "sampling": {"steps": 6543, "denoise": 2.0}}
    write_json(folder / "judge.json", {**asked, "accuracy": 0.875, "nested": {"deep": 3, "seed": 8766}, "list": [1, 2]})
    cost = {"step": 9, "images": 72, "wall_seconds": 1234.5, "cpu_seconds": 2345.5}
    write_json(folder / "autoencoder" / "model" / "autoencoder.json", {"format": 1, **cost})
    return folder


def pictures(page: str, kind: str) -> list[bytes]:
    return [base64.b64decode(data) for data in re.findall(rf"data:image/{re.escape(kind)};base64,([^\"]+)", page)]


def test_a_page_holds_what_the_run_holds_and_needs_nothing_else(run: Path) -> None:
    path = write_report([run], neighbours=2)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert all(reference.startswith("data:image/") for reference in page.references)
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert "one&lt;two" in text
    assert "one<two" not in text
    for shown in ("12.5 (2 blocks of 50: 13.25 ± 0.5)", "judge: accuracy", "0.875", "judge: nested / deep", "step 4"):
        assert shown in text
    figures = dict(re.findall(r'<tr><td>([^<]*)</td><td class="number">([^<]*)</td></tr>', text))
    assert [name for name in figures if name.startswith("judge")] == ["judge: accuracy", "judge: nested / deep"]
    assert (figures["first stage: wall seconds"], figures["first stage: CPU seconds"]) == ("1,234.5", "2,345.5")
    assert len(pictures(text, "svg+xml")) == 2
    assert all(b"<svg" in picture for picture in pictures(text, "svg+xml"))
    newest, first, last, neighbours = (Image.open(io.BytesIO(picture)) for picture in pictures(text, "png"))
    assert newest.getpixel((0, 0)) == (200, 200, 200)
    assert (first.getpixel((0, 0)), last.getpixel((0, 0))) == ((100, 100, 100), (200, 200, 200))
    assert neighbours.size[0] > neighbours.size[1]


def test_runs_are_laid_side_by_side_with_what_differs(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    config = tiny_config(data={"cache": str(tmp_path)}, training={"energy_lr": 0.125})
    other.mkdir()
    write_config(other / "config.yaml", config.model_dump(mode="json"))
    path = write_report([run, other], neighbours=1)
    assert path == tmp_path / "report.html"
    text = path.read_text(encoding="utf-8")
    assert Page(text).open == []
    (difference,) = re.findall(r'<h3>Where they differ</h3><div class="wide"><table>(.*?)</table>', text)
    assert re.findall(r"<tr><td>(.*?)</td>", difference) == ["training.energy_lr"]
    assert '<td class="number">0.001</td><td class="number">0.125</td>' in difference
    assert text.count('<div class="runs">') >= 4
    assert "other: no trained model there" in text
    with pytest.raises(RunError, match="nowhere: no run there"):
        write_report([run, tmp_path / "nowhere"])
    (other / "config.yaml").write_text("data: [1, {")
    with pytest.raises(RunError, match=r"config\.yaml: not a readable YAML file"):
        write_report([run, other])


def test_curves_of_several_runs_lie_over_one_another_and_the_first_stage_is_shown(run: Path, tmp_path: Path) -> None:
    paths = [run]
    for name in ("a", "b"):
        other = tmp_path / name
        other.mkdir()
        for file in ("config.yaml", "metrics.jsonl"):
            (other / file).write_bytes((run / file).read_bytes())
        paths.append(other)
    for place in ("autoencoder/reconstructions/step_00000003.png", "stages/worst.png"):
        save_picture(run / place, torch.full((3, 5, 7), 30, dtype=torch.uint8))
    text = write_report(paths, neighbours=0).read_text(encoding="utf-8")
    assert Page(text).open == []
    # The loss of all runs in one picture, the gaps of each level in one for every run.
    assert len(pictures(text, "svg+xml")) == 1 + 3
    assert text.index("<h2>Samples</h2>") < text.index("<h2>First stage</h2>") < text.index("<h2>Runs</h2>")
    assert "the held-out images that are reconstructed worst" in text
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC, by: python run.py report ", text)
    assert '<meta name="viewport"' in text
    assert "prefers-color-scheme: dark" in text


def test_large_pictures_are_put_into_the_page_smaller(run: Path) -> None:
    noise = torch.randint(256, (3, 700, 2000), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    save_picture(run / "samples" / "step_00000004.png", noise)
    text = write_report([run], neighbours=0).read_text(encoding="utf-8")
    shown = [Image.open(io.BytesIO(picture)) for picture in pictures(text, "jpeg")]
    assert [picture.size for picture in shown] == [(1600, 560)] * 2
    assert len(text) < 4 * 10**6


def test_curves_are_the_log_and_thinning_keeps_their_means(run: Path) -> None:
    curves = read_curves(run / "metrics.jsonl")
    assert curves["energy_loss"] == {"": [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]}
    assert curves["energy_gap"]["level 0"] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert "images" not in curves
    assert thinned(curves["energy_gap"]["level 1"]) == []
    points = [(float(step), math.sin(step)) for step in range(900)]
    thin = thinned(points)
    assert len(thin) == 300
    assert thin[-1] == (899, pytest.approx(sum(math.sin(step) for step in (897, 898, 899)) / 3))


def test_nearest_finds_copies_at_zero_and_root_mean_square_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    known = torch.rand(500, 3, 4, generator=generator)
    distances, places = nearest(known[[3, 400]], known, count=4)
    assert places[:, 0].tolist() == [3, 400]
    assert distances[:, 0].tolist() == [0, 0]
    everywhere = (known - known[3]).square().mean(dim=(1, 2)).sqrt()
    expected, order = everywhere.sort()
    assert places[0].tolist() == order[:4].tolist()
    torch.testing.assert_close(distances[0], expected[:4])


def test_nearest_goes_through_large_sets_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    known = torch.rand(50, 6, generator=torch.Generator().manual_seed(0))
    whole = nearest(known[:5] + 0.01, known, count=3)
    monkeypatch.setattr("pipelines.evaluation.neighbours._CHUNK_NUMBERS", 6 * 7)
    for first, second in zip(whole, nearest(known[:5] + 0.01, known, count=3), strict=True):
        assert torch.equal(first, second)


def test_a_mirrored_copy_is_found_where_mirror_images_count() -> None:
    known = load_images(tiny_config().data, "test").images[:40]
    query = known[[7]].flip(-1)
    assert nearest_images(query, known)[0].item() > 0.01
    distances, images = nearest_images(query, known, count=2, mirrored=True)
    assert distances[0, 0] == 0
    assert torch.equal(images[0, 0], query[0])

"""Figures of both stages: each one is what a second computation gives, and a run without stages is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from autoencoder.lite0 import Lite0
from autoencoder.reconstruction import reconstruct
from cdrl.data import Sample, load_images, write_shards
from cdrl.runs.run import RunError, read_json
from pipelines import CDRLPipeline
from pipelines.decoding import LatentDecoder
from pipelines.evaluation import stages
from pipelines.evaluation.distances import frechet_distance
from pipelines.evaluation.features import lite0_features
from pipelines.evaluation.figure_names import from_thousands, in_thousands
from pipelines.evaluation.stages import stages_table
from tests.helpers import save_tiny_run


def write_latents(run: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    for split in ("train", "test"):
        grids = torch.randn(30, 3, 4, 4, generator=generator)
        write_shards(run / "latents" / split, (Sample(grid) for grid in grids), {})


def test_figures_are_those_of_a_second_computation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "judge_steps", lambda num_images: 60)
    save_tiny_run(tmp_path, latent=True)
    write_latents(tmp_path)
    figures = stages.run_stages(tmp_path, 40)
    assert read_json(tmp_path / "stages" / "figures.json").keys() >= figures.keys()
    for name in ("reconstructions", "worst", "samples", "initializer"):
        assert (tmp_path / "stages" / f"{name}.png").stat().st_size > 100
    pipeline = CDRLPipeline.from_pretrained(tmp_path)
    assert isinstance(pipeline.decoder, LatentDecoder)
    real = load_images(pipeline.config.data, "test").images[:40]
    made = reconstruct(pipeline.decoder.autoencoder, real)
    assert figures["psnr"] == round(made.psnr.mean().item(), 2)
    assert figures["worst_psnr"] == round(made.psnr.min().item(), 2)
    network = Lite0()
    drawn = pipeline(seeds=range(40), label=[seed % 10 for seed in range(40)])
    expected = frechet_distance(lite0_features(drawn.tensors, network), lite0_features(made.images, network))
    assert figures["fd_lite0_40_reconstructions"]["samples"] == pytest.approx(expected, rel=1e-3)
    # A judge that has seen real digits knows them, and noise that was decoded is none.
    assert figures["judge_right"]["test"]["class"] > 0.4
    assert figures["judge_right"]["reconstructions"]["class"] < figures["judge_right"]["test"]["class"]
    distances = figures["fd_judge_40_test"]
    assert distances["train"] < distances["decoded_noise"]
    assert figures["nearest_training_latent"].keys() == {"samples", "test"}
    table = stages_table(figures)
    for features in ("EfficientNet-Lite0", "the judge"):
        assert f"Fréchet distance on features of {features}, 40 images a side" in table
    assert written(table.split("the judge, 40")[1], "decoded noise") == [f"{distances['decoded_noise']:.4g}", "-"]


@pytest.mark.parametrize("count", [10, 300, 999, 1000, 1500, 50_000])
def test_an_abbreviated_number_can_be_read(count: int) -> None:
    assert from_thousands(in_thousands(count)) == count


def written(table: str, row: str) -> list[str]:
    """The cells of a row."""
    (line,) = (line for line in table.splitlines() if line.startswith(row + "  "))
    return line.removeprefix(row).split()


def report(number: str) -> dict[str, Any]:
    others = {"train": 100.0, "reconstructions": 200.0, "samples": 300.0, "initializer": 400.0, "decoded_noise": 1234.5}
    return {
        "psnr": 25.22,
        "ssim": 0.8553,
        "worst_psnr": 21.87,
        "judge_right": {"test": {"Young": 0.9, "Male": 0.8}, "reconstructions": {"Young": 0.7, "Male": 0.6}},
        "judge_reads_true": {"test": {"Young": 0.5, "Male": 0.4}, "samples": {"Young": 0.3, "Male": 0.2}},
        f"fd_lite0_{number}_test": others,
        f"fd_lite0_{number}_reconstructions": {
            "samples": 310.0,
            "initializer": 410.0,
            "halves_of_reconstructions": 55.0,
        },
        "nearest_training_latent": {"samples": 0.734, "test": 0.6683},
        "files": ["worst.png"],
    }


def test_a_table_says_in_words_what_each_number_compares() -> None:
    table = stages_table(report("1k"))
    assert table.startswith("held-out images and their reconstructions: PSNR 25.22 dB (worst 21.87 dB), SSIM 0.8553\n")
    right, reads, distances = table.split("\n\n")[1:4]
    assert right.splitlines()[0] == "share that a judge of real images reads right"
    assert right.splitlines()[1].lstrip() == "held-out images  reconstructions of held-out images"
    assert (written(right, "Young"), written(right, "Male ")) == (["0.900", "0.700"], ["0.800", "0.600"])
    assert written(reads, "Young") == ["0.500", "0.300"]
    title, heads = distances.splitlines()[:2]
    assert title == "Fréchet distance on features of EfficientNet-Lite0, 1000 images a side"
    assert heads.lstrip() == "to held-out images  to reconstructions"
    assert written(distances, "training images") == ["100", "-"]
    assert written(distances, "samples") == ["300", "310"]
    assert written(distances, "initializer alone") == ["400", "410"]
    assert written(distances, "reconstructions, one half to the other") == ["-", "55"]
    assert "nearest training latent: samples 0.734, held-out latents 0.6683" in table
    assert not {"{", "_", "warning"} & {*table, *table.split()}
    assert max(map(len, distances.splitlines())) <= 80


@pytest.mark.parametrize(("number", "warned"), [("30", True), ("199", True), ("200", False), ("2k", False)])
def test_distances_of_few_images_are_told_to_be_chance(number: str, warned: bool) -> None:
    warnings = [line for line in stages_table(report(number)).splitlines() if line.startswith("warning")]
    told = "warning: distances of fewer than 200 images are mostly chance; two halves of one set are 55 apart"
    assert warnings == [told] * warned


def test_a_run_without_stages_is_refused(tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    with pytest.raises(RunError, match="the stages of a latent run with an initializer are measured"):
        stages.run_stages(tmp_path, 40)
    assert not (tmp_path / "stages").exists()

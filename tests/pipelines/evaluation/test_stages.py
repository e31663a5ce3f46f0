"""Figures of both stages: each one is what a second computation gives, and a run without stages is refused."""

from __future__ import annotations

from pathlib import Path

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
from tests.helpers import save_tiny_run


def write_latents(run: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    for split in ("train", "test"):
        grids = torch.randn(30, 3, 4, 4, generator=generator)
        write_shards(run / "latents" / split, (Sample(grid) for grid in grids), {})


def test_figures_are_those_of_a_second_computation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "JUDGE_STEPS", 60)
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


def test_a_run_without_stages_is_refused(tmp_path: Path) -> None:
    save_tiny_run(tmp_path)
    with pytest.raises(RunError, match="the stages of a latent run with an initializer are measured"):
        stages.run_stages(tmp_path, 40)
    assert not (tmp_path / "stages").exists()

"""The jobs of both stages: what each finds, refuses and leaves behind."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from autoencoder import latents
from autoencoder.model import save_autoencoder
from cdrl.config import Config, ConfigError
from cdrl.data import DataError, load_images, read_shards
from cdrl.runs.run import RunError
from cdrl.training.trainer import CooperativeTrainer
from pipelines import CDRLPipeline
from pipelines.jobs.preparing import run_preparation
from pipelines.jobs.training import run_encoding, run_stage_one, run_stage_two, stage_one_folder, stage_two_data
from tests.helpers import tiny_autoencoder, tiny_config

LATENT: dict[str, Any] = {"space": "latent", "autoencoder": {}}


def test_pixels_are_served_in_range_with_their_classes() -> None:
    data = stage_two_data(tiny_config(), Path("unused"))
    assert data.training_set.grid_shape == (1, 8, 8)
    assert len(data.class_names) == 10
    grids, labels = data.training_set.batch(0)
    assert grids.min() == -1
    assert 0.5 < grids.max() <= 1
    assert 0 <= labels.min() <= labels.max() <= 9


def test_points_train_and_sample(tmp_path: Path) -> None:
    config = tiny_config(
        space="point",
        data={"name": "checkerboard", "labels": "none"},
        energy={"spectral_norm": False},
        training={"num_steps": 2},
    )
    data = stage_two_data(config, tmp_path)
    assert data.training_set.grid_shape == (2,)
    assert data.class_names == ()
    assert data.training_set.batch(0)[0].abs().max() <= 1
    run_stage_two(config, tmp_path)
    assert CDRLPipeline.from_pretrained(tmp_path)(5).grids.shape == (5, 2)


def test_a_latent_run_from_encoding_to_samples(tmp_path: Path) -> None:
    save_autoencoder(tmp_path / "autoencoder" / "model", tiny_autoencoder())
    config = tiny_config(**LATENT, training={"num_steps": 2})
    run_encoding(config, tmp_path)
    served = stage_two_data(config, tmp_path).training_set
    grids = torch.cat([served.batch(step)[0] for step in range(150)])
    torch.testing.assert_close(grids.mean(dim=(0, 2, 3)), torch.zeros(3), rtol=0, atol=0.05)
    torch.testing.assert_close(grids.std(dim=(0, 2, 3)), torch.ones(3), rtol=0, atol=0.05)
    run_stage_two(config, tmp_path)
    generated = CDRLPipeline.from_pretrained(tmp_path)(2, label=[1, 2])
    assert generated.grids.shape == (2, 3, 4, 4)
    assert generated.tensors.shape == (2, 1, 8, 8)


def test_from_disk_both_stages_see_what_they_would_see_in_memory(tmp_path: Path) -> None:
    config = tiny_config(**LATENT, data={"prepared": str(tmp_path / "prepared")})
    disk = tiny_config(**LATENT, data={"prepared": str(tmp_path / "prepared"), "stream": True})
    assert len(list(run_preparation(config))) == 2
    batches = []
    for settings, run in ((config, tmp_path / "memory"), (disk, tmp_path / "disk")):
        save_autoencoder(run / "autoencoder" / "model", tiny_autoencoder())
        run_encoding(settings, run)
        batches.append(stage_two_data(settings, run).training_set.batch(3))
    for split in ("train", "test"):
        shards = [tmp_path / run / "latents" / split / "shard-000000.tar" for run in ("memory", "disk")]
        assert shards[0].read_bytes() == shards[1].read_bytes()
    assert all(torch.equal(one, other) for one, other in zip(*batches, strict=True))


def test_a_latent_run_without_its_first_stage_says_how_to_train_it(tmp_path: Path) -> None:
    for job in (run_encoding, run_stage_two):
        with pytest.raises(RunError, match=r"no trained first stage there; .*run\.py train-autoencoder CONFIG"):
            job(tiny_config(**LATENT), tmp_path)


def test_a_latent_run_without_latents_says_how_to_make_them(tmp_path: Path) -> None:
    save_autoencoder(tmp_path / "autoencoder" / "model", tiny_autoencoder())
    with pytest.raises(DataError, match=r"latents/train: no latents there; make them with: python run\.py encode"):
        run_stage_two(tiny_config(**LATENT), tmp_path)


def test_latents_of_another_first_stage_are_refused(tmp_path: Path) -> None:
    model = tiny_autoencoder()
    save_autoencoder(tmp_path / "autoencoder" / "model", model)
    run_encoding(tiny_config(**LATENT), tmp_path)
    with torch.no_grad():
        model.post_quant_conv.weight += 0.1
    save_autoencoder(tmp_path / "autoencoder" / "model", model)
    with pytest.raises(DataError, match="made by another first stage"):
        run_stage_two(tiny_config(**LATENT), tmp_path)


def test_latents_are_draws_of_their_posteriors_or_their_means(tmp_path: Path) -> None:
    autoencoder = tiny_autoencoder()
    save_autoencoder(tmp_path / "autoencoder" / "model", autoencoder)
    images = load_images(tiny_config().data, "train").images / 127.5 - 1
    with torch.no_grad():
        posterior = autoencoder.encode(images)
    grids = {}
    for kind in ("sample", "mean"):
        run_encoding(tiny_config(space="latent", autoencoder={"latents": kind}), tmp_path)
        grids[kind] = read_shards(tmp_path / "latents" / "train").grids
    torch.testing.assert_close(grids["mean"], posterior.mean, rtol=0, atol=1e-5)
    noise = ((grids["sample"] - posterior.mean) / torch.exp(0.5 * posterior.logvar)).flatten()
    assert noise.mean().abs() < 5 / len(noise) ** 0.5
    assert noise.std().item() == pytest.approx(1, abs=5 / (2 * len(noise)) ** 0.5)
    assert (noise**4).mean().item() == pytest.approx(3, abs=0.1)
    with pytest.raises(DataError, match=r"not made with autoencoder\.latents=sample; make them anew: python run\.py"):
        run_stage_two(tiny_config(**LATENT), tmp_path)


def test_encoding_that_was_cut_short_goes_on_and_makes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(**LATENT, data={"flip": True})
    runs = tmp_path / "whole", tmp_path / "cut"
    for run in runs:
        save_autoencoder(run / "autoencoder" / "model", tiny_autoencoder())
    run_encoding(config, runs[0])
    num_train = read_shards(runs[0] / "latents" / "train").grids.shape[0]
    assert num_train > latents.BATCH * 21 > 1000  # more than a shard
    encoded: list[int] = []

    def cut_short(autoencoder: Any, images: torch.Tensor, noise: Any) -> torch.Tensor:
        encoded.append(len(images))
        if len(encoded) == 2 * 21 + 1:
            raise KeyboardInterrupt
        return latents_of(autoencoder, images, noise)

    latents_of = latents.latents_of
    monkeypatch.setattr(latents, "latents_of", cut_short)
    with pytest.raises(KeyboardInterrupt):
        run_encoding(config, runs[1])
    first = sum(encoded)
    run_encoding(config, runs[1])
    # Each training image is encoded twice, a held-out one once; those of the full shard not again.
    num_test = read_shards(runs[0] / "latents" / "test").grids.shape[0]
    assert sum(encoded) - first == 2 * (num_train - 1000) + num_test
    for split in ("train", "test"):
        folders = [run / "latents" / split for run in runs]
        names = [sorted(path.name for path in folder.iterdir()) for folder in folders]
        assert names[0] == names[1]
        for name in names[0]:
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_latents_are_encoded_again_only_where_something_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_autoencoder(tmp_path / "autoencoder" / "model", tiny_autoencoder())
    shard = tmp_path / "latents" / "train" / "shard-000000.tar"

    def made_anew(config: Config) -> bool:
        before = shard.stat().st_mtime_ns if shard.exists() else None
        run_encoding(config, tmp_path)
        told = "train: there already, made of the same images by the same first stage" in capsys.readouterr().err
        assert told == (shard.stat().st_mtime_ns == before)
        return not told

    config = tiny_config(**LATENT)
    assert made_anew(config)
    # A run is bound to what it learns from, which images that lie elsewhere do not change.
    read = stage_two_data(config, tmp_path).read
    assert read is not None
    assert set(read.metadata) == {"mirrors", "kind", "autoencoder", "mean", "std"}
    whole = shard.read_bytes()
    assert not made_anew(config)
    shard.write_bytes(whole[:-1] + b"x")
    assert made_anew(config)
    assert shard.read_bytes() == whole
    shard.unlink()
    assert made_anew(config)
    assert made_anew(tiny_config(**LATENT, data={"flip": True}))
    assert made_anew(tiny_config(space="latent", autoencoder={"latents": "mean"}))
    other = tiny_autoencoder()
    with torch.no_grad():
        other.post_quant_conv.weight += 0.1
    save_autoencoder(tmp_path / "autoencoder" / "model", other)
    assert made_anew(config)


def test_a_first_stage_for_other_images_is_refused(tmp_path: Path) -> None:
    save_autoencoder(tmp_path / "autoencoder" / "model", tiny_autoencoder())
    config = tiny_config(**LATENT, data={"name": "digits", "image_size": 16, "channels": 1})
    with pytest.raises(RunError, match=r"a first stage of 1 x 8\^2 images, but data has 1 x 16\^2"):
        run_encoding(config, tmp_path)


def test_the_first_stage_may_be_another_runs(tmp_path: Path) -> None:
    other = tmp_path / "other"
    config = tiny_config(space="latent", autoencoder={"run": str(other)})
    assert stage_one_folder(config, tmp_path / "run") == other
    assert stage_one_folder(tiny_config(**LATENT), tmp_path / "run") == tmp_path / "run" / "autoencoder"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({}, "no autoencoder section"),
        (LATENT, "nothing to train"),
        ({"autoencoder": {"run": "elsewhere", "training": {"num_steps": 1}}}, "nothing to train"),
    ],
)
def test_there_must_be_a_first_stage_to_train(sections: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run_stage_one(tiny_config(**sections), tmp_path)


def save_pictures(folder: Path, values: range) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for value in values:
        Image.new("L", (8, 8), value).save(folder / f"{value:03d}.png")


@pytest.mark.parametrize("stream", [False, True], ids=["in memory", "on disk"])
def test_training_does_not_go_on_over_changed_data(stream: bool, tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_pictures(tmp_path / "data" / split, range(100, 104))
    data = {"name": "folder", "path": str(tmp_path / "data"), "labels": "none"}
    if stream:
        data |= {"prepared": str(tmp_path / "prepared"), "stream": True}
    config = tiny_config(data=data, training={"num_steps": 1})

    def train() -> None:
        if stream:
            shutil.rmtree(tmp_path / "prepared", ignore_errors=True)
            list(run_preparation(config))
        run_stage_two(config, tmp_path / "run")

    train()
    train()
    save_pictures(tmp_path / "data" / "train", range(104, 106))
    with pytest.raises(RunError, match=r"data have changed since .* \(count is 4 there, 6 here; contents is .*\): "):
        train()
    for value in (104, 105):
        (tmp_path / "data" / "train" / f"{value}.png").unlink()
    train()
    Image.new("L", (8, 8), 7).save(tmp_path / "data" / "train" / "102.png")
    with pytest.raises(RunError, match=r"data have changed since .* \(contents is \'\w+\' there, \'\w+\' here\): "):
        train()


@pytest.mark.filterwarnings("ignore:.* are resized to")
@pytest.mark.parametrize("stage", ["one", "two"])
def test_training_does_not_go_on_over_changed_held_out_images(stage: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        save_pictures(tmp_path / "data" / split, range(100, 112))
    data = {"name": "folder", "path": str(tmp_path / "data"), "labels": "none", "cache": str(tmp_path / "cache")}
    if stage == "one":
        architecture = {"channels": 32, "multipliers": [1], "num_blocks": 1, "pixel_unshuffle": 2}
        first = {"architecture": architecture, "training": {"num_steps": 1, "batch_size": 2}}
        config, train = tiny_config(space="latent", data=data, autoencoder=first), run_stage_one
    else:
        evaluation = {"every": 1, "num_samples": 100, "split": "test"}
        config, train = tiny_config(data=data, training={"num_steps": 1}, evaluation=evaluation), run_stage_two
    train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    Image.new("L", (8, 8), 7).save(tmp_path / "data" / "test" / "102.png")
    with pytest.raises(RunError, match=r"measured on have changed since .* \(measured_on\.contents is '\w+' there, "):
        train(config, tmp_path / "run")


def test_a_file_that_cannot_be_written_is_named_with_the_checkpoint_that_is_kept(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_stage_two(tiny_config(), run)
    shutil.rmtree(run / "checkpoints" / "step_00000006")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    with pytest.raises(RunError, match=r"metrics\.jsonl: Is a directory; the checkpoint of step 3 is kept in .*/run$"):
        run_stage_two(tiny_config(), run)


@pytest.mark.parametrize("missed_first", ["checkpoint", "log"])
def test_a_run_that_is_removed_while_it_goes_on_is_told_and_not_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missed_first: str
) -> None:
    run, save = tmp_path / "run", CooperativeTrainer.save

    def removing(self: CooperativeTrainer, *arguments: Any) -> None:
        shutil.rmtree(run)
        if missed_first == "log":
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(run / "tensorboard" / "events"))
        save(self, *arguments)

    monkeypatch.setattr(CooperativeTrainer, "save", removing)
    with pytest.raises(RunError, match=r"/run: this run was removed while it was going on; there is no checkpoint"):
        run_stage_two(tiny_config(), run)
    assert not run.exists()

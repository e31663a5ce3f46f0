"""Damaged inputs: one clear line that names the place, nothing half-written, and no library's traceback."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.io import savemat
from typer.testing import CliRunner

import run as door
from tests.helpers import FIXTURES, tiny_values, write_config
from tests.layouts import (
    PIXELS,
    celeba,
    celebahq_arrays,
    cifar10,
    cifar10_archive,
    cifar100,
    dtd,
    fashion_mnist,
    folder,
    foreign_shards,
    imagenet32,
    mask_hq,
    picture,
    pictures_in_folder,
    svhn,
)


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def flip_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def replace_line(path: Path, number: int, line: str | None) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1 : number] = [] if line is None else [line]
    path.write_text("\n".join(lines) + "\n")


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


class Damage(NamedTuple):
    """A whole data set, what is done to it, and what the message must say."""

    make: Callable[[Path], None]
    damage: Callable[[Path], object]
    message: str
    check_sums: bool = False


PUBLISHED = {
    "cifar10: a batch cut short": Damage(
        cifar10, lambda data: cut(data / "cifar-10-batches-py/data_batch_3"), "data_batch_3: expected a whole pickle"
    ),
    "cifar10: not the published batch": Damage(
        cifar10, lambda data: None, "data_batch_1: damaged: expected the published MD5 c99cafc1", check_sums=True
    ),
    "cifar10: an archive cut short": Damage(
        cifar10_archive, lambda data: cut(data / "cifar-10-python.tar.gz"), "expected a whole .tar.gz"
    ),
    "cifar100: a pickle that runs code": Damage(
        cifar100,
        lambda data: (data / "cifar-100-python/train").write_bytes(
            pickle.dumps({"data": PIXELS, "fine_labels": Harm()})
        ),
        "names posix.mkdir, which the format does not hold",
    ),
    "cifar100: a label out of range": Damage(
        cifar100,
        lambda data: (data / "cifar-100-python/train").write_bytes(
            pickle.dumps({"data": PIXELS, "fine_labels": [0, 1, 2, 100]})
        ),
        "train: expected labels 0 … 99, found 0 … 100",
    ),
    "imagenet32: a label out of range": Damage(
        imagenet32,
        lambda data: np.savez(data / "train_data_batch_2", data=PIXELS, labels=np.array([1, 2, 3, 1001])),
        "train_data_batch_2.npz: expected labels 1 … 1000, found 1 … 1001",
    ),
    "imagenet32: an npz cut short": Damage(
        imagenet32, lambda data: cut(data / "train_data_batch_1.npz"), "train_data_batch_1.npz: expected a whole .npz"
    ),
    "imagenet32: a batch missing": Damage(
        imagenet32, lambda data: (data / "train_data_batch_7.npz").unlink(), "train_data_batch_7: not there, nor with"
    ),
    "svhn: a file cut short": Damage(
        svhn, lambda data: cut(data / "train_32x32.mat"), "train_32x32.mat: expected a whole MATLAB file"
    ),
    "svhn: a label out of range": Damage(
        svhn,
        lambda data: savemat(
            data / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 1), np.uint8), "y": np.array([[11]], np.uint8)}
        ),
        "train_32x32.mat: expected labels 1 … 10, found 11",
    ),
    "dtd: a picture missing": Damage(
        dtd, lambda data: (data / "dtd/images/banded/banded_0001.jpg").unlink(), "banded_0001.jpg: cannot be read"
    ),
    "dtd: a class that does not exist": Damage(
        dtd,
        lambda data: replace_line(data / "dtd/labels/train1.txt", 1, "striped/striped_0001.jpg"),
        "train1.txt: line 1: expected CLASS/FILE",
    ),
    "fashion_mnist: a wrong magic number": Damage(
        fashion_mnist,
        lambda data: flip_bit(data / "train-images-idx3-ubyte", 3),
        "train-images-idx3-ubyte: expected an idx file with the magic number 2051",
    ),
    "fashion_mnist: images cut short": Damage(
        fashion_mnist, lambda data: cut(data / "train-images-idx3-ubyte"), "expected 3136 values, found 1560"
    ),
    "fashion_mnist: labels cut short": Damage(
        fashion_mnist,
        lambda data: cut(data / "train-labels-idx1-ubyte.gz"),
        "train-labels-idx1-ubyte.gz: expected a whole gzip file",
    ),
    "celeba: a line of attributes missing": Damage(
        celeba,
        lambda data: replace_line(data / "list_attr_celeba.txt", 4, None),
        "list_attr_celeba.txt: expected 3 images as line 1 says, found 2",
    ),
    "celeba: a picture of another size": Damage(
        celeba,
        lambda data: picture(data / "img_align_celeba/000002.jpg", (178, 200)),
        "000002.jpg: expected a picture [3, 218, 178], found [3, 200, 178]",
    ),
    "celeba: a picture cut short": Damage(
        celeba, lambda data: cut(data / "img_align_celeba/000001.jpg"), "000001.jpg: expected a whole picture"
    ),
    "celeba: a partition that does not exist": Damage(
        celeba,
        lambda data: replace_line(data / "list_eval_partition.txt", 2, "000002.jpg 3"),
        "list_eval_partition.txt: line 2: expected a file's name and 0, 1 or 2",
    ),
    "celebahq: a mapping without a column": Damage(
        mask_hq,
        lambda data: replace_line(data / "CelebA-HQ-to-CelebA-mapping.txt", 3, "1 000002.jpg"),
        "CelebA-HQ-to-CelebA-mapping.txt: line 3: expected three columns",
    ),
    "celebahq: an array of another shape": Damage(
        celebahq_arrays,
        lambda data: np.save(data / "imgHQ00000.npy", np.zeros((3, 64, 64), np.uint8)),
        "imgHQ00000.npy: expected uint8 (1, 3, H, W)",
    ),
    "folder: empty": Damage(
        folder, lambda data: shutil.rmtree(data / "train/a"), "data/train: expected pictures (.png, .jpg,"
    ),
    "folder: no picture behind the name": Damage(
        folder, lambda data: (data / "train/a/0.png").write_text("no picture"), "0.png: expected a whole picture"
    ),
    "shards: a tar cut in the middle": Damage(
        foreign_shards, lambda data: cut(data / "train/0.tar"), "train/0.tar: damaged: expected a whole tar file"
    ),
    "shards: a class that is no number": Damage(
        foreign_shards, lambda data: foreign_shards(data, b"cat"), "train/0.tar: sample 0: expected a class id"
    ),
}

PREPARED = {
    "a shard cut in the middle": Damage(
        pictures_in_folder, lambda shards: cut(shards / "shard-000000.tar"), "shard-000000.tar: damaged: its SHA-256"
    ),
    "an index cut in the middle": Damage(
        pictures_in_folder, lambda shards: cut(shards / "index.json"), "index.json: expected the index of shards"
    ),
    "an index missing": Damage(
        pictures_in_folder, lambda shards: (shards / "index.json").unlink(), "no prepared shards there"
    ),
}
STREAMED = {
    **PREPARED,
    "a shard cut in the middle": Damage(
        pictures_in_folder, lambda shards: cut(shards / "shard-000000.tar"), "shard-000000.tar: damaged: sample "
    ),
    "a table with a flipped bit": Damage(
        pictures_in_folder,
        lambda shards: flip_bit(shards / "samples.safetensors", -9),
        "samples.safetensors: damaged: its SHA-256",
    ),
    "a shard missing": Damage(
        pictures_in_folder, lambda shards: (shards / "shard-000000.tar").unlink(), "shard-000000.tar: missing"
    ),
}


def nothing(path: Path) -> None:
    """What is damaged has been made already."""


CHECKPOINTS = {
    "weights cut short": Damage(
        nothing,
        lambda step: cut(step / "energy_weights.safetensors"),
        "energy_weights.safetensors: not a whole safetensors file",
    ),
    "weights missing": Damage(
        nothing,
        lambda step: (step / "initializer_weights.safetensors").unlink(),
        "initializer_weights.safetensors: no such file; remove ",
    ),
    "weights of another network": Damage(
        nothing,
        lambda step: shutil.copy(step / "initializer_weights.safetensors", step / "energy_weights.safetensors"),
        "energy: not a whole checkpoint of this network (",
    ),
    "an average cut short": Damage(
        nothing,
        lambda step: cut(step / "energy_average.safetensors"),
        "energy_average.safetensors: not a whole safetensors file",
    ),
    "a state cut short": Damage(nothing, lambda step: cut(step / "state.json"), "state.json: not valid JSON"),
    "a flipped bit in the optimizer's state": Damage(
        nothing,
        lambda step: flip_bit(step / "energy_optimizer.safetensors", -9),
        "energy_optimizer.safetensors: damaged or edited: its SHA-256 differs from the one in checksums.json; remove ",
        check_sums=True,
    ),
    "a file missing": Damage(
        nothing,
        lambda step: (step / "energy_average.safetensors").unlink(),
        "energy_average.safetensors: missing, though checksums.json beside it names it; remove ",
        check_sums=True,
    ),
    "checksums cut short": Damage(
        nothing, lambda step: cut(step / "checksums.json"), "checksums.json: not valid JSON", check_sums=True
    ),
    "settings of the run cut short": Damage(
        nothing, lambda step: (step / "../../config.yaml").write_text("data: [1, {"), "config.yaml: not a readable YAML"
    ),
}
MODELS = {
    "weights cut short": Damage(
        nothing, lambda model: cut(model / "energy.safetensors"), "energy.safetensors: not a whole safetensors file"
    ),
    "a flipped bit": Damage(
        nothing,
        lambda model: flip_bit(model / "energy.safetensors", -1),
        "energy.safetensors: damaged or edited: its SHA-256 differs",
        check_sums=True,
    ),
    "weights of another model": Damage(
        nothing,
        lambda model: shutil.copy(model / "initializer.safetensors", model / "energy.safetensors"),
        "energy.safetensors: of another model",
    ),
    "a description cut short": Damage(nothing, lambda model: cut(model / "config.json"), "config.json: not valid JSON"),
    "a description of something else": Damage(
        nothing,
        lambda model: (model / "config.json").write_text("{}"),
        "config.json: it lacks 'format'",
    ),
}
PUBLISHED_MODELS = {
    "import-cdrl": ("official_uncond_tiny.pth.tar", "official_uncond_tiny.pth.tar: is cut short"),
    "import-autoencoder": ("compvis_kl_f4_tiny.ckpt", "compvis_kl_f4_tiny.ckpt: is cut short"),
}
CONFIGS = {
    "no text": (b"\xff\xfe\x00\x01", "config.yaml: not a readable YAML file"),
    "brackets left open": (b"data: [1, {", "config.yaml: not a readable YAML file"),
    "no sections": (b"- data\n", "expected sections ('data:', 'training:', …) at the top, found list"),
    "an unknown key": (b"space: pixel\ndata: {name: digits, sise: 8}", "unknown key 'data.sise'"),
    "a word for a number": (b"space: pixel\ndata: {name: digits, image_size: large}", "data.image_size: "),
    "a base that is not there": (b"base: nowhere.yaml", "nowhere.yaml: no such config file"),
}


def contents(root: Path) -> dict[str, bytes]:
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*")) if file.is_file()}


def refused(root: Path, *arguments: str | Path) -> str:
    """The one line of a command that is refused, and leaves every file below ``root`` as it was.

    New ones may be locks, and the settings and the log of a run that has begun; no file may be left half-written.
    """
    before = contents(root)
    result = CliRunner().invoke(door.app, [str(argument) for argument in arguments])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    after = contents(root)
    new = {name for name in after if name not in before}
    assert all(name.endswith(".lock") or name.startswith("run/") for name in new), new
    assert not any(word in name for name in new for word in ("partial", "writing", "model", "checkpoints")), new
    assert all(after[name] == content for name, content in before.items())
    return lines[0]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # where a pickle would do its harm
    return tmp_path


def data_config(path: Path, **data: Any) -> Path:
    values = {"path": str(path.parent / "data"), "image_size": 32, "channels": 3, "labels": "none", **data}
    return write_config(path, tiny_values(data=values))


@pytest.mark.parametrize("name", PUBLISHED)
def test_damaged_data_sets(name: str, work: Path) -> None:
    case = PUBLISHED[name]
    (work / "data").mkdir()
    case.make(work / "data")
    case.damage(work / "data")
    fields = {"name": name.partition(":")[0], "prepared": str(work / "prepared"), "check_sums": case.check_sums}
    config = data_config(work / "config.yaml", **fields)
    assert case.message in refused(work, "prepare", config)
    assert not (work / "harm").exists()


@pytest.mark.parametrize("make", dict.fromkeys(case.make for case in PUBLISHED.values()))
def test_the_same_data_sets_are_read_when_they_are_whole(make: Callable[[Path], None], work: Path) -> None:
    (work / "data").mkdir()
    make(work / "data")
    name = next(name for name, case in PUBLISHED.items() if case.make is make).partition(":")[0]
    fields = {"name": name, "prepared": str(work / "prepared"), "check_sums": False}
    config = data_config(work / "config.yaml", **fields)
    result = CliRunner().invoke(door.app, ["prepare", str(config)])
    assert result.exit_code == 0, result.output
    assert (work / "prepared/train/index.json").exists()
    assert (work / "prepared/test/index.json").exists()


@pytest.mark.parametrize("name", [*(f"memory: {name}" for name in PREPARED), *(f"disk: {name}" for name in STREAMED)])
def test_damaged_shards(name: str, work: Path) -> None:
    place, _, name = name.partition(": ")
    case = (PREPARED if place == "memory" else STREAMED)[name]
    (work / "data").mkdir()
    case.make(work / "data")
    fields = {"name": "folder", "prepared": str(work / "prepared"), "image_size": 8, "stream": place == "disk"}
    config = data_config(work / "config.yaml", **fields)
    assert CliRunner().invoke(door.app, ["prepare", str(config)]).exit_code == 0
    case.damage(work / "prepared/train")
    assert case.message in refused(work, "train", config, "--run", work / "run")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config and the run that came of it."""
    root = tmp_path_factory.mktemp("trained")
    values = tiny_values(training={"num_steps": 2, "checkpoint_every": 2}, deepspeed={"zero_stage": 0})
    config = write_config(root / "config.yaml", values)
    assert CliRunner().invoke(door.app, ["train", str(config), "--run", str(root / "trained")]).exit_code == 0
    return root


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_damaged_checkpoints(name: str, trained: Path, work: Path) -> None:
    shutil.copytree(trained, work, dirs_exist_ok=True)
    case, step = CHECKPOINTS[name], work / "trained/checkpoints/step_00000002"
    case.damage(step)
    if not case.check_sums:
        (step / "checksums.json").unlink()  # as in one that was written before there were any
    line = refused(work, "train", work / "config.yaml", "--run", work / "trained")
    assert case.message in line
    if case.message.endswith("remove "):
        assert line.endswith(f"remove {step} to begin anew")


@pytest.mark.parametrize("name", MODELS)
def test_damaged_models(name: str, trained: Path, work: Path) -> None:
    shutil.copytree(trained, work, dirs_exist_ok=True)
    case = MODELS[name]
    case.damage(work / "trained/model")
    if not case.check_sums:
        (work / "trained/model/checksums.json").unlink()
    assert case.message in refused(work, "sample", work / "trained", "--num-images", "1")


@pytest.mark.parametrize("verb", PUBLISHED_MODELS)
def test_damaged_published_models(verb: str, work: Path) -> None:
    name, message = PUBLISHED_MODELS[verb]
    shutil.copy(FIXTURES / name, work / name)
    cut(work / name)
    assert message in refused(work, verb, work / name, work / "run")


@pytest.mark.parametrize("name", CONFIGS)
def test_damaged_configs(name: str, work: Path) -> None:
    content, message = CONFIGS[name]
    (work / "config.yaml").write_bytes(content)
    assert message in refused(work, "train", work / "config.yaml", "--run", work / "run")


def test_there_are_thirty_of_them() -> None:
    tables: list[dict[str, Any]] = [PUBLISHED, PREPARED, STREAMED, CHECKPOINTS, MODELS, PUBLISHED_MODELS, CONFIGS]
    assert sum(map(len, tables)) >= 30

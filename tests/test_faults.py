"""Faults that people meet, one row each: what they have on disk or type, and what must come out.

Further rows of their kinds stand beside the code that mends them: tests/test_damage.py, tests/cdrl/data,
tests/cdrl/foreign, tests/cdrl/runs, tests/fuzz.py.
"""

from __future__ import annotations

import json
import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import run as door
from cdrl.runs.checksums import write_checksums
from cdrl.runs.run import load_tensors, save_tensors
from tests.helpers import save_tiny_run, tiny_values, write_config

LAUGHS = "a: &a [1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("bcdefgh", "cdefghi", strict=True)
)


class Fault(NamedTuple):
    """What is made in a folder, the command typed there, its exit code, and what its output must say."""

    make: Callable[[Path], None]
    command: str
    code: int
    says: str


def pictures(path: Path, count: int = 3, value: int = 100, ending: str = "png", mode: str = "RGB") -> None:
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new(mode, (8, 8), (value,) * len(mode) if len(mode) > 1 else value).save(path / f"{number}.{ending}")


def two_classes(path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            pictures(path / "data" / split / name)


def hidden_folder(path: Path) -> None:
    two_classes(path)
    pictures(path / "data" / "train" / ".ipynb_checkpoints")


def capital_splits(path: Path) -> None:
    for split in ("Training", "Testing"):
        for name in ("cat", "dog"):
            pictures(path / "data" / split / name)


def links(path: Path) -> None:
    two_classes(path)
    (path / "data" / "train" / "cat" / "gone.png").symlink_to(path / "nowhere.png")
    (path / "data" / "train" / "bird").symlink_to(path / "data" / "train" / "cat")
    pictures(path / "data" / "test" / "bird")


def other_endings(path: Path) -> None:
    two_classes(path)
    pictures(path / "data" / "train" / "bird", ending="tif")
    pictures(path / "data" / "test" / "bird", ending="tif")


def empty_class(path: Path) -> None:
    two_classes(path)
    pictures(path / "data" / "test" / "bird")


def no_train(path: Path) -> None:
    pictures(path / "data" / "test")


def huge_png(path: Path) -> None:
    two_classes(path)
    file = path / "data" / "train" / "cat" / "huge.png"
    content = bytearray(file.with_name("0.png").read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    file.write_bytes(content)


def cut_picture(path: Path) -> None:
    two_classes(path)
    file = path / "data" / "train" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:40])


def pickled_call(path: Path) -> None:
    (path / "data" / "cifar-10-batches-py").mkdir(parents=True)

    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return print, ("harm",)

    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (path / "data" / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Call()))


def tiny_run(path: Path) -> None:
    save_tiny_run(path / "run")


def nan_weights(path: Path) -> None:
    tiny_run(path)
    file = path / "run" / "model" / "energy.safetensors"
    weights = load_tensors(file)
    name = next(iter(weights))
    save_tensors(file, {**weights, name: torch.full_like(weights[name], float("nan"))})


def flipped_bit(path: Path) -> None:
    tiny_run(path)
    model = path / "run" / "model"
    write_checksums(model)
    file = model / "energy.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def description_of_another_kind(path: Path) -> None:
    tiny_run(path)
    (path / "run" / "model" / "config.json").write_text("[" * 100_000)


def foreign_files(path: Path) -> None:
    tiny_run(path)
    (path / "out").mkdir()
    (path / "out" / "holiday.txt").write_text("mine")


def weights_of_garbage(path: Path) -> None:
    (path / "weights.ckpt").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")


def a_pipe(path: Path) -> None:
    os.mkfifo(path / "weights.ckpt")


def laughing_yaml(path: Path) -> None:
    (path / "laughs.yaml").write_text(LAUGHS)


def deep_npy(path: Path) -> None:
    for split in ("train", "test"):
        (path / "data" / split).mkdir(parents=True)
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000,), }".ljust(117) + "\n"
    (path / "hq").mkdir()
    np.save(path / "hq" / "a.npy", np.zeros(1))
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    (path / "hq" / "a.npy").write_bytes(content)


def alpha_mask(path: Path) -> None:
    tiny_run(path)
    Image.new("L", (8, 8), 90).save(path / "image.png")
    mask = Image.new("RGBA", (8, 8), (255, 255, 255, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 4, 8))
    mask.save(path / "mask.png")


def nothing(path: Path) -> None:
    pass


PREPARE = "prepare CONFIG data.prepared=prepared data.name=folder data.labels=class data.path=data"
FAULTS = {
    "a hidden folder is no class": Fault(hidden_folder, PREPARE, 0, "left out: 1 hidden or system folder (first"),
    "splits in capital letters are splits": Fault(capital_splits, PREPARE, 0, "train split: 6 images read"),
    "links are followed, dangling ones told": Fault(links, PREPARE, 0, "2 links that lead nowhere"),
    "tif is a picture": Fault(other_endings, PREPARE, 0, "train split: 9 images read"),
    "a class nobody can learn is refused": Fault(empty_class, PREPARE, 2, "bird"),
    "test/ without train/ is refused": Fault(no_train, PREPARE, 2, "train"),
    "a huge picture is refused unread": Fault(huge_png, PREPARE, 2, "huge.png: 60000 x 60000 pixels are"),
    "a cut picture is named": Fault(cut_picture, PREPARE, 2, "1.png"),
    "a pickle calls nothing": Fault(
        pickled_call, "prepare CONFIG data.prepared=p data.name=cifar10 data.path=data data.check_sums=false", 2,
        "builtins.print",
    ),
    "a missing home folder is named": Fault(nothing, "train CONFIG data.name=folder data.path=~nobody-here/x", 2, "~"),
    "an address is no path": Fault(nothing, "train CONFIG data.name=folder data.path=https://x/y", 2, "URL"),
    "a batch that no memory holds": Fault(nothing, "train CONFIG training.batch_size=100000000", 2, "batch_size"),
    "networks that shrink pixels to nothing": Fault(
        nothing, "train CONFIG energy.multipliers=[1,1,1,1,1,1]", 2, "energy.multipliers"
    ),
    "a YAML file that never ends": Fault(laughing_yaml, "train laughs.yaml", 2, "laughs.yaml"),
    "an unknown key names the place": Fault(nothing, "train CONFIG training.num_step=3", 2, "training.num_step"),
    "weights that are no numbers": Fault(nan_weights, "sample run --num-images 1", 2, "energy.safetensors"),
    "a flipped bit": Fault(flipped_bit, "sample run --num-images 1", 2, "energy.safetensors"),
    "JSON deeper than a stack": Fault(description_of_another_kind, "sample run --num-images 1", 2, "config.json"),
    "somebody's folder is not cleaned": Fault(foreign_files, "sample run --num-images 1 --out out", 2, "holiday.txt"),
    "an idle option": Fault(tiny_run, "sample run --num-images 1 --leapfrog-steps 4", 2, "leapfrog_steps"),
    "an old option's name": Fault(tiny_run, "detect run --against noise --out noise", 2, "--against"),
    "a mask with alpha": Fault(alpha_mask, "inpaint run image.png --mask mask.png", 2, "mask.png"),
    "a Git LFS pointer": Fault(weights_of_garbage, "import-autoencoder weights.ckpt first", 2, "Git LFS pointer"),
    "a named pipe": Fault(a_pipe, "import-cdrl weights.ckpt first", 2, "pipe"),
    "an array of 10^12 numbers": Fault(
        deep_npy, "prepare CONFIG data.prepared=p data.name=shards data.path=hq", 2, "hq"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.filterwarnings("ignore:.* are resized to")
def test_a_fault_comes_out_as_it_must(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = FAULTS[name]
    monkeypatch.chdir(tmp_path)
    fault.make(tmp_path)
    config = write_config(tmp_path / "tiny.yaml", tiny_values())
    words = [str(config) if word == "CONFIG" else word for word in fault.command.split()]
    result = CliRunner().invoke(door.app, words)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == fault.code, result.output
    if fault.code:
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, result.stderr
        assert fault.says in lines[0]
        assert "Traceback" not in result.output
    else:
        assert fault.says in result.stderr
    assert not list(tmp_path.rglob(".partial-*"))
    assert json.loads(config.read_text()) == tiny_values()

"""A configuration for a folder of pictures: looked at, measured on this machine, and written with its reasons."""

from __future__ import annotations

import hashlib
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from cdrl.config import Config, DataConfig
from cdrl.config_files import parse_config
from cdrl.data import DataError, Decoding, open_source, read_picture
from cdrl.data.images.census import Tally
from cdrl.data.images.walking import pictures_below
from cdrl.names import counted
from cdrl.runs.progress import progress_bar
from cdrl.runs.run import RunError
from cdrl.runs.whole import written_whole
from pipelines.jobs.planning import StagePlan, duration, plans

SIZES = (32, 64, 128, 256)
_LOOKED_AT = 300
"""Pictures that are decoded to see what they are."""
_GREY = 2.0
"""Levels of 255 by which the channels of a grey picture may differ on average."""
_MOST_EPOCHS = 300
_FEWEST_STEPS = 500
_FEW = 1000
_FEW_STEPS = 2000
_TOO_FEW = f"fewer than {_FEW_STEPS:,} updates of the energies: expect smears; the run may be prolonged later"
_COMMENT: dict[str, Any] = {"initial_indent": "# ", "subsequent_indent": "# "}


@dataclass(frozen=True)
class Folder:
    """What lies in a folder of pictures.

    Attributes:
        train, test: pictures of each split.
        classes: names of the sub-folders that are classes, empty where there are none.
        sides: shorter sides of the pictures that were decoded.
        grey: whether all of these are grey.
        broken: names of those that could not be decoded.
        duplicates: files that hold the very bytes of another one.
    """

    path: Path
    train: int
    test: int
    classes: tuple[str, ...]
    sides: tuple[int, ...]
    grey: bool
    broken: tuple[str, ...]
    duplicates: int

    def lines(self) -> Iterator[str]:
        """What was found, in words."""
        kinds = f"{len(self.classes)} classes, " if self.classes else "no classes, "
        colours = "grey" if self.grey else "colour"
        yield f"{self.path}: {counted(self.train, 'picture')} to train on and {self.test} held out; {kinds}{colours}"
        yield f"  shorter sides: {min(self.sides)} to {max(self.sides)} pixels, {median(self.sides):g} in the middle"
        if self.duplicates:
            yield f"  {counted(self.duplicates, 'file')} with the very bytes of another: the model will favour these"
        if self.broken:
            yield f"  {counted(len(self.broken), 'picture')} that cannot be read, to be removed first: {self.broken[0]}"
        if self.train < _FEW:
            yield "  few pictures: samples will be close to them; report shows each beside the nearest ones"


def look_at(path: Path) -> Folder:
    """Look at a folder of pictures: all of its files, and some of its pictures.

    Raises:
        DataError: it is no folder of pictures, see `cdrl.data.open_source`.
    """
    data = DataConfig(name="folder", path=path)
    train, test = (open_source(data, split) for split in ("train", "test"))
    files = pictures_below(path, Tally(path))
    some = files[:: max(1, len(files) // _LOOKED_AT)]
    sides, grey, broken = [], [], []
    bar = progress_bar(len(some), "looking", unit="picture")
    for file in some:
        bar.update()
        try:
            picture = read_picture(file, Decoding.of(data)).float()
        except DataError:
            broken.append(str(file.relative_to(path)))
            continue
        sides.append(min(picture.shape[1:]))
        grey.append(len(picture) == 1 or bool((picture - picture.mean(dim=0)).abs().mean() < _GREY))
    bar.close()
    if not sides:
        raise DataError(f"{path}: none of the {len(some)} pictures that were looked at can be read: {broken[0]}")
    counts = (train.count or 0, test.count or 0)
    return Folder(path, *counts, train.label_names, tuple(sides), all(grey), tuple(broken), _duplicates(files))


def _duplicates(files: Sequence[Path]) -> int:
    sizes = Counter(file.stat().st_size for file in files)
    alike = [file for file in files if sizes[file.stat().st_size] > 1]
    hashes = Counter(hashlib.sha256(file.read_bytes()).digest() for file in alike)
    return sum(count - 1 for count in hashes.values())


def default_size(folder: Folder, hours: float) -> int:
    """The largest size that the pictures have and the time allows."""
    powerful = torch.cuda.is_available()
    most = 256 if powerful or hours >= 12 else 128 if hours >= 6 else 64 if hours >= 0.5 else 32
    return max([size for size in SIZES if size <= min(most, median(folder.sides))], default=SIZES[0])


def proposal(folder: Folder, size: int, space: str, hours: float) -> tuple[str, list[str]]:
    """A configuration as commented YAML, and what is to be expected of it, in lines.

    The lengths of the trainings are those that fit into ``hours`` by updates that are timed here.

    Raises:
        ConfigError: the settings cannot be.
    """
    values = _settings(folder, size, space)
    config = parse_config(values, source="the proposal")
    measured = plans(config)
    steps = [_steps(stage, hours / len(measured), folder.train) for stage in measured]
    if space == "latent":
        values["autoencoder"]["training"]["num_steps"] = steps[0]
    values["training"]["num_steps"] = steps[-1]
    for section, count in _trainings(values, steps):
        for name in ("sample_every", "picture_every", "checkpoint_every"):
            if name in section:
                section[name] = max(50, count // 8 // 50 * 50)
    final: Config = parse_config(values, source="the proposal")
    expected = list(_expectations(measured, steps, folder, size, hours))
    return _commented(final, values, folder, hours, expected), expected


def write_proposal(folder: Path, size: int | None, space: str | None, hours: float, out: Path) -> list[str]:
    """Look at a folder and write a configuration for it; returns what was found and what is to be expected.

    Raises:
        RunError: ``out`` exists.
        DataError: it is no folder of pictures.
    """
    if out.exists():
        raise RunError(f"{out}: exists already; remove it, or name another file with --out")
    found = look_at(folder)
    side = size or default_size(found, hours)
    text, expected = proposal(found, side, space or ("pixel" if side <= SIZES[0] else "latent"), hours)
    if space is None and side <= SIZES[0] and _TOO_FEW in expected:
        text, expected = proposal(found, side, "latent", hours)
        expected.append("on latents, since on pixels there would be time for too few updates; --space pixel insists")
    with written_whole(out) as partial:
        partial.write_text(text, encoding="utf-8")
    return [*found.lines(), *expected]


def _trainings(values: dict[str, Any], steps: Sequence[int]) -> Iterator[tuple[dict[str, Any], int]]:
    if "autoencoder" in values:
        yield values["autoencoder"]["training"], steps[0]
    yield values["training"], steps[-1]


def _steps(stage: StagePlan, hours: float, train: int) -> int:
    """Updates that fit into nine tenths of the time, in hundreds, and no more than many epochs."""
    an_update = stage.total_seconds / stage.num_steps
    fitting = int(0.9 * hours * 3600 / an_update)
    most = _MOST_EPOCHS * train // stage.batch_size
    return max(_FEWEST_STEPS, min(fitting, most) // 100 * 100)


def _settings(folder: Folder, size: int, space: str) -> dict[str, Any]:
    """The recipes of docs/your_own_data.md as plain values."""
    values: dict[str, Any] = {
        "space": space,
        "data": {
            "name": "folder",
            "path": str(folder.path),
            "image_size": size,
            "channels": 1 if folder.grey else 3,
            "flip": not folder.grey,
            "labels": "class" if len(folder.classes) > 1 else "none",
        },
    }
    if space == "latent":
        values["autoencoder"] = {
            "latents": "mean",
            "architecture": {
                "pixel_unshuffle": 2 if size <= 32 else 4,
                "channels": 64,
                "multipliers": [1, 2] if size <= 128 else [1, 2, 2],
                "num_blocks": 1,
                "latent_channels": 4,
            },
            "objective": {"reconstruction": "l2", "kl_weight": 0.3 if size <= 64 else 1.0},
            "training": {
                "num_steps": 1,
                "batch_size": 16 if size <= 64 else 4,
                "optimizer": "muon",
                "learning_rate": 2.0e-3,
                "warmup_steps": 100,
                "decay_fraction": 0.5,
                "ema": 0.99,
                "precision": "auto",
                "picture_every": 500,
                "checkpoint_every": 500,
            },
        }
        values["schedule"] = {"logsnr_max": 3.0, "step_coefficient": 4.6e-2}
    else:
        values["schedule"] = {"step_coefficient": 1.2e-3}
    values["energy"] = {
        "channels": 64,
        "multipliers": [1, 2, 2],
        "num_blocks": 1,
        "spectral_norm": False,
        "activation": "silu" if space == "latent" else "leaky_relu",
        "output_scale": 6.0,
        "reference": "gaussian" if space == "latent" else "flat",
    }
    values["initializer"] = {"channels": 16, "multipliers": [1, 1, 1], "num_blocks": 1, "dropout": 0.0}
    values["training"] = {
        "num_steps": 1,
        "batch_size": 16,
        "langevin_steps": 6,
        "chain_dtype": "auto" if space == "latent" else "float32",
        "learning_dtype": "auto" if space == "latent" else "float32",
        "optimizer": "muon",
        "energy_lr": 1.0e-3,
        "initializer_lr": 1.5e-3,
        "warmup_steps": 100,
        "decay_fraction": 0.5,
        "ema": 0.995,
        "log_every": 50,
        "sample_every": 500,
        "checkpoint_every": 500,
    }
    latent_sampler = {"steps": 12, "temperature": 0.77, "denoise": 1.0}
    values["sampling"] = latent_sampler if space == "latent" else {"steps": 15, "temperature": 0.81}
    values["deepspeed"] = {"zero_stage": 0}
    return values


def _expectations(
    measured: Sequence[StagePlan], steps: Sequence[int], folder: Folder, size: int, hours: float
) -> Iterator[str]:
    for stage, count in zip(measured, steps, strict=True):
        an_update = stage.total_seconds / stage.num_steps
        seen = count * stage.batch_size
        yield (
            f"{stage.name}: {stage.batch_size / an_update:.3g} images a second here; {count:,} updates see {seen:,} "
            f"images, each picture {seen / max(1, folder.train):.3g} times, in {duration(count * an_update)}"
        )
    yield "encoding, pictures and evaluations come on top, and what else runs here slows all of it down"
    total = sum(count * stage.total_seconds / stage.num_steps for stage, count in zip(measured, steps, strict=True))
    if steps[-1] < _FEW_STEPS:
        yield _TOO_FEW
    if total > 1.1 * 3600 * hours:
        yield (
            f"{duration(total)} in all, more than the {hours:g} h asked for: with fewer updates nothing can be seen. "
            + ("To stay within: a smaller --size" if size > SIZES[0] else "This is the smallest size that is worth it")
        )
    elif total < 0.6 * 3600 * hours:
        yield f"less than {hours:g} h: more epochs of so few pictures would teach little; a larger --size takes longer"


_REASONS: dict[str, Callable[[Config], str]] = {
    "space": lambda c: (
        "the energies model latents of a first stage, which is what images of more than 32 pixels need"
        if c.space == "latent"
        else "the energies model pixels; with latent, those of the first stage, faster and blurrier"
    ),
    "data": lambda c: (
        "path, as all paths here, is seen from the folder in which commands are typed; flip: mirror images are as good "
        "as the pictures; false where left and right or letters matter"
        if c.data.flip
        else "path, as all paths here, is seen from the folder in which commands are typed; flip: true where mirror "
        "images would be as good as the pictures"
    ),
    "autoencoder": lambda c: (
        f"the first stage: each image becomes {_cells(c)} cells of 4 numbers. A smaller kl_weight keeps more detail, "
        "which is more to learn for the energies"
    ),
    "schedule": lambda c: "larger steps than the paper's, for shorter chains",
    "energy": lambda c: "a network that learns in hours on a CPU; channels: 128 and num_blocks: 2 where there is a GPU",
    "initializer": lambda c: "it only proposes: small is enough",
    "training": lambda c: (
        "length from the hours asked for, by updates timed on this machine. num_steps may grow later, here or typed "
        "behind the command: training.num_steps=…"
    ),
    "sampling": lambda c: "longer chains than in training, a little colder: less grey noise",
    "deepspeed": lambda c: "nothing to shard; the paper's networks want 1 and several GPUs",
}


def _cells(config: Config) -> str:
    assert config.autoencoder is not None
    side = config.data.image_size // config.autoencoder.architecture.shrinks_by
    return f"{side} x {side}"


def _commented(config: Config, values: dict[str, Any], folder: Folder, hours: float, expected: Sequence[str]) -> str:
    """The settings section by section, each below its reason."""
    lines = [f"# Proposed for {hours:g} h on the machine that looked at these pictures:"]
    for line in (*folder.lines(), *expected):
        lines += textwrap.wrap(line.strip(), 100, **_COMMENT)
    for section, content in values.items():
        reason = _REASONS[section](config)
        lines += ["", *textwrap.wrap(f"{reason[0].upper()}{reason[1:]}.", 100, **_COMMENT)]
        # Sections of plain values take a line or two, others a line for each of their settings.
        flow = None if isinstance(content, dict) else False
        lines += yaml.safe_dump({section: content}, sort_keys=False, default_flow_style=flow).rstrip().splitlines()
    return "\n".join(lines) + "\n"

"""Model card of a run: what it is, how it was made, from what, how good it is, in the folder that is given away."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import yaml

from cdrl.config_files import parse_config, without_absolute_paths
from cdrl.runs.model_folder import load_model
from cdrl.runs.outputs import one_calls_output
from cdrl.runs.run import RunError, read_json
from pipelines.report.run_facts import Facts, newest_picture, read_curves, read_facts

CARD, PICTURE, CONFIG, RECORD = "README.md", "samples.png", "config.yaml", "card.json"
_QUALITY = ("held_out_psnr", "held_out_ssim")
_NOT_MEASURED = {
    "pixel": "Samples were not compared with real images: `cdrl evaluate RUN` and `cdrl judge RUN` do",
    "latent": "Samples were not compared with real images: `cdrl evaluate RUN`, `cdrl judge RUN` and "
    "`cdrl judge-stages RUN` do",
    "point": "Samples were not compared with the true density: `cdrl density RUN` does",
}
"""What a card without figures says, whatever training has measured."""
TO_WRITE = "*To be written by who trained it.*"

SOURCES = {
    "digits": "scikit-learn's digits, from the UCI repository's Optical Recognition of Handwritten Digits (E. Alpaydin "
    "and C. Kaynak), CC BY 4.0",
    "faces": "faces drawn by DiceBear; `avataaars` is by Pablo Stanley (free for personal and commercial use), "
    "`toon-head` by Johan Melin (CC BY 4.0)",
    "checkerboard": "points drawn from a known density",
    "fashion_mnist": "Fashion-MNIST (Xiao, Rasul and Vollgraf 2017), MIT",
    "cifar10": "CIFAR-10 (Krizhevsky 2009), published without a licence",
    "cifar100": "CIFAR-100 (Krizhevsky 2009), published without a licence",
    "svhn": "SVHN (Netzer et al. 2011), for non-commercial use",
    "dtd": "the Describable Textures Dataset (Cimpoi et al. 2014), for research",
    "imagenet32": "downsampled ImageNet (Chrabaszcz et al. 2017), for non-commercial research",
    "celeba": "CelebA (Liu et al. 2015), for non-commercial research",
    "celebahq": "pictures in the layout of CelebA-HQ (Karras et al. 2018); the published ones are for non-commercial "
    "research",
}
"""Where data sets come from, and under which terms."""


def write_card(run: Path, out: Path | None = None) -> tuple[Path, bool]:
    """Write a run's card, its newest picture and its settings into a folder, RUN/card by default.

    Returns:
        The folder, and whether something is left to be written by hand.

    Raises:
        RunError: there is no trained run, or a file of it is damaged; or the card there was finished by hand.
    """
    folder = out or run / "card"
    _refuse_to_lose(folder)
    with one_calls_output(folder, RECORD) as output:
        pictured = put_card(run, output.folder, run.resolve().name)
        output.record = {"pictured": pictured, "sha256": _hash(output.folder / CARD)}
    return folder, is_unfinished(folder)


def is_unfinished(folder: Path) -> bool:
    """Whether the card in a folder has parts that its maker is still to write."""
    return (folder / CARD).exists() and TO_WRITE in (folder / CARD).read_text(encoding="utf-8")


def _refuse_to_lose(folder: Path) -> None:
    """Raise RunError where a person has written into the card of a folder."""
    if (folder / RECORD).exists() and (folder / CARD).exists():
        written = read_json(folder / RECORD).get("sha256")
        if written is not None and written != _hash(folder / CARD):
            raise RunError(
                f"{folder / CARD}: was written in by hand since, which would be lost: move it away, or write the new "
                "card elsewhere by --out and take over what has changed"
            )


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def put_card(run: Path, folder: Path, name: str) -> bool:
    """Write a run's card into a folder, with its newest picture, if there is one, and its settings.

    Returns:
        Whether there was a picture.

    Raises:
        RunError: there is no trained run, or a file of it is damaged.
    """
    facts = read_facts(run, name)
    picture = newest_picture(facts)
    (folder / CARD).write_text("\n".join(card_lines(facts, pictured=picture is not None)) + "\n", encoding="utf-8")
    if picture is not None:
        shutil.copyfile(picture, folder / PICTURE)
    settings = yaml.safe_dump(without_absolute_paths(facts.config), sort_keys=False)
    (folder / CONFIG).write_text(settings, encoding="utf-8")
    return picture is not None


def card_lines(facts: Facts, *, pictured: bool) -> Iterator[str]:
    """The card, line by line, in Markdown."""
    model, _ = load_model(facts.folder / "model")
    config = parse_config(facts.model["config"], source=str(facts.folder / "model" / "config.json"))
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.energy, model.initializer) if part]
    first = "from pipelines import CDRLPipeline\n\n"
    yield f"# {facts.name}\n"
    yield f'```python\n{first}CDRLPipeline.from_pretrained("PATH/TO/THIS/FOLDER")(16).images\n```\n'
    if pictured:
        yield f"![Samples]({PICTURE})\n"
    yield "## What it is\n"
    shape = " × ".join(map(str, model.shape))
    kind = {"pixel": "images", "latent": "images, through latents of a first stage,", "point": "points"}[config.space]
    classes = f"{model.num_classes} classes" if model.num_classes else "no classes"
    yield f"A model of {kind} by Cooperative Diffusion Recovery Likelihood (Zhu, Xie, Wu and Gao, ICLR 2024): "
    yield f"{model.schedule.num_levels} noise levels, grids of {shape}, {classes}; {counts[0] / 1e6:.3g} million "
    proposals = f", {counts[1] / 1e6:.3g} million in the initializers" if len(counts) > 1 else ", no initializer"
    yield f"parameters in the energies{proposals}.\n"
    yield "## How it was trained\n"
    verbs = ["train-autoencoder", "encode", "train"] if config.space == "latent" else ["train"]
    yield "```sh\n" + "\n".join(f"cdrl {verb} {CONFIG}" for verb in verbs) + "\n```\n"
    yield from _costs(facts)
    yield "## Data and licence\n"
    source = SOURCES.get(config.data.name)
    read = str(facts.model.get("data") or "")
    yield (f"{source[0].upper()}{source[1:]}." if source else TO_WRITE) + (f" Read: {read}." if read else "")
    yield f"\nLicence of the weights: {TO_WRITE}\n"
    yield "## Figures\n"
    yield from _figures(facts, config.space)
    yield "## What it is bad at\n"
    yield TO_WRITE


def _costs(facts: Facts) -> Iterator[str]:
    for what, trained in (("First stage", facts.stage_one), ("Energies and initializers", facts.model)):
        if trained.get("step") is None:
            continue
        seconds = f"{trained['wall_seconds']:,.0f} seconds, {trained['cpu_seconds']:,.0f} CPU seconds"
        machine = f", on {trained['machine']}" if "machine" in trained else ""
        yield f"- {what}: {trained['step']:,} updates, {trained['images']:,} images, {seconds}{machine}."
    yield f"- Seed {facts.config.get('seed', 0)}; all settings are in {CONFIG}.\n"


def _figures(facts: Facts, space: str) -> Iterator[str]:
    if facts.best:
        yield f"Best in training: {facts.best}.\n"
    first_stage = read_curves(facts.folder / "autoencoder" / "metrics.jsonl")
    held_out = [
        f"{name.removeprefix('held_out_').upper()} {first_stage[name][''][-1][1]:.4g}"
        for name in _QUALITY
        if name in first_stage
    ]
    if held_out:
        yield f"First stage, on held-out images at the end of its training: {', '.join(held_out)}.\n"
    if not facts.figures:
        yield f"{_NOT_MEASURED[space]}.\n"
        return
    yield "Each name says what was compared with what (docs/evaluation.md of the project explains them).\n"
    yield "| figure | value |"
    yield "|---|---|"
    yield from (f"| {name} | {value} |" for name, value in facts.figures.items())
    yield ""


def copy_card(run: Path, model: Path, folder: Path, name: str) -> None:
    """Put a card beside weights that are given away: the one in RUN/card, which may have been edited; else a new one.

    Weights that have a card and no run keep it.
    """
    edited = run / "card"
    for source in (edited, model):
        if (source / CARD).exists():
            for file in (CARD, PICTURE, CONFIG):
                if (source / file).exists():
                    shutil.copyfile(source / file, folder / file)
            return
    if (run / "model").exists():
        put_card(run, folder, name)

"""Samples as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cdrl.arguments import folder_of, in_order
from cdrl.data import as_floats
from cdrl.runs.model_folder import find_model
from cdrl.runs.outputs import one_calls_output
from cdrl.runs.records import ModelRecord, read_record
from cdrl.sampling.settings import effective
from cdrl.training.interruption import save_picture
from pipelines.base import CDRLPipeline, check_options, chosen_seeds
from pipelines.composition import compose, parse_concepts
from pipelines.decoding import captioned_picture, grid_picture, to_pil
from pipelines.guidance import Guidance
from pipelines.results import Generated

GRID_IMAGES = 64
RECORD = "sampling.json"


def run_sample(
    run: Path,
    num_images: int,
    *,
    seed: int = 0,
    label: int | str | None = None,
    concepts: Sequence[str] = (),
    guidance: float | Guidance = 0.0,
    out: Path | None = None,
    **options: Any,
) -> Path:
    """Draw images of a run into files, see `write_samples`; returns their folder, RUN/generated unless ``out`` is.

    sampling.json beside them tells seeds, classes or concepts, guidance, settings of the sampler and the model's step,
    and lists the files; those of an earlier call give way.

    Args:
        label: class id or name for all images; -1 for no class; all classes in turn by default.
        concepts: attributes and their values, such as ``Smiling=1``, in place of a class: see `compose`.
        guidance: weight w (eq. 11, 12, 14).
        options: as in calling the pipeline.

    Raises:
        RunError: there is no trained model, or the folder holds other files than those of an earlier call.
        TypeError: there is no such option, or an argument is of another kind than it has to be.
        ValueError: there is no such class, concept or kernel, or both a class and concepts are given.
    """
    check_options(options, run_sample)
    if concepts and label is not None:
        raise ValueError("--label and --with: expected one of them, found both")
    seeds = chosen_seeds(num_images, None, seed)
    concepts = in_order("concepts", concepts, "a list, such as ['Smiling=1']")
    pipeline = CDRLPipeline.from_pretrained(run, default_device())
    folder = folder_of("run", run) / "generated" if out is None else folder_of("out", out)
    asked: dict[str, Any] = {"concepts": concepts} if concepts else {"label": label_asked(pipeline, label)}
    weight = guidance if isinstance(guidance, int | float) else str(guidance)
    if concepts and not isinstance(guidance, int | float):
        raise ValueError(f"guidance: concepts are composed with a weight, found {guidance}")
    facts = {"num_images": num_images, "seed": seed, **asked, "guidance": weight}
    with one_calls_output(folder, RECORD) as output:
        if concepts and isinstance(guidance, int | float):
            ids = parse_concepts(pipeline.config.data, concepts)
            generated = compose(pipeline, num_images, ids, seeds=seeds, guidance=guidance, **options)
            caption = [pipeline.class_names[i] for i in ids]
        else:
            labels = labels_of(pipeline, label, seeds)
            generated = pipeline(seeds=seeds, label=labels, guidance=guidance, **options)
            caption = []
        write_samples(pipeline, generated, output.folder, caption)
        output.record = {**facts, **model_facts(run, generated)}
    return folder


def model_facts(run: Path, generated: Generated) -> dict[str, Any]:
    """Sampler settings and training step for the record of drawn images; the step may be unknown."""
    step = read_record(find_model(run) / "config.json", ModelRecord).step
    return {"sampling": effective(generated.settings), "model_step": step}


def write_samples(pipeline: CDRLPipeline, generated: Generated, folder: Path, caption: Sequence[str] = ()) -> None:
    """Write 000000.png, 000001.png, … and grid.png with the first 64 over ``caption``; points go to points.npy."""
    if pipeline.config.space == "point":
        np.save(folder / "points.npy", generated.grids.cpu().numpy(), allow_pickle=False)
        save_picture(folder / "grid.png", pipeline.decoder.picture(generated.grids))
        return
    pixels = generated.bytes
    write_images(to_pil(pixels), folder)
    shown = as_floats(pixels[:GRID_IMAGES])
    picture = captioned_picture([(shown, caption)]) if caption else grid_picture(shown)
    save_picture(folder / "grid.png", picture)


def write_images(images: Sequence[Image.Image], folder: Path) -> None:
    """Write 000000.png, 000001.png, … into a folder."""
    for index, image in enumerate(images):
        image.save(folder / f"{index:06d}.png")


def default_device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def label_asked(pipeline: CDRLPipeline, label: int | str | None) -> int | str | None:
    """Class of the images for the record: its id, or ``in turn`` where all classes alternate."""
    if label is None:
        return "in turn" if pipeline.model.num_classes else None
    return int(pipeline.class_ids(label, 1)[0])


def labels_of(pipeline: CDRLPipeline, label: int | str | None, seeds: Sequence[int]) -> list[int] | None:
    """The class id of each seed's image: all classes in turn for None; None for a model without classes."""
    if label is None:
        return labels_in_turn(pipeline, seeds)
    return pipeline.class_ids(label, len(seeds)).tolist()


def labels_in_turn(pipeline: CDRLPipeline, seeds: Sequence[int]) -> list[int] | None:
    """A class for each seed, all classes in turn; None for a model without classes."""
    classes = pipeline.model.num_classes
    return [seed % classes for seed in seeds] if classes else None

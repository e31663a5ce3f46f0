"""What a model needs of its data to speak of other images: some held-out images, and densities to compare with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cdrl.data import Split
from cdrl.runs.model_folder import find_model
from cdrl.runs.run import RunError, load_tensors, save_tensors
from pipelines.base import CDRLPipeline
from pipelines.detection.detect import Source, density_readings

FILE = "known_images.safetensors"
COMPARED = 500
_EXAMPLES = 8


@dataclass(frozen=True)
class KnownImages:
    """Images of a model's own data set.

    Attributes:
        held_out: some held-out images, uint8 [n, C, H, W].
        train_log_density, held_out_log_density: of training and of held-out images at T levels, up to a constant a
            level, [N, T] and [M, T].
    """

    held_out: Tensor
    train_log_density: Tensor
    held_out_log_density: Tensor


def measured(pipeline: CDRLPipeline, num_compared: int = COMPARED, seed: int = 0) -> KnownImages:
    """Read the model's data, and score up to ``num_compared`` training and held-out images.

    Raises:
        RunError: the run has no images, or a density is NaN or infinite.
        DataError: the data cannot be read.
    """
    if pipeline.config.space == "point":
        raise RunError("images are scored, but this is a run of 2-D points")
    data = pipeline.config.data

    def read(split: Split) -> Tensor:
        return Source.parse(split, data).images(num_compared, seed)

    held_out = read("test")
    of_training = density_readings(pipeline, "train", read("train")).log_density
    of_held_out = density_readings(pipeline, "test", held_out).log_density
    return KnownImages(held_out[:_EXAMPLES].clone(), of_training, of_held_out)


def save_known(known: KnownImages, model: Path) -> None:
    """Put them into a model folder."""
    save_tensors(model / FILE, vars(known))


def shipped_known(run: Path, pipeline: CDRLPipeline) -> KnownImages | None:
    """Those that lie in a run's model folder; None where there are none.

    Raises:
        RunError: the file is damaged or of another model.
    """
    path = find_model(run) / FILE
    if not path.exists():
        return None
    found, data = load_tensors(path), pipeline.config.data
    levels, image = pipeline.model.schedule.num_levels, (data.channels, data.image_size, data.image_size)
    fits = found.keys() == KnownImages.__annotations__.keys() and found["held_out"].shape[1:] == image
    if not fits or any(found[name].shape[1:] != (levels,) for name in found if name != "held_out"):
        raise RunError(
            f"{path}: expected images {list(image)} and densities of {levels} levels, as this model has them"
        )
    return KnownImages(**found)

"""Inpainting of picture files and of held-out images, with pictures and figures."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autoencoder.lite0 import Lite0
from cdrl.config import Config, DataConfig
from cdrl.data import Decoding, as_floats, prepare_images, read_picture, to_bytes, training_images
from cdrl.runs.outputs import one_calls_output
from cdrl.runs.run import RunError
from cdrl.sampling.noise import derive_seed
from cdrl.sampling.settings import effective
from cdrl.training.interruption import save_picture
from pipelines.base import CDRLPipeline
from pipelines.decoding import grid_picture
from pipelines.evaluation.distances import frechet_distance
from pipelines.evaluation.features import lite0_features
from pipelines.evaluation.judge import WIDTH as JUDGE_WIDTH
from pipelines.evaluation.judge import judge_steps
from pipelines.evaluation.referee import Referee
from pipelines.generation import default_device, write_images
from pipelines.inpainting.fill import PASSES, Averaged, Hidden, Observation, fill
from pipelines.inpainting.masks import box, irregular, read_mask
from pipelines.inpainting.observations import enlarged
from pipelines.results import Filled

RECORD = "figures.json"

# Real images to which filled ones are compared, at most.
_COMPARED = 1000
# Images that a judge is trained for, at least: more than it has features, or the Fréchet distance on them says nothing.
_FEWEST_JUDGED = 4 * JUDGE_WIDTH + 1
# Rows of a measurement's picture.
_SHOWN = 8


@dataclass(frozen=True)
class HiddenPart:
    """The part of an image that is to be drawn, given in exactly one of four ways.

    Attributes:
        mask: a picture, white where the image is hidden, see `read_mask`.
        box: a hidden rectangle, see `pipelines.inpainting.masks.box`.
        irregular: seed of hidden free-form strokes, see `pipelines.inpainting.masks.irregular`.
        observe: ``downsample:FACTOR``: all but the means of blocks.

    Raises:
        ValueError: none of them is given, or several are.
    """

    mask: Path | None = None
    box: str | None = None
    irregular: int | None = None
    observe: str | None = None

    def __post_init__(self) -> None:
        if sum(each is not None for each in vars(self).values()) != 1:
            raise ValueError("expected one of --mask, --box, --irregular and --observe")

    @property
    def given(self) -> tuple[str, str]:
        """Name and value of the way that was chosen."""
        return next((name, str(value)) for name, value in vars(self).items() if value is not None)

    def observation(self, data: DataConfig, original: tuple[int, int]) -> Observation:
        """The known part of an image of the run, which was (height, width) before it was prepared.

        Raises:
            DataError: the mask cannot be used.
            ValueError: it is not fit for the run's images.
        """
        size = data.image_size
        if self.observe is not None:
            return averaged(self.observe, data)
        if self.box is not None:
            return Hidden(box(self.box, size, size))
        if self.irregular is not None:
            return Hidden(irregular(self.irregular, size, size))
        assert self.mask is not None
        return Hidden(read_mask(self.mask, original, size, data.max_pixels))


@dataclass(frozen=True)
class Filling:
    """How missing parts are drawn, apart from the sampler's options.

    Attributes:
        fills: an image.
        seed: of the first fill; the next has the next seed.
        label: class id or name, -1 for no class; by default none, and for held-out images of a run with classes
            their own.
        guidance, by, passes: see `fill`.
    """

    fills: int = 5
    seed: int = 0
    label: int | str | None = None
    guidance: float = 0.0
    by: str | None = None
    passes: int = PASSES


def run_inpainting(
    run: Path, image: Path, gap: HiddenPart, filling: Filling, *, out: Path | None = None, **options: Any
) -> tuple[Path, list[str]]:
    """Inpaint one image several times: 000000.png, 000001.png, …, grid.png and figures.json in a folder.

    The picture shows the image, what is known of it, and the fills. Returns the folder,
    RUN/inpainted/NAME-OF-THE-IMAGE by default, and what must be told of how the image was prepared.

    Raises:
        RunError: the run has no images.
        DataError: image or mask cannot be read or used.
        ValueError: other arguments are not fit for the run.
    """
    pipeline = _pipeline_of_images(run)
    data = pipeline.config.data
    picture = read_picture(image, Decoding.of(data, reduced=False))
    observation = gap.observation(data, (picture.shape[1], picture.shape[2]))
    prepared = prepared_image(picture, data, image, observation)
    given = as_floats(prepared.pixels[None])
    folder = run / "inpainted" / image.stem if out is None else out
    with one_calls_output(folder, RECORD) as output:
        filled = filled_in(pipeline, given, observation, filling, **options)
        write_images(filled.images, output.folder)
        tensors = filled.tensors.cpu()[None]
        save_picture(output.folder / "grid.png", rows_picture(given, tensors, observation))
        figures: dict[str, Any] = {**distances(tensors, given, observation), "energies": filled.energies.tolist()}
        if not prepared.has_truth:
            figures = {name: figure for name, figure in figures.items() if not name.endswith("_to_truth")}
        output.record = {"image": str(image), **circumstances(gap, filling, filled), **figures}
    return folder, prepared.notes


def measure_inpainting(
    run: Path,
    num_images: int,
    gap: HiddenPart,
    filling: Filling,
    *,
    out: Path | None = None,
    **options: Any,
) -> tuple[Path, dict[str, Any]]:
    """Inpaint the first held-out images and measure the result: FOLDER/figures.json and FOLDER/grid.png.

    For the figures see `distances` and `plausibility`.

    Raises:
        RunError: the run has no images.
        ValueError: there are fewer held-out images, or other arguments are not fit for the run.
    """
    if gap.mask is not None:
        raise ValueError("mask: --test takes --box, --irregular or --observe")
    pipeline = _pipeline_of_images(run)
    data = pipeline.config.data
    held_out = training_images(data, "test")
    if not 2 <= num_images <= len(held_out):
        raise ValueError(f"test: expected 2 … {len(held_out)} held-out images, found {num_images}")
    given = as_floats(held_out.grids[:num_images])
    observation = gap.observation(data, (data.image_size, data.image_size))
    labels = held_out.labels if pipeline.model.num_classes and data.labels == "class" else None
    classes = None if labels is None else labels[:num_images]
    name = "_".join(("test", *gap.given)).replace(":", "_").replace(",", "_")
    folder = run / "inpainted" / name if out is None else out
    with one_calls_output(folder, RECORD) as output:
        filled = filled_in(pipeline, given, observation, filling, classes, **options)
        tensors = filled.tensors.cpu().unflatten(0, (num_images, filling.fills))
        figures = {
            "num_images": num_images,
            **circumstances(gap, filling, filled),
            **distances(tensors, given, observation),
            **plausibility(pipeline.config, tensors[:, 0], given, classes),
        }
        save_picture(output.folder / "grid.png", rows_picture(given[:_SHOWN], tensors[:_SHOWN], observation))
        output.record = figures
    return folder, figures


def filled_in(
    pipeline: CDRLPipeline,
    given: Tensor,
    observation: Observation,
    filling: Filling,
    classes: Tensor | None = None,
    **options: Any,
) -> Filled:
    """Several fills of each of some images [N, C, H, W], one after the other: fill j of image i has seed + i fills + j.

    Args:
        classes: class ids [N] of the images, for fills that are told no other.
    """
    told = classes if filling.label is None else pipeline.class_ids(filling.label, len(given))
    return fill(
        pipeline,
        given.repeat_interleave(filling.fills, dim=0),
        observation,
        seeds=range(filling.seed, filling.seed + len(given) * filling.fills),
        label=None if told is None else told.repeat_interleave(filling.fills),
        guidance=filling.guidance,
        by=filling.by,
        passes=filling.passes,
        **options,
    )


def circumstances(gap: HiddenPart, filling: Filling, filled: Filled) -> dict[str, Any]:
    """All that figures of fills depend on beside the run and the images."""
    return {
        "gap": dict([gap.given]),
        "filling": {**asdict(filling), "by": filled.by},
        "sampling": effective(filled.settings),
    }


def averaged(text: str, data: DataConfig) -> Averaged:
    """The observation ``downsample:FACTOR``. Raises ValueError for any other text, or a factor that does not fit."""
    name, _, factor = text.partition(":")
    if name != "downsample" or not factor.isdecimal():
        raise ValueError(f"observe: expected downsample:FACTOR, found '{text}'")
    if int(factor) < 2 or data.image_size % int(factor):
        raise ValueError(f"observe: the factor must divide {data.image_size}, and be at least 2, found {factor}")
    return Averaged(int(factor))


class PreparedImage(NamedTuple):
    """A user's picture in the form of the run's images.

    Attributes:
        pixels: uint8 [C, S, S].
        notes: what was done to it, in words.
        has_truth: whether the pixels that are to be drawn are in the picture, to be compared with.
    """

    pixels: Tensor
    notes: list[str]
    has_truth: bool = True


def prepared_image(picture: Tensor, data: DataConfig, source: Path, observation: Observation) -> PreparedImage:
    """A picture uint8 [C, H, W] in the form of the run's images.

    Where means of blocks are observed, a picture with one pixel for each block is taken for these means.
    """
    size, channels = data.image_size, data.channels
    shape = tuple(picture.shape)
    factor = observation.factor if isinstance(observation, Averaged) else 1
    if factor > 1 and shape[1:] == (size // factor, size // factor):
        low = prepare_images(picture[None], size // factor, channels)
        return PreparedImage(enlarged(low, factor)[0], [f"{source}: taken for the small image itself"], False)
    prepared = prepare_images(picture[None], size, channels)[0]
    if shape == tuple(prepared.shape):
        return PreparedImage(prepared, [])
    found, wanted = (f"{width}x{height}, {planes} channels" for planes, height, width in (shape, prepared.shape))
    return PreparedImage(prepared, [f"{source}: {found}, is prepared as training images are: {wanted}"])


def distances(filled: Tensor, truth: Tensor, observation: Observation) -> dict[str, float | None]:
    """Pixelwise figures of F fills [N, F, C, H, W] of each image ``truth`` [N, C, H, W], both in [-1, 1].

    ``error_of_the_known``: greatest difference from what was known, of pixels in 8 bits, or of means of such.
    ``distance_to_truth``, ``closest_to_truth`` and ``diversity``: root mean square differences of what is not known,
    in units of [-1, 1], from the truth, for all fills and for the closest of each image, and between fills of one
    image; the last is None for one fill.
    """
    levels = to_bytes(filled).float()
    difference = observation.seen((levels - to_bytes(truth)[:, None].float()).flatten(0, 1)).abs().max()
    unknown = observation.unknown
    squares = (filled - truth[:, None]).square().flatten(2).mean(dim=2) / unknown
    pairs = [
        (filled[:, one] - filled[:, other]).square().mean() / unknown
        for one, other in combinations(range(filled.shape[1]), 2)
    ]
    return {
        "error_of_the_known": difference.item(),
        "distance_to_truth": squares.mean().sqrt().item(),
        "closest_to_truth": squares.amin(dim=1).mean().sqrt().item(),
        "diversity": torch.stack(pairs).mean().sqrt().item() if pairs else None,
    }


def plausibility(config: Config, filled: Tensor, truth: Tensor, classes: Tensor | None) -> dict[str, float]:
    """Realism of inpainted images [N, C, H, W], and of the untouched images for comparison.

    Fréchet distances to training images, on a judge's features where there are ``classes`` [N], else on
    EfficientNet-Lite0's; and of the judge, see `Referee`, the share read as their class, and that not read as junk.
    For fewer images than the judge has features it is not trained, and there are no figures; either is told.
    """
    if classes is not None and len(truth) < _FEWEST_JUDGED:
        needs = f"a judge of classes needs {_FEWEST_JUDGED} images at least: --test {_FEWEST_JUDGED}"
        print(f"realism: not measured with {len(truth)} images; {needs}", file=sys.stderr, flush=True)
        return {}
    train = training_images(config.data).grids
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(derive_seed(0, "compared")))
    real = train[chosen[:_COMPARED]]
    both = {"filled": filled, "untouched": truth}
    if classes is None:
        network = Lite0()
        features = lite0_features(real, network)
        return {
            f"fd_lite0_{name}_train": frechet_distance(lite0_features(images, network), features)
            for name, images in both.items()
        }
    cost = f"{judge_steps(len(train))} steps, half a minute on a CPU for images of 8x8, longer for larger ones"
    print(f"realism: a judge of classes is trained on the run's data first: {cost}", file=sys.stderr, flush=True)
    judge = Referee.of(config.data).judge
    features = judge.features(real)
    figures: dict[str, float] = {}
    for name, images in both.items():
        read, accepted = judge.read(images)
        figures |= {
            f"accuracy_{name}": (read == classes).float().mean().item(),
            f"accepted_{name}": accepted.float().mean().item(),
            f"fd_judge_{name}_train": frechet_distance(judge.features(images), features),
        }
    return figures


def rows_picture(truth: Tensor, filled: Tensor, observation: Observation) -> Tensor:
    """A row an image: itself, what is known of it, and its fills [N, F, …]: uint8 [3, H, W]."""
    known = observation.shown(truth)
    rows = torch.cat([truth[:, None], known[:, None], filled], dim=1)
    return grid_picture(rows.flatten(0, 1), columns=rows.shape[1])


def inpainting_lines(figures: Mapping[str, Any]) -> str:
    """The measured figures, a line each."""
    return "\n".join(f"{name}: {value:.4f}" for name, value in figures.items() if isinstance(value, float))


def _pipeline_of_images(run: Path) -> CDRLPipeline:
    pipeline = CDRLPipeline.from_pretrained(run, default_device())
    if pipeline.config.space == "point":
        raise RunError(f"{run}: images are filled in, but this is a run of 2-D points")
    return pipeline

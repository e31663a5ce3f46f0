"""A trained run, ready to be used: model and decoder opened from one folder."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from autoencoder.latents import latents_of
from cdrl.arguments import (
    check_finite,
    check_function,
    check_grids,
    check_kind,
    device_of,
    finite_number,
    folder_of,
    plain,
    whole_number,
    whole_numbers,
)
from cdrl.config import Config, SamplerSettings
from cdrl.config_files import parse_config
from cdrl.model import CDRL, Label
from cdrl.names import one_of, suggestion
from cdrl.runs.model_folder import find_model, load_model, replaced_model, save_model
from cdrl.runs.progress import progress_bar
from cdrl.runs.run import RunError
from cdrl.sampling.noise import ImageNoise, derive_seed
from cdrl.sampling.sampler import Callback, Constrain, LevelLogDensity, Propose, sample
from cdrl.sampling.settings import AUTO_REACH, ChainPlan, changed, plan_chains, with_defaults
from pipelines.decoding import Decoder, LatentDecoder, PointDecoder, load_decoder
from pipelines.guidance import Guidance, guided, weight_or_guidance
from pipelines.hub import is_hub_name, pulled, push_folder
from pipelines.images import Images, as_tensor
from pipelines.results import Drawn, Generated

LabelOrName = Label | str | Sequence[int | str | None]
"""Classes by id or by name, one for all images or one an image; None or -1 for no class."""


class ImageSource(NamedTuple):
    """Noise, proposal and log density from which Algorithm 2 draws a batch."""

    noise: ImageNoise
    propose: Propose
    log_density: LevelLogDensity


SourceOfRows = Callable[[slice], ImageSource]
"""Which of the images -> what draws them."""


@dataclass(frozen=True)
class Drawing:
    """Sampler settings, and options that do not change images.

    Attributes:
        settings: of the sampler, none left open.
        plan: the same for each level.
        batch_size: images at a time.
        callback: sees every move of every batch.
        progress: show a progress bar.
    """

    settings: SamplerSettings
    plan: ChainPlan
    batch_size: int = 64
    callback: Callback | None = None
    progress: bool = False


_BATCH = 64  # images that are encoded together

DRAWING_OPTIONS = (*SamplerSettings.model_fields, "batch_size", "callback", "progress")
"""The keywords that everything which draws has in common."""


class CDRLPipeline:
    """Draws samples of a trained model; every image from a seed of its own."""

    def __init__(self, model: CDRL, decoder: Decoder, config: Config, class_names: Sequence[str]) -> None:
        self.model, self.decoder, self.config = model, decoder, config
        self.class_names = tuple(class_names)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self:
        """Open a run folder, or its ``model`` folder alone, or weights that ship by their name: ``"heads256"``.

        A name ``"owner/name"`` that is no folder here is one on the Hugging Face Hub, see `pipelines.hub`.

        Raises:
            RunError: there is no trained model, or a file of it is missing or damaged, or the Hub does not give it out.
            TypeError, ValueError: what was given is no folder, or no device of this machine.
        """
        found = device_of(device)
        model_folder = find_model(pulled(str(folder)) if is_hub_name(folder) else folder_of("folder", folder))
        model, record = load_model(model_folder)
        path = model_folder / "config.json"
        config = parse_config(record.config, source=str(path))
        if record.class_names is None or len(record.class_names) != record.num_classes:
            raise RunError(f"{path}: expected class_names, one for each of {record.num_classes} classes")
        if config.space == "pixel" and record.shape != [config.data.channels, *2 * [config.data.image_size]]:
            raise RunError(f"{path}: shape: {record.shape} is not that of the images of its own configuration")
        decoder = load_decoder(model_folder, record, config.space)
        return cls(model, decoder, config, record.class_names).to(found)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model into a folder that `from_pretrained` opens: weights in safetensors, and config.json.

        A model that lies there is replaced as a whole.

        Raises:
            RunError: the folder holds something else.
        """
        description = {"config": self.config.model_dump(mode="json"), "class_names": list(self.class_names)}
        with replaced_model(folder_of("folder", folder), "energy.safetensors") as partial:
            save_model(partial, self.model, {**description, **self.decoder.description()})
            self.decoder.save(partial)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Give the model away on the Hugging Face Hub as ``owner/name``; returns its address there.

        ``run.py push`` does so for a run, with its card.

        Raises:
            RunError: huggingface_hub is missing, or the Hub does not take it.
            TypeError, ValueError: an argument is of another kind than it has to be, or ``name`` is not OWNER/NAME.
        """
        check_kind("private", private, bool, "True or False")
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return push_folder(Path(folder), name, private=private)

    def to(self, device: torch.device | str) -> Self:
        """Move the networks to a device; returns the pipeline itself.

        Raises:
            TypeError: it is neither a `torch.device` nor the name of one.
            ValueError: there is no such device on this machine.
        """
        found = device_of(device)
        self.model.to(found)
        if isinstance(self.decoder, LatentDecoder):
            self.decoder.autoencoder.to(found)
        return self

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        classes = f"{self.model.num_classes} classes" if self.model.num_classes else "no classes"
        return (
            f"CDRLPipeline({self.config.space} {tuple(self.model.shape)} of {self.config.data.name}, {classes}, "
            f"{self.model.schedule.num_levels} levels, {count / 1e6:.2f} M parameters, on {self.device})"
        )

    @torch.no_grad()
    def __call__(
        self,
        num_images: int | None = None,
        *,
        seeds: Sequence[int] | None = None,
        seed: int | None = None,
        label: LabelOrName = None,
        guidance: float | Guidance = 0.0,
        **options: Any,
    ) -> Generated:
        """Draw samples (Algorithm 2).

        Args:
            num_images: how many; as many as there are seeds by default, or one.
            seeds: one an image. An image depends on its own seed alone.
            seed: of the first image, where ``seeds`` are not given; the next has the next seed. 0 by default.
            label: class ids 0 … C-1 or class names, one for all images or one an image; None or -1 for no class.
            guidance: weight w of classifier-free guidance (eq. 11, 12), 0 for none; or another `Guidance`.
            options: the sampler's settings by name, see `cdrl.config.SamplerSettings`, and those of `Drawing` that
                change no image: ``batch_size``, ``callback``, ``progress``.

        Raises:
            TypeError: there is no such option, or an argument is of another kind than it has to be.
            ValueError: seeds or labels do not fit the number of images, or there is no such class or kernel, or
                an option would change nothing, or there is guidance without a class.
        """
        check_options(options, CDRLPipeline.__call__)
        guidance = weight_or_guidance(guidance)
        how = self.drawing(**options)
        chosen = chosen_seeds(num_images, seeds, seed)
        labels = self.class_ids(label, len(chosen))
        drawn = self.draw(len(chosen), self.source(chosen, labels, guidance), how)
        return dataclasses.replace(drawn, labels=tuple(labels.tolist()), seeds=tuple(chosen), guidance=guidance)

    def drawing(self, **options: Any) -> Drawing:
        """Sampler settings under some options, with the run's own settings for the rest.

        Raises:
            TypeError: there is no such option; the message names the nearest one. Or what was given for one of those
                that change no image is of another kind than it has to be.
            ValueError: a value is not allowed, or an option would change nothing beside the others.
        """
        check_options(options)
        options["batch_size"] = whole_number("batch_size", options.get("batch_size", Drawing.batch_size), least=1)
        if (callback := options.get("callback")) is not None:
            check_function("callback", callback, "a function of level, step and y by name", level=0, step=0, y=None)
        check_kind("progress", options.get("progress", False), bool, "True or False")
        others = {name: options.pop(name) for name in ("batch_size", "callback", "progress") if name in options}
        settings = changed(self.config.sampling, options)
        if settings.steps == 0 and self.model.initializer is None:
            raise ValueError("steps: 0 leaves the initializer alone, but this run has none")
        trained_steps, own = self.config.training.langevin_steps, self.config.sampling.steps
        reach = trained_steps if own is None else AUTO_REACH if own in ("auto", 0) else own
        assert isinstance(reach, int)
        plan = plan_chains(settings, trained_steps, self.model.schedule.num_levels, reach)
        return Drawing(with_defaults(settings, trained_steps), plan, **others)

    def class_ids(self, label: LabelOrName, count: int) -> Tensor:
        """Classes given by id or name as ids, int64 [count]; -1 for no class.

        Raises:
            TypeError: what was given is neither a number nor a name.
            ValueError: there is no such class, or not one for each image.
        """
        if isinstance(label, str):
            return self.model.labels(self._class_named(label), count, self.device)
        if isinstance(label, Sequence) and not isinstance(label, bytes):
            ids = [self._class_named(each) if isinstance(each, str) else each for each in label]
            return self.model.labels(ids, count, self.device)
        return self.model.labels(label, count, self.device)

    def _class_named(self, name: str) -> int:
        ids = {each: index for index, each in enumerate(self.class_names)}
        if not ids:
            raise ValueError(f"label: this run has no classes, found '{name}'")
        if name not in ids and re.fullmatch(r"\s*[+-]?\d+\s*", name):
            known = f"class ids are numbers, -1 … {len(ids) - 1}, not in quotation marks"
            raise ValueError(f"label: no class has the name '{name}'; {known}")
        return one_of("label", name, ids)

    def source(self, seeds: Sequence[int], labels: Tensor, guidance: float | Guidance) -> SourceOfRows:
        """Source of the images of ``seeds`` with class ids ``labels`` [N], for `draw`.

        Raises:
            TypeError: the guidance is neither a number nor a `Guidance`.
            ValueError: there is guidance, but an image without a class.
        """
        guidance = weight_or_guidance(guidance)
        if guidance and bool((labels < 0).any()):
            raise ValueError("guidance: needs a class, but some images have none")

        def source(rows: slice) -> ImageSource:
            noise = ImageNoise(stream_seeds(seeds[rows]), self.device)
            return ImageSource(noise, *guided(self.model, labels[rows], guidance))

        return source

    @torch.no_grad()
    def draw(
        self,
        num_images: int,
        source: SourceOfRows,
        how: Drawing,
        constrain: Callable[[slice, ImageNoise], Constrain] | None = None,
    ) -> Generated:
        """Algorithm 2 under noise, proposals and densities of any kind.

        Args:
            source: which of the images -> what draws them.
            constrain: which of the images, their noise -> what puts back what is known of them after every move.
        """
        grids = []
        with progress_bar(num_images, "sample", unit="image", shown=how.progress) as bar:
            for start in range(0, num_images, how.batch_size):
                rows = slice(start, start + how.batch_size)
                noise, propose, log_density = source(rows)
                known = None if constrain is None else constrain(rows, noise)
                shape, schedule = self.model.shape, self.model.schedule
                grids.append(sample(schedule, propose, log_density, noise, shape, how.plan, known, how.callback))
                bar.update(len(noise))
        return Generated(torch.cat(grids), self.decoder, how.settings)

    @torch.no_grad()
    def encoded(self, images: Tensor, noise: ImageNoise) -> Tensor:
        """Encode images [N, C, H, W] in [-1, 1] as grids [N, *shape], as for training.

        Pixels are themselves. In a latent run the first stage encodes them; ``noise`` is for draws from its posteriors,
        unless the run has learned their means (``autoencoder.latents``).
        """
        if not isinstance(self.decoder, LatentDecoder):
            return images
        stage_one = self.config.autoencoder
        assert stage_one is not None
        drawn = noise if stage_one.latents == "sample" else None
        return self.decoder.standardized(latents_of(self.decoder.autoencoder.to(images.device), images, drawn))

    def images_of(self, images: Drawn | Images) -> Tensor:
        """Images in any usual form as [N, C, H, W] in [-1, 1], of the run's size and channels.

        Args:
            images: what calling the pipeline or `pipelines.fill` returned; PIL images; or a tensor, float in [-1, 1] or
                uint8.

        Raises:
            TypeError: they are none of these.
            ValueError: they are of another size, or the run's samples are points.
        """
        if isinstance(self.decoder, PointDecoder):
            raise ValueError("this is a run of 2-D points: it has no images")
        data = self.config.data
        tensor = images.tensors if isinstance(images, Drawn) else as_tensor(images, data.channels)
        expected = (data.channels, data.image_size, data.image_size)
        if tuple(tensor.shape[1:]) != expected:
            raise ValueError(f"images: expected [N, {', '.join(map(str, expected))}], found {list(tensor.shape)}")
        return tensor.to(self.device)

    def grids_of(self, data: Drawn | Images) -> Tensor:
        """Convert samples, images or grids to grids [N, *shape], on which the model's densities are defined.

        A tensor that has the shape of the model's grids is taken for such. Images are encoded as for training; draws
        from a first stage's posteriors are those of seeds 0, 1, ….

        Raises:
            TypeError: they are neither samples, nor images, nor grids.
            ValueError: they are of another size, there are none, or some hold NaN or infinity.
        """
        if isinstance(data, Drawn):
            check_grids("grids", data.grids, self.model.shape)
            data = data.grids
        if isinstance(data, Tensor) and data.is_floating_point() and tuple(data.shape[1:]) == self.model.shape:
            check_grids("grids", data, self.model.shape)
            check_finite("grids", data)
            return data.to(self.device, torch.float32)
        parts = []
        for rows in torch.arange(len(images := self.images_of(data))).split(_BATCH):
            noise = ImageNoise([derive_seed("posterior", int(row)) for row in rows], self.device)
            parts.append(self.encoded(images[rows], noise))
        return torch.cat(parts)

    def energy(self, data: Drawn | Images, level: int = 0, *, label: LabelOrName = None) -> Tensor:
        """Energy of each grid or image at a level, as the paper defines it: [N], lower for the likelier.

        It is minus ``model.log_density(y, level)`` at y = alpha_y x (eq. 1): the density of y, up to a constant. What
        `log_density` returns is the density of x itself, which differs from it by a constant of the level.

        Args:
            data, level, label: as of `log_density`.

        Raises:
            TypeError, ValueError: as `log_density`.
        """
        level = self.model.level_of(level)
        x = self.grids_of(data)
        alpha_y = self.model.schedule.alpha_y[level].to(x.device)
        return -self.model.conditioned(self.class_ids(label, len(x))).log_density(alpha_y * x, level)

    def log_density(
        self, data: Drawn | Images, level: int = 0, *, label: LabelOrName = None, log_z: float = 0.0
    ) -> Tensor:
        """Log density in nats of x_t = the given grids or images, each: [N].

        Args:
            data: what calling the pipeline or `pipelines.fill` returned, images, or grids [N, *shape], see `grids_of`.
            level: t, 0 … T-1.
            log_z: log normalizer of the level's energy, as `cdrl.sampling.annealing.log_normalizer` brackets it or
                ``run.py density`` reports it; without it the answer is right up to a constant.

        Raises:
            TypeError: an argument is of another kind than it has to be.
            ValueError: there is no such level or class, or the data do not fit the model.
        """
        log_z, x = finite_number("log_z", log_z), self.grids_of(data)
        value = -self.energy(x, level, label=label)
        alpha_y = self.model.schedule.alpha_y[self.model.level_of(level)].to(x.device)
        # The energy's density is that of y = alpha_y x: a volume of x is alpha_y^-D times as large.
        return value - log_z + x[0].numel() * alpha_y.log()


def chosen_seeds(num_images: int | None, seeds: Sequence[int] | None, seed: int | None = None) -> list[int]:
    """A seed for each image: those given; or ``seed``, ``seed`` + 1, …, from 0 by default.

    Raises:
        TypeError: they are no numbers, or seeds in no order.
        ValueError: both are given, or not one seed for each image.
    """
    if seeds is not None and seed is not None:
        raise ValueError("seeds and seed: expected one of them, found both")
    count = None if num_images is None else whole_number("num_images", num_images, least=1)
    if seeds is None:
        first = 0 if seed is None else whole_number("seed", seed)
        return list(range(first, first + (1 if count is None else count)))
    if type(plain(seeds)) is int:
        raise ValueError(f"seeds: expected one for each image, such as [{seeds}]; seed={seeds} is that of the first")
    chosen = whole_numbers("seeds", seeds, "[1, 2, 3]")
    expected = len(chosen) if count is None else count
    if len(chosen) != expected or expected < 1:
        raise ValueError(f"seeds: expected one for each of {expected} images (at least 1), found {len(chosen)}")
    return chosen


def stream_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds of the streams of noise from which the images of ``seeds`` are drawn."""
    return [derive_seed("sample", seed) for seed in seeds]


def check_options(options: Iterable[str], *functions: Callable[..., Any]) -> None:
    """Refuse unknown keywords: those that are neither sampler options nor arguments of the called functions.

    Raises:
        TypeError: there is no such option; the message names the nearest one.
    """
    for name in options:
        if name == "generator":
            raise TypeError("generator: not taken: images have seeds of their own; give seeds=[…] or seed=…")
        arguments = [each for function in functions for each in inspect.signature(function).parameters.values()]
        own = [each.name for each in arguments if each.kind is not each.VAR_KEYWORD and each.name != "self"]
        if name not in DRAWING_OPTIONS and name not in own:
            raise TypeError(f"unknown option '{name}': {suggestion(name, [*own, *DRAWING_OPTIONS])}")

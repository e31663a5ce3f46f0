"""A trained run, ready to be used: model and decoder opened from one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, TypedDict, Unpack

import torch
from PIL import Image
from torch import Tensor

from autoencoder.latents import latents_of
from cdrl.config import Config, SamplingConfig, parse_config
from cdrl.model import CDRL, Label
from cdrl.runs.model_folder import load_model
from cdrl.runs.progress import progress_bar
from cdrl.runs.run import RunError
from cdrl.sampling.noise import ImageNoise, derive_seed
from cdrl.sampling.sampler import (
    AUTO_REACH,
    Callback,
    Constrain,
    LevelLogDensity,
    Propose,
    SamplerSettings,
    resolved,
    sample,
    sampler_settings,
)
from pipelines.decoding import Decoder, LatentDecoder, load_decoder, to_pil
from pipelines.guidance import guided

Ingredients = tuple[ImageNoise, Propose, LevelLogDensity]
"""What Algorithm 2 draws images from."""


class SamplerOptions(TypedDict, total=False):
    """Options that everything which samples has in common; None, or nothing, for the run's own setting.

    Attributes:
        steps: steps of the chain a level; 0 leaves the initializer alone; ``auto`` is fast, see `SamplingConfig`.
        step_adjustment: scale the step size to s sqrt(K / steps), K the steps in training (Table 2).
        kernel: ``langevin``, ``mala`` or ``hmc``, the last with ``leapfrog_steps`` gradients a step.
        temperature: of the chains; below 1 they draw from a sharpened density.
        denoise: factor c of the last denoising step.
        batch_size: images at a time, 64 by default; changes no image.
        callback: sees every move of every batch.
        progress: show a progress bar; by default there is none.
    """

    steps: int | Literal["auto"] | None
    step_adjustment: bool | None
    kernel: str | None
    leapfrog_steps: int | None
    temperature: float | None
    denoise: float | None
    batch_size: int
    callback: Callback | None
    progress: bool


@dataclass(frozen=True)
class Generated:
    """Samples of a run.

    Attributes:
        grids: what CDRL drew: pixels, standardized latents or points, [N, *shape].
    """

    grids: Tensor
    decoder: Decoder

    @property
    def tensors(self) -> Tensor:
        """Images [N, C, H, W] in [-1, 1]."""
        return self.decoder.images(self.grids)

    @property
    def images(self) -> list[Image.Image]:
        """8-bit PIL images."""
        return to_pil(self.tensors)


class CDRLPipeline:
    """Draws samples of a trained model; every image from a seed of its own."""

    def __init__(self, model: CDRL, decoder: Decoder, config: Config, class_names: Sequence[str]) -> None:
        self.model, self.decoder, self.config = model, decoder, config
        self.class_names = tuple(class_names)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str = "cpu") -> Self:
        """Open a run folder, or its ``model`` folder alone.

        Raises:
            RunError: there is no trained model, or a file of it is missing or damaged.
        """
        model_folder = find_model(Path(folder))
        model, record = load_model(model_folder)
        path = model_folder / "config.json"
        config = parse_config(record.config, source=str(path))
        if record.class_names is None or len(record.class_names) != record.num_classes:
            raise RunError(f"{path}: expected class_names, one for each of {record.num_classes} classes")
        if config.space == "pixel" and record.shape != [config.data.channels, *2 * [config.data.image_size]]:
            raise RunError(f"{path}: shape: {record.shape} is not that of the images of its own configuration")
        return cls(model.to(device), load_decoder(model_folder, record, config.space), config, record.class_names)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    @torch.no_grad()
    def __call__(
        self,
        num_images: int = 1,
        *,
        seeds: Sequence[int] | None = None,
        label: Label = None,
        guidance: float = 0.0,
        **options: Unpack[SamplerOptions],
    ) -> Generated:
        """Draw samples (Algorithm 2).

        Args:
            seeds: one an image; 0 … num_images - 1 by default. An image depends on its own seed alone.
            label: class id 0 … C-1 for all images, or one an image; None or -1 for no class.
            guidance: weight w of classifier-free guidance (eq. 11, 12); 0 is the plain conditional model.
            options: see `SamplerOptions`.

        Raises:
            ValueError: seeds or labels do not fit the number of images, or there is no such class or kernel, or
                nothing would move the images, or there is guidance without a class.
        """
        return self.draw(num_images, self.ingredients(num_images, seeds, label, guidance), **options)

    def ingredients(
        self, num_images: int, seeds: Sequence[int] | None, label: Label, guidance: float
    ) -> Callable[[slice], Ingredients]:
        """What `draw` draws samples from, with arguments and errors as in calling the pipeline."""
        chosen = chosen_seeds(num_images, seeds)
        labels = self.model.labels(label, num_images, self.device)
        if guidance and bool((labels < 0).any()):
            raise ValueError("guidance: needs a class, but some images have none")

        def ingredients(rows: slice) -> Ingredients:
            part = labels[rows]
            return ImageNoise(stream_seeds(chosen[rows]), self.device), *guided(self.model, part, guidance, len(part))

        return ingredients

    @torch.no_grad()
    def draw(
        self,
        num_images: int,
        ingredients: Callable[[slice], Ingredients],
        constrain: Callable[[slice, ImageNoise], Constrain] | None = None,
        *,
        settings: SamplerSettings | None = None,
        passes: int = 1,
        **options: Unpack[SamplerOptions],
    ) -> Generated:
        """Algorithm 2 under noise, proposals and densities of any kind.

        Args:
            ingredients: which of the images -> what draws them.
            constrain: which of the images, their noise -> what puts back what is known of them after every move.
            settings: of the sampler, where no options can say them.
            passes: visits to each level, see `cdrl.sampling.sampler.sample`.
            options: see `SamplerOptions`.
        """
        batch_size, callback = options.get("batch_size", 64), options.get("callback")
        settings = self.settings(options) if settings is None else settings
        if not any(settings["steps"]) and self.model.initializer is None:
            raise ValueError("steps: 0 leaves the initializer alone, but this run has none")
        bar = progress_bar(num_images, "sample", unit="image", shown=options.get("progress", False))
        grids = []
        for start in range(0, num_images, batch_size):
            rows = slice(start, start + batch_size)
            noise, propose, log_density = ingredients(rows)
            grids.append(
                sample(
                    self.model.schedule,
                    propose,
                    log_density,
                    noise,
                    self.model.shape,
                    passes=passes,
                    constrain=None if constrain is None else constrain(rows, noise),
                    callback=callback,
                    **settings,
                )
            )
            bar.update(len(noise))
        bar.close()
        return Generated(torch.cat(grids), self.decoder)

    def sampling(self, options: SamplerOptions) -> SamplingConfig:
        """The run's own settings of the sampler, but for those that ``options`` give; no default is left open."""
        given = {name: value for name, value in options.items() if name in SamplingConfig.model_fields}
        chosen = {name: value for name, value in given.items() if value is not None}
        return resolved(self.config.sampling.model_copy(update=chosen), self.config.training.langevin_steps)

    def settings(self, options: SamplerOptions) -> SamplerSettings:
        """What the sampler is told under ``options``."""
        trained_steps, num_levels = self.config.training.langevin_steps, self.model.schedule.num_levels
        own = trained_steps if self.config.sampling.steps is None else self.config.sampling.steps
        reach = AUTO_REACH if own == "auto" or own == 0 else own
        return sampler_settings(self.sampling(options), trained_steps, num_levels, reach)

    @torch.no_grad()
    def encoded(self, images: Tensor, noise: ImageNoise) -> Tensor:
        """Images [N, C, H, W] in [-1, 1] as grids [N, *shape], in the way that those of training were made.

        Pixels are themselves. In a latent run the first stage encodes them; ``noise`` is for draws from its posteriors,
        unless the run has learned their means (``autoencoder.latents``).
        """
        if not isinstance(self.decoder, LatentDecoder):
            return images
        stage_one = self.config.autoencoder
        assert stage_one is not None
        drawn = noise if stage_one.latents == "sample" else None
        return self.decoder.standardized(latents_of(self.decoder.autoencoder.to(images.device), images, drawn))

    def log_density(self, points: Tensor, level: int = 0, *, label: Label = None, log_z: float = 0.0) -> Tensor:
        """Log density in nats of x_t at each of ``points`` [N, *shape]: [N].

        Args:
            log_z: log normalizer of the level's energy, as `cdrl.sampling.annealing.log_normalizer` brackets it or
                ``run.py density`` reports it; without it the answer is right up to a constant.
        """
        alpha_y = self.model.schedule.alpha_y[level].to(points.device)
        value = self.model.conditioned(label).log_density(alpha_y * points, level)
        # The energy's density is that of y = alpha_y x: a volume of x is alpha_y^-D times as large.
        return value - log_z + points[0].numel() * alpha_y.log()


def find_model(folder: Path) -> Path:
    """The model folder of a run, or ``folder`` itself if it is one. Raises RunError where there is none."""
    model = folder if (folder / "energy.safetensors").exists() else folder / "model"
    if not (model / "config.json").exists():
        raise RunError(f"{folder}: no trained model there; train it with: python run.py train CONFIG")
    return model


def chosen_seeds(num_images: int, seeds: Sequence[int] | None) -> list[int]:
    """A seed for each image: those given, or 0 … num_images - 1."""
    chosen = list(range(num_images)) if seeds is None else [int(seed) for seed in seeds]
    if len(chosen) != num_images or num_images < 1:
        raise ValueError(f"seeds: expected one for each of {num_images} images (at least 1), found {len(chosen)}")
    return chosen


def stream_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds of the streams of noise from which the images of ``seeds`` are drawn."""
    return [derive_seed("sample", seed) for seed in seeds]

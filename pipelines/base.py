"""A trained run, ready to be used: model and decoder opened from one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor

from cdrl.checkpoint import load_model
from cdrl.config import Config, parse_config
from cdrl.loop import progress_bar
from cdrl.mcmc import kernel_named
from cdrl.model import CDRL, Label
from cdrl.noise import ImageNoise, derive_seed
from cdrl.runs import RunError
from cdrl.sampler import Callback, LevelLogDensity, Propose, sample, step_adjustment
from pipelines.decoding import Decoder, load_decoder, to_pil

Ingredients = Callable[[slice], tuple[ImageNoise, Propose, LevelLogDensity]]
"""Which of the images -> what Algorithm 2 needs to draw them."""


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
        folder = Path(folder)
        model_folder = folder if (folder / "energy.safetensors").exists() else folder / "model"
        if not (model_folder / "config.json").exists():
            raise RunError(f"{folder}: no trained model there; train it with: python run.py train CONFIG")
        model, description = load_model(model_folder)
        config = parse_config(description["config"], source=str(model_folder / "config.json"))
        try:
            decoder, class_names = load_decoder(model_folder, description), description["class_names"]
        except KeyError as error:
            raise RunError(f"{model_folder / 'config.json'}: not the description of a run: it lacks {error}") from None
        return cls(model.to(device), decoder, config, class_names)

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return next(self.model.parameters()).device

    def default_steps(self) -> int:
        """Steps of the chain a level unless told otherwise."""
        steps = self.config.sampling.steps
        return self.config.training.langevin_steps if steps is None else steps

    @torch.no_grad()
    def __call__(
        self,
        num_images: int = 1,
        *,
        seeds: Sequence[int] | None = None,
        label: Label = None,
        steps: int | None = None,
        step_adjustment: bool | None = None,
        denoise: float | None = None,
        kernel: str | None = None,
        leapfrog_steps: int | None = None,
        batch_size: int = 64,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Generated:
        """Draw samples (Algorithm 2).

        Args:
            seeds: one an image; 0 … num_images - 1 by default. An image depends on its own seed alone.
            label: class id 0 … C-1 for all images, or one an image; None or -1 for no class.
            steps: steps of the chain a level; 0 leaves the initializer alone.
            step_adjustment: scale the step size to s sqrt(K / steps), K the steps in training (Table 2).
            denoise: factor c of the last denoising step.
            kernel: ``langevin``, ``mala`` or ``hmc``, the last with ``leapfrog_steps`` gradients a step.
            callback: sees every move of every batch.

        Raises:
            ValueError: seeds or labels do not fit the number of images, or there is no such class or kernel, or
                nothing would move the images.
        """
        chosen = list(range(num_images)) if seeds is None else [int(seed) for seed in seeds]
        if len(chosen) != num_images or num_images < 1:
            raise ValueError(f"seeds: expected one for each of {num_images} images (at least 1), found {len(chosen)}")
        labels = self.model.labels(label, num_images, self.device)

        def ingredients(rows: slice) -> tuple[ImageNoise, Propose, LevelLogDensity]:
            conditioned = self.model.conditioned(labels[rows])
            return ImageNoise(stream_seeds(chosen[rows]), self.device), conditioned.propose, conditioned.log_density

        return self.draw(
            num_images,
            ingredients,
            steps=steps,
            step_adjustment=step_adjustment,
            denoise=denoise,
            kernel=kernel,
            leapfrog_steps=leapfrog_steps,
            batch_size=batch_size,
            callback=callback,
            progress=progress,
        )

    @torch.no_grad()
    def draw(
        self,
        num_images: int,
        ingredients: Ingredients,
        *,
        steps: int | None = None,
        step_adjustment: bool | None = None,
        denoise: float | None = None,
        kernel: str | None = None,
        leapfrog_steps: int | None = None,
        batch_size: int = 64,
        callback: Callback | None = None,
        progress: bool = False,
    ) -> Generated:
        """Algorithm 2 under noise, proposals and densities of any kind; the rest as in a call of the pipeline."""
        options = self._options(steps, step_adjustment, denoise, kernel, leapfrog_steps)
        bar = progress_bar(num_images, "sample", unit="image", shown=progress)
        grids = []
        for start in range(0, num_images, batch_size):
            noise, propose, log_density = ingredients(slice(start, start + batch_size))
            schedule, shape = self.model.schedule, self.model.shape
            grids.append(sample(schedule, propose, log_density, noise, shape, callback=callback, **options))
            bar.update(len(noise))
        bar.close()
        return Generated(torch.cat(grids), self.decoder)

    def log_density(self, points: Tensor, level: int = 0, *, label: Label = None, log_z: float = 0.0) -> Tensor:
        """Log density in nats of x_t at each of ``points`` [N, *shape]: [N].

        Args:
            log_z: log normalizer of the level's energy, as `cdrl.annealing.log_normalizer` brackets it or
                ``run.py density`` reports it; without it the answer is right up to a constant.
        """
        alpha_y = self.model.schedule.alpha_y[level].to(points.device)
        value = self.model.conditioned(label).log_density(alpha_y * points, level)
        # The energy's density is that of y = alpha_y x: a volume of x is alpha_y^-D times as large.
        return value - log_z + points[0].numel() * alpha_y.log()

    def _options(
        self,
        steps: int | None,
        adjust: bool | None,
        denoise: float | None,
        kernel: str | None,
        leapfrog_steps: int | None,
    ) -> dict[str, Any]:
        sampling, trained = self.config.sampling, self.config.training.langevin_steps
        steps = self.default_steps() if steps is None else steps
        if not steps and self.model.initializer is None:
            raise ValueError("steps: 0 leaves the initializer alone, but this run has none")
        adjust = sampling.step_adjustment if adjust is None else adjust
        return {
            "steps": steps,
            "step_scale": step_adjustment(trained, steps) if adjust else 1.0,
            "denoise": sampling.denoise if denoise is None else denoise,
            "kernel": kernel_named(
                sampling.kernel if kernel is None else kernel,
                sampling.leapfrog_steps if leapfrog_steps is None else leapfrog_steps,
            ),
        }


def stream_seeds(seeds: Sequence[int]) -> list[int]:
    """The seeds of the streams of noise from which the images of ``seeds`` are drawn."""
    return [derive_seed("sample", seed) for seed in seeds]

"""The typed configuration of a run: its sections, their defaults and what they mean, checked against one another."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from cdrl.names import check_name
from cdrl.registry import DATA_SETS, KERNELS

_MOST_NUMBERS = 2**32
"""Numbers in a batch of images, over all processes: 16 GiB."""

BatchSize = Annotated[int, Field(ge=1, le=2**20)]


def _some(multipliers: tuple[int, ...]) -> tuple[int, ...]:
    if not 1 <= len(multipliers) <= 12:
        raise ValueError(f"expected 1 to 12 resolutions, found {len(multipliers)}")
    return multipliers


Multipliers = Annotated[tuple[Annotated[int, Field(ge=1, le=64)], ...], AfterValidator(_some)]
"""Widths of a network's resolutions; each after the first halves the grid."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file or key and what is expected there."""


def expanded_path(value: Any) -> Any:
    """A path as it is written, with ~ or ~user at its beginning replaced by that home folder.

    Raises:
        ValueError: it is empty, a URL, another system's or not in UTF-8, or there is no such home folder.
    """
    if not isinstance(value, str | Path):
        raise ValueError("expected a path")
    text = str(value)
    if not text or not text.strip():
        raise ValueError("expected a path, found nothing")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise ValueError("expected a path of this machine, found a URL")
    if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]", text):
        raise ValueError("expected a path of this machine, found one of Windows")
    try:
        text.encode("utf-8")
        return Path(text).expanduser()
    except UnicodeEncodeError:
        raise ValueError("expected a path in UTF-8: rename the folder, or put a link to it") from None
    except RuntimeError:
        raise ValueError("expected ~ or ~user to be a home folder of this machine") from None


UserPath = Annotated[Path, BeforeValidator(expanded_path)]
"""A path that a user writes, which may begin with ~."""


class Section(BaseModel):
    """Section of the configuration: rejects unknown keys and wrong types, and is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Training data: the data set, the preparation of its images, and the classes.

    ``path`` is the folder or file of published data sets; drawn faces, digits and the checkerboard need none.
    ``prepared`` is a folder of shards, which ``run.py prepare`` writes and everything else then reads instead; with
    ``stream`` training reads each batch from them, and the set need not fit into memory; drawn faces are streamed from
    the cache without being prepared. ``crop`` is the side of the
    central square of CelebA's pictures.
    ``background`` is the colour, by name or as '#rrggbb', that is seen through transparent pixels. A picture of more
    than ``max_pixels`` is refused before it takes memory; a JPEG is decoded at a half, a quarter or an eighth instead.
    ``labels`` chooses the condition: ``none``; ``class``, the data set's own classes; or ``attributes``, where
    every value of every attribute in ``attributes`` is a class of its own (class 2i: the i-th attribute is
    false, class 2i+1: it is true) and each image of a batch is given one of its attributes at random.
    """

    name: str = Field(description="a data set of `cdrl.registry.DATA_SETS`, or checkerboard")
    path: UserPath | None = None
    check_sums: bool = Field(default=True, description="refuse files whose MD5 differs from the published one")
    crop: Literal[140, 178] = 140
    prepared: UserPath | None = None
    stream: bool = False
    image_size: int = Field(default=32, ge=2)
    channels: Literal[1, 3] = 3
    background: str = Field(default="white", validate_default=True)
    max_pixels: int = Field(default=2**26, ge=1, le=2**27, description="of one picture that is read")
    flip: bool = False
    labels: Literal["none", "class", "attributes"] = "none"
    attributes: tuple[str, ...] = ()
    style: Literal["avataaars", "toon-head"] = "avataaars"
    zoom: float = Field(default=1.0, ge=1, le=4, description="drawn faces: so many times larger, cut off by the edges")
    num_train: int = Field(default=5000, ge=1, description="drawn faces: images in the training split")
    num_test: int = Field(default=1000, ge=1, description="drawn faces: images in the held-out split")
    cache: UserPath = Path("data")

    @field_validator("name")
    @classmethod
    def _known_name(cls, name: str) -> str:
        check_name("", name, [*DATA_SETS, "checkerboard"])
        return name

    @field_validator("background")
    @classmethod
    def _colour(cls, name: str) -> str:
        try:
            # Imported here: the command line's help need not wait for Pillow.
            from PIL import ImageColor

            channels: tuple[int, ...] = ImageColor.getrgb(name)
        except ValueError:
            channels = ()
        if len(channels) != 3:
            raise ValueError("expected a colour by name or as '#rrggbb'")
        return "#" + bytes(channels).hex()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.name in DATA_SETS and DATA_SETS[self.name].needs_path and self.path is None:
            raise ValueError(f"data.path is required for data.name={self.name}: the folder that holds the data set")
        if self.crop != 140 and self.name != "celeba":
            raise ValueError("data.crop is for data.name=celeba; of other pictures the largest square is taken")
        if self.zoom != 1 and self.name != "faces":
            raise ValueError("data.zoom is for data.name=faces")
        if self.stream and self.prepared is None and self.name != "faces":
            raise ValueError("data.stream needs data.prepared, a folder for shards, which prepare fills")
        if (self.labels == "attributes") != bool(self.attributes):
            raise ValueError("data.attributes must name attributes if, and only if, data.labels is 'attributes'")
        return self


class BottleneckConfig(Section):
    """Architecture of the first stage: taming's Encoder and Decoder around a KL or a VQ bottleneck.

    ``pixel_unshuffle`` first folds blocks of pixels into channels; each multiplier after the first halves the
    resolution. ``z_channels`` is the number of channels of the encoder's output and the decoder's input where it
    differs from ``latent_channels``, as in some published models; 1x1 convolutions convert between the two.
    """

    bottleneck: Literal["kl", "vq"] = "kl"
    pixel_unshuffle: Literal[1, 2, 4, 8] = 1
    channels: int = Field(default=128, ge=32, le=4096, multiple_of=32)
    multipliers: Multipliers = (1, 2, 4)
    num_blocks: int = Field(default=2, ge=1, le=64)
    attention_resolutions: tuple[int, ...] = ()
    latent_channels: int = Field(default=3, ge=1, le=1024)
    z_channels: int | None = Field(default=None, ge=1, le=1024)
    codebook_size: int = Field(default=8192, ge=2, le=2**20)

    @property
    def shrinks_by(self) -> int:
        """How many times smaller the side of a latent is than that of its image."""
        return self.pixel_unshuffle * 2 ** (len(self.multipliers) - 1)


class ReconstructionConfig(Section):
    """Terms of the first stage's objective. A weight of 0 switches a term off.

    ``reconstruction`` is the mean absolute (``l1``) or squared (``l2``) error or their ``sum``. ``perceptual`` is
    ``lpips``, with weights from the folder ``lpips_weights`` (vgg16-397923af.pth and vgg.pth), or ``lite0``, a
    distance on the features of the packaged EfficientNet-Lite0. The patch discriminator starts after
    ``adversarial_start`` steps.
    """

    reconstruction: Literal["l1", "l2", "sum"] = "l1"
    center_weight: float = Field(default=0.0, ge=0, description="excess weight of the middle over the rim; 0: none")
    perceptual: Literal["none", "lpips", "lite0"] = "none"
    perceptual_weight: float = Field(default=1.0, ge=0)
    lpips_weights: UserPath | None = None
    adversarial_weight: float = Field(default=0.0, ge=0)
    adversarial_start: int = Field(default=0, ge=0)
    kl_weight: float = Field(default=1e-6, ge=0)
    codebook_weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.perceptual == "lpips" and self.lpips_weights is None:
            raise ValueError(
                "autoencoder.objective.lpips_weights must name the folder of LPIPS weights for perceptual=lpips"
            )
        return self


class StageOneTrainingConfig(Section):
    """Optimization of the first stage; ``batch_size`` is the global one, over all processes."""

    num_steps: int = Field(ge=1)
    batch_size: BatchSize = 16
    optimizer: Literal["adam", "muon"] = "adam"
    learning_rate: float = Field(default=4.5e-6, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    decay_fraction: float = Field(default=0.0, ge=0, le=1, description="last share of the steps with linear decay")
    ema: float = Field(default=0.0, ge=0, lt=1)
    gradient_clip: float = Field(default=1.0, gt=0)
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        default="float32", description="of matrix work; auto: bfloat16 where the processor has it built in"
    )
    log_every: int = Field(default=50, ge=1)
    picture_every: int = Field(default=500, ge=1)
    checkpoint_every: int = Field(default=1000, ge=1)


class AutoencoderConfig(Section):
    """The first stage of a latent run. ``run`` is an existing first-stage run to use instead of training one.

    ``latents`` says what the second stage is trained on with a KL bottleneck: a ``sample`` of each posterior, as in
    latent diffusion, or each posterior's ``mean``, without its noise, which the decoder does not show.
    """

    run: UserPath | None = None
    latents: Literal["sample", "mean"] = "sample"
    architecture: BottleneckConfig = BottleneckConfig()
    objective: ReconstructionConfig = ReconstructionConfig()
    training: StageOneTrainingConfig | None = None


class ScheduleConfig(Section):
    """Noise levels and Langevin step sizes: s_t^2 = step_coefficient * r_t * sigma_{t+1}^2 (eq. 16, 19, 20).

    ``kind`` is CDRL's ``cosine`` schedule between ``logsnr_max`` and ``logsnr_min``, or ``drl``, that of its
    predecessor: a linear beta from 1e-4 to 0.02 over 1000 steps, of which six levels take steps 0, 100, …, 500 and
    999. Fewer levels divide the first half, more divide the second (the CDRL paper's DRL-T8 has eight).
    ``step_coefficient`` is by default each method's own, 4e-4 or 2e-4. ``r_t`` is sigma_bar_t / sigma_bar_0 for
    ``step_scaling: sigma_bar`` (images), 1 for ``constant`` (2-D points).
    The log density is the network's output divided by a temperature: s_t^2 for ``temperature: step_size`` (Appendix
    A.2), or 1 for ``one``. If s_t is small compared with the edges to be learned, dividing by s_t^2 makes every
    update of the network change the log density too much.
    """

    kind: Literal["cosine", "drl"] = "cosine"
    num_levels: int = Field(default=6, ge=2, le=10_000)
    logsnr_max: float = Field(default=9.8, le=30, description="beyond it single precision knows no noise")
    logsnr_min: float = Field(default=-5.1, ge=-30)
    step_coefficient: float = Field(default=4e-4, gt=0)
    step_scaling: Literal["sigma_bar", "constant"] = "sigma_bar"
    temperature: Literal["step_size", "one"] = "step_size"

    @model_validator(mode="before")
    @classmethod
    def _own_coefficient(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("kind") == "drl":
            return {"step_coefficient": 2e-4, **values}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.logsnr_max <= self.logsnr_min:
            raise ValueError("schedule.logsnr_max must exceed schedule.logsnr_min")
        if self.kind == "drl" and (self.logsnr_max, self.logsnr_min) != (9.8, -5.1):
            raise ValueError("schedule.logsnr_max and logsnr_min are for kind cosine: leave them out for kind drl")
        if self.kind == "drl" and self.num_levels > 500:
            raise ValueError("schedule.num_levels must be at most 500 for kind drl, which is cut out of 1000 steps")
        return self


class EnergyConfig(Section):
    """The energy network (Tables 5, 6). ``output_scale`` multiplies the network's scalar output.

    ``fourier_features`` is the number of random Fourier features added to the input; for 2-D points only.

    ``reference`` is the density that is multiplied by the exponential of the network: ``flat``, as in the paper, or
    ``gaussian``, N(0, alpha_y^2 I), the density of standardized data without structure. With the latter, chains
    cannot drift away from the data's scale even while the network has learned little.
    """

    channels: int = Field(default=128, ge=4, le=4096, multiple_of=2)
    multipliers: Multipliers = (1, 2, 2, 2)
    num_blocks: int = Field(default=8, ge=1, le=100)
    spectral_norm: bool = True
    fourier_features: int = Field(default=0, ge=0, le=65_536)
    output_scale: float = Field(default=1.0, gt=0)
    reference: Literal["flat", "gaussian"] = "flat"


class InitializerConfig(Section):
    """The initializer (Appendix A.1): a U-Net on grids, an MLP on 2-D points.

    ``conditional: false`` makes it unconditional beside a conditional energy, as for composition (sec. 4.5).
    ``predicts`` is the meaning of the network's output: ``y``, the mean of the proposal; or the clean image ``x0`` or
    the whole noise ``epsilon`` in x_{t+1}, from which that mean is computed (Appendix G.1). ``target`` is the
    regression target of the proposal: ``refined``, the end of its own chain (eq. 8), or ``data``, the true y_t
    (Appendix G.2). ``fourier_features`` is as in the energy, for 2-D points only.
    """

    channels: int = Field(default=64, ge=8, le=4096, multiple_of=2)
    multipliers: Multipliers = (1, 1, 1)
    num_blocks: int = Field(default=3, ge=1, le=100)
    attention_resolutions: tuple[int, ...] = (16, 8)
    fourier_features: int = Field(default=0, ge=0, le=65_536)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    conditional: bool = True
    predicts: Literal["y", "x0", "epsilon"] = "y"
    target: Literal["refined", "data"] = "refined"


class TrainingConfig(Section):
    """Cooperative training (Algorithm 1, Appendix A.2); ``batch_size`` is the global one, over all processes.

    ``pairs`` says how x_{t+1} is made: with the same noise as x_t (``shared_noise``, eq. 9), or from x_t by one more
    noising step (``independent_noise``, the true joint distribution, as in DRL). ``on_divergence``: ``stop``, or
    ``rollback`` to the last checkpoint with both learning rates halved, three times at most.
    """

    num_steps: int = Field(default=400_000, ge=1)
    batch_size: BatchSize = 256
    accumulation: int = Field(default=1, ge=1, description="micro-batches a process sums before an update")
    langevin_steps: int = Field(default=15, ge=1, description="K")
    optimizer: Literal["adam", "muon"] = Field(default="adam", description="Adam, as in the paper, or Muon")
    pairs: Literal["shared_noise", "independent_noise"] = "shared_noise"
    energy_lr: float = Field(default=1e-4, gt=0)
    initializer_lr: float = Field(default=1e-5, gt=0)
    warmup_steps: int = Field(default=10_000, ge=0)
    initializer_head_start: int = Field(default=500, ge=0, description="steps by which its warm-up is ahead (eq. 15)")
    decay_fraction: float = Field(default=0.0, ge=0, le=1, description="last share of the steps with linear decay")
    decay_floor: float = Field(default=0.02, ge=0, le=1, description="share of the learning rate at the end")
    ema: float = Field(default=0.9999, ge=0, lt=1)
    gradient_clip: float = Field(default=1.0, gt=0)
    label_dropout: float = Field(default=0.1, ge=0, le=1)
    chain_dtype: Literal["float32", "bfloat16"] = "float32"
    log_every: int = Field(default=100, ge=1)
    sample_every: int = Field(default=5000, ge=1)
    checkpoint_every: int = Field(default=5000, ge=1)
    on_divergence: Literal["stop", "rollback"] = "stop"


class SamplerSettings(Section):
    """Settings of the sampler (Algorithm 2): the section ``sampling``, keywords in Python, options on the command line.

    A value of None is filled in from the run, see `cdrl.sampling.settings.with_defaults`.
    """

    steps: Annotated[int, Field(ge=0)] | Literal["auto"] | None = Field(
        default=None,
        description="Langevin steps a level; as many as in training by default. 0 leaves the initializer alone; auto "
        "spends 29 gradients on six levels: chains of 5 long steps, 4 at the top",
    )
    step_adjustment: bool = Field(
        default=False, description="scale step sizes by sqrt(K / steps), K the steps in training (the paper's Table 2)"
    )
    temperature: float | None = Field(
        default=None,
        gt=0,
        description="chains draw from exp(f / temperature): below 1 less grey noise, and fewer rare images. 1 by "
        "default, 0.72 for steps auto",
    )
    denoise: float = Field(
        default=2.0,
        ge=0,
        description="factor c of the last denoising step (Appendix A.2): 2 in the paper, 1 for Tweedie's formula, 0 "
        "for none",
    )
    kernel: str = Field(
        default="langevin",
        description="how chains move: langevin, unadjusted as in the paper; mala, where each image accepts or rejects "
        "each Langevin step; hmc, Hamiltonian Monte Carlo",
    )
    leapfrog_steps: int = Field(default=3, ge=1, description="gradients in a step of the kernel hmc")

    @field_validator("kernel")
    @classmethod
    def _known_kernel(cls, name: str) -> str:
        check_name("kernel", name, KERNELS)
        return name


class EvaluationConfig(Section):
    """Evaluation during training, every ``every`` steps; the best model so far is kept in RUN/best.

    ``metric`` is ``fd_lite0``, the Fréchet distance on features that need no download, or ``fid``, for which
    ``weights`` names the file of Inception's weights (by default it is looked for in ``data.cache``). Compared are
    ``num_samples`` samples with all images of the ``split``. With ``optional`` a run whose weights of Inception are
    missing is trained without being measured, and says so in one line; otherwise it is refused.
    """

    every: int = Field(ge=1)
    metric: Literal["fd_lite0", "fid"] = "fd_lite0"
    num_samples: int = Field(default=1000, ge=100)
    split: Literal["train", "test"] = "train"
    weights: UserPath | None = None
    optional: bool = False


class DeepSpeedConfig(Section):
    """Options passed to DeepSpeed."""

    zero_stage: Literal[0, 1, 2, 3] = 1


class Config(Section):
    """Configuration of a whole run. ``space`` alone decides whether CDRL models pixels, latents or 2-D points.

    ``initializer: null`` means no initializer, as in DRL: chains start at x_{t+1}. Without a section
    ``evaluation``, samples are not evaluated during training.
    """

    space: Literal["pixel", "latent", "point"]
    seed: int = Field(default=0, ge=0)
    data: DataConfig
    autoencoder: AutoencoderConfig | None = None
    schedule: ScheduleConfig = ScheduleConfig()
    energy: EnergyConfig = EnergyConfig()
    initializer: InitializerConfig | None = InitializerConfig()
    training: TrainingConfig = TrainingConfig()
    sampling: SamplerSettings = SamplerSettings()
    evaluation: EvaluationConfig | None = None
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        networks = (self.energy, self.initializer)
        if self.space != "point" and any(network is not None and network.fourier_features for network in networks):
            raise ValueError("energy.fourier_features and initializer.fourier_features go with space: point only")
        if self.space == "latent" and self.autoencoder is None:
            raise ValueError("space: latent needs an autoencoder section")
        if (self.space == "point") != (self.data.name == "checkerboard"):
            raise ValueError("space: point goes with data.name=checkerboard, and only with it")
        if self.space == "point" and self.evaluation is not None:
            raise ValueError("evaluation compares images: leave it out for space: point")
        stage_one = None if self.autoencoder is None else self.autoencoder.training
        if self.deepspeed.zero_stage and "muon" in (self.training.optimizer, stage_one and stage_one.optimizer):
            raise ValueError("optimizer: muon needs deepspeed.zero_stage=0: the other stages cut matrices into slices")
        if self.initializer is None and self.sampling.steps == 0:
            raise ValueError("sampling.steps=0 leaves the initializer alone, but initializer is null")
        return self

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        """Sizes that contradict each other, found by arithmetic before anything is built."""
        if self.space == "point":
            if self.initializer is not None and set(self.initializer.multipliers) != {1}:
                raise ValueError("initializer.multipliers must all be 1 for space: point")
            return self
        image = self.data.channels * self.data.image_size**2
        _check_batch("training.batch_size", self.training.batch_size, image)
        stage_one = self.autoencoder
        if stage_one is not None and stage_one.training is not None:
            _check_batch("autoencoder.training.batch_size", stage_one.training.batch_size, image)
        side = self.data.image_size
        if self.space == "latent":
            if stage_one is None or stage_one.run is not None:
                return self  # the sides of latents are that run's to tell
            if side % stage_one.architecture.shrinks_by:
                raise ValueError(
                    f"data.image_size={side} must be a multiple of {stage_one.architecture.shrinks_by}, "
                    "by which autoencoder.architecture shrinks the image"
                )
            side //= stage_one.architecture.shrinks_by
        check_energy_grid(side, self.energy)
        if self.initializer is not None:
            check_initializer_grid(side, self.initializer)
        return self


def check_energy_grid(side: int, energy: EnergyConfig) -> None:
    """Make sure that the energy's resolutions fit grids of ``side`` by ``side``.

    Raises:
        ValueError: it would shrink them to nothing.
    """
    smallest = 2 ** (len(energy.multipliers) - 1)
    if side < smallest:
        raise ValueError(
            f"energy.multipliers: {len(energy.multipliers)} resolutions need a grid {smallest} wide at least, "
            f"but it is {side} wide"
        )


def check_initializer_grid(side: int, initializer: InitializerConfig) -> None:
    """Make sure that the initializer's resolutions fit grids of ``side`` by ``side``.

    Raises:
        ValueError: it cannot halve them as often and double them again.
    """
    factor = 2 ** (len(initializer.multipliers) - 1)
    if side % factor:
        raise ValueError(
            f"initializer.multipliers: {len(initializer.multipliers)} resolutions need a grid divisible by {factor}, "
            f"but it is {side} wide"
        )


def _check_batch(key: str, batch_size: int, image: int) -> None:
    if batch_size * image > _MOST_NUMBERS:
        raise ValueError(
            f"{key}={batch_size}: images of {image:,} numbers are {batch_size * image:,} in a batch, "
            f"expected {_MOST_NUMBERS:,} at most"
        )

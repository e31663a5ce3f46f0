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

from cdrl.foreign.places import checked_place, is_elsewhere
from cdrl.names import check_name
from cdrl.registry import DATA_SETS, KERNELS

_MOST_NUMBERS = 2**32
"""Numbers in a batch of images, over all processes: 16 GiB."""

BatchSize = Annotated[int, Field(ge=1, le=2**20)]
TrackerName = Literal["wandb", "mlflow"]


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


def folder_here_or_elsewhere(value: Any) -> Any:
    """A folder of this machine, as `expanded_path` has it, or the place of one elsewhere, as `checked_place` does.

    Raises:
        ValueError: it is neither.
    """
    return checked_place(value) if isinstance(value, str) and is_elsewhere(value) else expanded_path(value)


PathOrPlace = Annotated[Path | str, BeforeValidator(folder_here_or_elsewhere)]
"""A folder that a user writes: a path of this machine, or, as text, one elsewhere."""


class Section(BaseModel):
    """Section of the configuration: rejects unknown keys and wrong types, and is immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(Section):
    """Training data: the data set, the preparation of its images, and the classes."""

    name: str = Field(description=f"data set: {', '.join(DATA_SETS)}, or checkerboard")
    path: UserPath | None = Field(
        default=None,
        description="folder or file of a published data set; drawn faces, digits and the checkerboard need none",
    )
    check_sums: bool = Field(default=True, description="refuse files whose MD5 differs from the published one")
    crop: Literal[140, 178] = Field(
        default=140, description="side of the central square of CelebA's pictures, in pixels (the paper's is 140)"
    )
    prepared: PathOrPlace | None = Field(
        default=None,
        description=(
            "folder of shards, which prepare writes, and which is read instead of the published files from then on; "
            "or a copy of one elsewhere: https://…, s3://…, gs://…, hf://… or pipe:…"
        ),
    )
    cache_gib: float = Field(
        default=64,
        gt=0,
        description=(
            "of data.prepared elsewhere: GiB of it that data.cache keeps; shards not read for longest make room"
        ),
    )
    stream: bool = Field(
        default=False,
        description=(
            "read each batch from the shards: the set need not fit into memory; drawn faces are streamed from the cache"
        ),
    )
    image_size: int = Field(default=32, ge=2, description="side in pixels to which images are resized")
    channels: Literal[1, 3] = Field(default=3, description="3 for colour, 1 for grey")
    background: str = Field(
        default="white", validate_default=True, description="colour behind transparent pixels, by name or as '#rrggbb'"
    )
    max_pixels: int = Field(
        default=2**26,
        ge=1,
        le=2**27,
        description="of one picture: a larger one is refused, but for a JPEG, which can be decoded at a smaller size",
    )
    flip: bool = Field(default=False, description="mirror half of the images of a batch, chosen at random")
    labels: Literal["none", "class", "attributes"] = Field(
        default="none",
        description=(
            "condition: none; the data set's classes; or one class for each value of each of data.attributes (2i: "
            "the i-th is false, 2i+1: true), of which an image of a batch is given one at random (sec. 4.5)"
        ),
    )
    attributes: tuple[str, ...] = Field(
        default=(), description="attributes to be conditioned on, for labels: attributes"
    )
    style: Literal["avataaars", "toon-head"] = Field(default="avataaars", description="of drawn faces")
    zoom: float = Field(default=1.0, ge=1, le=4, description="drawn faces: so many times larger, cut off by the edges")
    num_train: int = Field(default=5000, ge=1, description="drawn faces: images in the training split")
    num_test: int = Field(default=1000, ge=1, description="drawn faces: images in the held-out split")
    cache: UserPath = Field(
        default=Path("data"), description="folder for drawn faces, and for weights that are downloaded"
    )

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
        elsewhere = isinstance(self.prepared, str)
        if self.name in DATA_SETS and DATA_SETS[self.name].needs_path and self.path is None and not elsewhere:
            raise ValueError(f"data.path is required for data.name={self.name}: the folder that holds the data set")
        if self.crop != 140 and self.name != "celeba":
            raise ValueError("data.crop is for data.name=celeba; of other pictures the largest square is taken")
        if self.zoom != 1 and self.name != "faces":
            raise ValueError("data.zoom is for data.name=faces")
        if self.cache_gib != 64 and not elsewhere:
            raise ValueError("data.cache_gib is for data.prepared elsewhere, such as s3://bucket/folder")
        if self.stream and self.prepared is None and self.name != "faces":
            raise ValueError("data.stream needs data.prepared, a folder for shards, which prepare fills")
        if (self.labels == "attributes") != bool(self.attributes):
            raise ValueError("data.attributes must name attributes if, and only if, data.labels is 'attributes'")
        return self


class BottleneckConfig(Section):
    """Architecture of the first stage: taming's Encoder and Decoder around a KL or a VQ bottleneck."""

    bottleneck: Literal["kl", "vq"] = Field(
        default="kl", description="kl, Gaussian latents, or vq, entries of a codebook"
    )
    pixel_unshuffle: Literal[1, 2, 4, 8] = Field(
        default=1, description="side of the blocks of pixels that are folded into channels first"
    )
    channels: int = Field(default=128, ge=32, le=4096, multiple_of=32, description="width at the highest resolution")
    multipliers: Multipliers = Field(
        default=(1, 2, 4), description="widths of the resolutions, in channels; each after the first halves the grid"
    )
    num_blocks: int = Field(
        default=2, ge=1, le=64, description="residual blocks a resolution; the decoder has one more"
    )
    attention_resolutions: tuple[int, ...] = Field(
        default=(), description="sides of the grids with attention; the smallest has it always"
    )
    latent_channels: int = Field(default=3, ge=1, le=1024, description="channels of a latent")
    z_channels: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="channels beside the bottleneck, where some published models have others than latent_channels",
    )
    codebook_size: int = Field(default=8192, ge=2, le=2**20, description="entries of a VQ codebook")

    @property
    def shrinks_by(self) -> int:
        """How many times smaller the side of a latent is than that of its image."""
        return self.pixel_unshuffle * 2 ** (len(self.multipliers) - 1)


class ReconstructionConfig(Section):
    """Terms of the first stage's objective."""

    reconstruction: Literal["l1", "l2", "sum"] = Field(
        default="l1", description="mean absolute error, squared error, or their sum"
    )
    center_weight: float = Field(default=0.0, ge=0, description="excess weight of the middle over the rim; 0: none")
    perceptual: Literal["none", "lpips", "lite0"] = Field(
        default="none", description="distance on features: LPIPS, of VGG16, or that of the packaged EfficientNet-Lite0"
    )
    perceptual_weight: float = Field(default=1.0, ge=0, description="of the perceptual distance; 0: none")
    lpips_weights: UserPath | None = Field(
        default=None, description="folder with vgg16-397923af.pth and vgg.pth, for perceptual: lpips"
    )
    adversarial_weight: float = Field(
        default=0.0, ge=0, description="of the patch discriminator's verdict; 0: no discriminator"
    )
    adversarial_start: int = Field(default=0, ge=0, description="updates before the discriminator takes part")
    kl_weight: float = Field(
        default=1e-6, ge=0, description="of the KL divergence to the standard normal, in nats an image value"
    )
    codebook_weight: float = Field(default=1.0, ge=0, description="of the codebook's loss")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.perceptual == "lpips" and self.lpips_weights is None:
            raise ValueError(
                "autoencoder.objective.lpips_weights must name the folder of LPIPS weights for perceptual=lpips"
            )
        return self


class StageOneTrainingConfig(Section):
    """Optimization of the first stage."""

    num_steps: int = Field(ge=1, description="updates")
    batch_size: BatchSize = Field(default=16, description="images an update, over all processes")
    init: UserPath | None = Field(
        default=None,
        description="run, folder or shipped name whose weights training starts from, as far as they fit (fine-tuning)",
    )
    optimizer: Literal["adam", "muon"] = Field(default="adam", description="Adam, or Muon, which learns more an update")
    learning_rate: float = Field(default=4.5e-6, gt=0, description="after the warm-up")
    warmup_steps: int = Field(default=0, ge=0, description="updates over which the learning rate grows from 0")
    decay_fraction: float = Field(default=0.0, ge=0, le=1, description="last share of the steps with linear decay")
    ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of the moving average of the weights, which is what is kept; 0: none",
    )
    gradient_clip: float = Field(default=1.0, gt=0, description="largest norm of a gradient")
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        default="float32", description="of matrix work; auto: bfloat16 where the processor has it built in"
    )
    log_every: int = Field(default=50, ge=1, description="updates between two lines of metrics.jsonl")
    trackers: tuple[TrackerName, ...] = Field(
        default=(), description="programs that get the log and the pictures too, beside TensorBoard"
    )
    picture_every: int = Field(default=500, ge=1, description="updates between two pictures of reconstructions")
    checkpoint_every: int = Field(default=1000, ge=1, description="updates between two checkpoints")


class AutoencoderConfig(Section):
    """The first stage of a latent run."""

    run: UserPath | None = Field(
        default=None, description="run, folder or shipped name of a first stage to be used instead of training one"
    )
    latents: Literal["sample", "mean"] = Field(
        default="sample",
        description=(
            "what a KL bottleneck gives the second stage: a draw of each posterior, as in latent diffusion, or its "
            "mean, without noise that the decoder does not show"
        ),
    )
    architecture: BottleneckConfig = Field(default=BottleneckConfig(), description="of encoder and decoder")
    objective: ReconstructionConfig = Field(default=ReconstructionConfig(), description="terms of the loss")
    training: StageOneTrainingConfig | None = Field(default=None, description="optimization; needed to train one")


class ScheduleConfig(Section):
    """Noise levels and Langevin step sizes."""

    kind: Literal["cosine", "drl"] = Field(
        default="cosine",
        description=(
            "CDRL's cosine schedule (sec. 3.2), or that of DRL: a linear beta from 1e-4 to 0.02 over 1000 steps, "
            "cut at 0, 100, …, 500, 999 (fewer levels divide the first half, more the second)"
        ),
    )
    num_levels: int = Field(default=6, ge=2, le=10_000, description="T, noise levels with an energy each")
    logsnr_max: float = Field(
        default=9.8,
        le=30,
        description="log signal-to-noise ratio of level 0; beyond 30 single precision knows no noise",
    )
    logsnr_min: float = Field(default=-5.1, ge=-30, description="log signal-to-noise ratio of pure noise, level T")
    step_coefficient: float = Field(
        default=4e-4,
        gt=0,
        description=(
            "of the Langevin step size, s_t^2 = coefficient x r_t x sigma_{t+1}^2 (eq. 16, 19, 20); 2e-4 by "
            "default for kind drl"
        ),
    )
    step_scaling: Literal["sigma_bar", "constant"] = Field(
        default="sigma_bar", description="r_t: sigma_bar_t / sigma_bar_0, for images, or 1, for 2-D points"
    )
    temperature: Literal["step_size", "one"] = Field(
        default="step_size",
        description=(
            "divisor of the network's output in the log density: s_t^2 (Appendix A.2), or 1, where s_t is small "
            "beside the edges to be learned"
        ),
    )

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
    """The energy network."""

    channels: int = Field(
        default=128, ge=4, le=4096, multiple_of=2, description="width at the highest resolution (Tables 5, 6)"
    )
    multipliers: Multipliers = Field(
        default=(1, 2, 2, 2), description="widths of the resolutions, in channels; each after the first halves the grid"
    )
    num_blocks: int = Field(default=8, ge=1, le=100, description="residual blocks a resolution")
    spectral_norm: bool = Field(
        default=True, description="divide every layer but the last by its largest singular value (Appendix A.1)"
    )
    activation: Literal["leaky_relu", "silu"] = Field(
        default="leaky_relu",
        description=(
            "between layers: leaky_relu, as in the paper (Table 5), or silu, whose smooth gradient suits chains of "
            "few long steps"
        ),
    )
    fourier_features: int = Field(
        default=0, ge=0, le=65_536, description="random Fourier features added to the input, for space: point"
    )
    output_scale: float = Field(
        default=1.0, gt=0, description="factor of the network's scalar output; more than 1 for short chains"
    )
    reference: Literal["flat", "gaussian"] = Field(
        default="flat",
        description=(
            "density that is multiplied by exp of the network: flat, as in the paper, or gaussian, N(0, alpha^2 "
            "I), which keeps chains at the data's scale while little is learned"
        ),
    )


class InitializerConfig(Section):
    """The initializer: a U-Net on grids, an MLP on 2-D points."""

    channels: int = Field(
        default=64, ge=8, le=4096, multiple_of=2, description="width at the highest resolution (Appendix A.1)"
    )
    multipliers: Multipliers = Field(
        default=(1, 1, 1), description="widths of the resolutions, in channels; each after the first halves the grid"
    )
    num_blocks: int = Field(default=3, ge=1, le=100, description="residual blocks a resolution")
    attention_resolutions: tuple[int, ...] = Field(default=(16, 8), description="sides of the grids with attention")
    fourier_features: int = Field(
        default=0, ge=0, le=65_536, description="random Fourier features added to the input, for space: point"
    )
    dropout: float = Field(default=0.1, ge=0, lt=1, description="share of activations dropped in training")
    conditional: bool = Field(default=True, description="whether it sees the class; no for composition (sec. 4.5)")
    predicts: Literal["y", "x0", "epsilon"] = Field(
        default="y",
        description=(
            "y, the mean of the proposal; or the clean image x0, or all noise epsilon, from which that mean "
            "follows (Appendix G.1)"
        ),
    )
    target: Literal["refined", "data"] = Field(
        default="refined",
        description=(
            "what the proposal regresses on: the refined end of its own chain (eq. 8), or data, the true y_t "
            "(Appendix G.2)"
        ),
    )


class TrainingConfig(Section):
    """Cooperative training (Algorithm 1, Appendix A.2)."""

    num_steps: int = Field(default=400_000, ge=1, description="updates of both networks")
    batch_size: BatchSize = Field(default=256, description="images an update, over all processes")
    init: UserPath | None = Field(
        default=None,
        description="run, folder or shipped name whose weights training starts from, as far as they fit (fine-tuning)",
    )
    accumulation: int = Field(default=1, ge=1, description="micro-batches a process sums before an update")
    langevin_steps: int = Field(default=15, ge=1, description="K, steps that refine a proposal (Algorithm 1)")
    optimizer: Literal["adam", "muon"] = Field(default="adam", description="Adam, as in the paper, or Muon")
    pairs: Literal["shared_noise", "independent_noise"] = Field(
        default="shared_noise",
        description="x_{t+1} with the noise of x_t (eq. 9), or from x_t by one more noising step, as in DRL",
    )
    energy_lr: float = Field(default=1e-4, gt=0, description="learning rate of the energies, after the warm-up")
    initializer_lr: float = Field(
        default=1e-5, gt=0, description="learning rate of the initializers, after the warm-up"
    )
    warmup_steps: int = Field(
        default=10_000, ge=0, description="updates over which the learning rates grow from 0 (Appendix A.2)"
    )
    initializer_head_start: int = Field(default=500, ge=0, description="steps by which its warm-up is ahead (eq. 15)")
    decay_fraction: float = Field(default=0.0, ge=0, le=1, description="last share of the steps with linear decay")
    decay_floor: float = Field(default=0.02, ge=0, le=1, description="share of the learning rate at the end")
    ema: float = Field(
        default=0.9999,
        ge=0,
        lt=1,
        description="decay of the moving average of the weights, which is what samples; it warms up",
    )
    gradient_clip: float = Field(default=1.0, gt=0, description="largest norm of a gradient, for each network")
    label_dropout: float = Field(
        default=0.1, ge=0, le=1, description="share of images whose class is dropped, for classifier-free guidance"
    )
    classification_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of a second term of the energies' loss, which tells an image's class from another one",
    )
    chain_dtype: Literal["float32", "bfloat16", "auto"] = Field(
        default="float32",
        description="precision of the energies' matrix work in chains; auto: bfloat16 where it is built in",
    )
    learning_dtype: Literal["float32", "bfloat16", "auto"] = Field(
        default="float32",
        description="precision of the energies' matrix work where they learn, and of Muon's for them; auto: bfloat16 "
        "where it is built in; weights stay in float32",
    )
    compile: bool = Field(
        default=False, description="compile a chain's gradient step (torch.compile): a wait at the start, faster after"
    )
    cuda_graph: bool = Field(
        default=False, description="on a GPU: replay a batch's chain as one graph, so that no kernel waits for Python"
    )
    tf32: bool = Field(
        default=True, description="on a GPU: round the factors of float32 matrix work to the 10 bits of TF32"
    )
    recompute_energy: bool = Field(
        default=False,
        description="gradient checkpointing of the energy: its backward pass computes each block anew, for less memory",
    )
    log_every: int = Field(default=100, ge=1, description="updates between two lines of metrics.jsonl")
    trackers: tuple[TrackerName, ...] = Field(
        default=(), description="programs that get the log and the pictures too, beside TensorBoard"
    )
    sample_every: int = Field(default=5000, ge=1, description="updates between two pictures of samples")
    checkpoint_every: int = Field(default=5000, ge=1, description="updates between two checkpoints")
    on_divergence: Literal["stop", "rollback"] = Field(
        default="stop",
        description="stop, or go back to the last checkpoint with both learning rates halved, three times at most",
    )


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
    """Evaluation during training."""

    every: int = Field(ge=1, description="updates between two evaluations; the best model so far is kept in RUN/best")
    metric: Literal["fd_lite0", "fid"] = Field(
        default="fd_lite0", description="Fréchet distance on features that ship with a dependency, or FID"
    )
    num_samples: int = Field(default=1000, ge=100, description="samples that are compared with all images of the split")
    split: Literal["train", "test"] = Field(default="train", description="real images that samples are compared with")
    weights: UserPath | None = Field(
        default=None, description="file of Inception's weights, for fid; looked for in data.cache by default"
    )
    optional: bool = Field(
        default=False,
        description="train without being measured where Inception's weights are missing, instead of refusing",
    )


ThreadCount = Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]


class DeepSpeedConfig(Section):
    """Options passed to DeepSpeed."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=1,
        description=(
            "what processes share among them: 1 the optimizer's state, 2 gradients too, 3 weights too; 0 nothing"
        ),
    )


class Config(Section):
    """Configuration of a whole run."""

    space: Literal["pixel", "latent", "point"] = Field(
        description="what the energies model: pixels, latents of a first stage, or 2-D points"
    )
    seed: int = Field(default=0, ge=0, description="of everything random; the same seed, the same run")
    data: DataConfig = Field(description="the data set and the preparation of its images")
    autoencoder: AutoencoderConfig | None = Field(default=None, description="the first stage, for space: latent")
    schedule: ScheduleConfig = Field(default=ScheduleConfig(), description="noise levels and Langevin step sizes")
    energy: EnergyConfig = Field(default=EnergyConfig(), description="the energy network")
    initializer: InitializerConfig | None = Field(
        default=InitializerConfig(),
        description="the network that proposes; null for none, as in DRL: chains then start at x_{t+1}",
    )
    training: TrainingConfig = Field(default=TrainingConfig(), description="cooperative training (Algorithm 1)")
    sampling: SamplerSettings = Field(default=SamplerSettings(), description="the sampler (Algorithm 2)")
    evaluation: EvaluationConfig | None = Field(default=None, description="evaluation during training; none by default")
    deepspeed: DeepSpeedConfig = Field(default=DeepSpeedConfig(), description="options of DeepSpeed")
    threads: ThreadCount = Field(
        default="auto",
        description="CPU threads that a process trains with: a number; or auto, the fastest number, found by timing a "
        "few updates with each (of one process, where OMP_NUM_THREADS does not say)",
    )

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
        if self.training.classification_weight and self.data.labels == "none":
            raise ValueError("training.classification_weight tells classes apart, but data.labels is none")
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

"""The one door: a verb each, arguments in, one call out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Cooperative Diffusion Recovery Likelihood: energy-based models of pixels and of latents.\n\n"
    "A run is one YAML file under configs/. Pixels: train, then sample. Latents: train-autoencoder, encode, train, "
    "sample. To resume anything, type the same command again. Over several processes: "
    "torchrun --standalone --nproc_per_node 2 run.py train configs/cifar10.yaml",
)

ConfigPath = Annotated[Path, typer.Argument(help="YAML file of the run, e.g. configs/digits.yaml")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="settings to change, e.g. training.batch_size=64 space=latent")
]
RunOption = Annotated[
    Path | None,
    typer.Option(
        # torchrun takes "--run" for an abbreviation of an option of its own, even behind the script's name.
        "--run",
        "--run-folder",
        help="run folder; runs/NAME-OF-THE-CONFIG by default (under torchrun: --run-folder)",
    ),
]
RunFolder = Annotated[Path, typer.Argument(help="folder of a trained run, e.g. runs/digits")]
BatchOption = Annotated[int, typer.Option(min=1, help="images at a time; changes no image")]
LabelOption = Annotated[
    int | None, typer.Option(help="class id 0 … C-1; -1 for no class; all classes in turn by default")
]
StepsOption = Annotated[int | None, typer.Option(min=0, help="steps a level; 0: initializer alone")]
KernelOption = Annotated[
    str | None, typer.Option(help="langevin, or mala or hmc, which accept or reject; the run's own by default")
]
LeapfrogOption = Annotated[int | None, typer.Option(min=1, help="gradients in a step of hmc")]


@app.command("quickstart")
def quickstart(
    config: Annotated[Path, typer.Option(help="configuration to run through")] = Path("configs/quickstart.yaml"),
    run: RunOption = None,
    short: Annotated[bool, typer.Option("--short", help="a minute's rehearsal: the pictures will be poor")] = False,
) -> None:
    """Both stages on drawn faces, end to end, with pictures and figures.

    Example: python run.py quickstart
    """
    with _clear_errors():
        from pipelines.quickstart import run_quickstart

        run_quickstart(config, _run_folder(config, run), short=short)


@app.command("prepare")
def prepare(config: ConfigPath, overrides: Overrides = None) -> None:
    """Turn published files into shards in data.prepared, cropped and resized, which training then reads.

    Examples:

    python run.py prepare configs/imagenet32.yaml

    python run.py prepare configs/celeba64_composition.yaml data.crop=178 data.prepared=data/prepared/celeba178
    """
    with _clear_errors():
        from cdrl.config import load_config
        from pipelines.preparing import run_preparation

        for line in run_preparation(load_config(config, overrides or ())):
            typer.echo(line)


@app.command("train-autoencoder")
def train_autoencoder(config: ConfigPath, overrides: Overrides = None, run: RunOption = None) -> None:
    """Train the first stage of a latent run.

    Example: python run.py train-autoencoder configs/fashion_mnist_latent.yaml
    """
    with _clear_errors():
        from cdrl.config import load_config
        from pipelines.training import run_stage_one

        run_stage_one(load_config(config, overrides or ()), _run_folder(config, run))


@app.command("encode")
def encode(config: ConfigPath, overrides: Overrides = None, run: RunOption = None) -> None:
    """Turn the data set into latent shards with the trained first stage.

    Example: python run.py encode configs/fashion_mnist_latent.yaml
    """
    with _clear_errors():
        from cdrl.config import load_config
        from pipelines.training import run_encoding

        run_encoding(load_config(config, overrides or ()), _run_folder(config, run))


@app.command("train")
def train(config: ConfigPath, overrides: Overrides = None, run: RunOption = None) -> None:
    """Train the energies and their initializers on pixels, latents or points.

    Examples:

    python run.py train configs/digits.yaml

    python run.py train configs/digits.yaml training.num_steps=5000 --run runs/longer

    torchrun --standalone --nproc_per_node 2 run.py train configs/digits.yaml
    """
    with _clear_errors():
        from cdrl.config import load_config
        from pipelines.training import run_stage_two

        run_stage_two(load_config(config, overrides or ()), _run_folder(config, run))


@app.command("sample")
def sample(
    run: RunFolder,
    num_images: Annotated[int, typer.Option(min=1, help="how many")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="seed of the first image; the next has the next seed")] = 0,
    batch_size: BatchOption = 64,
    label: LabelOption = None,
    steps: StepsOption = None,
    kernel: KernelOption = None,
    leapfrog_steps: LeapfrogOption = None,
    step_adjustment: Annotated[
        bool | None, typer.Option(help="scale step sizes by sqrt(K / steps), as in the paper's Table 2")
    ] = None,
    denoise: Annotated[float | None, typer.Option(min=0, help="factor of the last denoising step")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the images; RUN/generated by default")] = None,
) -> None:
    """Draw images into 000000.png, 000001.png, … and grid.png.

    Examples:

    python run.py sample runs/digits --num-images 16 --label 3

    python run.py sample runs/digits --kernel mala --steps 40

    python run.py sample runs/quickstart --num-images 1000 --batch-size 250 --out faces
    """
    with _clear_errors():
        from pipelines import CDRLPipeline
        from pipelines.generation import default_device, labels_in_turn, write_samples

        pipeline = CDRLPipeline.from_pretrained(run, default_device())
        seeds = range(seed, seed + num_images)
        generated = pipeline(
            num_images,
            seeds=seeds,
            label=labels_in_turn(pipeline, seeds) if label is None else label,
            steps=steps,
            step_adjustment=step_adjustment,
            denoise=denoise,
            kernel=kernel,
            leapfrog_steps=leapfrog_steps,
            batch_size=batch_size,
            progress=True,
        )
        folder = run / "generated" if out is None else out
        write_samples(pipeline, generated, folder)
        typer.echo(f"{num_images} samples in {folder}")


@app.command("judge")
def judge(
    run: RunFolder,
    num_images: Annotated[int, typer.Option(min=10, help="samples to be judged")] = 300,
    seed: Annotated[int, typer.Option(min=0, help="seed of the first image")] = 0,
) -> None:
    """Have a small classifier, trained on the run's real images, read samples: classes, junk, Fréchet distance.

    Example: python run.py judge runs/digits
    """
    with _clear_errors():
        from pipelines.evaluation import judge_run

        for name, value in judge_run(run, num_images, seed).items():
            typer.echo(f"{name}: {value}")


@app.command("compare")
def compare(
    configs: Annotated[list[Path], typer.Argument(help="YAML files; the first says how many images by default")],
    seeds: Annotated[str, typer.Option(help="seeds of every configuration, e.g. 0,1,2")] = "0",
    images: Annotated[int | None, typer.Option(min=1, help="training images of every run, the same for all")] = None,
    samples: Annotated[int, typer.Option(min=10, help="samples of every run to be judged")] = 300,
    processes: Annotated[int, typer.Option(min=1, help="trainings side by side, each on one thread")] = 1,
    runs: Annotated[Path, typer.Option(help="folder of the runs and of comparison.md")] = Path("runs/comparison"),
) -> None:
    """Train configurations at an equal budget, judge them alike, and print one table.

    Examples:

    python run.py compare configs/ablation/*.yaml --seeds 0,1 --processes 2

    python run.py compare configs/drl_cifar10.yaml configs/cifar10.yaml --images 2560000 --runs runs/drl
    """
    with _clear_errors():
        from pipelines.ablation import compare as compare_configs
        from pipelines.ablation import parse_seeds

        table = compare_configs(
            configs, runs, seeds=parse_seeds(seeds), images=images, num_samples=samples, processes=processes
        )
        typer.echo(table)
        typer.echo(f"written to {runs / 'comparison.md'} and {runs / 'comparison.json'}")


@app.command("chains")
def chains(
    run: RunFolder,
    num_images: Annotated[int, typer.Option(min=1, help="rows of the picture")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="seed of the first image; the next has the next seed")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="steps of the chain at every level")] = 1000,
    every: Annotated[
        int | None, typer.Option(min=1, help="steps between two columns; a tenth of all by default")
    ] = None,
    level: Annotated[int, typer.Option(min=0, help="level whose chain is shown; 0 is the last and cleanest")] = 0,
    label: LabelOption = None,
    kernel: KernelOption = None,
    leapfrog_steps: LeapfrogOption = None,
    batch_size: BatchOption = 64,
) -> None:
    """Let chains run far beyond training at every level: a picture of their states, and figures.

    Examples:

    python run.py chains runs/digits

    python run.py chains runs/digits --kernel mala --level 2 --every 50
    """
    with _clear_errors():
        from pipelines.chains import in_words, run_chains

        picture, levels = run_chains(
            run,
            num_images,
            seed=seed,
            label=label,
            steps=steps,
            every=every,
            level=level,
            kernel=kernel,
            leapfrog_steps=leapfrog_steps,
            batch_size=batch_size,
        )
        typer.echo(in_words(levels))
        typer.echo(f"{picture} and {picture.with_suffix('.json').name}")


@app.command("interpolate")
def interpolate(
    run: RunFolder,
    from_seed: Annotated[int, typer.Option(min=0, help="seed of the sample at one end")],
    to_seed: Annotated[int, typer.Option(min=0, help="seed of the sample at the other end")],
    num_images: Annotated[int, typer.Option(min=2, help="how many, with both ends")] = 8,
    label: LabelOption = None,
    steps: StepsOption = None,
    kernel: KernelOption = None,
    leapfrog_steps: LeapfrogOption = None,
    batch_size: BatchOption = 64,
) -> None:
    """Go from one sample to another through images whose noise lies between theirs.

    The ends are what sample draws for their seeds. Where these have different classes, the density between them is a
    mixture of both, in the logarithm.

    Examples:

    python run.py interpolate runs/digits --from-seed 3 --to-seed 8

    python run.py interpolate runs/digits --from-seed 3 --to-seed 13 --label 3 --num-images 12
    """
    with _clear_errors():
        from pipelines.interpolation import run_interpolation

        picture = run_interpolation(
            run,
            (from_seed, to_seed),
            num_images,
            label=label,
            steps=steps,
            kernel=kernel,
            leapfrog_steps=leapfrog_steps,
            batch_size=batch_size,
        )
        typer.echo(str(picture))


@app.command("density")
def density(
    run: RunFolder,
    num_samples: Annotated[int, typer.Option(min=100, help="samples to be compared with the truth")] = 20_000,
    seed: Annotated[int, typer.Option(min=0, help="seed of the first sample")] = 0,
) -> None:
    """Compare what a run of 2-D points has learned with the true density, level by level, in figures and a picture.

    Example: python run.py density runs/checkerboard
    """
    with _clear_errors():
        from pipelines.density import density_report, density_table

        typer.echo(density_table(density_report(run, num_samples, seed)))
        typer.echo(f"picture and figures in {run / 'density.png'} and {run / 'density.json'}")


@app.command("import-cdrl")
def import_cdrl(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint as the paper's authors publish it, .pth.tar")],
    run: Annotated[Path, typer.Argument(help="run folder to make")],
    raw: Annotated[bool, typer.Option("--raw", help="take the raw weights, not their moving average")] = False,
    image_size: Annotated[
        int | None, typer.Option(help="side of the images; by default read off where attention begins")
    ] = None,
) -> None:
    """Turn published CDRL weights into a run.

    Example: python run.py import-cdrl cifar10.pth.tar runs/published && python run.py sample runs/published
    """
    with _clear_errors():
        from pipelines.importing import import_cdrl as make_run

        make_run(checkpoint, run, average=not raw, image_size=image_size)


@app.command("import-autoencoder")
def import_autoencoder(
    path: Annotated[
        Path, typer.Argument(help="checkpoint of latent diffusion or taming (.ckpt, .safetensors), or diffusers folder")
    ],
    run: Annotated[Path, typer.Argument(help="run folder to make")],
    raw: Annotated[
        bool, typer.Option("--raw", help="take the raw weights where the checkpoint has a moving average too")
    ] = False,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="side of the images; by default what the checkpoint says, or else 256")
    ] = None,
) -> None:
    """Turn a published first stage (VQ or KL) into a run that encode and train use like one of yours.

    Examples:

    python run.py import-autoencoder vq-f4/model.ckpt runs/vq-f4

    python run.py import-autoencoder stable-diffusion/vae runs/kl-f8 --image-size 256

    python run.py encode configs/celebahq256_vq_f4.yaml autoencoder.run=runs/vq-f4
    """
    with _clear_errors():
        from pipelines.importing import import_autoencoder as make_run

        first_stage = make_run(path, run, average=not raw, image_size=image_size)
        image = (first_stage.image_channels, first_stage.image_size, first_stage.image_size)
        latent = first_stage.latent_shape
        typer.echo(f"{run}: images {_shape(image)} to latents {_shape(latent)} ({first_stage.config.bottleneck})")


def _shape(sizes: tuple[int, ...]) -> str:
    return " x ".join(str(size) for size in sizes)


def _run_folder(config: Path, run: Path | None) -> Path:
    return Path("runs") / config.stem if run is None else run


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Mistakes that a user can mend are printed without a traceback."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if _has_cuda() else "cpu")
    from cdrl.config import ConfigError
    from cdrl.data import DataError
    from cdrl.loop import Interrupted
    from cdrl.monitor import DivergenceError
    from cdrl.runs import RunError

    try:
        yield
    except Interrupted as stop:
        typer.echo(str(stop), err=True)
        raise typer.Exit(130) from None
    except (ConfigError, DataError, DivergenceError, RunError, ValueError) as error:
        if os.environ.get("CDRL_TRACEBACK"):
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from None


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    app()

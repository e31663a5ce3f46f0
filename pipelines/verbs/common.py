"""What the verbs have in common: the door, their arguments, and mistakes in one line."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperGroup

_JOURNEY = ("quickstart", "prepare", "train-autoencoder", "encode", "train", "sample", "judge", "evaluate", "report")


class _JourneyFirst(TyperGroup):
    """The verbs that lead from data to figures in the order of their use, the others by name."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*_JOURNEY, *sorted(self.commands.keys() - set(_JOURNEY))]


class _Door(typer.Typer):
    """A door whose verbs are given paths with ~ at their beginning expanded: a shell leaves it in --out=~/here."""

    def command(self, *names: Any, **settings: Any) -> Callable[[Any], Any]:
        """As Typer's, for a verb whose paths may begin with ~."""
        register = super().command(*names, **settings)
        return lambda verb: register(_with_expanded_paths(verb))


def _with_expanded_paths(verb: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(verb)
    def asked(**arguments: Any) -> None:
        verb(**{name: _expanded(value) for name, value in arguments.items()})

    return asked


def _expanded(value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(each) for each in value]
    if not isinstance(value, Path):
        return value
    try:
        return value.expanduser()
    except RuntimeError:
        raise typer.BadParameter(f"{value}: expected ~ or ~user to be a home folder of this machine") from None


app = _Door(
    cls=_JourneyFirst,
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
LabelOption = Annotated[
    int | None, typer.Option(help="class id 0 … C-1; -1 for no class; all classes in turn by default")
]

Options = dict[str, Any]
"""`SamplerOptions`, of which the door knows nothing before it is opened: to load all of it takes seconds."""

Verb = Callable[..., None]


def _option(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _steps(value: str) -> int | str:
    if value != "auto" and not value.isdecimal():
        raise typer.BadParameter(f"expected a number of steps or auto, found '{value}'")
    return value if value == "auto" else int(value)


_SAMPLER_OPTIONS = {
    parameter.name: parameter
    for parameter in (
        _option(
            "steps",
            Annotated[
                str | None,
                typer.Option(
                    parser=_steps, metavar="<int|auto>", help="steps a level; 0: initializer alone; auto: few and long"
                ),
            ],
        ),
        _option(
            "step_adjustment",
            Annotated[bool | None, typer.Option(help="scale step sizes by sqrt(K / steps), as in the paper's Table 2")],
        ),
        _option(
            "kernel",
            Annotated[
                str | None,
                typer.Option(help="langevin, or mala or hmc, which accept or reject; the run's own by default"),
            ],
        ),
        _option("leapfrog_steps", Annotated[int | None, typer.Option(min=1, help="gradients in a step of hmc")]),
        _option(
            "temperature",
            Annotated[
                float | None, typer.Option(min=0.01, help="of the chains; below 1: less noise, fewer rare images")
            ],
        ),
        _option("denoise", Annotated[float | None, typer.Option(min=0, help="factor c of the last denoising step")]),
        _option("batch_size", Annotated[int, typer.Option(min=1, help="images at a time; changes no image")], 64),
    )
}


def with_sampler_options(*, without: Collection[str] = ()) -> Callable[[Verb], Verb]:
    """Give a verb the sampler's options, but for some, in one argument ``options``, a `SamplerOptions`."""
    shared = {name: parameter for name, parameter in _SAMPLER_OPTIONS.items() if name not in without}

    def decorate(verb: Verb) -> Verb:
        @functools.wraps(verb)
        def asked(**arguments: Any) -> None:
            options = {name: arguments.pop(name) for name in shared}
            verb(**arguments, options={**options, "progress": True})

        # Typer reads a verb's arguments off its signature.
        hints = get_type_hints(verb, include_extras=True)
        own = {
            name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
            for name, parameter in inspect.signature(verb).parameters.items()
            if name != "options"
        }
        asked.__signature__ = inspect.Signature([*own.values(), *shared.values()])  # type: ignore[attr-defined]
        asked.__annotations__ = {name: parameter.annotation for name, parameter in {**own, **shared}.items()}
        return asked

    return decorate


def run_folder(config: Path, run: Path | None) -> Path:
    """Where a configuration's run lies unless told otherwise."""
    return Path("runs") / config.stem if run is None else run


@contextmanager
def clear_errors() -> Iterator[None]:
    """Mistakes that a user can mend are printed without a traceback."""
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if _has_cuda() else "cpu")
    from cdrl.config import ConfigError
    from cdrl.data import DataError
    from cdrl.runs.run import RunError
    from cdrl.training.interruption import Interrupted
    from cdrl.training.monitor import DivergenceError

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

"""What the verbs have in common: the door, their arguments, and mistakes in one line."""

from __future__ import annotations

import errno
import functools
import inspect
import json
import os
import shlex
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args, get_type_hints

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperGroup

from cdrl import __version__
from cdrl.config import SamplerSettings
from cdrl.installation import program
from cdrl.runs.pretrained import is_pretrained, pretrained_names

_JOURNEY = (
    "quickstart",
    "plan",
    "prepare",
    "train-autoencoder",
    "encode",
    "train",
    "sample",
    "judge",
    "evaluate",
    "report",
)


class _JourneyFirst(TyperGroup):
    """The verbs that lead from data to figures in the order of their use, the others by name."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*_JOURNEY, *sorted(self.commands.keys() - set(_JOURNEY))]


class _Door(typer.Typer):
    """A door whose verbs are given paths with ~ at their beginning expanded: a shell leaves it in --out=~/here."""

    def command(self, *names: Any, **settings: Any) -> Callable[[Any], Any]:
        """As Typer's, for a verb whose paths may begin with ~, and whose examples are written for run.py."""
        register = super().command(*names, **settings)

        def registered(verb: Callable[..., None]) -> Callable[..., None]:
            asked = _with_expanded_paths(verb)
            asked.__doc__ = (verb.__doc__ or "").replace("python run.py", program())
            return register(asked)

        return registered


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
    add_completion=program() == "cdrl",  # a shell completes commands, not arguments of python
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Cooperative Diffusion Recovery Likelihood: energy-based models of pixels and of latents.\n\n"
    "A run is one YAML file under configs/. Pixels: train, then sample. Latents: train-autoencoder, encode, train, "
    "sample. To resume anything, type the same command again. Over several processes: "
    f"{program()} train configs/cifar10.yaml --processes 2, or torchrun --nproc_per_node 2 {program().split()[-1]} "
    "train …",
)


def _tell_version(asked: bool) -> None:
    if asked:
        typer.echo(f"cdrl {__version__}")
        raise typer.Exit


@app.callback()
def _door(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Its text is the door's own, above."""


ConfigPath = Annotated[
    Path, typer.Argument(help="YAML file of the run, e.g. configs/digits.yaml; or the name of one that ships: digits")
]
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


def _run_or_pretrained(value: str) -> Path:
    """A run folder; of weights that ship, which are named, the one in which their results go."""
    folder = Path(value)
    if not is_pretrained(folder):
        return folder
    with clear_errors():
        from pipelines.jobs.exporting import run_of_pretrained

        return run_of_pretrained(value)


RunFolder = Annotated[
    Path,
    typer.Argument(
        parser=_run_or_pretrained,
        metavar="RUN",
        help=f"folder of a trained run, e.g. runs/digits; or weights that ship: {', '.join(pretrained_names())}",
    ),
]
InitOption = Annotated[
    Path | None,
    typer.Option(help="run, or weights that ship, whose weights training starts from as far as they fit: fine-tuning"),
]
ProcessesOption = Annotated[
    int, typer.Option(min=1, help="processes of this machine that work together; one for each GPU, say")
]


def parse_label(value: str) -> int | str:
    """A class as the command line names it: a number is an id, anything else a name."""
    return int(value) if value.removeprefix("-").isdecimal() else value


LabelOption = Annotated[
    Any,
    typer.Option(
        parser=parse_label,
        metavar="<id|name>",
        help="class: its id 0 … C-1 or its name; -1 for no class  [default: all classes in turn]",
    ),
]

Options = dict[str, Any]
"""Keywords of `CDRLPipeline.drawing`."""

Verb = Callable[..., None]


def _steps(value: str) -> int | str:
    if value != "auto" and not value.isdecimal():
        raise typer.BadParameter(f"expected a number of steps or auto, found '{value}'")
    return value if value == "auto" else int(value)


def _sampler_option(name: str, field: FieldInfo) -> inspect.Parameter:
    """The option of a sampler's setting: its meaning and default are those of `SamplerSettings`."""
    default = "" if field.default is None else f", else {field.default}"
    text = f"{field.description}  [default: the run's own{default}]"
    # Of a setting that may be None the other type is the option's.
    kind: Any = next(iter(get_args(field.annotation)), field.annotation)
    parsing: dict[str, Any] = {}
    if name == "steps":
        kind, parsing = str, {"parser": _steps, "metavar": "<int|auto>"}
    annotation: Any = Annotated[kind | None, typer.Option(help=text, **parsing)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


_SAMPLER_OPTIONS = {
    **{name: _sampler_option(name, field) for name, field in SamplerSettings.model_fields.items()},
    "batch_size": inspect.Parameter(
        "batch_size",
        inspect.Parameter.KEYWORD_ONLY,
        default=64,
        annotation=Annotated[int, typer.Option(min=1, help="images at a time; changes no image")],
    ),
}


def with_sampler_options(*, without: Collection[str] = ()) -> Callable[[Verb], Verb]:
    """Give a verb the sampler's options, but for some, in one argument ``options``."""
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


def work_together(processes: int) -> None:
    """Start the processes that are asked for and end with them, unless this is one of those that were started."""
    started = os.environ.get("WORLD_SIZE", "1")
    if started not in ("1", str(processes)) and processes > 1:
        raise typer.BadParameter(f"--processes {processes}: torchrun has started {started} already")
    if processes > 1 and started == "1":
        from cdrl.training.processes import launch

        raise typer.Exit(launch(processes))


def with_init(overrides: list[str] | None, key: str, init: Path | None) -> list[str]:
    """The overrides, and that of --init."""
    return [*(overrides or ()), *(() if init is None else (f"{key}={json.dumps(str(init))}",))]


def tell(result: str, *following: str | Path) -> None:
    """Print where results lie and, if there is one, the command that comes next; of several processes one does.

    Args:
        following: the words of that command, from its verb on.
    """
    if os.environ.get("RANK", "0") == "0":
        typer.echo(result)
        if following:
            typer.echo(f"next: {program()} {shlex.join(map(str, following))}")


def as_asked(config: Path, overrides: list[str] | None, run: Path | None = None) -> list[str | Path]:
    """Configuration, overrides and run folder as they were typed, for the command that comes next."""
    return [config, *(overrides or ()), *(() if run is None else ("--run", run))]


@contextmanager
def clear_errors(*, computes: bool = False) -> Iterator[None]:
    """Mistakes that a user can mend, and files that cannot be written, are one line without a traceback.

    Of several processes that torchrun has started the first to fail tells, before torchrun does.

    Args:
        computes: what is done is no training, which looks for itself, but takes networks: leave cores that are busy.
    """
    launcher = os.getppid()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if _has_cuda() else "cpu")
    from cdrl.config import ConfigError
    from cdrl.data import DataError
    from cdrl.runs.run import RunError, os_error_in_words
    from cdrl.training.interruption import Interrupted
    from cdrl.training.machine import idle_cores
    from cdrl.training.monitor import DivergenceError
    from cdrl.training.processes import (
        another_has_told,
        end_among_others,
        first_to_fail,
        part_from_others,
        stop_with_launcher,
    )

    stop_with_launcher(launcher)

    def end(message: str, code: int) -> NoReturn:
        told = first_to_fail(message)
        if told is not None:
            typer.echo(told, err=True)
        end_among_others(code)
        raise typer.Exit(code)

    try:
        with idle_cores() if computes else nullcontext():
            yield
        part_from_others()
    except Interrupted as stop:
        end(str(stop), 130)
    except (ConfigError, DataError, DivergenceError, RunError, ValueError, OSError) as error:
        # A closed pipe is no mistake: the door ends quietly.
        if os.environ.get("CDRL_TRACEBACK") or (isinstance(error, OSError) and error.errno == errno.EPIPE):
            raise
        end(f"error: {os_error_in_words(error) if isinstance(error, OSError) else error}", 2)
    except Exception:
        # Whoever works with a process that has failed fails in any way at all, and has nothing to add.
        if os.environ.get("CDRL_TRACEBACK") or not another_has_told():
            raise
        end_among_others(2)
        raise typer.Exit(2) from None


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()

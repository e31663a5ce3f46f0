"""The verb that serves a page to try models on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.verbs.common import app, clear_errors


@app.command("demo")
def demo(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(help="trained runs, or names of weights that ship: all of the latter by default"),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="of the page  [default: the first free one from 7860 on]")
    ] = None,
    show: Annotated[bool, typer.Option("--open", help="open the page in a browser")] = False,
) -> None:
    """Serve a page to try trained models in a browser of this machine: generate, compose, fill in, score, interpolate.

    It needs the extra 'demo', and nothing from outside while it runs.

    Examples:

    python run.py demo

    python run.py demo runs/quickstart heads256 --open
    """
    with clear_errors(computes=True):
        from pipelines.demo.runs import DemoRuns

        offered = DemoRuns(runs or ())
        try:
            from pipelines.demo.page import build_page, serve
        except ImportError as error:
            if (error.name or "").split(".")[0] != "gradio":
                raise
            raise ValueError(
                "the page needs Gradio: pip install 'gradio>=6.30,<7', or this project's extra 'demo'"
            ) from None
        page = build_page(offered)
        typer.echo(f"{', '.join(offered.names)} at {serve(page, port, show=show)} (Ctrl-C ends it)")
        page.block_thread()

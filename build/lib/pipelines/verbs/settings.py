"""The verb that tells what can be set."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.verbs.common import app, clear_errors, tell


@app.command("settings")
def settings(
    section: Annotated[str, typer.Argument(help="a section, such as training or autoencoder.objective")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="print the whole as docs/settings.md")] = False,
) -> None:
    """Tell what a configuration may hold: every setting with what it may be, its default and what it means.

    Example: python run.py settings schedule
    """
    with clear_errors():
        from cdrl.settings_reference import settings_in_markdown, settings_in_text

        if markdown and section:
            raise typer.BadParameter("--markdown prints all sections: leave the section out")
        tell((settings_in_markdown() if markdown else settings_in_text(section)).removesuffix("\n"))

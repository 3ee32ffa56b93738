"""`neft data inspect`: rows as the model sees them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from neftcli.cli.display import choose_display
from neftcli.cli.options import recipe_of, with_recipe

app = typer.Typer(help="Look at data as the model sees it.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Look at data as the model sees it."""


@app.command("inspect")
@with_recipe
def inspect(
    layers: list[dict[str, Any]],
    recipe: str | None,
    rows: Annotated[int, typer.Option("--rows", help="How many rows to show.", min=1)] = 3,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the rows as a page to open in a browser.")
    ] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object an event on stdout.")] = False,
) -> None:
    """Show counts, and a few rows as the model sees them, with what carries loss."""
    from neftcli.cli.display.html_page import Page
    from neftcli.data.inspection import inspect_row
    from neftcli.training.inputs import prepare_inputs, report_data

    with (
        choose_display(json_lines=json_lines, quiet=False) as display,
        nullcontext(display) if html is None else Page(html, display) as observer,
    ):
        prepared, chat, notices = prepare_inputs(recipe_of(layers, recipe), observer, weights=False)
        report_data(prepared, notices, observer)
        for row in prepared.train[:rows]:
            observer.notify(inspect_row(chat.tokenizer, row))

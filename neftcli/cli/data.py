"""`neft data inspect`: show rows as the model sees them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from neftcli.cli.display import choose_display
from neftcli.cli.help import JsonOption, command_with, panel
from neftcli.cli.options import recipe_of, with_recipe

app = typer.Typer(help="Look at data as the model sees it.", no_args_is_help=True)


@app.callback()
def root() -> None:
    """Look at data as the model sees it."""


@app.command(
    "inspect",
    cls=command_with(
        ("neft data inspect --dataset rows.jsonl", "show the first rows, with the tokens that carry loss"),
        ("neft data inspect --dataset rows.jsonl --rows 50 --html rows.html", "write a page to open in a browser"),
    ),
)
@with_recipe("model", "data")
def inspect(
    layers: list[dict[str, Any]],
    recipe: str | None,
    rows: Annotated[
        int, panel("Output", "--rows", metavar="INTEGER", help="Number of rows to show  [default: 3]", min=1)
    ] = 3,
    html: Annotated[
        Path | None, panel("Output", "--html", metavar="FILE", help="Write the rows as a page for a browser")
    ] = None,
    json_lines: JsonOption = False,
) -> None:
    """Show rows as the model sees them, and which tokens carry loss."""
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

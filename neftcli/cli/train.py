"""`neft train`: fine-tunes by a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from neftcli.cli.display import choose_display
from neftcli.cli.options import with_recipe
from neftcli.recipe.schema import Recipe


@with_recipe
def train(
    recipe: Recipe,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the resolved recipe, the data and the memory; train nothing.")
    ] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object an event on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the last line and errors.")] = False,
) -> None:
    """Fine-tune a model with NEFTune.

    Without options: SmolLM2-135M on the built-in set (the quickstart recipe). Command line beats recipe beats default.
    """
    with choose_display(json_lines=json_lines, quiet=quiet) as display:
        if dry_run:
            from neftcli.training.plan import plan

            plan(recipe, display)
        else:
            from neftcli.training.run import train as run

            run(recipe, display)

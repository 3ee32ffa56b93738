"""`neft recipes`: list, show and copy the shipped recipes."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from neftcli.cli.completion import complete_recipe
from neftcli.cli.help import Command, command_with
from neftcli.errors import InputError, Problem
from neftcli.recipe import catalog
from neftcli.recipe.keys import keys

app = typer.Typer(help="List, show and copy the shipped recipes.", invoke_without_command=True)


@app.callback()
def list_recipes(context: typer.Context) -> None:
    """List the shipped recipes, with a line about each."""
    if context.invoked_subcommand is not None:
        return
    from rich.table import Table

    from neftcli.cli.display.screens import list_console
    from neftcli.recipe.loading import load_recipe

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for name in catalog.list_recipes():
        table.add_row(name, load_recipe(name).about)
    console = list_console()
    console.print(table)
    console.print(
        "\nneft train --recipe NAME    neft recipes show NAME    neft recipes copy NAME FILE.yaml", style="dim"
    )


@app.command("show", cls=Command)
def show(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE", help="Shipped recipe or YAML file", autocompletion=complete_recipe)
    ],
    every: Annotated[bool, typer.Option("--all", help="Show every option with its help")] = False,
) -> None:
    """Print a recipe, or with --all every option with its help."""
    from neftcli.recipe.loading import read_recipe_layers

    if every:
        typer.echo(_annotated(name))
    else:
        file = catalog.find_recipe(name, origin="neft recipes show")
        read_recipe_layers(str(file))  # rejects a file that is not a recipe
        typer.echo(file.read_text(encoding="utf-8"), nl=False)


@app.command("schema", cls=command_with(("neft recipes schema > recipe.schema.json", "write the schema to a file")))
def schema() -> None:
    """Print the JSON schema of recipes, with which an editor completes and checks them.

    With the YAML extension of VS Code and others, a recipe names the file in its first line:
    # yaml-language-server: $schema=recipe.schema.json
    """
    import json

    from neftcli.recipe.json_schema import build_json_schema

    typer.echo(json.dumps(build_json_schema(), indent=2, ensure_ascii=False))


@app.command("copy", cls=Command)
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Shipped recipe", autocompletion=complete_recipe)],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="[TARGET]", help="Folder or new file  [default: the current folder]", show_default=False
        ),
    ] = Path("."),
) -> None:
    """Copy a recipe in order to change it."""
    source = catalog.find_recipe(name, origin="neft recipes copy")
    file = target / source.name if target.is_dir() else target
    if file.exists():
        raise InputError(
            Problem(f"{file}: this file exists and is not overwritten", str(file), f"neft recipes copy {name} NEW.yaml")
        )
    if not file.parent.is_dir():
        hint = f"mkdir -p {shlex.quote(str(file.parent))}"
        raise InputError(Problem(f"{file.parent}: there is no such folder", str(target), hint))
    if file.suffix not in catalog.SUFFIXES:
        hint = f"neft recipes copy {name} {shlex.quote(f'{file}.yaml')}"
        raise InputError(Problem("a recipe file ends in .yaml", str(file), hint))
    command = f"neft train --recipe {shlex.quote(str(file))}"
    text = source.read_text(encoding="utf-8")
    text = text.replace(f"neft train --recipe {source.stem}\n", f"{command}\n", 1)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            Problem(f"{file} can't be written", error.strerror or str(error), "a file in another folder")
        ) from None
    typer.echo(f"{file}\n{command}")


def _annotated(name: str) -> str:
    """Return all options with their values, each with its help, type and flag."""
    from ruamel.yaml import YAML

    from neftcli.recipe.loading import load_recipe, to_yaml

    values = YAML(typ="safe", pure=True).load(to_yaml(load_recipe(name)))
    lines: list[str] = []
    sections: list[str] = []
    for key in keys():
        *parents, last = key.path.split(".")
        for depth, parent in enumerate(parents):
            if sections[: depth + 1] != parents[: depth + 1]:
                lines += ["", f"{'  ' * depth}{parent}:"]
                sections = parents[: depth + 1]
        value = values
        for part in (*parents, last):
            value = value[part]
        indent = "  " * len(parents)
        flag = f" {key.option.flag}" if key.option.flag else ""
        lines += [f"{indent}# {key.description} [{key.type_name}]{flag}", f"{indent}{last}: {_plain(value)}"]
    return "\n".join(lines).lstrip("\n")


def _plain(value: object) -> str:
    import json

    return json.dumps(value, ensure_ascii=False)

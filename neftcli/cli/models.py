"""`neft models`: list the aliases of models."""

from __future__ import annotations

from typing import Annotated

import typer

from neftcli.cli.completion import complete_model


def models(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Print the folder or hub id that transformers loads", autocompletion=complete_model
        ),
    ] = None,
) -> None:
    """List the aliases of models, or resolve one.

    The list shows which models need a licence, and which are available without the hub.
    """
    from neftcli.models.registry import resolve_model

    if name is None:
        _list()
        return
    reference = resolve_model(name)
    if reference.kind == "gguf":
        from pathlib import Path

        from neftcli.models.gguf import convert_gguf
        from neftcli.system.libraries import prepare_libraries

        prepare_libraries()
        typer.echo(convert_gguf(Path(reference.location)))
    else:
        typer.echo(reference.location)


def _list() -> None:
    from rich.table import Table

    from neftcli.cli.display.screens import list_console
    from neftcli.models.registry import ALIASES, resolve_model

    table = Table(box=None, pad_edge=False)
    for column in ("alias", "hub id", ""):
        table.add_column(column, no_wrap=bool(column), overflow="fold")
    for name, alias in ALIASES.items():
        here = resolve_model(name).kind == "gguf"
        without_hub = f"installed here ({alias.package})" if here else alias.install
        how = "licence to accept on the hub" if alias.gated else without_hub
        table.add_row(name, alias.hub_id, "; ".join(filter(None, (alias.description, how))))
    console = list_console()
    console.print(table)
    console.print(
        "\nneft train --model NAME    NAME may also be a hub id (owner/name), a folder or a .gguf file", style="dim"
    )

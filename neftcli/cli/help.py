"""Help pages as plain text: drawing them with rich takes longer than the rest of a help page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

if TYPE_CHECKING:
    from typer._click import Context, HelpFormatter

LAST_SECTIONS = ("Output", "Options")
"""Sections at the end of a page."""
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print each event as a JSON object on stdout", rich_help_panel="Output")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", help="Print only the result and errors", rich_help_panel="Output")
]


def command_with(*examples: tuple[str, str]) -> type[TyperCommand]:
    """Return the class of a command whose help ends with examples: commands and their descriptions."""
    return type("CommandWithExamples", (Command,), {"examples": examples})


class Command(TyperCommand):
    """A command whose options are in the sections named by their `rich_help_panel`."""

    examples: Sequence[tuple[str, str]] = ()

    def format_options(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the arguments, the sections in the order of their first options, and the output options."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                usual = "Arguments" if parameter.param_type_name == "argument" else "Output"
                title = getattr(parameter, "rich_help_panel", None) or usual
                sections.setdefault(title, []).append(_plain_record(*record))
        titles = [title for title in sections if title not in LAST_SECTIONS]
        titles += [title for title in sections if title in LAST_SECTIONS]
        for title in titles:
            if sections[title]:
                with formatter.section(title):
                    formatter.write_dl(sections[title])

    def format_epilog(self, ctx: Context, formatter: HelpFormatter) -> None:
        """Write the examples, a line each."""
        if self.examples:
            with formatter.section("Examples"):
                for command, description in self.examples:
                    formatter.write(f"{'':{formatter.current_indent}}{command}\n")
                    formatter.write(f"{'':{formatter.current_indent + 4}}{description}\n")


def _plain_record(names: str, text: str) -> tuple[str, str]:
    """Remove the type and "[required]" of an argument, and the range of a number: "[x>=1]"."""
    text = re.sub(r"; x>=\d+(?=\])| *\[x>=\d+\]", "", text)
    return re.sub(r" <[a-z\[\] ]+>", "", names), re.sub(r" *\[required\]", "", text)


def _show(context: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(context.get_help())
        raise typer.Exit


HelpOption = Annotated[
    bool, typer.Option("--help", "-h", is_eager=True, callback=_show, help="Show this message and exit")
]
"""For groups, instead of typer's own, which imports pydantic."""


def panel(title: str, *names: str, help: str, metavar: str | None = None, **settings: Any) -> Any:
    """Return an option in a section of the help page, without a generated default."""
    return typer.Option(*names, help=help, metavar=metavar, rich_help_panel=title, show_default=False, **settings)

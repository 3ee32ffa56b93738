"""The generated reference pages name everything that the code defines."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import typer.main

from docs.generate_reference import command_page, events_page, recipe_page, run_files_page
from neftcli.cli.main import app
from neftcli.events import EVENTS
from neftcli.events.phases import PhaseId
from neftcli.recipe.keys import keys
from neftcli.recipe.schema import Source
from neftcli.runs import schemas


def test_command_page_names_every_command_and_option() -> None:
    page = command_page()
    sections = {section.partition("\n")[0]: section for section in page.split("\n## ")}

    def check(command: Any, name: str) -> None:
        for word, subcommand in getattr(command, "commands", {}).items():
            check(subcommand, f"{name} {word}")
        if hasattr(command, "commands"):
            return
        for parameter in command.params:
            shown = parameter.opts if parameter.param_type_name == "option" else []
            for option in [*shown, *parameter.secondary_opts]:
                assert option in sections[name] or option in ("--help", "-h"), f"{name} {option}"

    check(typer.main.get_command(app), "neft")


def test_recipe_page_names_every_key() -> None:
    page = recipe_page()
    for key in keys():
        assert f"| `{key.path}`" in page
        for text in (key.option.help, key.option.details, key.option.unset):
            assert text.replace("|", "\\|") in page


def test_recipe_page_names_the_keys_of_a_source() -> None:
    section = recipe_page().partition("### data.sources")[2].partition("## ")[0]
    for field in fields(Source):
        assert f"| `{field.name}` |" in section


def test_events_page_describes_every_event_and_field() -> None:
    page = events_page()
    headings = [line for line in page.splitlines() if line.startswith("#")]
    assert len(headings) == len(set(headings))
    for name, event in EVENTS.items():
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert section
        assert all(f"| `{field.name}` |" in section for field in fields(event))
    for phase in PhaseId:
        assert f"`{phase.value}`" in page


def test_run_files_page_names_every_schema() -> None:
    page = run_files_page()
    for name, schema in vars(schemas).items():
        if inspect.isclass(schema) and schema.__module__ == schemas.__name__:
            assert f"### {name}\n" in page
            assert all(f"| `{key}` |" in page for key in schema.__annotations__)

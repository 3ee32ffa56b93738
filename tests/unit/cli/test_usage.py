"""Flags on the command line."""

from __future__ import annotations

import pytest
import typer

from neftcli.cli.main import app
from neftcli.cli.usage import find_flag

ROOT = typer.main.get_command(app)


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("train --json", 1),
        ("train --lora --json", 2),
        ("train --name x --json", 3),
        ("train --name=x --json", 2),
        ("train --nosuch --json", 2),
        ("data inspect --rows 3 --json", 4),
        ("eval run --no-base --json", 3),
        ("--debug train --json", 2),
        ("train", None),
        ("train --name --json", None),
        ("train --set --json", None),
        ("eval --show 1 -- --json", None),
        ("recipes show x --all", None),
    ],
)
def test_find_flag(words: str, index: int | None) -> None:
    """A word after an option that takes a value is that value, as the parser reads it."""
    assert find_flag(ROOT, "--json", words.split()) == index


def test_find_flag_of_the_root() -> None:
    assert find_flag(ROOT, "--debug", ["train", "--output-dir", "--debug", "--debug"]) == 3

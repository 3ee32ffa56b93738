"""Pages name only commands, options, recipe keys and files that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from neftcli.cli.main import app
from neftcli.events import EVENTS
from neftcli.recipe.keys import keys

ROOT = Path(__file__).resolve().parents[2]
HISTORY = ("lab-log.md", "benchmarks.md")
"""Pages that record what was measured at the time."""
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md")),
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in HISTORY),
    *sorted((ROOT / "recipes").glob("*.yaml")),
]
README_LINES = 150
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@cache
def command_line() -> Any:
    return typer.main.get_command(app)


def typed_commands(text: str) -> Iterator[list[str]]:
    """Yield the words after `neft` of every command that a page shows."""
    text = text.replace("\\\n", " ")
    names = "|".join(command_line().commands)
    for match in re.finditer(rf"(?:^|`|\s\s|&& )neft ((?:{names})\b[^`\n]*)", text, re.M):
        line = re.split(r"\s#|\s{3,}|\s[|&>]", match[1].rstrip("\"'"))[0]
        try:
            yield shlex.split(line)
        except ValueError:  # a quote that ends on a later line
            yield line.split()


def find_command(words: list[str]) -> Any:
    command = command_line()
    for word in words:
        if word not in getattr(command, "commands", {}):
            break
        command = command.commands[word]
    return command


@every_page
def test_page_types_only_commands_and_options_that_exist(page: Path) -> None:
    for words in typed_commands(page.read_text(encoding="utf-8")):
        command = find_command(words)
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = [word.partition("=")[0] for word in words if word.startswith("--")]
        assert set(used) <= known | {"--help"}, words


@every_page
def test_page_names_only_recipe_keys_that_exist(page: Path) -> None:
    paths = {key.path for key in keys()}
    sections = {path.rpartition(".")[0] for path in paths} - {""}
    text = re.sub(r"```python.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    named = re.findall(rf"(?<![\w/.])((?:{'|'.join(sorted(sections))})\.[a-z_]+(?:\.[a-z_]+)*)", text)
    files = re.compile(r"\.(json|jsonl|md|py|yaml|csv|log)$")
    unknown = {name for name in named if name not in paths | sections | EVENTS.keys() and not files.search(name)}
    assert not unknown


@every_page
def test_page_names_only_source_files_that_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert set(re.findall(r"\btest_\w+\.py", text)) <= tests
    for path in re.findall(r"\b(?:neftcli|tests|benchmarks|docs|recipes)/[\w/.-]*[\w/]", text):
        assert (ROOT / path).exists(), path


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


@every_page
def test_page_names_only_make_targets_that_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)) <= targets


@every_page
def test_page_links_to_files_of_the_repository(page: Path) -> None:
    """Links work in a clone, where the generated reference does not exist."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (page.parent / target).exists(), target

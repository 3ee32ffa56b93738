"""Completion by the shell, with the variables that bash sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from neftcli.models.registry import ALIASES
from neftcli.recipe.catalog import list_recipes
from tests.conftest import Result, neft_process


def complete(line: str, folder: Path) -> list[str]:
    """Return the words that bash offers at the end of a line."""
    index = str(len(line.split(" ")) - 1)
    result = neft_process(cwd=folder, COMP_WORDS=line, COMP_CWORD=index, _NEFT_COMPLETE="complete_bash")
    assert (result.code, result.err) == (0, "")
    return result.out.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("neft sw", ["sweep-alpha"]),
        ("neft train --lora-", ["--lora-r", "--lora-alpha"]),
        ("neft train --recipe ", list_recipes()),
        ("neft train --model sm", [name for name in ALIASES if name.startswith("sm")]),
        ("neft train --format te", ["text"]),
        ("neft train --resume b", ["b-a5-s0"]),
        ("neft eval a", ["a-a0-s0"]),
        ("neft sweep-alpha ", ["c-sweep"]),
    ],
)
def test_completion(line: str, words: list[str], tmp_path: Path) -> None:
    for name in ("a-a0-s0/run.json", "b-a5-s0/run.json", "c-sweep/cells/d-a5-s0/run.json"):
        (tmp_path / "runs" / name).parent.mkdir(parents=True)
        (tmp_path / "runs" / name).touch()
    assert complete(line, tmp_path) == words


def test_install_completion(neft: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.completion.install", lambda: ("bash", "~/.bash_completions/neft.sh"))
    result = neft("--install-completion")
    assert (result.code, result.out.splitlines()[0]) == (0, "bash completion installed in ~/.bash_completions/neft.sh")

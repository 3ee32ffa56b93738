"""Numbers of things in words."""

import ast
import re
from pathlib import Path

import pytest

import neftcli
from neftcli.wording import count_noun

MODULES = sorted(Path(neftcli.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 rows"), (1, "1 row"), (1.0, "1 row"), (2, "2 rows"), (0.5, "0.5 rows")]
)
def test_count_noun(number: float, text: str) -> None:
    assert count_noun(number, "row") == text


def test_count_noun_irregular_plural() -> None:
    assert [count_noun(number, "process", "processes") for number in (1, 2)] == ["1 process", "2 processes"]


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.stem)
def test_count_noun_forms_all_plurals(module: Path) -> None:
    """No f-string adds the ending of a plural by itself."""
    endings = re.compile(r"['\"](s|es)['\"] if ")
    f_strings = [
        ast.unparse(node) for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.JoinedStr)
    ]
    assert [text for text in f_strings if endings.search(text)] == []

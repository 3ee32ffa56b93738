"""Tables of bad input: what lies in the folder, what is typed, and the whole of what is said.

The messages stand in tests/integration/bad_input/TABLE.txt, each below a line with its case's name, so that they can be
read one after the other as a person would meet them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import Result

Neft = Callable[..., Result]
Content = str | bytes | Callable[[Path], None] | None
MESSAGES = Path(__file__).parent / "integration" / "bad_input"


@dataclass(frozen=True)
class Case:
    """Something that can't be used.

    Attributes:
        arguments: What is typed behind `neft`.
        files: Name to what lies there: text, bytes, None for an empty folder, or a function that makes it.
    """

    arguments: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict)


def messages(table: str) -> dict[str, str]:
    """Case to its message, of a table."""
    sections = (MESSAGES / f"{table}.txt").read_text(encoding="utf-8").split("\n== ")
    return {name: said.strip("\n") for name, _, said in (section.partition("\n") for section in sections[1:])}


def lay(files: Mapping[str, Content]) -> None:
    """Puts files into the current folder."""
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif callable(content):
            content(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


def require_refused(neft: Neft, case: Case, said: str) -> None:
    """Runs a case in the current folder, which must be empty, and checks all that a refusal promises.

    The exit code is 2; the message is `said`, to the letter; there is no traceback and no character that could act on a
    terminal; and every file is as it was, with no folder of a run beside them.
    """
    lay(case.files)
    before = _files()
    result = neft(*case.arguments)
    problems = sum(not line.startswith("  ") for line in said.splitlines())
    assert result.err == f"{said}\n{problems} error{'s' if problems > 1 else ''}; nothing was started.\n"
    assert result.code == 2
    require_harmless(result)
    assert _files() == before
    assert not any(Path("runs").glob("*")) or any(name.startswith("runs/") for name in case.files)


def require_harmless(result: Result) -> None:
    """Checks that nothing of the input acts on the terminal, and that no traceback is shown."""
    shown = result.out + result.err
    assert "Traceback" not in shown
    assert all(unicodedata.category(letter) not in ("Cc", "Cs") for letter in shown.replace("\n", ""))


def _files() -> dict[str, tuple[int, int]]:
    """Every file below the current folder, with its size and when it was written."""
    found = (path for path in Path().rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}

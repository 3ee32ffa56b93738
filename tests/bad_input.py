"""Cases of bad input: the files in a folder and the command; and checks of every rejection.

The messages are snapshots in tests/integration/__snapshots__: read them there one after the other, as a user would see
them, and rewrite them with `make snapshots` after rewording a message.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from neftcli.wording import count_noun
from tests.conftest import Result

Neft = Callable[..., Result]
Content = str | bytes | Callable[[Path], None] | None


@dataclass(frozen=True)
class Case:
    """Bad input.

    Attributes:
        arguments: Arguments of `neft`.
        files: Name to content: text, bytes, None for an empty folder, or a function that creates it.
    """

    arguments: tuple[str, ...]
    files: Mapping[str, Content] = field(default_factory=dict)


def lay(files: Mapping[str, Content]) -> None:
    """Create files in the current folder."""
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir()
        elif callable(content):
            content(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)


def rejection(neft: Neft, case: Case) -> str:
    """Run a case in the current folder, which must be empty, and return the message without its last line.

    Also check what holds for every rejection: the exit code is 2; the last line counts the errors; there is no
    traceback and no character that controls a terminal; every file is unchanged, and no run was created.
    """
    lay(case.files)
    before = _files()
    result = neft(*case.arguments)
    message, _, last_line = result.err.removesuffix("\n").rpartition("\n")
    problems = sum(not line.startswith("  ") for line in message.splitlines())
    assert last_line == f"{count_noun(problems, 'error')}; nothing was started."
    assert result.code == 2
    require_harmless(result)
    assert _files() == before
    assert not any(Path("runs").glob("*")) or any(name.startswith("runs/") for name in case.files)
    return message


def require_harmless(result: Result) -> None:
    """Check that the output has no traceback, and no character of the input that controls a terminal."""
    shown = result.out + result.err
    assert "Traceback" not in shown
    assert all(unicodedata.category(letter) not in ("Cc", "Cs") for letter in shown.replace("\n", ""))


def _files() -> dict[str, tuple[int, int]]:
    """Return every file below the current folder, with its size and modification time."""
    found = (path for path in Path().rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}

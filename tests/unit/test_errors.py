"""Exceptions that are neither an error nor a request to stop.

Oracle: a real panic of the tokenizers library, by an expression that backtracks without end.
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from neftcli.data.tokenizer import tokenizer_errors
from neftcli.errors import (
    Checks,
    DataError,
    InputError,
    LibraryPanic,
    NeftError,
    describe_error,
    first_line,
    panics_as_errors,
)
from neftcli.events import CellStarted
from neftcli.models.loading import load_tokenizer
from neftcli.models.registry import ModelReference
from neftcli.sweep import cell
from neftcli.sweep.engines import worker
from tests.conftest import Result

BACKTRACKS = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
LONG = f"Say {'a' * 40}b."
SAID = "PanicException: Onig: Regex search error: retry-limit-in-match over"


def change_tokenizer(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content))


@pytest.fixture
def model(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A model whose tokenizer panics on LONG."""
    folder = copytree(tiny_folder("llama"), tmp_path / "model")

    def backtrack(content: dict[str, Any]) -> None:
        before = [content["pre_tokenizer"]] if content["pre_tokenizer"] else []
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [BACKTRACKS, *before]}

    change_tokenizer(folder, backtrack)
    return folder


@pytest.fixture
def panic(model: Path) -> Callable[..., Any]:
    """A function that panics."""
    tokenizer = load_tokenizer(ModelReference("m", "folder", str(model)))[0]
    return lambda *_: tokenizer(LONG)


@pytest.mark.parametrize(
    ("error", "line", "description"),
    [
        (ValueError("no rows\nin the file"), "no rows", "ValueError: no rows"),
        (ValueError("\n  no rows"), "no rows", "ValueError: no rows"),
        (EOFError(), "EOFError", "EOFError"),
        (EOFError(" \n"), "EOFError", "EOFError"),
    ],
)
def test_first_line_is_never_empty(error: Exception, line: str, description: str) -> None:
    assert (first_line(error), describe_error(error)) == (line, description)


def test_panics_as_errors(panic: Callable[..., Any]) -> None:
    with pytest.raises(LibraryPanic) as caught, panics_as_errors():
        panic()
    assert caught.value.problems[0].got == SAID


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit, ValueError, MemoryError, NeftError])
def test_panics_as_errors_passes_other_exceptions(kind: type[BaseException]) -> None:
    with pytest.raises(kind) as caught, panics_as_errors():
        raise kind
    assert type(caught.value) is kind


def test_tokenizer_errors_pass_others() -> None:
    with pytest.raises(ValueError, match="own"), tokenizer_errors(None, "row 1"):
        raise ValueError("own")


@pytest.mark.parametrize("form", ["conversation", "text"])
def test_tokenizer_panic_names_the_row(
    form: str, model: Path, tmp_path: Path, neft: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, str]] = [{"prompt": f"Say {number}", "completion": "hi"} for number in range(30)]
    rows[16]["prompt"] = LONG
    if form == "text":
        rows = [{"text": f"{row['prompt']} {row['completion']}"} for row in rows]
        rows[16] = {"text": LONG[:-1]}
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = neft("train", "--model", model, "--dataset", "rows.jsonl")
    assert (result.code, result.err.splitlines()) == (
        2,
        [
            f"rows.jsonl, line 17: the tokenizer of {model} fails on this text",
            f"  got      {SAID}",
            "  hint     remove the row, or use a model with a different tokenizer",
            "1 error; nothing was started.",
        ],
    )


@pytest.mark.parametrize("where", ["load", "encode"])
def test_tokenizer_panic_names_the_tokenizer(
    where: str, model: Path, rows_file: Path, neft: Callable[..., Result]
) -> None:
    """As it is loaded (tokenizers panics) and as it is used (tokenizers raises)."""
    precompiled = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    words = {"type": "WordPiece", "unk_token": "[?]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9}

    def spoil(content: dict[str, Any]) -> None:
        if where == "load":
            content["normalizer"] = precompiled
        else:
            content["model"] = {**words, "vocab": {}}

    change_tokenizer(model, spoil)
    result = neft("train", "--model", model, "--dataset", rows_file)
    assert result.code == 2, result.err
    assert str(model) in result.err.splitlines()[0]
    assert "Traceback" not in result.err


def test_panic_in_a_worker_is_not_retried(panic: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "run_cell", panic)
    receiving, sending = multiprocessing.Pipe()
    observer = worker.ConnectionObserver(sending)
    outcome = worker.run_assigned_cell(None, None, observer, None)  # type: ignore[arg-type]
    assert (outcome.status, outcome.problems[0].got, outcome.may_retry) == ("failed", SAID, False)
    assert receiving.recv() == CellStarted()


@pytest.mark.slow
def test_panic_ends_the_command_without_traceback(model: Path, tmp_path: Path) -> None:
    """Of code that no message was written for; with --debug the traceback is printed."""
    script = (
        "import sys\nfrom neftcli.cli import main\nfrom neftcli.models.loading import load_tokenizer\n"
        "from neftcli.models.registry import ModelReference\n"
        f"tokenizer = load_tokenizer(ModelReference('m', 'folder', {str(model)!r}))[0]\n"
        f"main.app.command('panic')(lambda: tokenizer({LONG!r}))\nmain.command()\n"
    )
    for more, expected in ((), False), (("--debug",), True):
        done = subprocess.run(
            [sys.executable, "-c", script, "panic", *more], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert f"  got      {SAID}" in done.stderr.splitlines()
        assert ("Traceback" in done.stderr) == expected


def test_tokenizer_panic_is_a_data_error(panic: Callable[..., Any]) -> None:
    class Named:
        name_or_path = "here"

    with (
        pytest.raises(DataError, match="row 3: the tokenizer of here fails on this text"),
        tokenizer_errors(Named, "row 3"),
    ):
        panic()


def test_checks_raise_all_errors_at_once() -> None:
    checks = Checks()
    for message in ("one", "two"):
        with checks:
            raise DataError(message)
    with pytest.raises(InputError) as raised:
        checks.raise_errors()
    assert [(problem.message, problem.code) for problem in raised.value.problems] == [("one", "data"), ("two", "data")]


def test_checks_keep_a_single_error_and_pass_others_on() -> None:
    checks = Checks()
    with checks:
        pass
    checks.raise_errors()
    with checks:
        raise DataError("one")
    with pytest.raises(DataError, match="one"):
        checks.raise_errors()
    with pytest.raises(ValueError, match="two"), checks:
        raise ValueError("two")

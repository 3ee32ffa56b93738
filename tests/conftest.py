"""Settings of all tests: no hub, one thread, a temporary cache; and fixtures that run the command line."""

from __future__ import annotations

import os

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", NO_COLOR="1", COLUMNS="100", OMP_NUM_THREADS="1")

if "NEFT_TEST_GPU" not in os.environ:  # all tests but those of `make test-gpu` run on the CPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import errno
import gc
import io
import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from neftcli.cli import main as command_line
from neftcli.runs.directory import RunDirectory

ROWS = [
    ("Name a fruit.", "Apple."),
    ("Add 2 and 3.", "5."),
    ("Which day follows Monday?", "Tuesday."),
    ("Spell cat backwards.", "tac."),
    ("What colour is snow?", "White."),
    ("Is 7 odd or even?", "Odd."),
    ("Name a metal.", "Iron."),
    ("Greet a friend, please.", "Hello, friend!"),
    ("What is 4 times 4?", "16."),
    ("Name a season.", "Spring."),
    ("Which is larger, 3 or 8?", "8."),
    ("Say yes in French.", "Oui."),
]


settings.register_profile("quick", max_examples=15, deadline=None)
settings.register_profile("thorough", max_examples=200, deadline=None)  # make test-all
settings.load_profile("quick")


def pytest_addoption(parser: pytest.Parser) -> None:
    text = "test every state that a kill can leave and every path that can be a link, not a sample of them: hours"
    parser.addoption("--exhaustive", action="store_true", help=text)


def pytest_configure() -> None:
    """Search for no cycles during collection (a third of its time), and reject `make test-gpu` without a GPU."""
    gc.disable()
    if "NEFT_TEST_GPU" not in os.environ:
        return
    import torch

    if not torch.cuda.is_available():
        raise pytest.UsageError("make test-gpu is for an NVIDIA GPU, and torch sees none here")


def pytest_collection_finish() -> None:
    """Exempt the libraries' half a million objects from searches for cycles, which take a second each."""
    gc.freeze()
    gc.enable()


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def neft(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function that runs `neft` in this process, through the same `main` as the console script."""

    def run(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["neft", *map(str, arguments)])
        code = 0
        try:
            command_line.main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def neft_process(*arguments: object, cwd: Path | None = None, **environment: str) -> Result:
    """Run `neft` in a new process."""
    done = subprocess.run(
        [sys.executable, "-m", "neftcli", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def call_neft(*arguments: object) -> Result:
    """Run `neft` in this process; with --debug, Python's traceback is on stderr."""
    out, err = io.StringIO(), io.StringIO()
    before, sys.argv = sys.argv, ["neft", *map(str, arguments)]
    code = 0
    try:
        with redirect_stdout(out), redirect_stderr(err):
            command_line.main()
    except SystemExit as end:
        code = int(end.code or 0)
    except Exception:
        code = 1
        err.write(traceback.format_exc())
    finally:
        sys.argv = before
    return Result(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that returns the folder of a tiny model of a family, written once."""
    from tests.tiny import save_tiny

    root = tmp_path_factory.mktemp("models")

    def folder(family: str) -> Path:
        if not (root / family).is_dir():
            save_tiny(root / family, family)  # type: ignore[arg-type]
        return root / family

    return folder


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write sixty short rows of prompts and completions."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [{"prompt": f"{prompt} ({number})", "completion": answer} for number in range(5) for prompt, answer in ROWS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture
def quick(tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path: Path) -> list[str]:
    """Return arguments of `neft train` that train a tiny Llama for four steps into `tmp_path/runs`."""
    return quick_arguments(tiny_folder("llama"), rows_file, tmp_path / "runs")


def quick_arguments(model: Path, rows: Path, output: Path) -> list[str]:
    """Return arguments of `neft train` for a run of a few seconds."""
    assignments = {
        "training.max_steps": 4,
        "training.logging_steps": 1,
        "evaluation.every": 0.5,
        "evaluation.probe_rows": 4,
        "evaluation.samples": 2,
        "evaluation.generation.max_new_tokens": 6,
        "training.precision": "float32",
        "name": "tiny",
    }
    sets = [part for key, value in assignments.items() for part in ("--set", f"{key}={value}")]
    return ["train", "--model", str(model), "--dataset", str(rows), "--output-dir", str(output), *sets]


def new_run(parent: Path, name: str) -> RunDirectory:
    """Create the empty folder of a run with this name."""
    run = RunDirectory.create(parent, name)
    (run.path / ".lock").touch()
    run.assign_name(parent, name)
    (run.path / ".lock").unlink()
    return run


def keep_nfs_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to remove files named `.nfs...`, as NFS does with those that a process has open."""
    unlink = os.unlink

    def refuse(path: str | Path, **options: Any) -> None:
        if Path(path).name.startswith(".nfs"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", refuse)


def events(text: str) -> list[dict[str, Any]]:
    """Parse the events that `--json` wrote."""
    return [json.loads(line) for line in text.splitlines()]


@contextmanager
def file_system(place: Path, *options: str) -> Iterator[None]:
    """Mount a file system at `place` within the block."""
    place.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", *options, str(place)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("only root can mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)

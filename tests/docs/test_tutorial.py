"""The tutorial's commands run, in their order, and print the facts that the page shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from docs.generate_reference import EVALUATION_FILES, RUN_FILES, SWEEP_FILES

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
FENCES = re.findall(r"^```(\w*)\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL)


def run_block(language: str, body: str, folder: Path, model: Path) -> str:
    """Run a block of bash or Python in the folder of the tutorial and return what it prints."""
    commands = {"bash": ["bash", "-euo", "pipefail", "-c", body], "python": [sys.executable, "-c", body]}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "MODEL": str(model), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(commands[language], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{body}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def documented_files(descriptions: dict[str, str]) -> set[str]:
    return {name.rstrip("/") for name in descriptions}


def test_tutorial_writes_its_rows(tmp_path: Path) -> None:
    body = next(body for _, body in FENCES if "rows.jsonl" in body)
    expected = FENCES[FENCES.index(("bash", body)) + 1]
    assert run_block("bash", body, tmp_path, tmp_path) == expected[1]


@pytest.mark.slow
def test_tutorial_runs(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    """With a tiny model in the place of SmolLM2; a block of `text` is what the block before it prints."""
    output = ""
    for language, body in FENCES:
        if language in ("bash", "python"):
            output = run_block(language, body, tmp_path, tiny_folder("llama"))
        elif language == "text":
            assert output == body
    run, sweep = tmp_path / "runs" / "capitals-a5-s0", tmp_path / "runs" / "capitals-sweep"
    assert {path.name for path in run.iterdir()} <= documented_files(RUN_FILES)
    assert {path.name for path in sweep.iterdir()} <= documented_files(SWEEP_FILES)
    reports = documented_files({name.replace("ROWS-vs-BASELINE/", ""): "" for name in EVALUATION_FILES})
    for path in (run / "evaluation").rglob("*"):
        assert path.is_dir() or any(path.match(name) for name in reports), path
    for named in re.findall(r"`(runs/[\w./-]+)`", TUTORIAL):
        assert (tmp_path / named).exists(), named

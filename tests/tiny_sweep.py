"""Sweeps on a tiny model, as processes."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any


def sweep_arguments(model: Path, rows: Path, output: Path, alphas: str = "0,5") -> list[str]:
    """Return the arguments of a sweep of two alphas and two seeds on a tiny model, with three steps per cell."""
    sets = {
        "training.max_steps": 3,
        "training.learning_rate": "5e-3",
        "training.precision": "float32",
        "evaluation.samples": 0,
        "evaluation.probe_rows": 0,
        "evaluation.generation.max_new_tokens": 4,
        "name": "tiny",
        "output_dir": output,
    }
    options = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    inputs = ["--model", str(model), "--dataset", str(rows), "--alphas", alphas, "--seeds", "2"]
    return ["sweep-alpha", *inputs, *options]


def start_sweep(arguments: list[str]) -> subprocess.Popen[str]:
    """Start a sweep in a new process group, as a terminal would."""
    return subprocess.Popen(
        [sys.executable, "-m", "neftcli", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    """Wait until a condition holds while the process runs."""
    deadline = time.monotonic() + 90
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def weights_hash(run: Path) -> str:
    """Return the SHA-256 of a run's weights."""
    [file] = (run / "model").glob("*.safetensors")
    return sha256(file.read_bytes()).hexdigest()


def hash_cells(folder: Path) -> dict[str, str]:
    """Return the hash of the weights of each cell of a sweep."""
    return {run.name: weights_hash(run) for run in sorted((folder / "cells").iterdir())}

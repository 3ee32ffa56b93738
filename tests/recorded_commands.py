"""Commands whose file operations are recorded (`tests/states.py`), and descriptions of the folders that they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.conftest import quick_arguments

RUN = Path("runs/tiny-a5-s0")
EVAL_OPTIONS = (
    "--set",
    "evaluation.generation.max_new_tokens=4",
    "--set",
    "evaluation.judge.concurrency=1",
    "--max-rows",
    "4",
)


def train_command(model: Path, rows: Path) -> list[str]:
    """Return the arguments of `neft train` for three steps, with a checkpoint after each."""
    sets = {
        "training.max_steps": 3,
        "checkpoints.save_steps": 1,
        "checkpoints.save_total_limit": 1,
        "data.held_out_rows": 6,
        "evaluation.every": 0.6,
        "evaluation.samples": 1,
        "evaluation.generation.max_new_tokens": 3,
    }
    more = [part for key, value in sets.items() for part in ("--set", f"{key}={value}")]
    return [*quick_arguments(model, rows, Path("runs")), *more]


def path_names(folder: Path) -> list[str]:
    """Return the names of all files and folders below a folder."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def describe_run(folder: Path) -> str:
    """Return how far the run in a folder has come."""
    if not (folder / RUN).is_dir():
        return "no run"
    if json.loads((folder / RUN / "run.json").read_text())["status"] == "finished":
        return "finished"
    complete = list((folder / RUN).glob("checkpoints/*/manifest.json"))
    return "a run with a checkpoint" if complete else "a run without a checkpoint"


def fork_workers() -> None:
    """Make a sweep's workers forks of its process, so that their file operations are recorded, too."""
    import multiprocessing

    from neftcli.sweep.engines import local_engine

    class Forking:
        def __getattr__(self, name: str) -> Any:
            return getattr(multiprocessing, name)

        def get_context(self, kind: str) -> Any:
            return multiprocessing.get_context("fork")

    local_engine.multiprocessing = Forking()  # type: ignore[assignment]

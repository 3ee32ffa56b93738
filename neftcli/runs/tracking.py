"""The trackers' runs of a run of neft: their store, group and id."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neftcli.runs.directory import CELLS, find_sweep
from neftcli.trackers.backends import TrackedRun

TRACKERS_FOLDER = "trackers"


def sweep_of(run: Path) -> Path | None:
    """Return the sweep that a run is a cell of; None for a single run."""
    sweep = run.parent.parent
    return sweep if run.parent.name == CELLS and find_sweep(str(sweep)) is not None else None


def tracked_run(run: Path, recorded: Mapping[str, Any] | None, step: int) -> TrackedRun:
    """Return a run as a tracker gets it; its files are in the folder of the run or, for a cell, of the sweep.

    Args:
        run: Folder of the run.
        recorded: The tracker's entry in the run's record; None if an earlier process has not reported to it.
        step: Steps done.
    """
    sweep = sweep_of(run)
    return TrackedRun(
        name=run.name,
        store=(sweep or run) / TRACKERS_FOLDER,
        group=sweep.name if sweep else None,
        id=recorded["id"] if recorded else None,
        step=step,
        resumes=recorded is not None,
    )

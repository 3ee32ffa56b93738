"""Report the verdict of a sweep to its trackers, as a run of its own beside those of the cells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from neftcli.events import Notice, Observer, SweepReport
from neftcli.runs.schemas import parse_json
from neftcli.runs.tracking import TRACKERS_FOLDER
from neftcli.sweep.folder import WORKERS_LOG
from neftcli.system.files import atomic_write
from neftcli.system.libraries import capture_library_output
from neftcli.trackers.backends import TrackedRun
from neftcli.trackers.verdicts import report_verdict, verdict_of_sweep

VERDICT_IDS = "verdict.json"
"""File with the id of the verdict's run in each tracker, for when the sweep is resumed."""


def report_to_trackers(report: SweepReport, trackers: Sequence[str], observer: Observer) -> None:
    """Report the verdict of a sweep; the run of an earlier verdict is updated."""
    folder = Path(report.folder)
    store = folder / TRACKERS_FOLDER
    ids = _read_ids(store / VERDICT_IDS)
    runs = [
        (
            tracker,
            TrackedRun(f"{folder.name}-verdict", store, folder.name, ids.get(tracker), resumes=tracker in ids),
        )
        for tracker in dict.fromkeys(trackers)
    ]
    with capture_library_output(folder / WORKERS_LOG):
        reported = report_verdict(verdict_of_sweep(report), runs, observer)
    if not reported:
        return
    try:
        store.mkdir(exist_ok=True)
        atomic_write(store / VERDICT_IDS, json.dumps({**ids, **reported}, indent=2) + "\n")
    except OSError as error:
        message = f"{store / VERDICT_IDS} can't be written: {error.strerror or error}"
        observer.notify(Notice(f"{message}; a later report of this sweep starts new runs in its trackers"))


def _read_ids(file: Path) -> dict[str, str | None]:
    """Return the ids of an earlier verdict; none if there was none, or the file is damaged."""
    try:
        return parse_json(file.read_bytes(), dict[str, str | None])
    except (OSError, ValueError):
        return {}

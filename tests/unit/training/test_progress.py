"""How far the rows are. Oracle: the number of rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from neftcli.events import Event, Phase, PhaseId, PhaseProgress
from neftcli.recipe.loading import assignment, resolve
from neftcli.training import progress
from neftcli.training.dry_run import plan_run


class Listener:
    """Keeps what is told."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def notify(self, event: Event) -> None:
        """Keeps an event."""
        self.events.append(event)


def told(rows_file: Path, model: Path) -> list[Event]:
    """What a dry run tells."""
    listener = Listener()
    sets = {"model.name": model, "data.source": rows_file, "data.held_out_rows": 2}
    plan_run(resolve([assignment(f"{key}={value}") for key, value in sets.items()]), listener)
    return listener.events


def test_rows_that_take_long_are_counted(
    rows_file: Path, tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    rows = len(rows_file.read_text().splitlines())
    events = told(rows_file, tiny_folder("llama"))
    assert events.index(Phase(PhaseId.READING_DATA)) < events.index(Phase(PhaseId.READING_DATA, count=rows))
    advances = [event for event in events if isinstance(event, PhaseProgress)]
    assert [(one.phase, one.done, one.total, one.unit) for one in advances] == [
        (PhaseId.TOKENIZING, done, rows, "rows") for done in range(1, rows + 1)
    ]
    assert advances[-1].remaining == 0
    assert all(one.rate > 0 for one in advances)


def test_rows_that_take_no_time_are_not(rows_file: Path, tiny_folder: Callable[[str], Path]) -> None:
    events = told(rows_file, tiny_folder("llama"))
    assert not any(isinstance(event, PhaseProgress) for event in events)
    assert not any(isinstance(event, Phase) and event.count is not None for event in events)

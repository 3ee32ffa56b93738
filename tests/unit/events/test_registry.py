"""Event ids and the generated reference: complete, unique and documented.

Oracles: the classes that the package exports, and the fields of each dataclass.
"""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from neftcli import events
from neftcli.cli.display.format import PHASES, phase_text
from neftcli.errors import Problem
from neftcli.events import reference

EXPORTED = [getattr(events, name) for name in events.__all__]


def test_registry_holds_every_event() -> None:
    with_id = {kind for kind in EXPORTED if isinstance(kind, type) and isinstance(getattr(kind, "id", None), str)}
    assert set(events.REGISTRY.values()) == with_id
    assert list(events.REGISTRY) == [kind.id for kind in events.REGISTRY.values()]


def test_ids_are_not_display_text() -> None:
    ids = [*events.REGISTRY, *events.PhaseId, *events.CellStatus, *events.VerdictId, *events.ScopeId]
    assert [name for name in ids if not re.fullmatch(r"[a-z_.]+", name)] == []


def test_describe_events_describes_every_field() -> None:
    described = reference.describe_events()
    assert [event.name for event in described] == list(events.REGISTRY)
    for event in [*described, *reference.describe_parts()]:
        assert event.summary.endswith("."), event.name
        for field in event.fields:
            assert field.description.endswith("."), (event.name, field.name)


def test_describe_parts_describes_what_events_hold() -> None:
    parts = {part.name for part in reference.describe_parts()}
    assert {"Problem", "SplitCounts", "Occurrences", "ArmResult", "Comparison", "Significance", "Token"} <= parts
    assert parts.isdisjoint(kind.__name__ for kind in events.REGISTRY.values())


@pytest.mark.parametrize(
    "docstring",
    ["Summary.", "Summary.\n\n    Attributes:\n        other: Not a field.\n", "Summary.\n\n    Attributes:\n    "],
)
def test_describe_rejects_undocumented_fields(docstring: str) -> None:
    @dataclasses.dataclass
    class Event:
        field: int

    Event.__doc__ = docstring
    with pytest.raises(ValueError, match="field"):
        reference.describe(Event, "event")


def test_to_dict_has_id_version_and_fields() -> None:
    event = events.CommandFailed((Problem("wrong", "got", "hint"),), 2)
    assert events.to_dict(event) == {
        "event": "error",
        "schema_version": 1,
        "problems": (dataclasses.asdict(event.problems[0]),),
        "exit_code": 2,
    }
    phase = events.Phase(events.PhaseId.READING_DATA, count=3)
    assert json.loads(json.dumps(events.to_dict(phase)))["phase"] == "reading_data"


def test_phase_text_exists_for_every_phase() -> None:
    assert set(PHASES) == set(events.PhaseId)
    assert phase_text(events.Phase(events.PhaseId.LOADING_MODEL, "mine")) == "mine: loading the model"
    assert phase_text(events.Phase(events.PhaseId.READING_DATA, count=12_000)) == "reading the data, 12,000 rows so far"

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
from neftcli.errors import DISK_FULL, INTERNAL, OUT_OF_MEMORY, PERMISSION, USAGE, DataError, NeftError, Problem
from neftcli.evaluation.judge import JudgeError
from neftcli.evaluation.progress import PROGRESS_UNITS
from neftcli.events import reference
from neftcli.metrics.registry import METRICS_BY_ID as METRICS
from neftcli.sweep.reporter import SweepError

EXPORTED = [getattr(events, name) for name in events.__all__]


def test_registry_holds_every_event() -> None:
    with_id = {kind for kind in EXPORTED if isinstance(kind, type) and isinstance(getattr(kind, "id", None), str)}
    assert set(events.EVENTS.values()) == with_id
    assert list(events.EVENTS) == [kind.id for kind in events.EVENTS.values()]


def test_ids_are_not_display_text() -> None:
    units = {unit for pair in PROGRESS_UNITS.values() for unit in pair}
    units |= {metric.unit for metric in METRICS.values() if metric.unit}
    codes = [
        DISK_FULL,
        PERMISSION,
        OUT_OF_MEMORY,
        USAGE,
        INTERNAL,
        *(error.code for error in _error_classes(NeftError)),
    ]
    ids = [
        *events.EVENTS,
        *events.PhaseId,
        *events.CellStatus,
        *events.RunStatus,
        *events.CheckId,
        *events.CheckLevel,
        *events.VerdictId,
        *events.ScopeId,
        *units,
        *codes,
    ]
    assert [name for name in ids if not re.fullmatch(r"[a-z_.]+", name)] == []
    assert len(set(codes)) == len(codes)


def _error_classes(error: type[NeftError]) -> list[type[NeftError]]:
    found = [error]
    for subclass in error.__subclasses__():
        if subclass.__module__.startswith("neftcli."):
            found += _error_classes(subclass)
    return found


def test_error_classes_finds_those_of_other_modules() -> None:
    assert {JudgeError, SweepError, DataError} <= set(_error_classes(NeftError))


def test_describe_shows_ids_as_text() -> None:
    """Display texts of the ids in events."""
    sources = [
        (events.ModelSource("hub", "owner/m", "v2"), "owner/m@v2 on the hub"),
        (events.ModelSource("package", "llm_m"), "installed package llm_m"),
        (events.ModelSource("run", "runs/m"), "runs/m"),
        (events.Method("full"), "full"),
        (events.Method("qlora", 8), "QLoRA r8"),
        (events.Device("cpu", threads=1), "CPU, 1 thread"),
        (events.Device("mps", processes=1), "Apple GPU"),
        (events.Device("cuda", "NVIDIA H200", processes=4), "4 x NVIDIA H200"),
        (events.RowsSource("builtin", "held_out"), "built-in set, held out"),
        (events.RowsSource("builtin", "train"), "built-in set, train"),
        (events.RowsSource("builtin", held_out_of="mine-a5-s0"), "held out of mine-a5-s0"),
        (events.RowsSource("owner/name", "test"), "owner/name"),
    ]
    assert [source.describe() for source, _ in sources] == [text for _, text in sources]


def test_problem_code_is_that_of_the_error() -> None:
    error = DataError(Problem("wrong"), Problem("full", code=DISK_FULL), "text")
    assert [problem.code for problem in error.problems] == ["data", DISK_FULL, "data"]


def test_describe_events_describes_every_field() -> None:
    described = reference.describe_events()
    assert [event.name for event in described] == list(events.EVENTS)
    for event in [*described, *reference.describe_parts()]:
        assert event.summary.endswith("."), event.name
        for field in event.fields:
            assert field.description.endswith("."), (event.name, field.name)


def test_describe_parts_describes_what_events_hold() -> None:
    parts = {part.name for part in reference.describe_parts()}
    assert {"Problem", "SplitCounts", "Occurrences", "ArmResult", "Comparison", "Significance", "Token"} <= parts
    assert parts.isdisjoint(kind.__name__ for kind in events.EVENTS.values())


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

"""What a workflow tells whoever watches: frozen facts, and the one protocol of those who watch.

A workflow never prints. The displays in `cli/display/`, the records in `runs/` and, later, a sweep all observe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from neftcli.events.data import (
    DataReady,
    InspectedRow,
    Occurrences,
    PageWritten,
    RowsReady,
    SourceCounts,
    Span,
    SplitCounts,
    Token,
)
from neftcli.events.evaluation import (
    Advance,
    Comparison,
    Estimated,
    EvaluatedModel,
    EvaluationReport,
    MetricRow,
    SideBySide,
    Significance,
)
from neftcli.events.sweep import (
    ArmRow,
    CellEstimate,
    CellEvaluationStarted,
    CellStarted,
    CellState,
    CellStatus,
    PowerPlan,
    SweepEstimate,
    SweepReport,
    SweepStarted,
)
from neftcli.events.training import (
    Evaluated,
    ModelReady,
    NoiseMeasured,
    PairedRun,
    Plan,
    Progress,
    Resolved,
    RunFinished,
    Sample,
    StepLogged,
    TrainingStarted,
)

__all__ = [
    "Advance",
    "ArmRow",
    "CellEstimate",
    "CellEvaluationStarted",
    "CellStarted",
    "CellState",
    "CellStatus",
    "Comparison",
    "DataReady",
    "Estimated",
    "Evaluated",
    "EvaluatedModel",
    "EvaluationReport",
    "Event",
    "InspectedRow",
    "MetricRow",
    "ModelReady",
    "NoiseMeasured",
    "Notice",
    "Observer",
    "Occurrences",
    "PageWritten",
    "PairedRun",
    "Phase",
    "Plan",
    "PowerPlan",
    "Progress",
    "Resolved",
    "RowsReady",
    "RunFinished",
    "Sample",
    "SideBySide",
    "Significance",
    "SourceCounts",
    "Span",
    "SplitCounts",
    "StepLogged",
    "SweepEstimate",
    "SweepReport",
    "SweepStarted",
    "Token",
    "TrainingStarted",
]


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the work begins that a person may wait for."""

    name: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know, and can act on."""

    message: str


Event = (
    Phase
    | Notice
    | DataReady
    | Resolved
    | ModelReady
    | NoiseMeasured
    | TrainingStarted
    | Progress
    | StepLogged
    | Evaluated
    | RunFinished
    | InspectedRow
    | PageWritten
    | Plan
    | RowsReady
    | Advance
    | EvaluationReport
    | SweepStarted
    | CellStarted
    | CellEvaluationStarted
    | CellState
    | SweepEstimate
    | SweepReport
)


class Observer(Protocol):
    """Whoever watches a workflow."""

    def notify(self, event: Event) -> None:
        """Is told of an event; must not raise and must not take long."""

"""Events of a workflow, and the protocol of its observers.

A workflow never prints: it notifies an observer. The displays in `cli/display/` and the records in `runs/` are
observers. Each event class has a stable id, which `--json` and `metrics.jsonl` write.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol, get_args

from neftcli.errors import Problem
from neftcli.events.data import (
    DataReady,
    EvaluationDataReady,
    InspectedRow,
    Occurrences,
    PageWritten,
    RowsSource,
    SourceCounts,
    Span,
    SplitCounts,
    Token,
)
from neftcli.events.doctor import CacheCleared, Checked, CheckId, CheckLevel, Diagnosis
from neftcli.events.evaluation import (
    Comparison,
    EvaluatedModel,
    EvaluationReport,
    MetricRow,
    MetricValue,
    ScopeId,
    SideBySide,
    Significance,
    VerdictId,
)
from neftcli.events.export import (
    ExportFinished,
    LogitComparison,
    MergeFinished,
    PushedFile,
    PushFinished,
    PushPlanned,
)
from neftcli.events.inference import (
    AnswerFinished,
    AnswerStarted,
    AnswersWritten,
    AnswerText,
    ChatModel,
    ChatStarted,
    StopReason,
)
from neftcli.events.phases import Phase, PhaseId, PhaseProgress
from neftcli.events.runs import (
    OptionDifference,
    RunDetails,
    RunFile,
    RunsCompared,
    RunsListed,
    RunsRemoved,
    RunStatus,
    RunSummary,
    StoredVerdict,
)
from neftcli.events.sweep import (
    ArmResult,
    CellEstimate,
    CellEvaluationStarted,
    CellStarted,
    CellState,
    CellStatus,
    PowerAnalysis,
    SweepEstimate,
    SweepReport,
    SweepStarted,
    arm_name,
)
from neftcli.events.training import (
    Device,
    Evaluated,
    Method,
    ModelReady,
    ModelSelected,
    ModelSource,
    NoiseMeasured,
    PairedRun,
    RecipeResolved,
    RunFinished,
    Sample,
    StepLogged,
    TrackerOpened,
    TrainingPlan,
    TrainingProgress,
    TrainingStarted,
)

__all__ = [
    "EVENTS",
    "SCHEMA_VERSION",
    "AnswerFinished",
    "AnswerStarted",
    "AnswerText",
    "AnswersWritten",
    "ArmResult",
    "CacheCleared",
    "CellEstimate",
    "CellEvaluationStarted",
    "CellStarted",
    "CellState",
    "CellStatus",
    "ChatModel",
    "ChatStarted",
    "CheckId",
    "CheckLevel",
    "Checked",
    "CommandFailed",
    "Comparison",
    "DataReady",
    "Device",
    "Diagnosis",
    "Evaluated",
    "EvaluatedModel",
    "EvaluationDataReady",
    "EvaluationReport",
    "Event",
    "ExportFinished",
    "InspectedRow",
    "LogitComparison",
    "MergeFinished",
    "Method",
    "MetricRow",
    "MetricValue",
    "ModelReady",
    "ModelSelected",
    "ModelSource",
    "NoiseMeasured",
    "Notice",
    "Observer",
    "Occurrences",
    "OptionDifference",
    "PageWritten",
    "PairedRun",
    "Phase",
    "PhaseId",
    "PhaseProgress",
    "PowerAnalysis",
    "PushFinished",
    "PushPlanned",
    "PushedFile",
    "RecipeResolved",
    "RowsSource",
    "RunDetails",
    "RunFile",
    "RunFinished",
    "RunStatus",
    "RunSummary",
    "RunsCompared",
    "RunsListed",
    "RunsRemoved",
    "Sample",
    "ScopeId",
    "SideBySide",
    "Significance",
    "SourceCounts",
    "Span",
    "SplitCounts",
    "StepLogged",
    "StopReason",
    "StoredVerdict",
    "SweepEstimate",
    "SweepReport",
    "SweepStarted",
    "Token",
    "TrackerOpened",
    "TrainingPlan",
    "TrainingProgress",
    "TrainingStarted",
    "VerdictId",
    "arm_name",
    "to_dict",
]

SCHEMA_VERSION = 1
"""Version of the ids and fields that `--json` writes; it rises when one is renamed or removed."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something a person should know and can act on.

    Attributes:
        message: The notice.
    """

    id: ClassVar[str] = "notice"

    message: str


@dataclass(frozen=True, slots=True)
class CommandFailed:
    """The command ends with an error, or was stopped.

    Attributes:
        problems: The errors, each in parts.
        exit_code: Exit code of the command: 1 failed, 2 bad input, 75 stopped and resumable, 130 stopped at once.
    """

    id: ClassVar[str] = "error"

    problems: tuple[Problem, ...]
    exit_code: int


Event = (
    Phase
    | PhaseProgress
    | Notice
    | RecipeResolved
    | TrainingPlan
    | DataReady
    | TrackerOpened
    | ModelReady
    | NoiseMeasured
    | TrainingStarted
    | TrainingProgress
    | StepLogged
    | Evaluated
    | ModelSelected
    | RunFinished
    | InspectedRow
    | PageWritten
    | EvaluationDataReady
    | EvaluationReport
    | SweepStarted
    | CellStarted
    | CellEvaluationStarted
    | CellState
    | SweepEstimate
    | SweepReport
    | RunsListed
    | RunDetails
    | RunsCompared
    | RunsRemoved
    | Checked
    | Diagnosis
    | CacheCleared
    | ChatStarted
    | AnswerStarted
    | AnswerText
    | AnswerFinished
    | AnswersWritten
    | MergeFinished
    | ExportFinished
    | PushPlanned
    | PushFinished
    | CommandFailed
)

EVENTS: dict[str, type[Event]] = {event.id: event for event in get_args(Event)}
"""Event classes by their id, in the order in which a reader meets them."""


def to_dict(event: Event) -> dict[str, Any]:
    """Return an event as `--json` writes it: its id as `event`, the schema version, and its fields."""
    return {"event": event.id, "schema_version": SCHEMA_VERSION, **asdict(event)}


class Observer(Protocol):
    """Receives the events of a workflow."""

    def notify(self, event: Event) -> None:
        """Take note of an event; must not raise and must not take long."""

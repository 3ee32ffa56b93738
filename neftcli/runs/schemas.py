"""Schemas of a run's JSON files, and functions that read such files.

A person, another program or a broken disk may have changed a file since neft wrote it. Each file is checked when it is
read, so that the rest of the code can rely on its keys and types. Keys that a schema does not name are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypeVar

from annotated_types import Ge, Le, MinLen
from typing_extensions import TypedDict, is_typeddict  # pydantic needs this one before Python 3.12

Schema = TypeVar("Schema")
RecordedCount = Annotated[int, Ge(0), Le(2**53)]
"""Integer that every JSON reader reads exactly."""


class Resumed(TypedDict):
    """Entry of a record for each time the run was resumed."""

    checkpoint: str | None
    skipped: list[str]
    changes: dict[str, str | Annotated[list[Any], MinLen(2)]]


class TrainingResults(TypedDict):
    """Results of a finished run."""

    seconds: float
    base_held_out_loss: NotRequired[float | None]
    held_out_loss: NotRequired[float | None]
    base_train_loss: NotRequired[float | None]
    train_loss: NotRequired[float | None]
    base_answer_metrics: NotRequired[dict[str, float | None]]
    answer_metrics: NotRequired[dict[str, float | None]]


class TrackerRecord(TypedDict):
    """Entry of a record for a tracker that the run was reported to."""

    id: str | None
    location: str
    problem: str


class Record(TypedDict):
    """`run.json`: the record of a run."""

    status: Literal["running", "finished", "failed", "preempted", "interrupted"]
    recipe_sha256: str
    started: NotRequired[str]
    resumed: NotRequired[list[Resumed]]
    trackers: NotRequired[dict[str, TrackerRecord]]
    data_sha256: NotRequired[str | None]
    tokens_sha256: NotRequired[str | None]
    model_fingerprint: NotRequired[str | None]
    row_format: NotRequired[str]
    results: NotRequired[TrainingResults]


class RecordedMethod(TypedDict):
    """Training method in a record: the fields of `neftcli.events.Method`."""

    type: str
    r: int | None


class RecordedNoise(TypedDict):
    """Noise settings in a record."""

    alpha: float


class ListedRecord(Record):
    """`run.json` as `neft runs` reads it."""

    finished: NotRequired[str | None]
    seed: NotRequired[RecordedCount]
    neftune: NotRequired[RecordedNoise]
    model: NotRequired[str]
    method: NotRequired[RecordedMethod]
    device: NotRequired[str]
    precision: NotRequired[str]
    noise_to_embedding: NotRequired[float | None]


class UnloggedSums(TypedDict):
    """Sums for the next log row at a checkpoint, by process."""

    loss: list[float]
    tokens: list[float]
    since: RecordedCount


class EvaluationLosses(TypedDict):
    """An evaluation during training: the fields of `neftcli.events.Evaluated`."""

    step: RecordedCount
    held_out_loss: float | None
    train_loss: float | None
    answer_metrics: NotRequired[dict[str, float | None]]


EvaluationLosses.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]


class BaseMeasurements(TypedDict):
    """Measurements before training."""

    evaluated: EvaluationLosses
    answers: list[str]
    evaluation_seconds: float
    answer_seconds: float


class TrainingState(TypedDict):
    """neft's own part of a checkpoint's `trainer_state.json`, for resuming."""

    evaluated: EvaluationLosses | None
    base: BaseMeasurements
    seconds: float
    unlogged: UnloggedSums
    best: NotRequired[EvaluationLosses | None]
    without_improvement: NotRequired[RecordedCount]
    trained: NotRequired[bool]


class Callbacks(TypedDict):
    """States of callbacks in a checkpoint."""

    TrainerControl: dict[str, Any]
    run: TrainingState


class TrainerState(TypedDict):
    """`trainer_state.json` of a checkpoint."""

    global_step: RecordedCount
    epoch: float
    total_flos: float
    log_history: list[dict[str, Any]]
    stateful_callbacks: Callbacks


class MetricsLine(TypedDict):
    """A line of `metrics.jsonl`; `event` is the id of a class in `neftcli.events`."""

    event: str
    step: RecordedCount
    held_out_loss: NotRequired[float | None]
    answer_metrics: NotRequired[dict[str, float | None]]


class SampleLine(TypedDict):
    """Line of `samples.jsonl`: a held-out prompt and the tuned model's answer."""

    prompt: str
    tuned: str


class ManifestFile(TypedDict):
    """A file of a checkpoint."""

    bytes: RecordedCount
    sha256: str


class Manifest(TypedDict):
    """`manifest.json` of a checkpoint, without its own hash."""

    format: int
    step: RecordedCount
    recipe_sha256: str
    data_sha256: str
    tokens_sha256: str
    model_fingerprint: str
    files: dict[str, ManifestFile]


class ReportedCell(TypedDict):
    """A cell in a sweep's report."""

    key: str
    status: str
    run: str


class ReportedSweep(TypedDict):
    """`sweep.json`: the report of a sweep."""

    cells: list[ReportedCell]
    failed: list[Any]
    unfinished: RecordedCount
    recommended: NotRequired[str]
    conclusion: NotRequired[list[str]]


class ReportedModel(TypedDict):
    """A model in the report of an evaluation."""

    role: str
    name: str


class ReportedComparison(TypedDict):
    """A comparison in the report of an evaluation."""

    metric: str
    against: str
    verdict: str


class ReportedEvaluation(TypedDict):
    """`evaluation/.../report.json`: the report of an evaluation."""

    models: Annotated[list[ReportedModel], MinLen(1)]
    comparisons: list[ReportedComparison]
    conclusion: NotRequired[list[str]]


class CellMetric(TypedDict):
    """Metric of a sweep's cell, by row."""

    direction: Literal["lower", "higher", "none"]
    values: list[float | None]
    weights: list[float | None] | None
    of: NotRequired[str]


class MeasuredCell(TypedDict):
    """`evaluation/cell.json`: measurements of a sweep's cell."""

    settings: str
    prompts: list[str]
    references: list[str]
    answers: list[str]
    metrics: dict[str, CellMetric]
    seconds: NotRequired[float]


def parse_json(content: bytes | str, schema: type[Schema]) -> Schema:
    """Parse JSON and check it against a schema.

    Returns:
        The value of the file, with the order of its keys and keys that a TypedDict does not name; or, if the schema is
        a dataclass, an instance of it.

    Raises:
        ValueError: It is not JSON, or does not fit the schema; the message is one line that names the first wrong key.
    """
    from pydantic import ValidationError

    try:
        value: Schema = _adapter(schema).validate_json(content, strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{key}: {first['msg']}" if key else first["msg"]) from None
    return json.loads(content) if is_typeddict(schema) else value  # pydantic changes the order of keys


def read_jsonl(path: Path, schema: type[Schema]) -> Iterator[tuple[str, Schema | None]]:
    """Yield each line of a .jsonl file with its value; None for a line that does not fit the schema.

    A missing file has no lines. A process that was killed while writing leaves an incomplete last line.
    """
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for line in file:
            try:
                yield line, parse_json(line.encode("utf-8", "surrogateescape"), schema)
            except ValueError:
                yield line, None


@cache
def _adapter(schema: Any) -> Any:
    """Return pydantic's reader of a schema; import pydantic when the first file is read."""
    from pydantic import TypeAdapter

    return TypeAdapter(schema)

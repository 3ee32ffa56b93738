"""Events and their parts about the runs and sweeps below a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from neftcli.events.training import Method, PairedRun


class RunStatus(StrEnum):
    """Statuses of a folder below runs/; those of `run.json`, and what only a look at the folder shows."""

    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    PREEMPTED = "preempted"
    INTERRUPTED = "interrupted"
    KILLED = "killed"  # recorded as running, but no process holds its lock
    UNFINISHED = "unfinished"  # a sweep with cells that are not finished
    DAMAGED = "damaged"  # a file of a run or a sweep can't be read
    OTHER = "other"  # neither a run nor a sweep


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """The comparison of a run with a baseline by `neft eval`.

    Attributes:
        baseline: Name of the baseline.
        metric: Id of the compared metric: the held-out loss, or the first metric of the report.
        verdict: better, worse, lower, higher, not_significant or not_tested.
        folder: Folder of the report.
        conclusion: The report's conclusion, as sentences.
    """

    baseline: str
    metric: str
    verdict: str
    folder: str
    conclusion: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run, or a sweep, or a folder that is neither.

    Attributes:
        path: Its folder.
        kind: run, sweep or other.
        status: finished, running, failed, preempted, interrupted, killed, unfinished, damaged or other.
        changed: Time of its end, or of its last change, in ISO 8601; empty if unknown.
        size_bytes: Bytes of its files; links are not followed.
        model: Name of the base model; empty if unknown.
        method: Training method; None if unknown.
        alphas: NEFTune's alpha of a run; all alphas of a sweep.
        seeds: Training seed of a run; all seeds of a sweep.
        steps: Steps done; of a sweep, finished cells. None if unknown.
        total_steps: Cells of a sweep; None for a run.
        base_held_out_loss: Held-out loss before training; None if it was not measured, and for a sweep.
        held_out_loss: Latest held-out loss, of the tuned model if the run is finished; None for a sweep.
        verdict: The latest comparison with a baseline; None without one.
        recommended: Id of the arm that a sweep recommends; empty if it recommends none, and for a run.
        conclusion: Verdict of a sweep, as sentences.
        problem: What can't be read, or why the folder is not a run; else empty.
    """

    path: str
    kind: str
    status: RunStatus
    changed: str
    size_bytes: int
    model: str = ""
    method: Method | None = None
    alphas: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    steps: int | None = None
    total_steps: int | None = None
    base_held_out_loss: float | None = None
    held_out_loss: float | None = None
    verdict: StoredVerdict | None = None
    recommended: str = ""
    conclusion: tuple[str, ...] = ()
    problem: str = ""

    def name(self) -> str:
        """Return the name of its folder."""
        return self.path.rstrip("/").rpartition("/")[2] or self.path


@dataclass(frozen=True, slots=True)
class RunsListed:
    """The runs, sweeps and other folders below a folder.

    Attributes:
        folder: The folder.
        runs: They, the newest first.
    """

    id: ClassVar[str] = "runs.listed"

    folder: str
    runs: tuple[RunSummary, ...]


@dataclass(frozen=True, slots=True)
class RunFile:
    """A file or folder of a run or a sweep.

    Attributes:
        name: Its name; a folder's ends with a slash.
        size_bytes: Bytes of the file, or of all files in the folder.
    """

    name: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class RunDetails:
    """Everything about a run or a sweep.

    Attributes:
        summary: Its row of the table.
        started: When it was started, in ISO 8601; empty if unknown.
        seconds: Wall time of a finished run; None for others.
        device: Device that it was trained on; empty if unknown.
        precision: Precision of the matrix products; empty if unknown.
        options: Options of its recipe that are not the default, by their dotted key.
        base_train_loss: Loss on the probe rows before training; None if it was not measured.
        train_loss: The same of the tuned model, without noise; None if it was not measured.
        noise_to_embedding: RMS of the noise over the RMS of the embeddings; None if it was not measured.
        checkpoints: Steps of its complete checkpoints.
        verdicts: Comparisons with baselines, the newest first.
        cells: Runs of a sweep; empty for a run.
        files: Its files and folders.
        paired_run: The run that differs only in its noise; None for an unfinished run and for a sweep.
        is_compared: True if `neft eval` has compared the two.
        trust_remote_code: True if its recipe lets the model run code of its own, which resuming has to repeat.
        base_answer_metrics: Metrics of answers before training, by id, as in evaluation.during.
        answer_metrics: The same of the tuned model; empty if none were measured.
    """

    id: ClassVar[str] = "runs.shown"

    summary: RunSummary
    started: str
    seconds: float | None
    device: str
    precision: str
    options: dict[str, Any]
    base_train_loss: float | None
    train_loss: float | None
    noise_to_embedding: float | None
    checkpoints: tuple[int, ...]
    verdicts: tuple[StoredVerdict, ...]
    cells: tuple[RunSummary, ...]
    files: tuple[RunFile, ...]
    paired_run: PairedRun | None
    is_compared: bool
    trust_remote_code: bool
    base_answer_metrics: dict[str, float | None] = field(default_factory=dict)
    answer_metrics: dict[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OptionDifference:
    """An option in which two recipes differ.

    Attributes:
        key: Its dotted key.
        first: Value of the first run.
        second: Value of the second run.
    """

    key: str
    first: Any
    second: Any


@dataclass(frozen=True, slots=True)
class RunsCompared:
    """Two runs side by side.

    Attributes:
        first: The first run.
        second: The second run.
        options: Options in which their recipes differ, without the name and the output folder.
        different_inputs: Inputs with different content: data, tokens or model.
        first_seconds: Wall time of the first run; None if it is not finished.
        second_seconds: Wall time of the second run; None if it is not finished.
        comparable: True if both were measured on the same rows and tokens, so that a difference of their losses means
            something.
        verdict: A stored comparison of the two by `neft eval`, of either as the baseline; None if there is none.
        evaluated: Name of the run that `verdict` is about; empty if there is none.
        sweep_command: Command that compares their alphas over several seeds; None if they differ in other options or
            not in alpha.
    """

    id: ClassVar[str] = "runs.compared"

    first: RunSummary
    second: RunSummary
    options: tuple[OptionDifference, ...]
    different_inputs: tuple[str, ...]
    first_seconds: float | None
    second_seconds: float | None
    comparable: bool
    verdict: StoredVerdict | None
    evaluated: str
    sweep_command: str | None


@dataclass(frozen=True, slots=True)
class RunsRemoved:
    """Runs or sweeps were removed.

    Attributes:
        runs: Their folders, which no longer exist.
        freed_bytes: Bytes of their files.
    """

    id: ClassVar[str] = "runs.removed"

    runs: tuple[str, ...]
    freed_bytes: int

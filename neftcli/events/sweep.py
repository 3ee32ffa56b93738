"""Events and their parts about a sweep."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from neftcli.events.evaluation import Comparison, MetricValue
from neftcli.wording import count_noun


class CellStatus(StrEnum):
    """Statuses of a cell; these ids are in sweep.json, cells.csv and the output of --json."""

    WAITING = "waiting"
    STARTING = "starting"
    TRAINING = "training"
    EVALUATING = "evaluating"
    PREEMPTED = "preempted"
    FINISHED = "finished"
    FAILED = "failed"
    NOT_NEEDED = "not_needed"  # early stopping saved it


@dataclass(frozen=True, slots=True)
class CellStarted:
    """A worker starts a cell, or restarts it."""

    id: ClassVar[str] = "sweep.cell_started"


@dataclass(frozen=True, slots=True)
class CellEvaluationStarted:
    """A cell is trained, and its evaluation starts."""

    id: ClassVar[str] = "sweep.cell_evaluation_started"


@dataclass(frozen=True, slots=True)
class CellState:
    """State of a cell.

    Attributes:
        key: First characters of the hash of everything that determines its weights.
        arm: Id of its arm.
        seed: Its training seed.
        status: waiting, starting, training, evaluating, preempted, finished, failed or not_needed (by early stopping).
        step: Steps done.
        total_steps: Steps in all; 0 until they are known.
        held_out_loss: Latest held-out loss; None before the first one.
        remaining: Estimated seconds left of its training, or of the current part of its evaluation; None if unknown.
        run: Its folder; empty if it is not finished.
        problem: Reason of a failure, or an empty string.
        evaluated: Rows or answers done in the current part of its evaluation.
        to_evaluate: All rows or answers of that part; 0 before the evaluation.
        retries: Restarts in this command, after a lost worker or an unexpected error.
    """

    id: ClassVar[str] = "sweep.cell"

    key: str
    arm: str
    seed: int
    status: CellStatus
    step: int = 0
    total_steps: int = 0
    held_out_loss: float | None = None
    remaining: float | None = None
    run: str = ""
    problem: str = ""
    evaluated: int = 0
    to_evaluate: int = 0
    retries: int = 0

    def name(self) -> str:
        """Return the cell's name: "alpha 5, seed 0"."""
        return f"{arm_name(self.arm)}, seed {self.seed}"

    def tries(self) -> str:
        """Return "try 2" if the cell was restarted; else an empty string."""
        return f"try {self.retries + 1}" if self.retries else ""


@dataclass(frozen=True, slots=True)
class SweepStarted:
    """The cells of a sweep are planned.

    Attributes:
        folder: Folder of the sweep.
        cells: All cells, including those that are done.
        added_baseline: True if neft added alpha 0 to the alphas.
    """

    id: ClassVar[str] = "sweep.started"

    folder: str
    cells: tuple[CellState, ...]
    added_baseline: bool


@dataclass(frozen=True, slots=True)
class CellEstimate:
    """Estimated time of a cell that is not finished.

    Attributes:
        key: First characters of the hash of everything that determines its weights.
        arm: Id of its arm.
        seed: Its training seed.
        seconds: Estimated seconds, without loading the model.
    """

    key: str
    arm: str
    seed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PowerAnalysis:
    """Power of a planned sweep for claims about new seeds (power 80 %), from the variance of a pilot sweep.

    Attributes:
        metric: Id of the first metric.
        seeds: Planned seeds.
        prompts: Distinct prompts of the held-out split, or documents of a benchmark.
        pilot: Folder of the pilot sweep; empty without one.
        pilot_seeds: Seeds of the pilot sweep.
        detectable: Minimum detectable effect in the metric's unit; None without a pilot.
        delta: Smallest effect of interest in the metric's unit; None if it is not known.
        seeds_needed: Seeds that detect delta with these prompts; None if no number does, or delta is not known.
        prompts_needed: Prompts that detect delta with these seeds; None if no number does, or with one seed.
        differs: Options that differ between the pilot and the planned sweep.
        why_not: Reason why there is no minimum detectable effect; empty if there is one.
    """

    metric: str
    seeds: int
    prompts: int
    pilot: str = ""
    pilot_seeds: int = 0
    detectable: float | None = None
    delta: float | None = None
    seeds_needed: int | None = None
    prompts_needed: int | None = None
    differs: tuple[str, ...] = ()
    why_not: str = ""


@dataclass(frozen=True, slots=True)
class SweepEstimate:
    """Estimated time of the cells that are not finished.

    Attributes:
        seconds: Estimated seconds in all, loading the model included.
        workers: Number of workers.
        cells: The cells that are not finished.
        parts: Seconds of the training, the losses and the answers of a cell; empty if cells differ or the estimate is
            from finished cells.
        finished_cells: Number of finished cells whose mean was used.
        timed_passes: Number of forward passes that were timed, one for each kind of cell without a finished one.
        answer_tokens: Tokens counted for each answer, the most it can have; None if no answer was timed.
        uncounted: Parts that the estimate leaves out: tasks, judge, report.
        engine: "local" or "ray"; with ray one worker is assumed.
        early_stopping: Fewer cells may be needed; the estimate is for all.
        power: Minimum detectable effect of the sweep.
    """

    id: ClassVar[str] = "sweep.estimate"

    seconds: float
    workers: int
    cells: tuple[CellEstimate, ...]
    parts: dict[str, float]
    finished_cells: int = 0
    timed_passes: int = 0
    answer_tokens: int | None = None
    uncounted: tuple[str, ...] = ()
    engine: str = "local"
    early_stopping: bool = False
    power: PowerAnalysis | None = None


@dataclass(frozen=True, slots=True)
class ArmResult:
    """Results of an arm.

    Attributes:
        arm: Its id, the swept options: "neftune.alpha=5 training.learning_rate=1e-05".
        alpha: NEFTune's alpha.
        seeds: Measured seeds.
        values: Id of a metric, mapped to its mean over seeds with a 95 % confidence interval over seeds and prompts.
        comparisons: Comparisons with alpha 0, one for each comparable metric; empty for alpha 0 itself.
        dropped: True if early stopping gave the arm no further seeds.
    """

    arm: str
    alpha: float
    seeds: int
    values: dict[str, MetricValue]
    comparisons: tuple[Comparison, ...]
    dropped: bool = False

    def name(self) -> str:
        """Return the name of the arm."""
        return arm_name(self.arm)

    def comparison(self, metric: str) -> Comparison | None:
        """Return the comparison with alpha 0 in a metric; None if it was not compared."""
        return next((comparison for comparison in self.comparisons if comparison.metric == metric), None)


def arm_name(arm: str) -> str:
    """Return the name of an arm from its id: "alpha 5, learning_rate 1e-05"."""
    names = []
    for option in re.split(r" (?=[\w.]+=)", arm):  # a value may contain spaces
        key, _, value = option.partition("=")
        names.append(f"{key.rpartition('.')[2]} {value}")
    return ", ".join(names)


@dataclass(frozen=True, slots=True)
class SweepReport:
    """Results of a sweep.

    Attributes:
        folder: Folder of the sweep.
        arms: Results of each arm.
        metrics: Ids of the metrics that decide; the first one selects the recommended arm.
        recommended: Id of the recommended arm; empty if there is none.
        conclusion: The verdict, as sentences.
        scope: Scope of the verdicts, as a sentence.
        failed: Cells that failed.
        retried: Cells that were restarted in this call, after a lost worker or an unexpected error.
        unfinished: Number of cells that are not finished, because the sweep was stopped.
        saved: Number of cells that early stopping saved.
        seconds: Wall time of this call.
        resume_command: Command that resumes it.
    """

    id: ClassVar[str] = "sweep.report"

    folder: str
    arms: tuple[ArmResult, ...]
    metrics: tuple[str, ...]
    recommended: str
    conclusion: tuple[str, ...]
    scope: str
    failed: tuple[CellState, ...]
    retried: tuple[CellState, ...]
    unfinished: int
    saved: int
    seconds: float
    resume_command: str

    def failures(self) -> list[str]:
        """Return a line for each cell that failed."""
        return [f"{state.name()} failed: {state.problem}" for state in self.failed]

    def remarks(self) -> list[str]:
        """Return a line for each cell that was restarted, and for cells that are missing."""
        lines = [f"{state.name()} was restarted ({state.tries()})" for state in self.retried]
        if self.unfinished:
            left = count_noun(self.unfinished, "cell is", "cells are")
            lines.append(f"{left} not finished: the table shows the others")
        if self.saved:
            lines.append(f"early stopping saved {count_noun(self.saved, 'cell')}")
        return lines

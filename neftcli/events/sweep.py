"""Events of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from neftcli.events.evaluation import Comparison, Estimated


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
    """A worker starts a cell, or starts it again."""


@dataclass(frozen=True, slots=True)
class CellEvaluationStarted:
    """A cell is trained, and its evaluation starts."""


@dataclass(frozen=True, slots=True)
class CellState:
    """State of a cell.

    Attributes:
        key: First characters of the hash of everything that determines its weights.
        arm: Name of its arm.
        seed: Its training seed.
        status: Its status.
        step: Optimiser steps done.
        total_steps: All optimiser steps; 0 if the number is not known yet.
        loss: Latest held-out loss; None before the first one.
        remaining: Estimated seconds left of its training, or of the current part of its evaluation; None if unknown.
        run: Its folder; empty if it is not finished.
        problem: Reason of a failure, or an empty string.
        evaluated: Rows or answers done in the current part of its evaluation.
        to_evaluate: All rows or answers of that part; 0 before the evaluation.
        retries: Number of restarts in this call, after a lost worker or an unexpected error.
    """

    key: str
    arm: str
    seed: int
    status: CellStatus
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    remaining: float | None = None
    run: str = ""
    problem: str = ""
    evaluated: int = 0
    to_evaluate: int = 0
    retries: int = 0

    def name(self) -> str:
        """Return the cell's name: "alpha 5, seed 0"."""
        return f"{self.arm}, seed {self.seed}"

    def tries(self) -> str:
        """Return "try 2" if the cell was restarted; else an empty string."""
        return f"try {self.retries + 1}" if self.retries else ""


@dataclass(frozen=True, slots=True)
class SweepStarted:
    """The cells of a sweep are planned.

    Attributes:
        folder: Where all of it is written.
        cells: All of them, those that are done already as well.
        added_baseline: Alpha 0 was not asked for, and was added.
    """

    folder: str
    cells: tuple[CellState, ...]
    added_baseline: bool


@dataclass(frozen=True, slots=True)
class CellEstimate:
    """How long a cell that is to do will take.

    Attributes:
        key: The first letters of the hash of what determines its weights.
        arm: Its arm in words.
        seed: Its training seed.
        seconds: Estimated seconds, without its worker's start.
    """

    key: str
    arm: str
    seed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class PowerPlan:
    """What a planned sweep could detect, by the variance of a pilot: claims about new seeds, with a power of 80 %.

    Attributes:
        metric: The first metric.
        seeds: Planned seeds.
        prompts: Distinct prompts of the held-out split, or documents of a benchmark.
        pilot: Folder of the sweep whose variance is used; empty without one.
        pilot_seeds: Its seeds.
        detectable: Minimum detectable effect in the metric's unit; None without a pilot.
        delta: Smallest effect of interest in the metric's unit; None if it is not known.
        seeds_needed: Seeds that detect delta with these prompts; None if no number does, or delta is not known.
        prompts_needed: Prompts that detect delta with these seeds; None likewise, or with one seed.
        differs: Options in which the pilot's cells were trained differently.
        why_not: Why there is no minimum detectable effect; empty if there is one.
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
    """How long what is left of a sweep will take, and what its cells share.

    Attributes:
        seconds: Estimated seconds in all, start-up included.
        workers: Workers that do it at the same time.
        cells: Those that are to do.
        parts: What of a cell takes how many seconds; empty where cells differ, or were timed whole.
        timed: What the estimate was made from, by its name, and how much of it; empty where nothing is to do.
        shared: What cells have in common, in words.
        answer_tokens: Tokens that each answer is counted with, the most it may have; None where answers ended.
        uncounted: What is left out, in words.
        engine: local or ray; with ray it was timed on this machine, as if one worker did all.
        early_stopping: Fewer cells may be needed; the estimate is of all.
        power: What the sweep could detect.
        own_start: Seconds in it until the command begins the first cell: as long as this dry run took for the same.
        worker_start: Seconds in it until a worker begins its first cell (libraries, model, tokenised rows, losses and
            answers of the base model); None if it is in the recorded seconds of finished cells.
    """

    seconds: float
    workers: int
    cells: tuple[CellEstimate, ...]
    parts: dict[str, float]
    timed: dict[str, int]
    shared: tuple[str, ...]
    answer_tokens: int | None = None
    uncounted: tuple[str, ...] = ()
    engine: str = "local"
    early_stopping: bool = False
    power: PowerPlan | None = None
    own_start: float = 0.0
    worker_start: float | None = None


@dataclass(frozen=True, slots=True)
class ArmRow:
    """What a sweep found of one arm.

    Attributes:
        alpha: NEFTune's alpha.
        label: Its other swept options; empty without a grid.
        seeds: Seeds that it was measured with.
        values: Metric to its mean over seeds with a 95 % confidence interval over seeds and prompts.
        comparisons: With alpha 0, each metric that could be compared; empty for alpha 0 itself.
        dropped: It got no further seeds.
    """

    alpha: float
    label: str
    seeds: int
    values: dict[str, Estimated]
    comparisons: tuple[Comparison, ...]
    dropped: bool = False

    def name(self) -> str:
        """The whole arm in words."""
        return arm_name(self.alpha, self.label)

    def verdict(self, metric: str) -> str:
        """The verdict in a metric, with the scope of one that does not hold for new seeds."""
        found = next((one for one in self.comparisons if one.metric == metric), None)
        if found is None:
            word = "not compared" if self.alpha else "baseline"
        elif found.verdict in ("lower", "higher"):
            word = f"{found.verdict} for {'this seed' if found.seeds == 1 else f'these {found.seeds} seeds'}"
        else:
            word = found.verdict
        return f"{word} (dropped)" if self.dropped else word


def arm_name(alpha: float, label: str) -> str:
    """An arm in words, by its alpha and its other swept options: "alpha 5, learning_rate 1e-05"."""
    return f"alpha {alpha:g}" + (f", {label}" if label else "")


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep found.

    Attributes:
        folder: Where all of it is written.
        arms: A row each.
        metrics: What decides; the first has chosen.
        recommended: The arm that is recommended, in words; empty where none is.
        conclusion: What can be said, sentence by sentence.
        scope: What the verdicts are about.
        failed: The cells that failed.
        retried: Those that were begun again in this call, after their worker was lost or a fault.
        unfinished: Cells that are not done, since the sweep was stopped.
        saved: Cells that early stopping saved.
        seconds: Wall time of this call.
        again: The command that goes on with it.
    """

    folder: str
    arms: tuple[ArmRow, ...]
    metrics: tuple[str, ...]
    recommended: str
    conclusion: tuple[str, ...]
    scope: str
    failed: tuple[CellState, ...]
    retried: tuple[CellState, ...]
    unfinished: int
    saved: int
    seconds: float
    again: str

    def failures(self) -> list[str]:
        """The cells that failed, in words."""
        return [f"{state.name()} failed: {state.problem}" for state in self.failed]

    def remarks(self) -> list[str]:
        """What else is to say of the cells."""
        lines = [f"{state.name()} was begun again ({state.tries()})" for state in self.retried]
        if self.unfinished:
            left = "1 cell is" if self.unfinished == 1 else f"{self.unfinished} cells are"
            lines.append(f"{left} not done: the table is of those that are")
        if self.saved:
            lines.append(f"early stopping saved {self.saved} cell{'s' if self.saved > 1 else ''}")
        return lines

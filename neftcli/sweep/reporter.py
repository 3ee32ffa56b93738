"""Judge the results of a sweep and write its report."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import NeftError, Preempted, Problem
from neftcli.events import CellStatus, Notice, Observer, SweepReport
from neftcli.metrics.registry import HELD_OUT_LOSS, METRICS_BY_ID, WIN_RATE_LENGTH_CONTROLLED
from neftcli.runs.directory import CELLS
from neftcli.sweep.cell_runs import CellRuns, read_evaluation
from neftcli.sweep.cell_win_rates import add_win_rates
from neftcli.sweep.delta import gain_of_training, losses_before, resolve_delta
from neftcli.sweep.outputs import write_cells, write_outputs
from neftcli.sweep.results import SweepResults
from neftcli.sweep.scheduler import DONE, SweepScheduler
from neftcli.sweep.validate import require_comparable
from neftcli.sweep.verdict import judge_sweep
from neftcli.training.signals import StopRequested

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.sweep.plan import Cell

RESUMES = "    resumes it and skips finished cells"


class SweepError(NeftError):
    """Cells of a sweep failed; the others are finished."""

    code = "cells_failed"


class SweepReporter:
    """Reads the results of a sweep, judges them and writes the report.

    Args:
        folder: Folder of the sweep.
        base: Its recipe.
        cells: Its cells.
        scheduler: Knows their states, the decisions of early stopping, and if a stop was requested.
        observer: Receives notices.
        resume_command: Command that resumes the sweep.
    """

    def __init__(
        self,
        folder: Path,
        base: Recipe,
        cells: list[Cell],
        scheduler: SweepScheduler,
        observer: Observer,
        resume_command: str,
    ) -> None:
        self._folder = folder
        self._base = base
        self._cells = cells
        self._scheduler = scheduler
        self._observer = observer
        self._resume_command = resume_command
        self._write_error: OSError | None = None

    def look(self) -> tuple[SweepResults, str, float | None] | None:
        """Return the results so far, the metric that decides and its delta; None if there is nothing to decide."""
        evaluations = self._evaluations()
        if self._scheduler.stop.is_requested():  # the judge may not have answered all questions
            return None
        metrics = self._metrics(evaluations)
        if not metrics:
            return None
        results = SweepResults(self._cells, evaluations)
        return results, metrics[0], self.delta(results, metrics[0])

    def report(self, started: float) -> SweepReport:
        """Judge the sweep and write the report to its folder.

        Args:
            started: When the command started, by `time.perf_counter`.

        Raises:
            SweepError: No cell is finished, and some failed.
            Preempted: No cell is finished, since the sweep was stopped.
            NeftError: No metric of the sweep can be compared.
        """
        states = list(self._scheduler.states.values())
        evaluations = self._evaluations()
        if not evaluations:
            with self._keep_write_error():
                write_cells(self._folder, states)
            self.require_complete()
        metrics = self._metrics(evaluations)
        results = SweepResults(self._cells, evaluations)
        decision = self._scheduler.decision
        verdict = judge_sweep(
            results,
            metrics,
            [dropped.arm for dropped in decision.dropped],
            self.delta(results, metrics[0]) if metrics else None,
            decision.stopped,
        )
        report = SweepReport(
            folder=str(self._folder),
            arms=verdict.arms,
            metrics=tuple(metrics),
            recommended=verdict.recommended.id() if verdict.recommended else "",
            conclusion=verdict.conclusion,
            scope=verdict.scope,
            failed=tuple(state for state in states if state.status == CellStatus.FAILED),
            retried=tuple(state for state in states if state.retries),
            unfinished=sum(state.status not in (*DONE, CellStatus.FAILED) for state in states),
            saved=sum(state.status == CellStatus.NOT_NEEDED for state in states),
            seconds=time.perf_counter() - started,
            resume_command=self._resume_command,
        )
        with self._keep_write_error():
            write_outputs(report, states, results, metrics, verdict.recommended, self._cells)
        return report

    def delta(self, results: SweepResults, metric: str) -> float | None:
        """Return the smallest effect of interest in the metric's unit; None if it is unknown."""
        before = losses_before(Path(state.run) for state in self._scheduler.states.values() if state.run)
        return resolve_delta(self._base.sweep.delta, metric, gain_of_training(results, before))

    def require_complete(self) -> None:
        """Check that the report is written and all cells are finished.

        Raises:
            OSError: The report could not be written.
            SweepError: Cells failed.
            Preempted: The sweep was stopped.
        """
        if self._write_error is not None:
            raise self._write_error
        states = list(self._scheduler.states.values())
        failed = [state for state in states if state.status == CellStatus.FAILED]
        if failed:
            problems = [
                Problem(f"{state.name()} failed: {state.problem}", hint=self._hint(state.key)) for state in failed
            ]
            raise SweepError(*problems)
        left = sum(state.status not in DONE for state in states)
        if left:
            count = f"{left} of {len(states)} cells {'is' if left == 1 else 'are'} left"
            raise Preempted(Problem(f"stopped; {count}", hint=f"{self._resume_command}{RESUMES}"))

    def _evaluations(self) -> dict[str, dict[str, Any]]:
        """Return the evaluation of each finished cell by its key, with the judge's scores."""
        evaluations = load_evaluations(self._cells, self._folder / CELLS, f"{self._resume_command}{RESUMES}")
        if WIN_RATE_LENGTH_CONTROLLED in self._base.sweep.metrics:
            self.add_win_rates(evaluations)
        return evaluations

    def add_win_rates(self, evaluations: dict[str, dict[str, Any]]) -> None:
        """Add the judge's scores; once a stop is requested, the judge is not asked any more."""
        judge = self._base.evaluation.judge
        try:
            with self._scheduler.stop.interruptible():
                add_win_rates(self._cells, evaluations, judge, self._folder, self._observer)
        except StopRequested:
            self._observer.notify(Notice("the sweep is stopping: no more requests to the judge"))

    def _metrics(self, evaluations: dict[str, dict[str, Any]]) -> list[str]:
        """Return the ids of the metrics that decide.

        Raises:
            NeftError: There is none: only tasks were requested, and none has a value for each document.
        """
        measured = list(next(iter(evaluations.values()))["metrics"]) if evaluations else []
        tasks = [metric for metric in measured if metric not in METRICS_BY_ID]
        names: list[str] = []
        for metric in self._base.sweep.metrics:
            names += tasks if metric == "tasks" else [metric]
        if not names and evaluations:
            raise NeftError(
                Problem(
                    "sweep.metrics tasks: none of these tasks has a value for each document to compare",
                    ", ".join(self._base.evaluation.tasks),
                    f"neft sweep-alpha {shlex.quote(str(self._folder))} --metric {HELD_OUT_LOSS}    keeps all cells",
                )
            )
        return names

    @contextmanager
    def _keep_write_error(self) -> Iterator[None]:
        """Keep an error of the block for `require_complete`, so that the results are still shown."""
        try:
            yield
        except OSError as error:
            self._write_error = error

    def _hint(self, key: str) -> str:
        """Return the hint for a failed cell; changing an option of the cell would make it a different cell."""
        own = self._scheduler.hints.get(key, "")
        first = "leave its arm out, or" if not own or own.startswith("--") else f"{own}, then"
        return f"{first} {self._resume_command}    retries it and skips finished cells"


def load_evaluations(cells: list[Cell], folder: Path, hint: str) -> dict[str, dict[str, Any]]:
    """Read the evaluation of each finished cell, by its key.

    Args:
        cells: The cells.
        folder: The folder `cells/` of the sweep.
        hint: Command that resumes the sweep, for errors.

    Raises:
        NeftError: The cells were not trained and evaluated on the same inputs.
    """
    runs = CellRuns(folder)
    evaluated = {}
    for cell in cells:
        run = runs.finished(cell.key)
        evaluation = read_evaluation(run, cell.recipe) if run else None
        if run is not None and evaluation is not None:
            evaluated[cell.key] = run, evaluation
    require_comparable(evaluated, hint)
    return {key: evaluation for key, (_, evaluation) in evaluated.items()}

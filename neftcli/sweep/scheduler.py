"""A running sweep: schedule its cells, track their states, and report at the end."""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import NeftError, Preempted, Problem
from neftcli.evaluation.metrics import HELD_OUT_LOSS, REGISTRY, WIN_RATE_LENGTH_CONTROLLED
from neftcli.events import (
    CellEvaluationStarted,
    CellStarted,
    CellStatus,
    Evaluated,
    Event,
    Notice,
    Observer,
    PhaseProgress,
    SweepReport,
    TrainingProgress,
)
from neftcli.recipe.loading import to_yaml
from neftcli.runs.directory import CELLS, RECIPE, RunDirectory
from neftcli.sweep.cell import clear_incomplete_runs, finished_run, measured
from neftcli.sweep.cell_states import state_of
from neftcli.sweep.delta import gain_of_training, losses_before, resolve_delta
from neftcli.sweep.early_stopping import FIRST_LOOK, Decision, decide, stops_early
from neftcli.sweep.engines.local_engine import LocalEngine, Outcome, devices
from neftcli.sweep.folder import require_alike
from neftcli.sweep.plan import Cell, arms_of
from neftcli.sweep.results import SweepResults
from neftcli.system.files import atomic_write
from neftcli.training.signals import StopRequested, StopSignal, announce_stop

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.sweep.engines.ray_engine import RayEngine
    from neftcli.sweep.sweep_alpha import Request

GOES_ON = "    goes on: what is done is skipped"
TO_DO = (CellStatus.WAITING, CellStatus.PREEMPTED)
DONE = (CellStatus.FINISHED, CellStatus.NOT_NEEDED)
NO_PROGRESS: dict[str, Any] = {"step": 0, "loss": None, "evaluated": 0, "to_evaluate": 0, "remaining": None}


class SweepError(NeftError):
    """Cells of a sweep failed; the others are done."""


class SweepRun:
    """A running sweep: its cells, their states, and the observer.

    Attributes:
        stop: The first signal stops cells after their current step, the second at once.
    """

    def __init__(self, folder: Path, base: Recipe, cells: list[Cell], observer: Observer, again: str) -> None:
        self.folder, self.base, self.cells, self.observer, self.again = folder, base, cells, observer, again
        self.states = {cell.key: state_of(cell) for cell in cells}
        self.decision = Decision()
        self.stop = StopSignal()
        self._engine_at_work: LocalEngine | RayEngine | None = None
        self._unwritten: OSError | None = None
        self._said: set[str] = set()
        self._remedies: dict[str, str] = {}  # key of a cell that failed to what its own message says to type

    def asked_to_stop(self) -> None:
        """Stop after the first signal."""
        announce_stop(
            self.observer, "cells finish their current step and save it first" if self._engine_at_work else ""
        )
        self.halt()

    def halt(self) -> None:
        """Stop cells after their current step; may be called by a signal handler."""
        if self._engine_at_work is not None:
            self._engine_at_work.stop()

    def train(self, request: Request) -> None:
        """Train and measure what is not done; with early stopping in rounds, each followed by a look at the results."""
        early, engine = stops_early(self.base.sweep), self._engine(request)
        self._engine_at_work = engine
        seeds, arms = list(dict.fromkeys(cell.seed for cell in self.cells)), arms_of(self.cells)
        done = 0
        try:
            atomic_write(self.folder / RECIPE, to_yaml(self.base))  # only now: without an engine nothing changes
            (self.folder / CELLS).mkdir(exist_ok=True)  # with the recipe it is what a sweep is known by
            clear_incomplete_runs(self.folder / CELLS)
            while done < len(seeds) and (needed := [arm for arm in arms if self.decision.is_needed(arm)]):
                number = _seeds_of_round(done, len(needed), engine.workers) if early else len(seeds)
                round_seeds = seeds[done : done + number]
                cells = [cell for cell in self.cells if cell.seed in round_seeds and cell.arm in needed]
                if self.stop.is_requested():
                    self.halt()  # it was asked for before there was an engine
                to_do = [cell for cell in cells if self.states[cell.key].status != CellStatus.FINISHED]
                engine.run(to_do, self._told, self._ended)
                if self.stop.is_requested():
                    break
                done += len(round_seeds)
                if early and done < len(seeds):
                    self._look(done)
        finally:
            self._engine_at_work = None
            engine.close()
        clear_incomplete_runs(self.folder / CELLS)
        for cell in self.cells:
            if not self.decision.is_needed(cell.arm) and self.states[cell.key].status in TO_DO:
                self._set(cell, status=CellStatus.NOT_NEEDED)

    def _engine(self, request: Request) -> LocalEngine | RayEngine:
        if request.engine == "ray":
            from neftcli.sweep.engines.ray_engine import RayEngine

            return RayEngine(request.ray_address, self.base.sweep.retries, self.folder)
        return LocalEngine(devices(), self.base.sweep.retries, self.folder / "workers.log")

    def _set(self, cell: Cell, **changes: Any) -> None:
        self.states[cell.key] = replace(self.states[cell.key], **changes)
        self.observer.notify(self.states[cell.key])

    def _told(self, cell: Cell, event: Event) -> None:
        match event:
            case TrainingProgress():
                known = {"step": event.step, "total_steps": event.total_steps, "remaining": event.remaining}
                self._set(cell, status=CellStatus.TRAINING, **known)
            case Evaluated() if event.step:  # before that it is the base model's
                self._set(cell, loss=event.held_out_loss)
            case CellStarted():
                self._set(cell, status=CellStatus.STARTING)
            case CellEvaluationStarted():
                self._set(cell, status=CellStatus.EVALUATING, remaining=None)
            case PhaseProgress() if self.states[cell.key].status == CellStatus.EVALUATING:
                self._set(cell, evaluated=event.done, to_evaluate=event.total, remaining=event.remaining)
            case Notice() if event.message not in self._said:  # many are the same for all cells
                self._said.add(event.message)
                self.observer.notify(event)

    def _ended(self, cell: Cell, outcome: Outcome) -> None:
        if outcome.status == CellStatus.FINISHED:
            self._set(cell, status=CellStatus.FINISHED, run=outcome.run, remaining=0.0)
        elif outcome.status == CellStatus.FAILED:
            self._remedies[cell.key[:8]] = next((one.hint for one in outcome.problems if one.hint), "")
            self._set(cell, status=CellStatus.FAILED, problem=_why(outcome))
        elif outcome.status == CellStatus.WAITING:
            self._set(cell, status=CellStatus.WAITING, **NO_PROGRESS, retries=self.states[cell.key].retries + 1)
            name = self.states[cell.key].name()
            self.observer.notify(Notice(f"{name} is tried again: {_why(outcome)}"))
        elif self.states[cell.key].status == CellStatus.WAITING:
            self._set(cell, status=CellStatus.WAITING)
        else:
            self._set(cell, status=CellStatus.PREEMPTED, remaining=None)

    def _measured(self) -> dict[str, dict[str, Any]]:
        """Measurements by the cell's key, with the judge's scores of its answers."""
        found: dict[str, tuple[RunDirectory, dict[str, Any]]] = {}
        for cell in self.cells:
            run = finished_run(self.folder / CELLS, cell.key)
            if run is not None and (content := measured(run, cell.recipe)) is not None:
                found[cell.key] = run, content
        require_alike(found, f"{self.again}{GOES_ON}")
        contents = {key: content for key, (_, content) in found.items()}
        if WIN_RATE_LENGTH_CONTROLLED in self.base.sweep.metrics:
            self._judge(contents)
        return contents

    def _judge(self, contents: dict[str, dict[str, Any]]) -> None:
        """Add the judge's scores; a sweep that is to stop asks it no more."""
        from neftcli.sweep.judged_cells import add_win_rates

        try:
            with self.stop.interruptible():
                add_win_rates(self.cells, contents, self.base.evaluation.judge, self.folder, self.observer)
        except StopRequested:
            self.observer.notify(Notice("the judge is not asked any more, since the sweep is to stop"))

    def _results(self) -> tuple[SweepResults, dict[str, dict[str, Any]]]:
        content = self._measured()
        return SweepResults(self.cells, content), content

    def _metrics(self, content: dict[str, dict[str, Any]]) -> list[str]:
        """Return the ids of the metrics that decide.

        Raises:
            NeftError: There is none: only tasks were asked for, and these can't be compared document by document.
        """
        measured = next((list(cell["metrics"]) for cell in content.values()), [])
        tasks = [metric for metric in measured if metric not in REGISTRY]
        names: list[str] = []
        for metric in self.base.sweep.metrics:
            names += tasks if metric == "tasks" else [metric]
        if not names and content:
            raise NeftError(
                Problem(
                    "sweep.metrics tasks: none of these tasks has a value for each document to compare",
                    ", ".join(self.base.evaluation.tasks),
                    f"neft sweep-alpha {shlex.quote(str(self.folder))} --metric {HELD_OUT_LOSS}    all cells are kept",
                )
            )
        return names

    def _delta(self, results: SweepResults, metric: str) -> float | None:
        """The smallest effect of interest in the metric's unit; None if it is not known."""
        before = losses_before(Path(state.run) for state in self.states.values() if state.run)
        return resolve_delta(self.base.sweep.delta, metric, gain_of_training(results, before))

    def _look(self, done: int) -> None:
        """Decide by the cells of the first seeds which arms get further ones, and report what is new."""
        results, content = self._results()
        if self.stop.is_requested():  # then the judge may not have been asked all
            return
        for metric in self._metrics(content)[:1]:
            earlier, delta = self.decision, self._delta(results, metric)
            if delta is None and metric == HELD_OUT_LOSS and done == FIRST_LOOK:
                why = f"the sweep does not stop for futility in {metric}: --delta is needed in its unit"
                self.observer.notify(Notice(why))
            self.decision = decide(results, metric, delta, done=done)
            for dropped in self.decision.dropped[len(earlier.dropped) :]:
                self.observer.notify(Notice(dropped.sentence(metric)))
            for stopped in self.decision.stopped:
                if stopped not in earlier.stopped:
                    self.observer.notify(Notice(stopped.sentence(metric)))

    def report(self, begun: float) -> SweepReport:
        """Judge the sweep and write the report to its folder."""
        from neftcli.sweep.outputs import write
        from neftcli.sweep.verdict import judge_sweep

        results, content = self._results()
        if not content:
            self._note_failures()
            self.end()
        metrics = self._metrics(content)
        verdict = judge_sweep(
            results,
            metrics,
            [one.arm for one in self.decision.dropped],
            self._delta(results, metrics[0]) if metrics else None,
            self.decision.stopped,
        )
        states = list(self.states.values())
        report = SweepReport(
            folder=str(self.folder),
            arms=verdict.arms,
            metrics=tuple(metrics),
            recommended=verdict.recommended.name() if verdict.recommended else "",
            conclusion=verdict.conclusion,
            scope=verdict.scope,
            failed=tuple(state for state in states if state.status == CellStatus.FAILED),
            retried=tuple(state for state in states if state.retries),
            unfinished=sum(state.status not in (*DONE, CellStatus.FAILED) for state in states),
            saved=sum(state.status == CellStatus.NOT_NEEDED for state in states),
            seconds=time.perf_counter() - begun,
            again=self.again,
        )
        try:
            write(report, states, results, metrics, verdict.recommended, self.cells)
        except OSError as error:  # what was found is shown all the same
            self._unwritten = error
        return report

    def _note_failures(self) -> None:
        """Write why cells failed, if there is nothing else to report."""
        from neftcli.sweep.outputs import write_cells

        try:
            write_cells(self.folder, list(self.states.values()))
        except OSError as error:
            self._unwritten = error

    def _mend(self, key: str) -> str:
        """The hint for a cell that failed; an option of its own would make it a different cell."""
        own = self._remedies.get(key, "")
        first = "leave its arm out, or" if not own or own.startswith("--") else f"{own}, then"
        return f"{first} {self.again}    tries it again: what is done is skipped"

    def end(self) -> None:
        """Raise an error if something is not done.

        Raises:
            OSError: The report could not be written.
            SweepError: A cell failed.
            Preempted: The sweep was stopped.
        """
        if self._unwritten is not None:
            raise self._unwritten
        failed = [state for state in self.states.values() if state.status == CellStatus.FAILED]
        if failed:
            raise SweepError(
                *(Problem(f"{one.name()} failed: {one.problem}", hint=self._mend(one.key)) for one in failed)
            )
        left = sum(state.status not in DONE for state in self.states.values())
        if left:
            raise Preempted(
                Problem(f"stopped; {left} of {len(self.cells)} cells are left", hint=f"{self.again}{GOES_ON}")
            )


def _seeds_of_round(done: int, arms: int, workers: int) -> int:
    """The number of seeds that are trained before the next look: the first three, then what fills the workers."""
    return FIRST_LOOK if done == 0 else max(1, workers // arms)


def _why(outcome: Outcome) -> str:
    """The reason why a cell failed or is retried, in one line."""
    return "; ".join(": ".join(filter(None, (one.message, one.got))) for one in outcome.problems)

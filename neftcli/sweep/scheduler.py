"""Run the cells of a sweep with an engine, track their states, and stop early if the results allow it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from neftcli.events import (
    CellEvaluationStarted,
    CellStarted,
    CellState,
    CellStatus,
    Evaluated,
    Event,
    Notice,
    Observer,
    PhaseProgress,
    TrainingProgress,
)
from neftcli.metrics.registry import HELD_OUT_LOSS, label
from neftcli.sweep.early_stopping import FIRST_LOOK, Decision, decide, stops_early
from neftcli.sweep.plan import Cell, arms_of
from neftcli.training.signals import StopSignal, announce_stop

if TYPE_CHECKING:
    from neftcli.recipe.schema import Sweep
    from neftcli.sweep.engines.engine import CellOutcome, Engine
    from neftcli.sweep.results import SweepResults

TO_DO = (CellStatus.WAITING, CellStatus.PREEMPTED)
DONE = (CellStatus.FINISHED, CellStatus.NOT_NEEDED)
NO_PROGRESS: dict[str, Any] = {"step": 0, "held_out_loss": None, "evaluated": 0, "to_evaluate": 0, "remaining": None}


class SweepScheduler:
    """Runs the cells of a sweep and tracks their states.

    Args:
        cells: The cells of the plan.
        states: Their states, in the same order.
        sweep: The `sweep` section of the recipe.
        observer: Receives the states of the cells and the notices.

    Attributes:
        states: State of each cell by its key.
        decision: Decisions of early stopping.
        hints: Hint of each failed cell's own message, by the key of its state.
        stop: The first signal stops cells after their current step, the second one at once.
    """

    def __init__(self, cells: list[Cell], states: list[CellState], sweep: Sweep, observer: Observer) -> None:
        self.cells = cells
        self.states = {cell.key: state for cell, state in zip(cells, states, strict=True)}
        self.decision = Decision()
        self.hints: dict[str, str] = {}
        self.stop = StopSignal()
        self._sweep = sweep
        self._observer = observer
        self._engine: Engine | None = None
        self._reported: set[str] = set()

    def handle_first_signal(self) -> None:
        """Announce the stop and stop the cells after their current step."""
        announce_stop(self._observer, "cells finish their current step and save it first" if self._engine else "")
        self.stop_cells()

    def stop_cells(self) -> None:
        """Stop the cells after their current step; a signal handler may call it."""
        if self._engine is not None:
            self._engine.stop()

    def run(self, engine: Engine, look: Callable[[], tuple[SweepResults, str, float | None] | None]) -> None:
        """Train and evaluate the cells that are not finished.

        With early stopping the seeds run in rounds, each followed by a look at the results.

        Args:
            engine: Runs the cells; the caller closes it.
            look: Returns the results so far, the metric that decides and its delta; None if there is nothing to decide.
        """
        early = stops_early(self._sweep)
        seeds = list(dict.fromkeys(cell.seed for cell in self.cells))
        arms = arms_of(self.cells)
        done = 0
        self._engine = engine
        try:
            while done < len(seeds):
                needed = [arm for arm in arms if self.decision.is_needed(arm)]
                if not needed:
                    break
                number = _seeds_in_round(done, len(needed), engine.workers) if early else len(seeds)
                round_seeds = seeds[done : done + number]
                if self.stop.is_requested():
                    self.stop_cells()  # the signal came before the engine
                cells = [cell for cell in self.cells if cell.seed in round_seeds and cell.arm in needed]
                unfinished = [cell for cell in cells if self.states[cell.key].status != CellStatus.FINISHED]
                engine.run(unfinished, self.handle_event, self.handle_outcome)
                if self.stop.is_requested():
                    break
                done += len(round_seeds)
                if early and done < len(seeds) and (looked := look()) is not None:
                    self._decide(*looked, done)
        finally:
            self._engine = None

    def mark_not_needed(self) -> None:
        """Mark the cells that early stopping saved."""
        for cell in self.cells:
            if not self.decision.is_needed(cell.arm) and self.states[cell.key].status in TO_DO:
                self._update(cell, status=CellStatus.NOT_NEEDED)

    def handle_event(self, cell: Cell, event: Event) -> None:
        """Update the state of a cell, or pass on its notice."""
        match event:
            case CellStarted():
                self._update(cell, status=CellStatus.STARTING)
            case TrainingProgress():
                steps = {"step": event.step, "total_steps": event.total_steps, "remaining": event.remaining}
                self._update(cell, status=CellStatus.TRAINING, **steps)
            case Evaluated() if event.step:  # step 0 is the base model
                self._update(cell, held_out_loss=event.held_out_loss)
            case CellEvaluationStarted():
                self._update(cell, status=CellStatus.EVALUATING, remaining=None)
            case PhaseProgress() if self.states[cell.key].status == CellStatus.EVALUATING:
                self._update(cell, evaluated=event.done, to_evaluate=event.total, remaining=event.remaining)
            case Notice() if event.message not in self._reported:  # many notices are the same for all cells
                self._reported.add(event.message)
                self._observer.notify(event)

    def handle_outcome(self, cell: Cell, outcome: CellOutcome) -> None:
        """Update the state of a cell after a try."""
        state = self.states[cell.key]
        match outcome.status:
            case CellStatus.FINISHED:
                self._update(cell, status=CellStatus.FINISHED, run=outcome.run, remaining=0.0)
            case CellStatus.FAILED:
                self.hints[state.key] = next((problem.hint for problem in outcome.problems if problem.hint), "")
                self._update(cell, status=CellStatus.FAILED, problem=_reason(outcome))
            case CellStatus.WAITING:
                self._update(cell, status=CellStatus.WAITING, **NO_PROGRESS, retries=state.retries + 1)
                self._observer.notify(Notice(f"{state.name()} is retried: {_reason(outcome)}"))
            case _ if state.status == CellStatus.WAITING:
                self._update(cell, status=CellStatus.WAITING)
            case _:
                self._update(cell, status=CellStatus.PREEMPTED, remaining=None)

    def _update(self, cell: Cell, **changes: Any) -> None:
        self.states[cell.key] = replace(self.states[cell.key], **changes)
        self._observer.notify(self.states[cell.key])

    def _decide(self, results: SweepResults, metric: str, delta: float | None, done: int) -> None:
        """Decide which arms get further seeds after `done` seeds, and report the new decisions."""
        earlier = self.decision
        if delta is None and metric == HELD_OUT_LOSS and done == FIRST_LOOK:
            message = f"the sweep does not stop for futility in {label(metric)}: set --delta in its unit"
            self._observer.notify(Notice(message))
        self.decision = decide(results, metric, delta, done=done)
        for dropped in self.decision.dropped[len(earlier.dropped) :]:
            self._observer.notify(Notice(dropped.sentence(metric)))
        for stopped in self.decision.stopped:
            if stopped not in earlier.stopped:
                self._observer.notify(Notice(stopped.sentence(metric)))


def _seeds_in_round(done: int, arms: int, workers: int) -> int:
    """Return the number of seeds before the next look: first `FIRST_LOOK`, then as many as fill the workers."""
    return FIRST_LOOK if done == 0 else max(1, workers // arms)


def _reason(outcome: CellOutcome) -> str:
    """Return the problems of a try in one line."""
    lines = []
    for problem in outcome.problems:
        lines.append(f"{problem.message}: {problem.got}" if problem.got else problem.message)
    return "; ".join(lines)

"""The live display of a terminal: the phase, the progress, the latest log rows, and the result at the end."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from functools import singledispatchmethod
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from neftcli import events
from neftcli.cli.display import doctor_report, format, run_screens, screens
from neftcli.cli.display.text import sanitize_event
from neftcli.runs.directory import METRICS
from neftcli.system.files import format_bytes
from neftcli.wording import count_noun

MAX_LIVE_ROWS = 16
"""Rows of a run's tables, for a terminal of 24 lines."""
RECENT_ROWS = 10
"""Latest rows, always shown; of the older rows, those with an evaluation are kept first."""
LIVE_COLUMNS = 110


@dataclass
class _LogRow:
    """A row of the table of a run: what was logged and what was evaluated after a step."""

    step: int
    logged: events.StepLogged | None = None
    evaluated: events.Evaluated | None = None


@dataclass
class _Sweep:
    """The cells of a running sweep."""

    cells: dict[str, events.CellState] = field(default_factory=dict)
    started: float = 0.0
    finished_before: int = 0


class LiveDisplay:
    """Observe a workflow on a terminal.

    Lines about the model, the data and notices are printed once, into the scrollback; the latest log rows, evaluations
    and the progress are redrawn below them until the run ends, and then printed for good.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
        self._rows: list[_LogRow] = []
        self._answered: list[events.Evaluated] = []
        self._left_out = 0
        self._run = ""
        self._phase: Spinner | None = None
        self._phase_progress: events.PhaseProgress | None = None
        self._progress: events.TrainingProgress | None = None
        self._progress_time = 0.0
        self._sweep = _Sweep()
        self._with_legend = False
        self._live = Live(console=self.console, auto_refresh=True, refresh_per_second=8, transient=True)
        self._live.get_renderable = self._render  # type: ignore[method-assign]

    def __enter__(self) -> LiveDisplay:
        """Start drawing."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop drawing; the rows of an unfinished run or sweep stay on the screen."""
        self._print_rows()
        if self._sweep.cells:
            self.console.print(self._cells())

    def notify(self, event: events.Event) -> None:
        """Take note of an event and draw."""
        # An inspected row spells its control characters out, so they must still be there.
        self._take(event if isinstance(event, events.InspectedRow) else sanitize_event(event))
        if not isinstance(event, events.RunFinished):
            self._live.refresh()

    @singledispatchmethod
    def _take(self, event: events.Event) -> None:
        self._print_lines(event)

    @_take.register
    def _(self, event: events.Phase) -> None:
        spinner = "line" if self.console.options.ascii_only else "dots"
        checking = event.phase is events.PhaseId.CHECKING
        text = doctor_report.checking(event) if checking else format.phase_text(event)
        self._phase = Spinner(spinner, Text(text, style="dim"))
        self._phase_progress = None

    @_take.register
    def _(self, event: events.PhaseProgress) -> None:
        self._phase, self._phase_progress = None, event

    @_take.register
    def _(self, event: events.TrainingStarted) -> None:
        self._phase, self._progress_time = None, time.monotonic()
        self._progress = events.TrainingProgress(0, event.total_steps, 0.0, 0.0)
        self._run = event.run
        self._print_lines(event)
        self.console.print()

    @_take.register
    def _(self, event: events.TrainingProgress) -> None:
        self._phase, self._progress, self._progress_time = None, event, time.monotonic()

    @_take.register
    def _(self, event: events.StepLogged) -> None:
        self._row(event.step).logged = event
        while len(self._rows) > max(RECENT_ROWS + 2, MAX_LIVE_ROWS - self._answer_rows()):
            older = self._rows[:-RECENT_ROWS]
            self._rows.remove(next((row for row in older if row.evaluated is None), older[1]))
            self._left_out += 1

    @_take.register
    def _(self, event: events.Evaluated) -> None:
        self._row(event.step).evaluated = event

        if event.answer_metrics:
            self._answered.append(event)

    @_take.register
    def _(self, event: events.RunFinished) -> None:
        self._print_rows()
        self.console.print(screens.run_finished(event))

    @_take.register
    def _(self, event: events.TrainingPlan) -> None:
        self._phase = None
        self.console.print(screens.training_plan(event))

    @_take.register
    def _(self, event: events.RecipeResolved) -> None:
        self.console.print(Text(event.recipe, style="dim"))

    @_take.register
    def _(self, event: events.InspectedRow) -> None:
        if not self._with_legend:
            self._with_legend = True
            self.console.print(Padding(Text(format.LEGEND, style="dim"), screens.INDENT))
        self._phase = None
        self.console.print(screens.inspected_row(event))

    @_take.register
    def _(self, event: events.EvaluationReport) -> None:
        self._phase = self._phase_progress = None
        self._live.stop()
        self.console.print(screens.evaluation_report(event, self.console.width))

    @_take.register
    def _(self, event: events.SweepStarted) -> None:
        self._phase = None
        finished = sum(state.status == events.CellStatus.FINISHED for state in event.cells)
        self._sweep = _Sweep({state.key: state for state in event.cells}, time.monotonic(), finished)
        self._print_lines(event)

    @_take.register
    def _(self, event: events.CellState) -> None:
        self._sweep.cells[event.key] = event

    @_take.register
    def _(self, event: events.SweepEstimate) -> None:
        states = list(self._sweep.cells.values())
        self._sweep.cells.clear()
        self._phase = None
        self._live.stop()
        self.console.print(screens.sweep_plan(states, event))

    @_take.register
    def _(self, event: events.SweepReport) -> None:
        self._live.stop()
        self.console.print(self._cells())
        self._sweep.cells.clear()
        self.console.print(screens.sweep_report(event, self.console.width))

    @_take.register
    def _(self, event: events.RunsListed) -> None:
        self.console.print(run_screens.runs_listed(event, self.console.width))

    @_take.register
    def _(self, event: events.RunDetails) -> None:
        self.console.print(run_screens.run_details(event, self.console.width))

    @_take.register
    def _(self, event: events.RunsCompared) -> None:
        self.console.print(run_screens.runs_compared(event))

    @_take.register
    def _(self, event: events.RunsRemoved) -> None:
        self.console.print(run_screens.runs_removed(event))

    @_take.register
    def _(self, event: events.Checked) -> None:
        self.console.print(doctor_report.check(event))

    @_take.register
    def _(self, event: events.Diagnosis) -> None:
        self._phase = None
        self.console.print(doctor_report.diagnosis(event))

    @_take.register
    def _(self, event: events.CacheCleared) -> None:
        for text in doctor_report.cleared_lines(event):
            self.console.print(screens.line(format.Line("cache", text)))

    @_take.register
    def _(self, event: events.MergeFinished | events.ExportFinished | events.PushPlanned | events.PushFinished) -> None:
        self._phase = self._phase_progress = None
        self._live.stop()
        self._print_lines(event)

    def _print_lines(self, event: events.Event) -> None:
        for line in format.lines(event):
            self.console.print(screens.line(line))

    def _row(self, step: int) -> _LogRow:
        """Return the row of a step, a new one if it has none."""
        if not self._rows or self._rows[-1].step != step:
            self._rows.append(_LogRow(step))
        return self._rows[-1]

    def _print_rows(self) -> None:
        """Stop drawing and print the rows for good."""
        table = self._table() if self._rows else None
        self._rows.clear()
        self._answered.clear()
        self._left_out = 0
        self._phase = self._phase_progress = self._progress = None
        self._live.stop()
        if table is not None:
            self.console.print(table)

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._progress is not None:
            if self._rows:
                parts.append(self._table())
            parts += [Text(), self._training_progress(self._progress)]
        if self._sweep.cells:
            parts.append(self._cells(self.console.height))
        if self._phase_progress is not None:
            text = Text(f" {format.phase_text(self._phase_progress)}", style="dim")
            parts += [text, _phase_progress(self._phase_progress)]
        if self._phase is not None:
            parts.append(Padding(self._phase, screens.INDENT))
        return Group(*parts)

    def _cells(self, height: int | None = None) -> RenderableType:
        elapsed = time.monotonic() - self._sweep.started
        return screens.cells(list(self._sweep.cells.values()), elapsed, self._sweep.finished_before, height)

    def _training_progress(self, progress: events.TrainingProgress) -> RenderableType:
        since = time.monotonic() - self._progress_time
        elapsed, left = progress.elapsed + since, max(progress.remaining - since, 0.0)
        times = f"{format.duration(elapsed)} elapsed"
        if progress.step == progress.total_steps:
            times += f", {format.duration(left)} left to evaluate and save" if left >= 1 else ", evaluating and saving"
        else:
            times += f", {format.duration(left)} left" if progress.step else ", first step"
        return screens.progress_line(progress.step, progress.total_steps, times)

    def _table(self) -> RenderableType:
        """Render the rows and the metrics of answers; count the rows that are left out, and name their file."""
        parts: list[RenderableType] = [self._rows_table()]
        if self._answered:
            parts.append(screens.answer_metrics(self._answered, self.console.width))
        if self._left_out:
            file = f"{self._run}/{METRICS}"
            rows = count_noun(self._left_out, "row is", "rows are")
            parts.append(screens.line(format.Line("training", f"{rows} left out here: {file}", "dim")))
        return Group(*parts)

    def _answer_rows(self) -> int:
        """Return the lines of the table of metrics of answers, with its heading."""
        return 1 + len(self._answered[-1].answer_metrics) if self._answered else 0

    def _rows_table(self) -> Table:
        decimals = 4 if self.console.width >= LIVE_COLUMNS else 3
        names = (" step", "epoch", "loss", "no noise", "held-out", "lr", "grad", "tok/s", "memory")
        if self.console.width >= LIVE_COLUMNS:
            names = (" step", "epoch", "loss", "loss, no noise", "held-out", "lr", "grad norm", "tokens/s", "memory")
        table = screens.columns(*names)
        total = f"/{self._progress.total_steps}" if self._progress else ""
        for row in self._rows:
            cells = ["-"] * 8
            if row.step == 0:
                cells[0] = "0.00"
            if row.logged is not None:
                cells[0] = f"{row.logged.epoch:.2f}"
                cells[1] = f"{row.logged.loss:.{decimals}f}"
                cells[4] = f"{row.logged.learning_rate:.1e}"
                cells[5] = f"{row.logged.grad_norm:.2f}"
                cells[6] = f"{row.logged.tokens_per_second:.0f}"
                cells[7] = format_bytes(row.logged.memory_bytes)
            if row.evaluated is not None:
                losses = (row.evaluated.train_loss, row.evaluated.held_out_loss)
                cells[2:4] = ["-" if loss is None else f"{loss:.{decimals}f}" for loss in losses]
            table.add_row(f" {row.step}{total}", *cells)
        return table


def _phase_progress(event: events.PhaseProgress) -> RenderableType:
    times = "starting"
    if event.rate:
        times = f"{event.rate:.0f} {event.rate_unit}/s, {format.duration(event.remaining)} left"
    return screens.progress_line(event.done, event.total, times)

"""The live display on a terminal: what runs, how far it is, the latest log rows, and at the end what came of it."""

from __future__ import annotations

import time
from functools import singledispatchmethod
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from neftcli import events
from neftcli.cli.display import evaluation_text, formatting, inspect_text, report, sweep
from neftcli.cli.display.next_steps import following

RECENT_ROWS = 10
EVALUATED_ROWS = 6
WIDE = 110


class LiveDisplay:
    """Observes a workflow on a terminal.

    What is settled (model, data, notices) is printed above, in the scrollback; the latest log rows, evaluations
    and the progress are redrawn below until the run ends, and then printed for good.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, markup=False, emoji=False)
        self._rows: list[tuple[events.StepLogged, events.Evaluated | None]] = []
        self._phase: Spinner | None = None
        self._progress: events.TrainingProgress | None = None
        self._progressed = 0.0  # when that was told
        self._phase_progress: events.PhaseProgress | None = None
        self._cells: dict[str, events.CellState] = {}
        self._sweep_begun, self._done_before = 0.0, 0
        self._explained = False  # the legend of inspected rows was printed
        self._live = Live(console=self.console, auto_refresh=True, refresh_per_second=8, transient=True)
        self._live.get_renderable = self._render  # type: ignore[method-assign]

    def __enter__(self) -> LiveDisplay:
        """Starts drawing."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops drawing; the rows so far stay."""
        rows = self._table() if self._rows else None
        self._rows.clear()
        self._phase = self._progress = self._phase_progress = None
        self._live.stop()
        if rows is not None:  # the run did not finish: its rows are still wanted
            self.console.print(rows)
        if self._cells:
            self.console.print(self._cell_rows())

    def notify(self, event: events.Event) -> None:
        """Takes note of an event and draws."""
        # `inspected` escapes the characters of a row itself.
        self._take(event if isinstance(event, events.InspectedRow) else formatting.all_harmless(event))
        if not isinstance(event, events.RunFinished):
            self._live.refresh()

    @singledispatchmethod
    def _take(self, event: events.Event) -> None:
        pass

    @_take.register
    def _(self, event: events.Phase) -> None:
        spinner = "line" if self.console.options.ascii_only else "dots"
        self._phase, self._phase_progress = (
            Spinner(spinner, Text(f" {formatting.phase_text(event)}", style="dim")),
            None,
        )

    @_take.register
    def _(self, event: events.Notice) -> None:
        self._note(event.message)

    @_take.register
    def _(self, event: events.DataReady) -> None:
        self._print(Text(formatting.data_line(event)))
        for detail in (formatting.length_line(event), event.template):
            if detail:
                self._print(Text(detail, style="dim"))
        for notice in formatting.data_notices(event):
            self._note(notice)

    @_take.register
    def _(self, event: events.ModelReady) -> None:
        self._print(Text(formatting.model_line(event), style="bold"))
        self._print(Text(f"from {event.source}", style="dim"))

    @_take.register
    def _(self, event: events.NoiseMeasured) -> None:
        self._print(Text(formatting.noise_line(event), style="bold"))

    @_take.register
    def _(self, event: events.TrainingStarted) -> None:
        self._phase, self._progressed = None, time.monotonic()
        self._progress = events.TrainingProgress(0, event.total_steps, 0.0, 0.0)
        self._print(Text(event.run, style="dim"))
        self.console.print()

    @_take.register
    def _(self, event: events.TrainingProgress) -> None:
        self._phase, self._progress, self._progressed = None, event, time.monotonic()

    @_take.register
    def _(self, event: events.StepLogged) -> None:
        self._rows.append((event, None))
        evaluated = [row for row in self._rows[:-RECENT_ROWS] if row[1] is not None]
        self._rows = evaluated[-EVALUATED_ROWS:] + self._rows[-RECENT_ROWS:]

    @_take.register
    def _(self, event: events.Evaluated) -> None:
        if self._rows and self._rows[-1][0].step == event.step:
            self._rows[-1] = (self._rows[-1][0], event)

    @_take.register
    def _(self, event: events.RunFinished) -> None:
        rows = self._table() if self._rows else None
        self._rows.clear()
        self._phase = self._progress = self._phase_progress = None
        self._live.stop()
        if rows is not None:
            self.console.print(rows)
        self.console.print(closing(event))

    @_take.register
    def _(self, event: events.EvaluationDataReady) -> None:
        self._print(Text(evaluation_text.rows_line(event)))
        for notice in formatting.row_notices(event):
            self._note(notice)

    @_take.register
    def _(self, event: events.PhaseProgress) -> None:
        self._phase, self._phase_progress = None, event

    @_take.register
    def _(self, event: events.EvaluationReport) -> None:
        self._phase = self._phase_progress = None
        self._live.stop()
        self.console.print(report.evaluated(event, self.console.width))

    @_take.register
    def _(self, event: events.SweepStarted) -> None:
        self._cells = {state.key: state for state in event.cells}
        self._sweep_begun = time.monotonic()
        self._done_before = sum(state.status == events.CellStatus.FINISHED for state in event.cells)
        self._phase = None
        self._print(Text(formatting.sweep_line(event), style="bold"))
        if event.added_baseline:
            self._note("alpha 0 was added: it is the baseline of every comparison")

    @_take.register
    def _(self, event: events.CellState) -> None:
        self._cells[event.key] = event

    @_take.register
    def _(self, event: events.SweepEstimate) -> None:
        states = list(self._cells.values())
        self._cells.clear()
        self._phase = None
        self._live.stop()
        self.console.print(sweep.planned(states, event))

    @_take.register
    def _(self, event: events.SweepReport) -> None:
        self._live.stop()
        self.console.print(self._cell_rows())
        self._cells.clear()
        self.console.print(sweep.verdict(event, self.console.width))

    @_take.register
    def _(self, event: events.InspectedRow) -> None:
        if not self._explained:
            self._explained = True
            self._print(Text(inspect_text.LEGEND, style="dim"))
        self._phase = None
        self.console.print(inspect_text.coloured(event))

    @_take.register
    def _(self, event: events.PageWritten) -> None:
        self._phase = None
        self._print(Text(f"{formatting.some(event.rows, 'row')} in {event.path}", style="bold"))

    @_take.register
    def _(self, event: events.RecipeResolved) -> None:
        self.console.print(Text(event.recipe, style="dim"))

    @_take.register
    def _(self, event: events.TrainingPlan) -> None:
        self._phase = None
        table = Table(box=None, show_header=False, pad_edge=False)
        for name, value in formatting.plan_rows(event):
            table.add_row(f" {name}", value)
        self.console.print(table)

    def _print(self, line: Text) -> None:
        self.console.print(Padding(line, sweep.INDENT))

    def _note(self, message: str) -> None:
        line = Table.grid(padding=(0, 1))
        line.add_row("", Text("!", style="yellow"), Text(formatting.harmless(message), style="yellow", overflow="fold"))
        self.console.print(line)

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._rows:
            parts.append(self._table())
        if self._progress is not None:
            parts += [Text(), self._bar(self._progress)]
        if self._cells:
            parts.append(self._cell_rows(self.console.height))
        if self._phase_progress is not None:
            parts.append(self._part(self._phase_progress))
        if self._phase is not None:
            parts.append(self._phase)
        return Group(*parts)

    def _cell_rows(self, height: int | None = None) -> RenderableType:
        elapsed = time.monotonic() - self._sweep_begun
        return sweep.cells(list(self._cells.values()), elapsed, self._done_before, height)

    def _bar(self, progress: events.TrainingProgress) -> RenderableType:
        since = time.monotonic() - self._progressed
        gone, left = progress.elapsed + since, max(progress.remaining - since, 0.0)
        times = f"{formatting.duration(gone)} gone"
        times += f", {formatting.duration(left)} left" if progress.step else ", first update"
        return _progress_line(progress.step, progress.total_steps, times)

    def _part(self, event: events.PhaseProgress) -> RenderableType:
        times = (
            f"{event.rate:.0f} {event.unit}/s, {formatting.duration(event.remaining)} left"
            if event.rate
            else "first ones"
        )
        return Group(
            Text(f" {formatting.phase_text(event)}", style="dim"), _progress_line(event.done, event.total, times)
        )

    def _table(self) -> Table:
        wide = self.console.width >= WIDE
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        columns = ["step", "epoch", "loss", "noise off", "held-out", "lr", "grad", "tok/s", "memory"]
        for column in columns:
            table.add_column(f" {column}" if column == "step" else column, justify="right", no_wrap=True)
        total = self._progress.total_steps if self._progress else 0
        for row, evaluated in self._rows:
            table.add_row(
                f" {row.step}/{total}" if total else f" {row.step}",
                f"{row.epoch:.2f}",
                f"{row.loss:.4f}" if wide else f"{row.loss:.3f}",
                f"{evaluated.train_loss:.3f}" if evaluated and evaluated.train_loss is not None else "-",
                f"{evaluated.held_out_loss:.3f}" if evaluated and evaluated.held_out_loss is not None else "-",
                f"{row.learning_rate:.1e}",
                f"{row.grad_norm:.2f}",
                f"{row.tokens_per_second:.0f}",
                formatting.gibibytes(row.memory_bytes),
            )
        return table


def _progress_line(done: int, total: int, times: str) -> RenderableType:
    """A bar, how many of how many, and the times."""
    grid = Table.grid(padding=(0, 2))
    whole = max(total, 1)
    grid.add_row(
        " ", ProgressBar(total=whole, completed=done, width=32), f"{done}/{total}", f"{done / whole:.0%}", times
    )
    return grid


def closing(event: events.RunFinished) -> RenderableType:
    """The last screen of a run."""
    losses = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    losses.add_column(" loss, noise off")
    for column in ("base", "tuned", "difference"):
        losses.add_column(column, justify="right")
    for name, before, after in (
        ("held-out rows", event.base_held_out_loss, event.held_out_loss),
        ("training rows", event.base_train_loss, event.train_loss),
    ):
        losses.add_row(
            f" {name}", formatting.loss(before), formatting.loss(after), formatting.difference(before, after)
        )
    parts: list[RenderableType] = [
        Text(),
        Text.assemble((" finished", "bold green"), f"   {event.run}   ", (formatting.duration(event.seconds), "dim")),
        Text(),
        losses,
    ]
    for sample in event.samples:
        grid = Table.grid(padding=(0, 1))
        grid.add_row(" ", Text(">", style="dim"), formatting.shortened(sample.prompt, "bold"))
        grid.add_row(" ", Text("base", style="dim"), formatting.shortened(sample.base))
        grid.add_row(" ", Text("tuned", style="dim"), formatting.shortened(sample.tuned))
        parts += [Text(), grid]
    return Group(*parts, Text(), following(formatting.next_commands(event)))

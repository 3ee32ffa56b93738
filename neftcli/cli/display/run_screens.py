"""Tables of runs and sweeps for a terminal, drawn with rich."""

from __future__ import annotations

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from neftcli import events
from neftcli.cli.display import format, run_rows, screens
from neftcli.cli.display.run_rows import LOSS, TITLE
from neftcli.events import RunStatus
from neftcli.system.files import format_bytes
from neftcli.wording import count_noun

LEFT = (f" {TITLE}", "status", "model", "method", "verdict")
OPTIONAL = ("method", "size", "steps", "model", "seed", "alpha", "verdict", "age")
"""Columns that a narrow terminal leaves out, the first one first."""
COLUMN_GAP = 2
RUN_STYLES = {
    RunStatus.FINISHED: "green",
    RunStatus.RUNNING: "bold",
    RunStatus.FAILED: "red",
    RunStatus.DAMAGED: "red",
    RunStatus.OTHER: "dim",
}


def runs_listed(event: events.RunsListed, width: int) -> RenderableType:
    """Render the table of runs for a terminal of `width` columns, and below it what can't be read."""
    runs = [run for run in event.runs if run.status is not RunStatus.OTHER]
    others = [run for run in event.runs if run.status is RunStatus.OTHER]
    parts: list[RenderableType] = []
    if runs:
        table, left_out = _run_table(runs, width)
        parts.append(table)
        if left_out:
            parts += [Text(), _dim(f"A wider terminal shows {', '.join(left_out)}; --json prints everything.")]
    else:
        parts.append(_dim(f"no runs in {event.folder}"))
    problems = [run for run in runs if run.problem]
    if problems or others:
        parts.append(Text())
    for run in problems:
        parts.append(screens.line(format.Line("note", f"{run.path}: {run.problem}", "notice")))
    if others:
        names = ", ".join(f"{run.name()} ({run.problem})" for run in others)
        parts.append(_dim(f"not runs: {names}"))
    first = runs[0].name() if runs else ""
    command = f"neft runs show {first}    neft runs compare A B    neft runs rm NAME" if runs else "neft train"
    return Group(*parts, Text(), _dim(command))


def run_details(event: events.RunDetails, width: int) -> RenderableType:
    """Render everything about a run or a sweep."""
    parts: list[RenderableType] = [
        Padding(Text(run_rows.title(event.summary), style="bold"), screens.INDENT),
        _dim(run_rows.facts(event)),
    ]
    if event.summary.problem:
        parts.append(screens.line(format.Line("note", event.summary.problem, "error")))
    if text := run_rows.checkpoint_text(event):
        parts.append(_dim(text))
    if rows := run_rows.measured_rows(event):
        losses = screens.columns("", "base", "tuned", "difference", left=("",), gap=3)
        for name, *values in rows:
            losses.add_row(f" {name}", *values)
        parts += [Text(), losses]
    for verdict in event.verdicts:
        parts += [Text(), _dim(f"compared with {verdict.baseline} by neft eval   {verdict.folder}")]
        parts += [Padding(Text(sentence), (0, 0, 0, 3)) for sentence in verdict.conclusion]
    if event.cells:
        parts += [Text(), _run_table(list(event.cells), width)[0]]
    if event.summary.conclusion:
        parts += [Text(), *(Padding(Text(text, style="bold"), screens.INDENT) for text in event.summary.conclusion)]
    if event.options:
        parts += [Text(), _dim("options that are not the default"), _options(event)]
    parts += [Text(), _dim("files"), _files(event)]
    return Group(*parts, screens.next_steps(run_rows.suggest_after_details(event)))


def runs_compared(event: events.RunsCompared) -> RenderableType:
    """Render two runs side by side."""
    names = (event.first.name(), event.second.name())
    parts: list[RenderableType] = []
    if event.options:
        table = Table(box=None, pad_edge=False, padding=(0, COLUMN_GAP, 0, 0), header_style="dim")
        table.add_column(" option", no_wrap=True)
        for name in names:
            table.add_column(name, overflow="fold")
        for option in event.options:
            table.add_row(f" {option.key}", *map(run_rows.format_option, (option.first, option.second)))
        parts += [table, Text()]
    results = screens.columns(" result", *names, "difference", left=(" result",), gap=COLUMN_GAP)
    for name, *values in run_rows.result_rows(event):
        results.add_row(f" {name}", *values)
    parts += [results, Text()]
    parts += [Padding(Text(sentence), screens.INDENT) for sentence in run_rows.comparison_sentences(event)]
    return Group(*parts, screens.next_steps(run_rows.suggest_after_comparison(event)))


def runs_removed(event: events.RunsRemoved) -> RenderableType:
    """Render what was removed."""
    lines = [Text.assemble((" removed", "bold green"), f"  {path}") for path in event.runs]
    total = f"{count_noun(len(event.runs), 'folder')}, {format_bytes(event.freed_bytes)} freed"
    return Group(*lines, _dim(total))


def _run_table(runs: list[events.RunSummary], width: int) -> tuple[RenderableType, list[str]]:
    """Return the table of runs with the columns that fit, and the names of those that don't."""
    rows = [run_rows.table_row(run) for run in runs]
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    widths = {name: max(cell_len(text) for text in (name, *(row[name] for row in rows))) for name in names}
    left_out = []
    for name in OPTIONAL:
        if 1 + sum(widths[name] + COLUMN_GAP for name in names) - COLUMN_GAP <= width:
            break
        if name in names:
            names.remove(name)
            left_out.append(name)
    headings = [f" {TITLE}", *names[1:]]
    table = screens.columns(*headings, left=LEFT, gap=COLUMN_GAP)
    table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
    for run, row in zip(runs, rows, strict=True):
        cells = [Text(row[name], style=_cell_style(name, run)) for name in names]
        cells[0] = Text(f" {row[TITLE]}", style="bold" if run.kind == "sweep" else "")
        table.add_row(*cells)
    return table, left_out


def _cell_style(name: str, run: events.RunSummary) -> str:
    if name == "status":
        return RUN_STYLES.get(run.status, "yellow")
    return "" if name in (LOSS, "verdict", "alpha", "seed") else "dim"


def _options(event: events.RunDetails) -> Table:
    grid = Table.grid(padding=(0, 2))
    for key, value in event.options.items():
        grid.add_row("", Text(key, style="dim"), Text(run_rows.format_option(value), overflow="fold"))
    return grid


def _files(event: events.RunDetails) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column()
    grid.add_column(overflow="fold")
    grid.add_column(justify="right", no_wrap=True)
    for file in event.files:
        grid.add_row("", file.name, Text(format_bytes(file.size_bytes), style="dim"))
    return grid


def _dim(text: str) -> RenderableType:
    return Padding(Text(text, style="dim", overflow="fold"), screens.INDENT)

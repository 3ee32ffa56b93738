"""A sweep on a terminal: one row a cell while it runs, and the verdict at its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from neftcli.cli.display import evaluation_text, formatting
from neftcli.cli.display.next_steps import following
from neftcli.evaluation import number_format
from neftcli.evaluation.metrics import heading, label
from neftcli.events import CellState, CellStatus, SweepEstimate, SweepReport

STATUS_STYLES = {
    CellStatus.FINISHED: "green",
    CellStatus.FAILED: "bold red",
    CellStatus.TRAINING: "bold",
    CellStatus.EVALUATING: "bold",
}
STATUS_TEXTS = {status: status.value.replace("_", " ") for status in CellStatus}
VERDICT_STYLES = {"better": "bold green", "worse": "bold red"}
ARM = "arm"
REASON = 40  # columns for why a cell failed
INDENT = (0, 0, 0, 1)
AROUND = 5  # lines of a live table that are no cells: its head, the progress, and what else is at work
TRAINING = 0.9
ENDED = (CellStatus.FINISHED, CellStatus.FAILED, CellStatus.NOT_NEEDED)


def cells(states: Sequence[CellState], elapsed: float, begun_done: int, height: int | None = None) -> RenderableType:
    """One row for each cell, and how far the whole is.

    Args:
        states: The cells.
        elapsed: Seconds since the sweep began.
        begun_done: Cells that were done before.
        height: Lines that there are; cells for which there is no row are counted in one. None for all rows.
    """
    shown = states if height is None or len(states) + AROUND <= height else _foremost(states, height - AROUND - 1)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in (" arm", "seed", "status", "step", "held-out, all", "left"):
        if column == "status":
            table.add_column(column, max_width=REASON, overflow="fold")
        else:
            table.add_column(column, justify="left" if column == " arm" else "right", no_wrap=True)
    for state in shown:
        at_work = state.status in (CellStatus.TRAINING, CellStatus.EVALUATING)
        table.add_row(
            f" {state.arm}",
            str(state.seed),
            Text(_status(state), style=STATUS_STYLES.get(state.status, "dim")),
            f"{state.step}/{state.total_steps}" if at_work and state.total_steps else "",
            formatting.loss(state.loss) if state.loss is not None else "",
            formatting.duration(state.remaining) if at_work and state.remaining else "",
        )
    others = Counter(state.status for state in states) - Counter(state.status for state in shown)
    counts = ", ".join(f"{number} {STATUS_TEXTS[status]}" for status, number in others.items())
    more = [Text(f" and {counts}", style="dim")]
    done = sum(state.status in ENDED for state in states)
    parts = sum(map(part_done, states))
    new = parts - begun_done
    left = len(states) - parts
    still = f", about {formatting.duration(elapsed / new * left)} left" if new and left else ""
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=max(1, len(states)), completed=parts, width=32)
    grid.add_row(" ", bar, f"{done}/{len(states)} cells", f"{formatting.duration(elapsed)} gone{still}")
    return Group(table, *(more if others else []), Text(), grid)


def _status(state: CellState) -> str:
    """Return the status of a cell with its progress, retries and problem: "evaluating 32/200, try 2"."""
    text = STATUS_TEXTS[state.status]
    if state.status == CellStatus.EVALUATING and state.to_evaluate:
        text += f" {state.evaluated}/{state.to_evaluate}"
    if state.retries:
        text += f", {state.tries()}"
    return f"{text}: {state.problem}" if state.problem else text


def part_done(state: CellState) -> float:
    """Return the share of a cell that is done, from 0 to 1: nine tenths are its training."""
    if state.status in ENDED:
        return 1.0
    if state.status == CellStatus.EVALUATING:
        return TRAINING + (1 - TRAINING) * (state.evaluated / state.to_evaluate if state.to_evaluate else 0.0)
    return TRAINING * state.step / state.total_steps if state.total_steps else 0.0


def _foremost(states: Sequence[CellState], number: int) -> list[CellState]:
    """As many cells in their order: those at work or failed, then those that come next, then those done last."""
    to_do = (CellStatus.WAITING, CellStatus.PREEMPTED)
    done = (CellStatus.FINISHED, CellStatus.NOT_NEEDED)
    at_work = [state for state in states if state.status not in (*to_do, *done)]
    waiting = [state for state in states if state.status in to_do]
    ended = [state for state in reversed(states) if state.status in done]
    chosen = {id(state) for state in [*at_work, *waiting, *ended][: max(0, number)]}
    return [state for state in states if id(state) in chosen]


def planned(states: Sequence[CellState], estimate: SweepEstimate) -> RenderableType:
    """Render the end of a dry run: the cells, how long they will take, and what they share."""
    seconds = {cell.key: formatting.roughly(cell.seconds) for cell in estimate.cells}
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in (" arm", "seed", "status", "takes about"):
        table.add_column(column, justify="right" if column in ("seed", "takes about") else "left", no_wrap=True)
    for state in states:
        status = Text(STATUS_TEXTS[state.status], style=STATUS_STYLES.get(state.status, "dim"))
        table.add_row(f" {state.arm}", str(state.seed), status, seconds.get(state.key, ""))
    first, *lines = formatting.estimate_lines(estimate)
    parts: list[RenderableType] = [table, Text(), Padding(Text(first, style="bold"), INDENT)]
    parts += [Padding(Text(line), INDENT) for line in lines]
    parts += [Padding(Text(f"! {notice}", style="yellow"), INDENT) for notice in formatting.estimate_notices(estimate)]
    parts += [Text(), Text(" shared by the cells", style="dim")]
    return Group(*parts, *(Padding(Text(what), (0, 0, 0, 3)) for what in estimate.shared))


def verdict(report: SweepReport, width: int) -> RenderableType:
    """The last screen of a sweep, for a terminal of `width` columns."""
    parts: list[RenderableType] = [Text()]
    for metric in report.metrics:
        parts += [*_tables(report, metric, width), Text()]
    parts += [Padding(Text(line, style="bold"), INDENT) for line in report.conclusion]
    parts.append(Padding(Text(report.scope), INDENT))
    parts += [Padding(Text(f"! {line}", style="red"), INDENT) for line in report.failures()]
    parts += [Padding(Text(f"! {line}", style="yellow"), INDENT) for line in report.remarks()]
    how = (" stopped", "bold yellow") if report.unfinished else (" finished", "bold green")
    done = Text.assemble(how, (f" {formatting.duration(report.seconds)}  ", "dim"), report.folder)
    best = f", best -> {report.recommended}" if report.recommended else ""
    left = Text(f"       verdict.md, cells.csv, plots/{best}", style="dim")
    return Group(*parts, Text(), done, left, following(evaluation_text.next_of_a_sweep(report)))


def _tables(report: SweepReport, metric: str, width: int) -> list[RenderableType]:
    """The arms in one table if the terminal is wide enough; else the numbers of the tests in a second one."""
    columns = _columns(report, metric)
    seeds = ["seeds"] if len({arm.seeds for arm in report.arms}) > 1 else []  # values are then over different seeds
    first, tests, last = [ARM, *seeds, label(metric), "difference"], ["95 % CI", "p (Holm)", "MDE"], ["verdict"]
    described = [name for name in columns if name not in {*first, *tests, *last, "seeds"}]
    for names in ([*first, *tests, *described, *last], [*first, *tests, *last]):
        if sum(1 + max(map(cell_len, (name, *map(str, columns[name])))) for name in names) <= width:
            return [_table(columns, names)]
    return [_table(columns, [*first, *last]), Text(), _table(columns, [ARM, *tests])]


def _columns(report: SweepReport, metric: str) -> dict[str, list[Text]]:
    """Headings to cells, one for each arm."""
    found = [next((one for one in arm.comparisons if one.metric == metric), None) for arm in report.arms]
    columns = {
        ARM: [Text(arm.name()) for arm in report.arms],
        "seeds": [Text(str(arm.seeds)) for arm in report.arms],
        label(metric): [Text(value) for value in number_format.table_arm_values(metric, report.arms)],
        "difference": [
            Text(number_format.table_number(metric, one.difference, signed=True) if one else "-") for one in found
        ],
        "95 % CI": [Text(number_format.table_interval(metric, one.low, one.high) if one else "-") for one in found],
        "p (Holm)": [Text(number_format.table_p(one.p_adjusted) if one else "-") for one in found],
        "MDE": [Text(number_format.table_number(metric, one.detectable) if one else "-") for one in found],
    }
    for name in dict.fromkeys(name for arm in report.arms for name in arm.values if name not in report.metrics):
        columns[heading(name)] = [Text(value) for value in number_format.table_arm_values(name, report.arms)]
    styles = [VERDICT_STYLES.get(one.verdict if one else "", "" if one else "dim") for one in found]
    columns["verdict"] = [
        Text(arm.verdict(metric), style=style) for arm, style in zip(report.arms, styles, strict=True)
    ]
    return columns


def _table(columns: Mapping[str, Sequence[Text]], names: Sequence[str]) -> Table:
    """Some of the columns; arms and verdicts break between words if they must."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for name in names:
        if name == ARM:
            longest = max(cell_len(word) for cell in columns[name] for word in cell.plain.split())
            table.add_column(Padding(name, INDENT), min_width=1 + longest)
        elif name == "verdict":
            table.add_column(name, min_width=len("significant"))
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for arm, *cells in zip(*(columns[name] for name in names), strict=True):
        table.add_row(Padding(arm, INDENT), *cells)
    return table

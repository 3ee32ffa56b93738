"""Tables and closing screens for a terminal, drawn with rich."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from neftcli.cli.display import format
from neftcli.cli.display.text import one_line, sanitize_event, spell_out
from neftcli.errors import Problem
from neftcli.evaluation import number_format
from neftcli.events import (
    CellState,
    CellStatus,
    Comparison,
    Evaluated,
    EvaluationReport,
    InspectedRow,
    RunFinished,
    SideBySide,
    SweepEstimate,
    SweepReport,
    TrainingPlan,
    VerdictId,
    arm_name,
)
from neftcli.metrics.registry import heading, label
from neftcli.wording import count_noun

INDENT = (0, 0, 0, 1)
STYLES: Mapping[format.Style, str] = {
    "": "",
    "strong": "bold",
    "dim": "dim",
    "notice": "yellow",
    "error": "red",
}
VERDICT_STYLES = {VerdictId.BETTER: "bold green", VerdictId.WORSE: "bold red", VerdictId.NOT_TESTED: "dim"}
CELL_STYLES = {
    CellStatus.FINISHED: "green",
    CellStatus.FAILED: "bold red",
    CellStatus.TRAINING: "bold",
    CellStatus.EVALUATING: "bold",
}
ENDED = (CellStatus.FINISHED, CellStatus.FAILED, CellStatus.NOT_NEEDED)
TRAINING_SHARE = 0.9
"""Share of a cell's time that is training; the rest is its evaluation."""
WIDE_TABLE = 126
LIST_WIDTH = 1000
"""Columns from which an evaluation has the numbers of its tests in the first table."""
NARROW_DETAILS = ("95 % CI", "p (Holm)")
DETAILS = (*NARROW_DETAILS, "n", "MDE")
ARM = "arm"
PROBLEM_WIDTH = 40
SHOWN_ANSWERED = 2
"""Evaluations whose metrics of answers are shown in any case: the first and the latest."""
NARROWEST_ANSWERED = 8
"""Columns that an evaluation takes in that table at least."""
OTHER_LINES = 5
"""Lines of a live sweep that are not cells: the heading, the progress, and the phase."""


# Parts of screens


def line(text: format.Line) -> RenderableType:
    """Render a line; notices and errors have a mark."""
    style = STYLES[text.style]
    if text.style not in ("notice", "error"):
        return Padding(Text(text.text, style=style), INDENT)
    grid = Table.grid(padding=(0, 1))
    grid.add_row("", Text("!", style=style), Text(text.text, style=style, overflow="fold"))
    return grid


def columns(*names: str, left: Sequence[str] = (), gap: int = 2) -> Table:
    """Return an empty table whose columns are aligned on the right, except those in `left`."""
    table = _plain_table(gap)
    for name in names:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    return table


def _fit(table: Table, width: int) -> RenderableType:
    """Return a table, or its rows one below the other if the terminal is too narrow for its words and numbers."""
    return table if _fits(table, width) else _stack(table)


def _fits(table: Table, width: int) -> bool:
    needed = 0
    for column in table.columns:
        texts = [_plain_text(item) for item in (column.header, *column.cells)]
        pieces = texts if column.no_wrap else [word for text in texts for word in text.split()]
        needed += 1 + max(map(cell_len, pieces), default=0)
    return needed <= width


def _stack(table: Table) -> RenderableType:
    """Return the rows of a table one below the other, each with the names of its columns."""
    title, *names = [_plain_text(column.header) for column in table.columns]
    parts: list[RenderableType] = [Text(f" {title.strip()}", style="dim")]
    for first, *values in zip(*(column.cells for column in table.columns), strict=True):
        grid = Table.grid(padding=(0, 2))
        for name, value in zip(names, values, strict=True):
            if _plain_text(value):
                grid.add_row(Text(f"   {name}", style="dim"), value)
        parts += [Text(f" {_plain_text(first).strip()}", style="bold"), grid]
    return Group(*parts)


def _plain_text(cell: RenderableType) -> str:
    if isinstance(cell, Padding):
        cell = cell.renderable
    return cell.plain if isinstance(cell, Text) else str(cell)


def _plain_table(gap: int) -> Table:
    """Return a table without lines and columns; `gap` spaces separate its columns."""
    return Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="dim")


def progress_line(done: float, total: int, text: str, numbers: str = "") -> RenderableType:
    """Render a bar, the numbers (done/total and per cent, unless given), and a text."""
    whole = max(total, 1)
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=whole, completed=done, width=32)
    grid.add_row(" ", bar, numbers or f"{done:.0f}/{total}   {done / whole:.0%}", text)
    return grid


def next_steps(commands: Sequence[tuple[str, str]]) -> RenderableType:
    """Render commands to type next, each with its reason below."""
    if not commands:
        return Group()
    parts: list[RenderableType] = [Text(), Text(" Next", style="dim")]
    for command, reason in commands:
        parts.append(Padding(Text(command, style="bold", overflow="fold"), (0, 0, 0, 3)))
        parts.append(Padding(Text(reason, style="dim"), (0, 0, 0, 7)))
    return Group(*parts)


def _sentence(text: str, style: str = "") -> RenderableType:
    return Padding(Text(text, style=style), INDENT)


def _notice(text: str, style: format.Style = "notice") -> RenderableType:
    return line(format.Line("note", text, style))


def _answers(prompt: str, answers: Sequence[tuple[str, str]]) -> RenderableType:
    """Render a prompt and named answers."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row(" ", Text(">", style="dim"), Text(one_line(prompt), style="bold"))
    for name, answer in answers:
        grid.add_row(" ", Text(name, style="dim"), Text(one_line(answer), style="dim" if name == "reference" else ""))
    return grid


# Errors


def list_console() -> Console:
    """Return a console for a list: it keeps each entry on a line of its own, except on a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=LIST_WIDTH)


def print_problems(problems: Sequence[Problem], *, started: bool) -> None:
    """Print errors in parts on stderr, without colour unless it is a terminal."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    for problem in problems:
        printable = sanitize_event(problem)
        console.print(Text(printable.message, style="bold red"))
        for part, text in printable.details():
            console.print(Text.assemble((part, "dim"), text))
    if not started:
        console.print(Text(f"{count_noun(len(problems), 'error')}; nothing was started.", style="dim"))


# Runs


def run_finished(event: RunFinished) -> RenderableType:
    """Render the last screen of a run."""
    losses = columns("", "base", "tuned", "difference", left=("",), gap=3)
    for name, *values in format.training_result_rows(event):
        losses.add_row(f" {name}", *values)
    time = f" in {format.rough_duration(event.seconds - event.earlier_seconds)}"
    if event.earlier_seconds:
        time += f" ({format.rough_duration(event.seconds)} with earlier commands)"
    parts: list[RenderableType] = [
        Text(),
        Text.assemble((" finished", "bold green"), time, (f"   {event.run}", "dim")),
        Text(),
        losses,
    ]
    if event.samples:
        parts += [Text(), _sentence(format.SAMPLES_NOTE, "dim")]
    for sample in event.samples:
        parts += [Text(), _answers(sample.prompt, [("base", sample.base), ("tuned", sample.tuned)])]
    return Group(*parts, next_steps(format.suggest_next_steps(event)))


def answer_metrics(evaluations: Sequence[Evaluated], width: int) -> RenderableType:
    """Render the metrics of answers, a row each: the first evaluation, and the latest ones that fit in `width`."""
    latest = [*evaluations[:1], *evaluations[1:][-(width // NARROWEST_ANSWERED) :]]
    while True:
        table = columns(" answers", *(f"step {event.step}" for event in latest), left=(" answers",))
        for metric in latest[-1].answer_metrics:
            values = [number_format.table_number(metric, event.answer_metrics.get(metric)) for event in latest]
            table.add_row(f" {label(metric)}", *values)
        if len(latest) <= SHOWN_ANSWERED or _fits(table, width - len(latest)):  # two spaces between columns
            return table
        del latest[1]


def training_plan(event: TrainingPlan) -> RenderableType:
    """Render the plan of a dry run."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in format.plan_rows(event):
        table.add_row(Text(f" {name}", style="dim"), value)
    return table


def inspected_row(event: InspectedRow) -> RenderableType:
    """Render an inspected row: text with loss is green."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for row_line in format.row_lines(event):
        gutter = Text(row_line.gutter(), style="green" if row_line.loss else "dim")
        grid.add_row(gutter, Text(row_line.text, style="bold green" if row_line.loss else "", overflow="fold"))
    complete = format.is_complete(event)
    ending = Text(f"{'' if complete else '! '}{format.row_ending(event)}", style="dim" if complete else "yellow")
    indent = (0, 0, 0, 2)
    notes = [Padding(Text(f"! {spell_out(note)}", style="yellow"), indent) for note in event.notes]
    return Group(Text(format.row_title(event), style="bold"), grid, Padding(ending, indent), *notes, Text())


# Evaluations


def evaluation_report(report: EvaluationReport, width: int) -> RenderableType:
    """Render the report of an evaluation for a terminal of `width` columns."""
    report = sanitize_event(report)
    wide = width >= WIDE_TABLE
    parts: list[RenderableType] = [Text(), _models(report), Text()]
    others = [model.role for model in report.models[1:]]
    parts.append(_fit(_metrics(report, others[0] if others else None, wide=wide), width))
    if others and not wide and _has_tests(report):
        parts += [Text(), _fit(_comparisons(report, others[0], wide=True), width)]
    for role in others[1:]:
        parts += [Text(), _fit(_comparisons(report, role, wide=wide), width)]
    parts.append(Text())
    parts += [_sentence(sentence, "bold") for sentence in report.conclusion]
    if report.scope:
        parts.append(_sentence(report.scope))
    parts += [_notice(remark) for remark in report.remarks]
    for shown in report.shown:
        parts += [Text(), _side_by_side(report, shown)]
    finished = f" in {format.rough_duration(report.seconds)}"
    parts += [Text(), Text.assemble((" finished", "bold green"), finished, (f"   {report.folder}", "dim"))]
    return Group(*parts, next_steps(format.suggest_next_steps(report)))


def _models(report: EvaluationReport) -> Table:
    grid = Table.grid(padding=(0, 2))
    for model in report.models:
        grid.add_row(
            Text(f" {format.ROLE_TITLES[model.role]}", style="bold"), Text(format.model_line(model), overflow="fold")
        )
    grid.add_row(Text(" rows", style="bold"), Text(f"{report.rows}, {report.source.describe()}", overflow="fold"))
    return grid


def _metrics(report: EvaluationReport, role: str | None, *, wide: bool) -> Table:
    """Render the metrics of all models, the evaluated one last, and its difference from the model of `role`."""
    details = _details_with_tests(report, DETAILS if wide else ())
    table = _plain_table(1)
    table.add_column(" metric", overflow="fold")
    headings = [format.ROLE_TITLES[model.role] for model in reversed(report.models)]
    headings += ["95 % CI", "n"] if role is None else ["difference", *details]
    for name in headings:
        table.add_column(name, justify="right", no_wrap=True)
    if role is not None and _has_tests(report):
        table.add_column("verdict")
    compared = {comparison.metric: comparison for comparison in format.comparisons_with(report, role or "")}
    for row in report.metrics:
        cells = [Text(f" {label(row.metric)}")]
        cells += [Text(value) for value in reversed(number_format.table_model_values(report, row))]
        comparison = compared.get(row.metric)
        own = row.values[0]
        if role is None and own is not None:
            interval = number_format.table_interval(row.metric, own.low, own.high, signed=False)
            cells += [Text(interval), Text(str(own.n))]
        elif comparison is not None:
            cells += _comparison_cells(comparison, details)
            cells += [_verdict(comparison)] if _has_tests(report) else []
        table.add_row(*cells)
    return table


def _comparisons(report: EvaluationReport, role: str, *, wide: bool) -> Table:
    """Render the differences from the model of `role`, with the numbers of the tests.

    The first comparison has its verdicts in the table above; the others have them here, on a narrow terminal instead of
    n and of the minimum detectable effect.
    """
    with_verdict = role != report.models[1].role and _has_tests(report)
    details = _details_with_tests(report, DETAILS if wide else NARROW_DETAILS)
    table = _plain_table(1)
    table.add_column(f" compared with {format.ROLE_TITLES[role]}", overflow="fold")
    for name in ("difference", *details):
        table.add_column(name, justify="right", no_wrap=True)
    if with_verdict:
        table.add_column("verdict", no_wrap=True)
    for comparison in format.comparisons_with(report, role):
        verdict = [_verdict(comparison)] if with_verdict else []
        table.add_row(Text(f" {label(comparison.metric)}"), *_comparison_cells(comparison, details), *verdict)
    return table


def _has_tests(report: EvaluationReport) -> bool:
    return any(comparison.verdict != VerdictId.NOT_TESTED for comparison in report.comparisons)


def _details_with_tests(report: EvaluationReport, names: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of a comparison; without any test only n."""
    return tuple(names) if _has_tests(report) else tuple(name for name in names if name == "n")


def _comparison_cells(comparison: Comparison, details: Sequence[str]) -> list[Text]:
    fields = number_format.table_comparison(comparison)
    return [Text(fields[name]) for name in ("difference", *details)]


def _verdict(comparison: Comparison) -> Text:
    return Text(number_format.format_verdict(comparison.verdict), style=VERDICT_STYLES.get(comparison.verdict, ""))


def _side_by_side(report: EvaluationReport, shown: SideBySide) -> RenderableType:
    answers = [("reference", shown.reference)] if shown.reference else []
    for model, answer in zip(reversed(report.models), reversed(shown.answers), strict=True):
        answers.append((format.ROLE_TITLES[model.role], answer))
    return _answers(shown.prompt, answers)


# Sweeps


def cells(
    states: Sequence[CellState], elapsed: float, finished_before: int, height: int | None = None
) -> RenderableType:
    """Render a row for each cell, and the progress of the sweep.

    Args:
        states: The cells.
        elapsed: Seconds since the sweep began.
        finished_before: Cells that were finished before.
        height: Lines of the terminal; cells without a row are counted in one line. None for all rows.
    """
    shown = states if height is None or len(states) + OTHER_LINES <= height else _foremost(states, height)
    table = columns(" arm", "seed", "status", "step", "held-out loss", "time left", left=(" arm", "status"))
    table.columns[2].no_wrap, table.columns[2].max_width, table.columns[2].overflow = False, PROBLEM_WIDTH, "fold"
    for state in shown:
        active = state.status in (CellStatus.TRAINING, CellStatus.EVALUATING)
        table.add_row(
            f" {arm_name(state.arm)}",
            str(state.seed),
            Text(format.cell_status(state), style=CELL_STYLES.get(state.status, "dim")),
            f"{state.step}/{state.total_steps}" if active and state.total_steps else "",
            format.loss(state.held_out_loss) if state.held_out_loss is not None else "",
            format.duration(state.remaining) if active and state.remaining else "",
        )
    parts: list[RenderableType] = [table]
    others = Counter(state.status for state in states) - Counter(state.status for state in shown)
    if others:
        counts = [f"{number} {format.status_text(status)}" for status, number in others.items()]
        parts.append(Text(f" and {', '.join(counts)}", style="dim"))
    ended = sum(state.status in ENDED for state in states)
    done = sum(map(fraction_done, states))
    new, left = done - finished_before, len(states) - done
    times = f"{format.duration(elapsed)} elapsed"
    if new and left:
        times += f", about {format.duration(elapsed / new * left)} left"
    parts += [
        Text(),
        progress_line(done, len(states), times, f"{ended}/{count_noun(len(states), 'cell')}"),
    ]
    return Group(*parts)


def fraction_done(state: CellState) -> float:
    """Return the share of a cell that is done, from 0 to 1: nine tenths are its training."""
    if state.status in ENDED:
        return 1.0
    if state.status == CellStatus.EVALUATING:
        evaluated = state.evaluated / state.to_evaluate if state.to_evaluate else 0.0
        return TRAINING_SHARE + (1 - TRAINING_SHARE) * evaluated
    return TRAINING_SHARE * state.step / state.total_steps if state.total_steps else 0.0


def _foremost(states: Sequence[CellState], height: int) -> list[CellState]:
    """Select the cells that have a row: active and failed ones, then the next ones, then those that ended last."""
    number = max(0, height - OTHER_LINES - 1)
    waiting = [state for state in states if state.status in (CellStatus.WAITING, CellStatus.PREEMPTED)]
    ended = [state for state in states if state.status in (CellStatus.FINISHED, CellStatus.NOT_NEEDED)]
    active = [state for state in states if state not in waiting and state not in ended]
    chosen = {state.key for state in [*active, *waiting, *reversed(ended)][:number]}
    return [state for state in states if state.key in chosen]


def sweep_plan(states: Sequence[CellState], estimate: SweepEstimate) -> RenderableType:
    """Render the end of a dry run: the cells and their estimated time."""
    seconds = {cell.key: format.rough_duration(cell.seconds) for cell in estimate.cells}
    table = columns(" arm", "seed", "status", "takes about", left=(" arm", "status"))
    for state in states:
        status = Text(format.status_text(state.status), style=CELL_STYLES.get(state.status, "dim"))
        table.add_row(f" {arm_name(state.arm)}", str(state.seed), status, seconds.get(state.key, ""))
    first, *lines = format.estimate_lines(estimate)
    parts: list[RenderableType] = [table, Text(), _sentence(first, "bold"), *map(_sentence, lines)]
    parts += map(line, format.estimate_remarks(estimate))
    return Group(*parts)


def sweep_report(report: SweepReport, width: int) -> RenderableType:
    """Render the last screen of a sweep for a terminal of `width` columns."""
    parts: list[RenderableType] = [Text()]
    for metric in report.metrics:
        parts += [*_arm_tables(report, metric, width), Text()]
    parts += [_sentence(sentence, "bold") for sentence in report.conclusion]
    parts.append(_sentence(report.scope))
    parts += [_notice(failure, "error") for failure in report.failures()]
    parts += map(_notice, report.remarks())
    ended = (" stopped", "bold yellow") if report.unfinished else (" finished", "bold green")
    time = f" after {format.rough_duration(report.seconds)}"
    best = f", best -> {arm_name(report.recommended)}" if report.recommended else ""
    files = Text(f"   verdict.md, cells.csv, plots/{best}", style="dim")
    parts += [Text(), Text.assemble(ended, time, (f"   {report.folder}", "dim")), files]
    return Group(*parts, next_steps(format.suggest_next_steps(report)))


def _arm_tables(report: SweepReport, metric: str, width: int) -> list[RenderableType]:
    """Render the arms in one table if the terminal is wide enough; else the numbers of the tests in a second one."""
    cells_of = _arm_columns(report, metric)
    seeds = ["seeds"] if len({arm.seeds for arm in report.arms}) > 1 else []  # values are then over different seeds
    first, tests, last = [ARM, *seeds, label(metric), "difference"], ["95 % CI", "p (Holm)", "MDE"], ["verdict"]
    described = [name for name in cells_of if name not in {*first, *tests, *last, "seeds"}]
    widths = {name: 1 + max(cell_len(text) for text in (name, *map(str, cells_of[name]))) for name in cells_of}
    for names in ([*first, *tests, *described, *last], [*first, *tests, *last]):
        if sum(widths[name] for name in names) <= width:
            return [_arm_table(cells_of, names)]
    tables = _arm_table(cells_of, [*first, *last]), _arm_table(cells_of, [ARM, *tests])
    if not all(_fits(table, width) for table in tables):
        return [_stack(_arm_table(cells_of, [*first, *tests, *last]))]
    return [tables[0], Text(), tables[1]]


def _arm_columns(report: SweepReport, metric: str) -> dict[str, list[Text]]:
    """Return the cells of each column, one for each arm."""
    comparisons = [arm.comparison(metric) for arm in report.arms]
    fields = [number_format.table_comparison(comparison) if comparison else {} for comparison in comparisons]
    result = {
        ARM: [Text(arm.name()) for arm in report.arms],
        "seeds": [Text(str(arm.seeds)) for arm in report.arms],
        label(metric): [Text(value) for value in number_format.table_arm_values(metric, report.arms)],
    }
    for name in ("difference", "95 % CI", "p (Holm)", "MDE"):
        result[name] = [Text(numbers.get(name, "-")) for numbers in fields]
    for arm in report.arms:
        for name in arm.values:
            if name not in report.metrics and heading(name) not in result:
                values = number_format.table_arm_values(name, report.arms)
                result[heading(name)] = [Text(value) for value in values]
    verdicts = []
    for arm, comparison in zip(report.arms, comparisons, strict=True):
        style = VERDICT_STYLES.get(comparison.verdict, "") if comparison else "dim"
        verdicts.append(Text(number_format.table_arm_verdict(arm, metric), style=style))
    return {**result, "verdict": verdicts}


def _arm_table(cells_of: Mapping[str, Sequence[Text]], names: Sequence[str]) -> Table:
    """Render some of the columns; arms and verdicts break between words if they must."""
    table = _plain_table(1)
    for name in names:
        if name == ARM:
            longest = max(cell_len(word) for cell in cells_of[name] for word in cell.plain.split())
            table.add_column(Padding(name, INDENT), min_width=1 + longest)
        elif name == "verdict":
            table.add_column(name, min_width=len("significant"))
        else:
            table.add_column(name, justify="right", no_wrap=True)
    for arm, *values in zip(*(cells_of[name] for name in names), strict=True):
        table.add_row(Padding(arm, INDENT), *values)
    return table

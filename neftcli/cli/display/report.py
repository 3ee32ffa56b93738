"""An evaluation's report on a terminal: the table, what it means, answers side by side."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from neftcli.cli.display import evaluation_text, formatting
from neftcli.cli.display.next_steps import following
from neftcli.evaluation import number_format
from neftcli.evaluation.metrics import label
from neftcli.events import Comparison, EvaluationReport, SideBySide
from neftcli.statistics.multiple import NOT_TESTED

WIDE = 126
NARROW = ("95 % CI", "p (Holm)")
DETAILS = (*NARROW, "n", "MDE")
STYLES = {"better": "bold green", "worse": "bold red"}


def evaluated(report: EvaluationReport, width: int) -> RenderableType:
    """The whole report, for a terminal of `width` columns."""
    report = formatting.all_harmless(report)
    parts: list[RenderableType] = [Text(), _models(report), Text()]
    others = [model.role for model in report.models[1:]]
    parts.append(_table(report, others[0] if others else None, wide=width >= WIDE))
    if others and width < WIDE and _is_tested(report):
        parts += [Text(), _details(report, others[0], wide=True)]
    for role in others[1:]:
        parts += [Text(), _details(report, role, wide=width >= WIDE)]
    parts.append(Text())
    parts += [_sentence(line, "bold") for line in report.conclusion]
    if report.scope:
        parts.append(_sentence(report.scope, ""))
    parts += [_sentence(f"! {remark}", "yellow") for remark in report.remarks]
    for one in report.shown:
        parts += [Text(), _side_by_side(report, one)]
    parts += [
        Text(),
        Text.assemble((" finished", "bold green"), (f" {formatting.duration(report.seconds)}  ", "dim"), report.folder),
    ]
    return Group(*parts, following(evaluation_text.next_commands(report)))


def _sentence(line: str, style: str) -> RenderableType:
    return Padding(Text(line, style=style), (0, 0, 0, 1))


def _models(report: EvaluationReport) -> Table:
    grid = Table.grid(padding=(0, 2))
    for model in report.models:
        grid.add_row(
            Text(f" {evaluation_text.ROLES[model.role]}", style="bold"),
            Text(evaluation_text.described(model), overflow="fold"),
        )
    grid.add_row(Text(" rows", style="bold"), Text(f"{report.rows}, {report.source}", overflow="fold"))
    return grid


def _table(report: EvaluationReport, role: str | None, *, wide: bool) -> Table:
    """The metrics of all models, the evaluated one last, and its difference from `role`, if there is one."""
    details = _details_shown(report, DETAILS if wide else ())
    table = _plain_table()
    table.add_column(" metric", overflow="fold")
    for model in reversed(report.models):
        table.add_column(evaluation_text.ROLES[model.role], justify="right", no_wrap=True)
    if role is None:
        _add_columns(table, "95 % CI", "n")
    else:
        _add_columns(table, "difference", *details)
        if _is_tested(report):
            table.add_column("verdict")
    compared = {one.metric: one for one in evaluation_text.against(report, role or "")}
    for row in report.metrics:
        cells: list[RenderableType] = [Text(f" {label(row.metric)}")]
        cells += [Text(value) for value in reversed(number_format.table_model_values(report, row))]
        one = compared.get(row.metric)
        own = row.values[0]
        if role is None and own is not None:
            cells += [Text(number_format.table_interval(row.metric, own.low, own.high, signed=False)), Text(str(own.n))]
        elif one is not None:
            cells += [*_difference(one, details), *([_verdict(one)] if _is_tested(report) else [])]
        table.add_row(*cells)
    return table


def _details(report: EvaluationReport, role: str, *, wide: bool) -> Table:
    """The differences from one model, with the numbers of the tests.

    The first comparison has its verdicts in the table above; the others have them here, on a narrow terminal in the
    place of n and of the minimum detectable effect.
    """
    verdicts = role != report.models[1].role and _is_tested(report)
    details = _details_shown(report, DETAILS if wide else NARROW)
    table = _plain_table()
    table.add_column(f" against {evaluation_text.ROLES[role]}", overflow="fold")
    _add_columns(table, "difference", *details)
    if verdicts:
        table.add_column("verdict", no_wrap=True)
    for one in evaluation_text.against(report, role):
        table.add_row(Text(f" {label(one.metric)}"), *_difference(one, details), *([_verdict(one)] if verdicts else []))
    return table


def _is_tested(report: EvaluationReport) -> bool:
    return any(one.verdict != NOT_TESTED for one in report.comparisons)


def _details_shown(report: EvaluationReport, names: Sequence[str]) -> tuple[str, ...]:
    """The columns of a comparison; without any test there is nothing to show but n."""
    return tuple(names) if _is_tested(report) else tuple(name for name in names if name == "n")


def _plain_table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")


def _add_columns(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)


def _difference(one: Comparison, details: Sequence[str]) -> list[Text]:
    """The difference and the details asked for."""
    cells = {
        "95 % CI": number_format.table_interval(one.metric, one.low, one.high),
        "p (Holm)": number_format.table_p(one.p_adjusted),
        "n": str(one.n),
        "MDE": number_format.table_number(one.metric, one.detectable),
    }
    return [
        Text(number_format.table_number(one.metric, one.difference, signed=True)),
        *(Text(cells[name]) for name in details),
    ]


def _verdict(one: Comparison) -> Text:
    return Text(one.verdict, style="dim" if one.verdict == NOT_TESTED else STYLES.get(one.verdict, ""))


def _side_by_side(report: EvaluationReport, one: SideBySide) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(" ", Text(">", style="dim"), formatting.shortened(one.prompt, "bold"))
    if one.reference:
        grid.add_row(" ", Text("reference", style="dim"), formatting.shortened(one.reference, "dim"))
    for model, answer in zip(reversed(report.models), reversed(one.answers), strict=True):
        grid.add_row(
            " ",
            Text(evaluation_text.ROLES[model.role], style="dim"),
            formatting.shortened(answer or evaluation_text.NO_TEXT),
        )
    return grid

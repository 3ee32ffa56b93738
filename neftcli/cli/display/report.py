"""An evaluation's report on a terminal: the table, what it means, answers side by side."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from neftcli.cli.display import text, words
from neftcli.cli.display.following import following
from neftcli.events import Comparison, EvaluationReport, SideBySide

WIDE = 126
DETAILS = ("95 % interval", "p (Holm)", "n", "can see")
STYLES = {"better": "bold green", "worse": "bold red"}


def evaluated(report: EvaluationReport, width: int) -> RenderableType:
    """The whole report, for a terminal of `width` columns."""
    report = text.all_harmless(report)
    parts: list[RenderableType] = [Text(), _models(report), Text()]
    others = [model.role for model in report.models[1:]]
    parts.append(_table(report, others[0] if others else None, wide=width >= WIDE))
    if others and width < WIDE:
        parts += [Text(), _details(report, others[0], wide=True)]
    for role in others[1:]:
        parts += [Text(), _details(report, role, wide=width >= WIDE)]
    parts.append(Text())
    parts += [_sentence(line, "bold") for line in words.conclusions(report)]
    parts.append(_sentence(report.scope, ""))
    parts += [_sentence(f"! {remark}", "yellow") for remark in report.remarks]
    for one in report.shown:
        parts += [Text(), _side_by_side(report, one)]
    parts += [
        Text(),
        Text.assemble((" finished", "bold green"), (f" {text.duration(report.seconds)}  ", "dim"), report.folder),
    ]
    return Group(*parts, following(words.next_commands(report)))


def _sentence(line: str, style: str) -> RenderableType:
    return Padding(Text(line, style=style), (0, 0, 0, 1))


def _models(report: EvaluationReport) -> Table:
    grid = Table.grid(padding=(0, 2))
    for model in report.models:
        grid.add_row(Text(f" {words.ROLES[model.role]}", style="bold"), Text(words.described(model), overflow="fold"))
    grid.add_row(Text(" rows", style="bold"), Text(f"{report.rows}, {report.source}", overflow="fold"))
    return grid


def _table(report: EvaluationReport, role: str | None, *, wide: bool) -> Table:
    """The metrics of all models, the evaluated one last, and its difference from `role`, if there is one."""
    table = _plain_table()
    table.add_column(" metric", overflow="fold")
    for model in reversed(report.models):
        table.add_column(words.ROLES[model.role], justify="right", no_wrap=True)
    if role is None:
        _add_columns(table, "95 % interval", "n")
    else:
        _add_columns(table, "difference", *(DETAILS if wide else ()))
        table.add_column("verdict")
    compared = {one.metric: one for one in words.against(report, role or "")}
    for row in report.metrics:
        cells: list[RenderableType] = [Text(f" {row.metric}")]
        cells += [Text(words.value(row.metric, estimated)) for estimated in reversed(row.values)]
        one = compared.get(row.metric)
        own = row.values[0]
        if role is None and own is not None:
            cells += [Text(words.interval(row.metric, own.low, own.high, signed=False)), Text(str(own.n))]
        elif one is not None:
            cells.append(Text(words.number(row.metric, one.difference, signed=True)))
            cells += [*(_details_of(one) if wide else []), _verdict(one)]
        table.add_row(*cells)
    return table


def _details(report: EvaluationReport, role: str, *, wide: bool) -> Table:
    """The differences from one model, with what stands behind the verdicts.

    The first comparison has its verdicts in the table above; the others have them here, on a narrow terminal in the
    place of n and of what could have been seen.
    """
    first = role == report.models[1].role
    table = _plain_table()
    table.add_column(f" against {words.ROLES[role]}", overflow="fold")
    _add_columns(table, "difference", *(DETAILS if wide else DETAILS[:2]))
    if not first:
        table.add_column("verdict", no_wrap=True)
    for one in words.against(report, role):
        cells: list[RenderableType] = [
            Text(f" {one.metric}"),
            Text(words.number(one.metric, one.difference, signed=True)),
        ]
        cells += _details_of(one) if wide else _details_of(one)[:2]
        table.add_row(*cells, *([] if first else [_verdict(one)]))
    return table


def _plain_table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")


def _add_columns(table: Table, *names: str) -> None:
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)


def _details_of(one: Comparison) -> list[RenderableType]:
    return [
        Text(words.interval(one.metric, one.low, one.high)),
        Text(words.probability(one.p_adjusted)),
        Text(str(one.n)),
        Text(words.number(one.metric, one.detectable)),
    ]


def _verdict(one: Comparison) -> Text:
    return Text(one.verdict, style=STYLES.get(one.verdict, ""))


def _side_by_side(report: EvaluationReport, one: SideBySide) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(" ", Text(">", style="dim"), text.shortened(one.prompt, "bold"))
    if one.reference:
        grid.add_row(" ", Text("reference", style="dim"), text.shortened(one.reference, "dim"))
    for model, answer in zip(reversed(report.models), reversed(one.answers), strict=True):
        grid.add_row(" ", Text(words.ROLES[model.role], style="dim"), text.shortened(answer))
    return grid

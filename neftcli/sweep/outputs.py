"""Files of a sweep's report: sweep.json, cells.csv, verdict.md, plots/, and best, a link to the recommended run.

Files of an earlier report that no longer apply are removed: plots of other metrics, and `best`.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.evaluation import number_format
from neftcli.events import ArmResult, CellState, SweepReport
from neftcli.metrics.registry import HELD_OUT_LOSS, label, unit
from neftcli.report.plots import ArmPoints, Curve, plot_curves, plot_metric
from neftcli.runs.directory import RunDirectory, replace_non_finite
from neftcli.runs.markdown import escape_markdown
from neftcli.sweep.folder import BEST, NEW_BEST, PLOTS, SWEEP
from neftcli.sweep.plan import baseline_of
from neftcli.system.files import atomic_write, remove

if TYPE_CHECKING:
    from neftcli.sweep.plan import Arm, Cell
    from neftcli.sweep.results import SweepResults

CURVES = "learning-curves"
TEST_COLUMNS = ("difference", "95 % CI", "p (Holm)", "MDE")
TRANSIENT = ("remaining", "evaluated", "to_evaluate")  # fields of a cell that is at work


def write_outputs(
    report: SweepReport,
    states: Sequence[CellState],
    results: SweepResults,
    metrics: Sequence[str],
    recommended: Arm | None,
    cells: Sequence[Cell],
) -> None:
    """Write all files of a report to its folder.

    Args:
        report: The report.
        states: States of the cells, in the order of the plan.
        results: Results of the cells.
        metrics: Ids of the metrics that decide.
        recommended: The arm that `best` points to; None for no link.
        cells: The plan.
    """
    folder = Path(report.folder)
    earlier = _plots_of(folder / SWEEP)
    cell_rows = [{key: value for key, value in asdict(state).items() if key not in TRANSIENT} for state in states]
    content = {**asdict(report), "cells": cell_rows}
    atomic_write(folder / SWEEP, json.dumps(replace_non_finite(content), indent=2, ensure_ascii=False) + "\n")
    write_cells(folder, states)
    atomic_write(folder / "verdict.md", to_markdown(report))
    drawn = _draw_plots(folder / PLOTS, report, results, metrics, list(zip(cells, states, strict=True)))
    for stem in earlier - drawn:
        for kind in ("png", "svg"):
            remove(folder / PLOTS / f"{stem}.{kind}")
    _link_best(folder, recommended, cells, states)


def write_cells(folder: Path, states: Sequence[CellState]) -> None:
    """Write cells.csv, one row for each cell."""
    text = StringIO()
    names = [name for name in CellState.__slots__ if name not in TRANSIENT]
    writer = csv.DictWriter(text, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(asdict(state) for state in states)
    atomic_write(folder / "cells.csv", text.getvalue())


def to_markdown(report: SweepReport) -> str:
    """Return the report in Markdown, with the words and digits of the terminal."""
    names = list(dict.fromkeys(name for arm in report.arms for name in arm.values))
    head = ["arm", "seeds", *map(label, names), *TEST_COLUMNS, "verdict"]
    lines = [
        f"# {escape_markdown(Path(report.folder).name)}",
        "",
        *map(escape_markdown, report.conclusion),
        "",
        report.scope,
        "",
    ]
    columns = [number_format.table_arm_values(name, report.arms) for name in names]
    for metric in report.metrics:
        lines += [f"## {escape_markdown(label(metric))}, against alpha 0", "", _row(head), _row(["---"] * len(head))]
        for index, arm in enumerate(report.arms):
            lines.append(_row(_arm_cells(arm, [column[index] for column in columns], metric)))
        lines.append("")
    lines += [f"- {escape_markdown(line)}" for line in (*report.failures(), *report.remarks())]
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escape_markdown, cells)) + " |"


def _arm_cells(arm: ArmResult, values: Sequence[str], metric: str) -> list[str]:
    """Return the table cells of an arm."""
    comparison = arm.comparison(metric)
    numbers = {} if comparison is None else number_format.table_comparison(comparison)
    test = [numbers.get(name, "-") for name in TEST_COLUMNS]
    return [arm.name(), str(arm.seeds), *values, *test, number_format.table_arm_verdict(arm, metric)]


def _stem(metric: str) -> str:
    """Return the file stem of a metric's plot."""
    return "".join(letter if letter.isalnum() else "-" for letter in metric.lower())


def _difference_stem(metric: str) -> str:
    """Return the file stem of the plot of a metric's differences from alpha 0."""
    return f"{_stem(metric)}-difference"


def _plots_of(file: Path) -> set[str]:
    """Return the stems of the plots of an earlier report; none if it is missing or damaged."""
    try:
        arms = json.loads(file.read_text(encoding="utf-8"))["arms"]
        stems = {CURVES}
        for arm in arms:
            stems |= {_difference_stem(comparison["metric"]) for comparison in arm["comparisons"]}
            stems |= {_stem(metric) for metric in arm["values"]}
        return stems
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()


def _draw_plots(
    folder: Path,
    report: SweepReport,
    results: SweepResults,
    metrics: Sequence[str],
    cells: Sequence[tuple[Cell, CellState]],
) -> set[str]:
    """Plot every metric and the learning curves, and return the stems of the plots."""
    stems = set()
    for metric in dict.fromkeys(name for arm in report.arms for name in arm.values):
        better = results.direction(metric) if metric in metrics else "none"
        points = _value_points(report, results, metric)
        plot_metric(folder, _stem(metric), label(metric), unit(metric), better, points)
        stems.add(_stem(metric))
        if any(row.comparison(metric) for row in report.arms):
            points = _difference_points(report, results, metric)
            name, stem = f"{label(metric)}, difference from alpha 0", _difference_stem(metric)
            plot_metric(folder, stem, name, unit(metric), better, points)
            stems.add(stem)
    curves = [_learning_curve(cell, Path(state.run)) for cell, state in cells if state.run]
    if curves:
        plot_curves(folder, CURVES, label(HELD_OUT_LOSS), unit(HELD_OUT_LOSS), curves)
        stems.add(CURVES)
    return stems


def _value_points(report: SweepReport, results: SweepResults, metric: str) -> list[ArmPoints]:
    """Return the value of each arm, with its interval and the value of each seed."""
    points = []
    for arm, row in zip(results.arms, report.arms, strict=True):
        if metric in row.values:
            mean = row.values[metric]
            seeds = results.per_seed(metric, arm)
            points.append(ArmPoints(arm.alpha, arm.label(), mean.value, mean.low, mean.high, seeds))
    return points


def _difference_points(report: SweepReport, results: SweepResults, metric: str) -> list[ArmPoints]:
    """Return each arm's difference from its own alpha 0, with the paired interval and the difference of each seed."""
    points = []
    for arm, row in zip(results.arms, report.arms, strict=True):
        comparison = row.comparison(metric)
        values = results.per_seed(metric, arm)
        if not arm.alpha:
            points.append(ArmPoints(0.0, arm.label(), 0.0, None, None, tuple(None for _ in values)))
        elif comparison is not None:
            differences: list[float | None] = []
            for value, baseline in zip(values, results.per_seed(metric, baseline_of(arm)), strict=True):
                differences.append(None if value is None or baseline is None else value - baseline)
            low, high = comparison.low, comparison.high
            points.append(ArmPoints(arm.alpha, arm.label(), comparison.difference, low, high, tuple(differences)))
    return points


def _learning_curve(cell: Cell, run: Path) -> Curve:
    """Return a cell's held-out loss by step."""
    steps, losses = [], []
    for row in RunDirectory(run).evaluations():
        loss = row.get("held_out_loss")
        if loss is not None:
            steps.append(row["step"])
            losses.append(loss)
    return Curve(cell.arm.alpha, cell.arm.label(), cell.seed, tuple(steps), tuple(losses))


def _link_best(folder: Path, recommended: Arm | None, cells: Sequence[Cell], states: Sequence[CellState]) -> None:
    """Point `best` at the recommended arm's first run, in one step; without one, remove the link."""
    runs = [state.run for cell, state in zip(cells, states, strict=True) if cell.arm == recommended and state.run]
    best, new_best = folder / BEST, folder / NEW_BEST
    if not runs:
        if best.is_symlink():
            best.unlink()
        return
    remove(new_best)
    new_best.symlink_to(os.path.relpath(runs[0], folder))
    new_best.replace(best)

"""What a sweep leaves: sweep.json, cells.csv, verdict.md, plots/ and best, a link to the run that is recommended.

What an earlier call left and this one no longer says is taken away: plots of other metrics, and `best`.
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
from neftcli.evaluation.metrics import HELD_OUT_LOSS, label, unit
from neftcli.events import ArmResult, CellState, SweepReport
from neftcli.report.plots import ArmPoints, Curve, plot_curves, plot_metric
from neftcli.runs.directory import RunDirectory, replace_non_finite
from neftcli.runs.markdown import escape_markdown
from neftcli.sweep.folder import BEST, NEW_BEST, PLOTS
from neftcli.sweep.plan import baseline_of
from neftcli.system.files import atomic_write, remove

if TYPE_CHECKING:
    from neftcli.sweep.plan import Arm, Cell
    from neftcli.sweep.results import SweepResults

SWEEP = "sweep.json"
CURVES = "learning-curves"
TRANSIENT = ("remaining", "evaluated", "to_evaluate")  # fields of a cell that is at work


def write_outputs(
    report: SweepReport,
    states: Sequence[CellState],
    results: SweepResults,
    metrics: Sequence[str],
    recommended: Arm | None,
    cells: Sequence[Cell],
) -> None:
    """Writes all of it to the report's folder.

    Args:
        report: What was found.
        states: The cells as they stand, in the order of the plan.
        results: What was measured.
        metrics: Those that decide.
        recommended: The arm that `best` points to; None for no link.
        cells: The plan.
    """
    folder = Path(report.folder)
    earlier = _plots_of(folder / SWEEP)
    cells_now = [{key: value for key, value in asdict(state).items() if key not in TRANSIENT} for state in states]
    content = {**asdict(report), "cells": cells_now}
    atomic_write(folder / SWEEP, json.dumps(replace_non_finite(content), indent=2, ensure_ascii=False) + "\n")
    write_cells(folder, states)
    atomic_write(folder / "verdict.md", verdict_text(report))
    drawn = _plot(folder / PLOTS, report, results, metrics, list(zip(cells, states, strict=True)))
    for stem in earlier - drawn:
        for kind in ("png", "svg"):
            remove(folder / PLOTS / f"{stem}.{kind}")
    _link(folder, recommended, cells, states)


def write_cells(folder: Path, states: Sequence[CellState]) -> None:
    """Writes cells.csv, one row a cell."""
    text = StringIO()
    names = [name for name in CellState.__slots__ if name not in TRANSIENT]
    writer = csv.DictWriter(text, names, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(asdict(state) for state in states)
    atomic_write(folder / "cells.csv", text.getvalue())


def verdict_text(report: SweepReport) -> str:
    """The report in Markdown."""
    names = list(dict.fromkeys(name for arm in report.arms for name in arm.values))
    head = ["arm", "seeds", *map(label, names), "difference", "95 % CI", "p (Holm)", "MDE", "verdict"]
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
            lines.append(_row(_cells(arm, [column[index] for column in columns], metric)))
        lines.append("")
    lines += [f"- {escape_markdown(line)}" for line in (*report.failures(), *report.remarks())]
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(escape_markdown, cells)) + " |"


def _cells(arm: ArmResult, values: Sequence[str], metric: str) -> list[str]:
    """An arm's row, by the same words and digits as on a terminal."""
    found = next((one for one in arm.comparisons if one.metric == metric), None)
    tested = ["-"] * 4
    if found is not None:
        tested = [
            number_format.table_number(metric, found.difference, signed=True),
            number_format.table_interval(metric, found.low, found.high),
            number_format.table_p(found.p_adjusted),
            number_format.table_number(metric, found.detectable),
        ]
    return [arm.name(), str(arm.seeds), *values, *tested, arm.verdict(metric)]


def _stem(metric: str) -> str:
    """The name of a metric's plots."""
    return "".join(letter if letter.isalnum() else "-" for letter in metric.lower())


def _difference_stem(metric: str) -> str:
    """The name of the plots of its differences from alpha 0."""
    return f"{_stem(metric)}-difference"


def _plots_of(file: Path) -> set[str]:
    """The stems of the plots that belong to an earlier report; none where there is none that can be read."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        differences = {_difference_stem(one["metric"]) for arm in content["arms"] for one in arm["comparisons"]}
        return {CURVES, *differences, *(_stem(name) for arm in content["arms"] for name in arm["values"])}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return set()


def _plot(
    folder: Path,
    report: SweepReport,
    results: SweepResults,
    metrics: Sequence[str],
    cells: Sequence[tuple[Cell, CellState]],
) -> set[str]:
    """Draws every metric and the curves, and says by which stems."""
    drawn = set()
    for metric in dict.fromkeys(name for arm in report.arms for name in arm.values):
        points = []
        for arm, row in zip(results.arms, report.arms, strict=True):
            if metric in row.values:
                found = row.values[metric]
                seeds = results.per_seed(metric, arm)
                points.append(ArmPoints(arm.alpha, arm.label(), found.value, found.low, found.high, seeds))
        better = results.direction(metric) if metric in metrics else "none"
        plot_metric(folder, _stem(metric), label(metric), unit(metric), better, points)
        drawn.add(_stem(metric))
        if any(one.metric == metric for row in report.arms for one in row.comparisons):
            points = _differences(report, results, metric)
            name, stem = f"{label(metric)}, difference from alpha 0", _difference_stem(metric)
            plot_metric(folder, stem, name, unit(metric), better, points)
            drawn.add(stem)
    curves = [_curve(cell, Path(state.run)) for cell, state in cells if state.run]
    if curves:
        plot_curves(folder, CURVES, label(HELD_OUT_LOSS), unit(HELD_OUT_LOSS), curves)
        drawn.add(CURVES)
    return drawn


def _differences(report: SweepReport, results: SweepResults, metric: str) -> list[ArmPoints]:
    """What is compared: each arm less its own alpha 0, with the interval of the paired difference and each seed's."""
    points = []
    for arm, row in zip(results.arms, report.arms, strict=True):
        found = next((one for one in row.comparisons if one.metric == metric), None)
        seeds = results.per_seed(metric, arm)
        if not arm.alpha:
            points.append(ArmPoints(0.0, arm.label(), 0.0, None, None, tuple(None for _ in seeds)))
        elif found is not None:
            plain = results.per_seed(metric, baseline_of(arm))
            pairs = zip(seeds, plain, strict=True)
            each = tuple(None if one is None or other is None else one - other for one, other in pairs)
            points.append(ArmPoints(arm.alpha, arm.label(), found.difference, found.low, found.high, each))
    return points


def _curve(cell: Cell, run: Path) -> Curve:
    """A cell's held-out loss over its updates."""
    evaluations = [(row["step"], row.get("held_out_loss")) for row in RunDirectory(run).evaluations()]
    points = [(step, loss) for step, loss in evaluations if loss is not None]
    steps, losses = tuple(step for step, _ in points), tuple(loss for _, loss in points)
    return Curve(cell.arm.alpha, cell.arm.label(), cell.seed, steps, losses)


def _link(folder: Path, recommended: Arm | None, cells: Sequence[Cell], states: Sequence[CellState]) -> None:
    """Points `best` at the recommended arm's first run, in one step; without one there is no link."""
    runs = [state.run for cell, state in zip(cells, states, strict=True) if cell.arm == recommended and state.run]
    best, new_best = folder / BEST, folder / NEW_BEST
    if not runs:
        if best.is_symlink():
            best.unlink()
        return
    remove(new_best)
    new_best.symlink_to(os.path.relpath(runs[0], folder))
    new_best.replace(best)

"""What a sweep leaves: sweep.json, cells.csv, verdict.md, plots/ and best, a link to the run that is recommended."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.events import ArmRow, CellState, SweepReport
from neftcli.report.plots import ArmPoints, Curve, plot_curves, plot_metric
from neftcli.runs.directory import finite, write_whole

if TYPE_CHECKING:
    from neftcli.sweep.plan import Arm, Cell
    from neftcli.sweep.verdict import Numbers


def write(
    report: SweepReport,
    states: Sequence[CellState],
    numbers: Numbers,
    metrics: Sequence[str],
    chosen: Arm,
    cells: Sequence[Cell],
) -> None:
    """Writes all of it to the report's folder."""
    folder = Path(report.folder)
    content = {**asdict(report), "cells": [asdict(state) for state in states]}
    write_whole(folder / "sweep.json", json.dumps(finite(content), indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / "cells.csv", _table(states))
    write_whole(folder / "verdict.md", verdict_text(report))
    _plot(folder / "plots", report, numbers, metrics, states)
    _link(folder, chosen, cells, states)


def _table(states: Sequence[CellState]) -> str:
    text = StringIO()
    writer = csv.DictWriter(text, [name for name in CellState.__slots__ if name != "remaining"], extrasaction="ignore")
    writer.writeheader()
    writer.writerows(asdict(state) for state in states)
    return text.getvalue()


def verdict_text(report: SweepReport) -> str:
    """The report in Markdown."""
    names = list(dict.fromkeys(name for arm in report.arms for name in arm.values))
    head = ["arm", "seeds", *names, "difference", "95 % interval", "p (Holm)", "can see", "verdict"]
    lines = [f"# {Path(report.folder).name}", "", *report.conclusion, "", report.scope, ""]
    for metric in report.metrics:
        lines += [f"## {metric}, against alpha 0", "", _row(head), _row(["---"] * len(head))]
        lines += [_row(_cells(arm, names, metric)) for arm in report.arms]
        lines.append("")
    lines += [f"Failed: {state.arm}, seed {state.seed}: {state.problem}" for state in report.failed]
    if report.unfinished:
        lines.append(f"{report.unfinished} cells are not done: the table is of those that are.")
    if report.saved:
        lines.append(f"Racing made {report.saved} cells needless.")
    return "\n".join(lines).rstrip() + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells(arm: ArmRow, names: Sequence[str], metric: str) -> list[str]:
    name = f"alpha {arm.alpha:g}" + (f", {arm.label}" if arm.label else "")
    values = [f"{arm.values[one].value:.4g}" if one in arm.values else "-" for one in names]
    found = next((one for one in arm.comparisons if one.metric == metric), None)
    if found is None:
        return [name, str(arm.seeds), *values, "-", "-", "-", "-", "baseline" if not arm.alpha else "too few rows"]
    interval = "-" if found.low is None or found.high is None else f"{found.low:+.4g} ... {found.high:+.4g}"
    p = "-" if found.p_adjusted is None else f"{found.p_adjusted:.3f}"
    can_see = "-" if found.detectable is None else f"{found.detectable:.4g}"
    dropped = ", dropped by racing" if arm.dropped else ""
    return [name, str(arm.seeds), *values, f"{found.difference:+.4g}", interval, p, can_see, found.verdict + dropped]


def _plot(
    folder: Path, report: SweepReport, numbers: Numbers, metrics: Sequence[str], states: Sequence[CellState]
) -> None:
    for metric in dict.fromkeys(name for arm in report.arms for name in arm.values):
        points = []
        for arm, row in zip(numbers.arms, report.arms, strict=True):
            if metric in row.values:
                found = row.values[metric]
                seeds = tuple(numbers.per_seed(metric, arm, choosing=False).tolist())
                points.append(ArmPoints(arm.alpha, arm.label(), found.value, found.low, found.high, seeds))
        stem = "".join(letter if letter.isalnum() else "-" for letter in metric.lower())
        better = numbers.better(metric) if metric in metrics else "none"
        unit = "nats a token" if metric == "held-out loss" else ""
        plot_metric(folder, stem, metric, unit, better, points, None)
    curves = [curve for state in states if (curve := _curve(state, numbers)) is not None]
    if curves:
        plot_curves(folder, "learning-curves", "held-out loss", "nats a token", curves)


def _curve(state: CellState, numbers: Numbers) -> Curve | None:
    """A cell's held-out loss over its updates."""
    if not state.run:
        return None
    lines = [json.loads(line) for line in (Path(state.run) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    found = [line for line in lines if line["event"] == "Evaluated" and line["held_out_loss"] is not None]
    arm = next(arm for arm in numbers.arms if arm.name() == state.arm)
    steps, losses = (tuple(line[key] for line in found) for key in ("step", "held_out_loss"))
    return Curve(arm.alpha, arm.label(), state.seed, steps, losses)


def _link(folder: Path, chosen: Arm, cells: Sequence[Cell], states: Sequence[CellState]) -> None:
    """Points `best` at the recommended arm's first run, in one step."""
    runs = [state.run for cell, state in zip(cells, states, strict=True) if cell.arm == chosen and state.run]
    if not runs:
        return
    beside = folder / ".best"
    beside.unlink(missing_ok=True)
    beside.symlink_to(os.path.relpath(runs[0], folder))
    beside.replace(folder / "best")

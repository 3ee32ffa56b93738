"""Runs and sweeps as plain lines, for logs and pipes."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from neftcli import events
from neftcli.cli.display import run_rows


def summary_line(run: events.RunSummary) -> str:
    """Return a run as fields: "run runs/a: status=finished model=tiny ..."; unknown ones are left out."""
    fields: dict[str, object] = {
        "status": run.status.value,
        "model": run.model,
        "method": run.method.type if run.method else "",
        "r": run.method.r if run.method else None,
        "alpha": ",".join(map(run_rows.format_option, run.alphas)),
        "seed": ",".join(map(str, run.seeds)),
        "steps" if run.kind == "run" else "finished_cells": run.steps,
        "cells": run.total_steps,
        "base_held_out_loss": _loss(run.base_held_out_loss),
        "held_out_loss": _loss(run.held_out_loss),
        "verdict": run.verdict.verdict if run.verdict else "",
        "baseline": run.verdict.baseline if run.verdict else "",
        "best": run.recommended,
        "changed": run.changed,
        "size_bytes": run.size_bytes,
        "problem": run.problem,
    }
    words = [f"{name}={shlex.quote(str(value))}" for name, value in fields.items() if value not in ("", None)]
    return f"{run.kind} {run.path}: {' '.join(words)}"


def runs_listed_lines(event: events.RunsListed) -> list[str]:
    """Return a line for each run."""
    return [summary_line(run) for run in event.runs] or [f"no runs in {event.folder}"]


def run_details_lines(event: events.RunDetails) -> list[str]:
    """Return everything about a run or a sweep."""
    lines = [summary_line(event.summary), f"about: {run_rows.facts(event)}"]
    if text := run_rows.checkpoint_text(event):
        lines.append(f"checkpoints: {text}")
    for name, base, tuned, difference in run_rows.measured_rows(event):
        lines.append(f"{name}: base={base} tuned={tuned} difference={difference}")
    for verdict in event.verdicts:
        lines += [f"compared with {verdict.baseline}: {verdict.folder}", *(f"  {text}" for text in verdict.conclusion)]
    lines += [summary_line(cell) for cell in event.cells]
    lines += event.summary.conclusion
    lines += [f"option: {key}={run_rows.format_option(value)}" for key, value in event.options.items()]
    lines += [f"file: {file.name} size_bytes={file.size_bytes}" for file in event.files]
    return lines + _next(run_rows.suggest_after_details(event))


def runs_compared_lines(event: events.RunsCompared) -> list[str]:
    """Return two runs side by side."""
    lines = [f"first: {summary_line(event.first)}", f"second: {summary_line(event.second)}"]
    for option in event.options:
        first, second = map(run_rows.format_option, (option.first, option.second))
        lines.append(f"{option.key}: first={shlex.quote(first)} second={shlex.quote(second)}")
    for name, left, right, difference in run_rows.result_rows(event):
        lines.append(f"{name}: first={left} second={right}" + (f" difference={difference}" if difference else ""))
    return [*lines, *run_rows.comparison_sentences(event), *_next(run_rows.suggest_after_comparison(event))]


def runs_removed_lines(event: events.RunsRemoved) -> list[str]:
    """Return what was removed."""
    return [f"removed: {path}" for path in event.runs] + [f"freed_bytes={event.freed_bytes}"]


def _loss(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _next(commands: Sequence[tuple[str, str]]) -> list[str]:
    return [f"next: {command}    {reason}" for command, reason in commands]

"""The words and numbers of an evaluation's report that the terminal and the plain display share."""

from __future__ import annotations

import shlex

from neftcli.cli.display.formatting import comparing
from neftcli.evaluation.metrics import ANSWER_TOKENS
from neftcli.events import Comparison, EvaluatedModel, EvaluationDataReady, EvaluationReport, SweepReport

NO_TEXT = "(no text)"
"""Shown for an answer of special tokens only."""
ROLES = {"run": "this run", "model": "model", "baseline": "baseline", "base": "base"}


def described(model: EvaluatedModel) -> str:
    """A model in a line."""
    trained = "" if model.alpha is None else f" · alpha {model.alpha:g}, seed {model.seed}"
    return f"{model.name}{trained} · {model.source}"


def rows_line(event: EvaluationDataReady) -> str:
    """The rows that are evaluated on, in a line."""
    answers = "" if event.with_answer == event.rows else f", {event.with_answer} of them with a reference answer"
    return f"{event.source} ({event.format.replace('_', '/')}) · {event.rows} of {event.rows_read} rows{answers}"


def against(report: EvaluationReport, role: str) -> list[Comparison]:
    """The comparisons with one of the models."""
    return [comparison for comparison in report.comparisons if comparison.against == role]


def next_commands(report: EvaluationReport) -> list[tuple[str, str]]:
    """Next steps: commands and reasons."""
    main = report.models[0]
    has_baseline = any(model.role == "baseline" for model in report.models)
    commands = []
    if main.alpha and not has_baseline and report.paired_run is not None:
        commands += comparing(main.source, main.alpha, report.paired_run)
    if report.sweep_command:
        commands.append((report.sweep_command, "did the noise help? the same recipes over seeds"))
    has_answers = any(row.metric == ANSWER_TOKENS for row in report.metrics)
    if not report.shown and has_answers and len(report.models) > 1:
        commands.append(("the same command with --show 5", "answers side by side"))
    return commands


def next_of_a_sweep(report: SweepReport) -> list[tuple[str, str]]:
    """Next steps: commands and reasons; an unfinished sweep ends with an error that has the command to resume."""
    commands = []
    folder, seeds = shlex.quote(report.folder), max(arm.seeds for arm in report.arms)
    if report.unfinished or report.failed:
        return []
    if report.recommended:
        commands.append((f"neft eval {folder}/best --show 5", "its answers beside those of the base model"))
    undecided = any(one.verdict not in ("better", "worse") for arm in report.arms for one in arm.comparisons)
    if undecided and not report.saved:  # what stopped early is settled
        commands.append((f"{report.again} --seeds {max(3, 2 * seeds)}", "more evidence; finished cells are kept"))
    return commands

"""Plain lines without control characters: for logs, pipes and batch jobs."""

from __future__ import annotations

import time
from functools import singledispatchmethod
from typing import IO

from neftcli import events
from neftcli.cli.display import doctor_report, format, run_lines
from neftcli.cli.display.text import one_line, sanitize, spell_out, write_to_stream
from neftcli.evaluation import number_format

WITH_QUIET = (
    *(events.RunFinished, events.EvaluationReport, events.SweepReport, events.SweepEstimate),
    *(events.TrainingPlan, events.InspectedRow, events.PageWritten, events.AnswersWritten),
    *(events.Checked, events.Diagnosis, events.CacheCleared),
    *(events.MergeFinished, events.ExportFinished, events.PushPlanned, events.PushFinished),
)
"""Events that `--quiet` prints."""
LINES_PER_CELL = 5
SECONDS_BETWEEN = 5.0
"""Seconds between two lines about the progress of a phase."""


class PlainLines:
    """Write events as lines; with `quiet` only the result."""

    def __init__(self, stream: IO[str], *, quiet: bool = False) -> None:
        self._stream = stream
        self._quiet = quiet
        self._progress = events.TrainingProgress(0, 0, 0.0, 0.0)
        self._with_legend = False
        self._cell: tuple[str, str, int] | None = None
        self._phase: tuple[str, str] | None = None
        self._phase_written = 0.0

    def notify(self, event: events.Event) -> None:
        """Write the lines of an event, if it has any."""
        if self._quiet and not isinstance(event, WITH_QUIET):
            return
        for line in self._lines(event):
            write_to_stream(self._stream, sanitize(line).replace("\n", " ") + "\n")

    @singledispatchmethod
    def _lines(self, event: events.Event) -> list[str]:
        return [f"{line.label}: {line.text}" for line in format.lines(event)]

    @_lines.register
    def _(self, event: events.Phase) -> list[str]:
        if event.phase is events.PhaseId.CHECKING:  # its result follows at once
            return []
        return [f"{format.phase_text(event)} ..."]

    @_lines.register
    def _(self, event: events.PhaseProgress) -> list[str]:
        now, phase = time.monotonic(), (event.phase, event.subject)
        recent = phase == self._phase and now - self._phase_written < SECONDS_BETWEEN
        if recent and event.done < event.total:
            return []
        self._phase, self._phase_written = phase, now
        rate = f" {event.rate_unit}_per_second={event.rate:.1f} eta={event.remaining:.0f}s" if event.rate else ""
        return [f"{format.phase_text(event)}: done={event.done} of={event.total}{rate}"]

    @_lines.register
    def _(self, event: events.TrainingProgress) -> list[str]:
        self._progress = event
        return []

    @_lines.register
    def _(self, event: events.StepLogged) -> list[str]:
        return [
            f"step={event.step} of={self._progress.total_steps} epoch={event.epoch:.2f} loss={event.loss:.4f} "
            f"grad_norm={event.grad_norm:.3f} lr={event.learning_rate:.2e} "
            f"tokens_per_second={event.tokens_per_second:.0f} memory_gib={event.memory_bytes / 2**30:.2f} "
            f"eta={self._progress.remaining:.0f}s"
        ]

    @_lines.register
    def _(self, event: events.Evaluated) -> list[str]:
        metrics = "".join(f" {metric}={format.loss(value)}" for metric, value in event.answer_metrics.items())
        return [
            f"step={event.step} held_out_loss={format.loss(event.held_out_loss)} "
            f"train_loss_no_noise={format.loss(event.train_loss)}{metrics}"
        ]

    @_lines.register
    def _(self, event: events.RunFinished) -> list[str]:
        lines = [f"finished: {event.run} in {event.seconds - event.earlier_seconds:.0f}s"]
        if event.earlier_seconds:
            lines[0] += f" ({event.seconds:.0f}s with earlier commands)"
        names = ("held_out_loss", "train_loss_no_noise", *event.answer_metrics)
        for name, (_, base, tuned, difference) in zip(names, format.training_result_rows(event), strict=True):
            if tuned != "-":
                lines.append(f"{name}: base={base} tuned={tuned} difference={difference}")
        if self._quiet:
            return [line for line in lines if not line.startswith("train_loss")]
        if event.samples:
            lines.append(f"note: {format.SAMPLES_NOTE}")
        for sample in event.samples:
            lines += [f"prompt: {one_line(sample.prompt)}", f"  base:  {one_line(sample.base)}"]
            lines.append(f"  tuned: {one_line(sample.tuned)}")
        return lines + _next_steps(event)

    @_lines.register
    def _(self, event: events.InspectedRow) -> list[str]:
        legend = [] if self._with_legend else [format.LEGEND]
        self._with_legend = True
        complete = format.is_complete(event)
        return [
            *legend,
            format.row_title(event),
            *(f"{line.gutter()} {line.text}" for line in format.row_lines(event)),
            f"  {'' if complete else '! '}{format.row_ending(event)}",
            *(f"  ! {spell_out(note)}" for note in event.notes),
        ]

    @_lines.register
    def _(self, event: events.TrainingPlan) -> list[str]:
        lines = [f"{name}: {value}" for name, value in format.plan_rows(event)]
        return lines[-1:] if self._quiet else lines

    @_lines.register
    def _(self, event: events.RecipeResolved) -> list[str]:
        return event.recipe.splitlines()

    @_lines.register
    def _(self, event: events.EvaluationReport) -> list[str]:
        lines = [f"{format.ROLE_TITLES[model.role]}: {format.model_line(model)}" for model in event.models]
        for row in event.metrics:
            columns = number_format.table_model_values(event, row)
            values = [f"{model.role}={value}" for model, value in zip(event.models, columns, strict=True)]
            own = row.values[0]
            if len(event.models) == 1 and own is not None:
                ends = number_format.table_interval(row.metric, own.low, own.high, signed=False)
                values.append(f"ci95={ends} n={own.n}")
            lines.append(f"{row.metric}: {' '.join(values)}")
        for comparison in event.comparisons:
            fields = _comparison(comparison, number_format.format_verdict(comparison.verdict))
            lines.append(f"{comparison.metric} compared with {comparison.against}: {fields}")
        lines += [*event.conclusion, *([event.scope] if event.scope else [])]
        lines += [f"note: {remark}" for remark in event.remarks]
        for shown in event.shown:
            lines.append(f"prompt: {one_line(shown.prompt)}")
            if shown.reference:
                lines.append(f"  reference: {one_line(shown.reference)}")
            for model, answer in zip(event.models, shown.answers, strict=True):
                lines.append(f"  {model.role}: {one_line(answer)}")
        lines.append(f"finished: {event.folder} in {event.seconds:.0f}s")
        return lines + _next_steps(event)

    @_lines.register
    def _(self, event: events.SweepStarted) -> list[str]:
        lines = [f"{line.label}: {line.text}" for line in format.lines(event)]
        return lines + [f"{_cell(state)} status={state.status}" for state in event.cells]

    @_lines.register
    def _(self, event: events.SweepEstimate) -> list[str]:
        lines = [f"estimate: {line}" for line in format.estimate_lines(event)]
        if self._quiet:
            return lines
        cells = [f"{_cell(cell)} seconds={cell.seconds:.0f}" for cell in event.cells]
        remarks = [f"{remark.label}: {remark.text}" for remark in format.estimate_remarks(event)]
        return [*cells, *lines, *remarks]

    @_lines.register
    def _(self, event: events.CellState) -> list[str]:
        state = (event.key, event.status, event.step // max(1, event.total_steps // LINES_PER_CELL))
        if state == self._cell:
            return []
        self._cell = state
        line = f"{_cell(event)} status={event.status}"
        if event.status == events.CellStatus.TRAINING:
            line += f" step={event.step} of={event.total_steps}"
        if event.held_out_loss is not None:
            line += f" held_out_loss={event.held_out_loss:.4f}"
        if event.remaining:
            line += f" eta={event.remaining:.0f}s"
        if event.retries:
            line += f" try={event.retries + 1}"
        return [f"{line} problem={event.problem}" if event.problem else line]

    @_lines.register
    def _(self, event: events.SweepReport) -> list[str]:
        lines = []
        metrics = dict.fromkeys(metric for arm in event.arms for metric in arm.values)
        columns = {metric: number_format.table_arm_values(metric, event.arms) for metric in metrics}
        for index, arm in enumerate(event.arms):
            values = [f"{metric}={columns[metric][index]}" for metric in arm.values]
            lines.append(f"{arm.name()}: seeds={arm.seeds} {' '.join(values)}")
            for comparison in arm.comparisons:
                fields = _comparison(comparison, number_format.table_arm_verdict(arm, comparison.metric))
                lines.append(f"  {comparison.metric} of {arm.name()} compared with alpha 0: {fields}")
        lines += [*event.conclusion, event.scope, *event.failures(), *event.remarks()]
        best = f", best -> {events.arm_name(event.recommended)}" if event.recommended else ""
        ended = "stopped" if event.unfinished else "finished"
        lines.append(f"{ended}: {event.folder} in {event.seconds:.0f}s{best}")
        return lines + _next_steps(event)

    @_lines.register
    def _(self, event: events.RunsListed) -> list[str]:
        return run_lines.runs_listed_lines(event)

    @_lines.register
    def _(self, event: events.RunDetails) -> list[str]:
        return run_lines.run_details_lines(event)

    @_lines.register
    def _(self, event: events.RunsCompared) -> list[str]:
        return run_lines.runs_compared_lines(event)

    @_lines.register
    def _(self, event: events.RunsRemoved) -> list[str]:
        return run_lines.runs_removed_lines(event)

    @_lines.register
    def _(self, event: events.Checked) -> list[str]:
        if self._quiet and event.level is events.CheckLevel.OK:
            return []
        return doctor_report.check_lines(event)

    @_lines.register
    def _(self, event: events.Diagnosis) -> list[str]:
        return [doctor_report.summary(event)]

    @_lines.register
    def _(self, event: events.CacheCleared) -> list[str]:
        return doctor_report.cleared_lines(event)


def _cell(cell: events.CellState | events.CellEstimate) -> str:
    return f"cell {cell.key}: {events.arm_name(cell.arm)} seed={cell.seed}"


def _comparison(comparison: events.Comparison, verdict: str) -> str:
    fields = number_format.table_comparison(comparison)
    return (
        f"difference={fields['difference']} ci95={fields['95 % CI']} p_holm={fields['p (Holm)']} n={fields['n']} "
        f"mde={fields['MDE']} verdict={verdict}"
    )


def _next_steps(event: events.RunFinished | events.EvaluationReport | events.SweepReport) -> list[str]:
    return [f"next: {command}    {reason}" for command, reason in format.suggest_next_steps(event)]

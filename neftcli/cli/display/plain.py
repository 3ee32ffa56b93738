"""Plain lines, one an event, without control characters: for logs, pipes and batch jobs."""

from __future__ import annotations

from functools import singledispatchmethod
from typing import IO

from neftcli import events
from neftcli.cli.display import evaluation_text, formatting, inspect_text
from neftcli.cli.display.output import write
from neftcli.evaluation import number_format

FINAL = (
    *(events.RunFinished, events.EvaluationReport, events.SweepReport, events.SweepEstimate),
    *(events.TrainingPlan, events.InspectedRow, events.PageWritten, events.Notice),
)
SOME = 5  # lines on the updates of a cell of a sweep


class PlainLines:
    """Writes what matters as lines; with `quiet` only how the run ended, and notices."""

    def __init__(self, stream: IO[str], *, quiet: bool = False) -> None:
        self._stream = stream
        self._quiet = quiet
        self._progress = events.TrainingProgress(0, 0, 0.0, 0.0)
        self._explained = False  # the legend of inspected rows was printed
        self._told: tuple[str, str, int] | None = None  # the last cell of a sweep that was told of

    def notify(self, event: events.Event) -> None:
        """Writes the lines of an event, if it has any."""
        if self._quiet and not isinstance(event, FINAL):
            return
        for line in self._lines(event):
            write(self._stream, formatting.harmless(line).replace("\n", " ") + "\n")

    @singledispatchmethod
    def _lines(self, event: events.Event) -> list[str]:
        return []

    @_lines.register
    def _(self, event: events.Phase) -> list[str]:
        return [f"{formatting.phase_text(event)} ..."]

    @_lines.register
    def _(self, event: events.Notice) -> list[str]:
        return [f"note: {event.message}"]

    @_lines.register
    def _(self, event: events.DataReady) -> list[str]:
        lines = [f"data: {formatting.data_line(event)}", f"data: {formatting.length_line(event)}"]
        if event.template:
            lines.append(f"data: {event.template}")
        return lines + [f"note: {notice}" for notice in formatting.data_notices(event)]

    @_lines.register
    def _(self, event: events.ModelReady) -> list[str]:
        return [f"model: {formatting.model_line(event)}", f"model: from {event.source}"]

    @_lines.register
    def _(self, event: events.NoiseMeasured) -> list[str]:
        return [f"noise: {formatting.noise_line(event)}"]

    @_lines.register
    def _(self, event: events.TrainingStarted) -> list[str]:
        return [f"training: {event.total_steps} updates, {event.epochs:.3g} epochs, in {event.run}"]

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
        return [
            f"step={event.step} held_out_loss={formatting.loss(event.held_out_loss)} "
            f"train_loss_noise_off={formatting.loss(event.train_loss)}"
        ]

    @_lines.register
    def _(self, event: events.RunFinished) -> list[str]:
        lines = [f"finished: {event.run} in {event.seconds:.0f}s"]
        if event.held_out_loss is not None:
            lines.append(
                f"held_out_loss: base={formatting.loss(event.base_held_out_loss)} "
                f"tuned={formatting.loss(event.held_out_loss)} "
                f"difference={formatting.difference(event.base_held_out_loss, event.held_out_loss)}"
            )
        if self._quiet:
            return lines
        for sample in event.samples:
            lines += [f"prompt: {sample.prompt}", f"  base:  {sample.base}", f"  tuned: {sample.tuned}"]
        return lines + [f"next: {command}    {reason}" for command, reason in formatting.next_commands(event)]

    @_lines.register
    def _(self, event: events.EvaluationDataReady) -> list[str]:
        return [
            f"rows: {evaluation_text.rows_line(event)}",
            *(f"note: {notice}" for notice in formatting.row_notices(event)),
        ]

    @_lines.register
    def _(self, event: events.PhaseProgress) -> list[str]:
        known = f" {event.unit}_per_second={event.rate:.1f} eta={event.remaining:.0f}s" if event.rate else ""
        return [f"{formatting.phase_text(event)}: done={event.done} of={event.total}{known}"]

    @_lines.register
    def _(self, event: events.EvaluationReport) -> list[str]:
        lines = [f"{evaluation_text.ROLES[model.role]}: {evaluation_text.described(model)}" for model in event.models]
        for row in event.metrics:
            values = (
                f"{model.role}={value}"
                for model, value in zip(event.models, number_format.table_model_values(event, row), strict=True)
            )
            own = row.values[0] if len(event.models) == 1 else None
            ends = number_format.table_interval(row.metric, own.low, own.high, signed=False) if own else ""
            lines.append(f"{row.metric}: {' '.join(values)}{f' ci95={ends} n={own.n}' if own else ''}")
        for one in event.comparisons:
            lines.append(
                f"{one.metric} against {one.against}: "
                f"difference={number_format.table_number(one.metric, one.difference, signed=True)} "
                f"ci95={number_format.table_interval(one.metric, one.low, one.high)} "
                f"p_holm={number_format.table_p(one.p_adjusted)} "
                f"n={one.n} mde={number_format.table_number(one.metric, one.detectable)} "
                f"verdict={one.verdict}"
            )
        lines += [*event.conclusion, *([event.scope] if event.scope else [])]
        lines += [f"note: {remark}" for remark in event.remarks]
        for shown in event.shown:
            lines += [f"prompt: {shown.prompt}", f"  reference: {shown.reference}"]
            for model, answer in zip(event.models, shown.answers, strict=True):
                lines.append(f"  {model.role}: {answer or evaluation_text.NO_TEXT}")
        lines.append(f"finished: {event.folder} in {event.seconds:.0f}s")
        return lines + [f"next: {command}    {reason}" for command, reason in evaluation_text.next_commands(event)]

    @_lines.register
    def _(self, event: events.SweepStarted) -> list[str]:
        added = ["note: alpha 0 was added: it is the baseline of every comparison"] if event.added_baseline else []
        states = [f"cell {state.key}: {state.arm} seed={state.seed} status={state.status}" for state in event.cells]
        return [f"sweep: {formatting.sweep_line(event)}", *added, *states]

    @_lines.register
    def _(self, event: events.SweepEstimate) -> list[str]:
        lines = [f"estimate: {line}" for line in formatting.estimate_lines(event)]
        if self._quiet:
            return lines
        states = [f"cell {one.key}: {one.arm} seed={one.seed} seconds={one.seconds:.0f}" for one in event.cells]
        notices = [f"note: {notice}" for notice in formatting.estimate_notices(event)]
        return [*states, *lines, *notices, *(f"shared {what}" for what in event.shared)]

    @_lines.register
    def _(self, event: events.CellState) -> list[str]:
        told = (event.key, event.status, event.step // max(1, event.total_steps // SOME))
        if told == self._told:
            return []
        self._told = told
        step = f" step={event.step} of={event.total_steps}" if event.status == events.CellStatus.TRAINING else ""
        loss = f" held_out_loss={event.loss:.4f}" if event.loss is not None else ""
        left = f" eta={event.remaining:.0f}s" if event.remaining else ""
        problem = f" problem={event.problem}" if event.problem else ""
        tries = f" try={event.retries + 1}" if event.retries else ""
        more = f"{step}{loss}{left}{tries}{problem}"
        return [f"cell {event.key}: {event.arm} seed={event.seed} status={event.status}{more}"]

    @_lines.register
    def _(self, event: events.SweepReport) -> list[str]:
        lines = []
        metrics = dict.fromkeys(metric for arm in event.arms for metric in arm.values)
        columns = {metric: number_format.table_arm_values(metric, event.arms) for metric in metrics}
        for index, arm in enumerate(event.arms):
            values = " ".join(f"{metric}={columns[metric][index]}" for metric in arm.values)
            lines.append(f"{arm.name()}: seeds={arm.seeds} {values}")
            lines += [self._compared(arm, one) for one in arm.comparisons]
        lines += [*event.conclusion, event.scope]
        lines += [*event.failures(), *event.remarks()]
        best = f", best -> {event.recommended}" if event.recommended else ""
        how = "stopped" if event.unfinished else "finished"
        lines.append(f"{how}: {event.folder} in {event.seconds:.0f}s{best}")
        return lines + [f"next: {command}    {reason}" for command, reason in evaluation_text.next_of_a_sweep(event)]

    def _compared(self, arm: events.ArmResult, one: events.Comparison) -> str:
        return (
            f"  {one.metric} of {arm.name()} against alpha 0: "
            f"difference={number_format.table_number(one.metric, one.difference, signed=True)} "
            f"ci95={number_format.table_interval(one.metric, one.low, one.high)} "
            f"p_holm={number_format.table_p(one.p_adjusted)} "
            f"n={one.n} mde={number_format.table_number(one.metric, one.detectable)} verdict={arm.verdict(one.metric)}"
        )

    @_lines.register
    def _(self, event: events.InspectedRow) -> list[str]:
        if not self._explained:
            self._explained = True
            return [inspect_text.LEGEND, *inspect_text.plain(event)]
        return inspect_text.plain(event)

    @_lines.register
    def _(self, event: events.PageWritten) -> list[str]:
        return [f"page: {formatting.some(event.rows, 'row')} in {event.path}"]

    @_lines.register
    def _(self, event: events.TrainingPlan) -> list[str]:
        lines = [f"{name}: {value}" for name, value in formatting.plan_rows(event)]
        return lines[-1:] if self._quiet else lines

    @_lines.register
    def _(self, event: events.RecipeResolved) -> list[str]:
        return event.recipe.splitlines()

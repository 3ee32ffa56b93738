"""Events as words and numbers: lines, notices and fields that all displays share.

Everything here is a pure function of an event. `lines` gives most events as lines with a label; tables have functions
of their own, since a terminal shows them as columns and a pipe as `name=value`.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Literal

from neftcli import events
from neftcli.cli.display.text import one_line, spell_out
from neftcli.evaluation import number_format
from neftcli.events import CellStatus, PhaseId, VerdictId
from neftcli.events.data import BUILTIN, describe_source
from neftcli.metrics.registry import ANSWER_TOKENS, comparative_word, label, superlative
from neftcli.models.chat_templates import describe_template
from neftcli.system.files import format_bytes
from neftcli.wording import choose, count_noun

PHASES = {
    PhaseId.LOADING_LIBRARIES: "loading the libraries",
    PhaseId.READING_DATA: "reading the data",
    PhaseId.CONVERTING_GGUF: "converting the .gguf file, once (half a minute for 135 M parameters)",
    PhaseId.LOADING_TOKENIZER: "loading the tokenizer",
    PhaseId.TOKENIZING: "tokenizing",
    PhaseId.LOADING_MODEL: "loading the model",
    PhaseId.EVALUATING_BASE: "measuring the base model",
    PhaseId.GENERATING_BASE_SAMPLES: "generating samples with the base model",
    PhaseId.PREPARING_TRAINER: "preparing the trainer",
    PhaseId.EVALUATING: "evaluating",
    PhaseId.GENERATING_SAMPLES: "generating samples with the tuned model",
    PhaseId.SAVING_CHECKPOINT: "stopping: saving a checkpoint",
    PhaseId.SAVING_MODEL: "saving the model",
    PhaseId.COMPUTING_LOSSES: "computing losses",
    PhaseId.GENERATING_ANSWERS: "generating answers",
    PhaseId.RUNNING_TASK: "running the benchmark task",
    PhaseId.JUDGING: "asking the judge",
    PhaseId.TIMING_MODEL: "timing the model",
    PhaseId.CHECKING: "checking",
    PhaseId.COMPUTING_LOGITS: "computing the run's logits",
    PhaseId.MERGING_LAYERS: "merging the adapter",
    PhaseId.SAVING_MERGED: "saving the model",
    PhaseId.WRITING_GGUF: "writing the .gguf file",
    PhaseId.COMPARING_LOGITS: "loading what was written, and comparing its logits with the run's",
    PhaseId.HASHING_FILES: "hashing the files",
    PhaseId.UPLOADING: "uploading",
}
"""Display texts of the phases."""
UNCOUNTED = {"tasks": "tasks", "judge": "the judge", "report": "the verdict and its plots"}
"""Display texts of the parts that an estimate leaves out."""
ROLE_TITLES = {"run": "this run", "model": "model", "baseline": "baseline", "base": "base"}
MAX_LOCATIONS = 3
MAX_OCCURRENCES = 10
MAX_NAME_LENGTH = 60
Style = Literal["", "strong", "dim", "notice", "error"]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text.

    Attributes:
        label: Word in front of the line in plain output.
        text: The text, not sanitized yet.
        style: How a terminal shows it.
    """

    label: str
    text: str
    style: Style = ""


# Numbers


def count(number: float) -> str:
    """Format a count: 420, 38 k, 134.5 M, 6.74 B."""
    if number < 9_999.5:
        return f"{number:.0f}"
    if number < 999_500:
        return f"{number / 1e3:.0f} k"
    return f"{number / 1e6:.1f} M" if number < 999.95e6 else f"{number / 1e9:.2f} B"


def duration(seconds: float) -> str:
    """Format measured seconds as a clock does: 0:07, 2:51, 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def rough_duration(seconds: float) -> str:
    """Format estimated seconds with about two digits: 45 s, 3 min 20 s, 12 min, 2 h 20 min."""
    steps = ((90, 1), (600, 10), (5400, 60), (36_000, 600), (math.inf, 3600))
    step = next(step for below, step in steps if seconds < below)
    minutes, rest = divmod(max(1, round(seconds / step) * step), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def loss(value: float | None) -> str:
    """Format a loss; a dash if there is none."""
    return "-" if value is None else f"{value:.4f}"


def difference(before: float | None, after: float | None) -> str:
    """Format a difference of losses with its sign; a dash if one is missing."""
    return "-" if before is None or after is None else f"{after - before:+.4f}"


# Lines


@singledispatch
def lines(event: events.Event) -> list[Line]:
    """Return an event as lines; none for an event that displays show as a table, or not at all."""
    return []


@lines.register
def _(event: events.Notice) -> list[Line]:
    return [_notice(event.message)]


@lines.register
def _(event: events.DataReady) -> list[Line]:
    first = [Line("data", data_line(event)), Line("data", length_line(event), "dim")]
    template = [Line("data", template_text(event), "dim")] if event.template else []
    unused = [Line("data", text, "dim") for text in unused_lines(event)]
    return [*first, *template, *unused, *map(_notice, data_notices(event))]


@lines.register
def _(event: events.ModelReady) -> list[Line]:
    trainable = f"{count(event.trainable)} of {count(event.parameters)} parameters trainable"
    text = f"{event.name} · {event.method.describe()} · {trainable} · {event.precision} · {event.device.describe()}"
    return [Line("model", text, "strong"), Line("model", f"from {event.source.describe()}", "dim")]


@lines.register
def _(event: events.NoiseMeasured) -> list[Line]:
    if not event.alpha:
        return [Line("noise", "NEFTune off (alpha 0): the baseline", "strong")]
    lengths = "" if event.length == "tokens" else " · scaled by padded lengths, as Hugging Face does"
    schedule = "" if event.schedule == "constant" else f" · {event.schedule.replace('_', ' ')}"
    ratio = f"noise/embedding {event.ratio:.3f} at layer 0"
    return [Line("noise", f"NEFTune alpha {event.alpha:g} · {event.kind}{lengths}{schedule} · {ratio}", "strong")]


@lines.register
def _(event: events.TrainingStarted) -> list[Line]:
    amount = f"{count_noun(event.total_steps, 'step')}, {count_noun(event.epochs, 'epoch')}"
    return [Line("training", f"{amount}, in {event.run}", "dim")]


@lines.register
def _(event: events.TrackerOpened) -> list[Line]:
    return [Line("tracker", f"{event.tracker}: {event.view or event.location}", "dim")]


@lines.register
def _(event: events.ModelSelected) -> list[Line]:
    selected = []
    if event.patience is not None:
        evaluations = count_noun(event.patience, "evaluation")
        steps = f"step {event.last_step} of {event.total_steps}"
        better = f"{comparative_word(event.metric)} {label(event.metric)}"
        selected.append(f"stopped early after {steps}: no {better} in {evaluations}")
    if event.keep == "best":
        value, last_value = (
            number_format.table_number(event.metric, number) for number in (event.value, event.last_value)
        )
        last = f"; step {event.last_step} had {last_value}"
        selected.append(
            f"kept the weights after step {event.step}, {superlative(event.metric)} {value}"
            f"{last if event.step != event.last_step else ', the last step'}"
        )
        better = f"it is {comparative_word(event.metric)} than on new rows"
        selected.append(f"this {label(event.metric)} selected the step, so {better}: neft eval --dataset FILE")
    return [Line("model", text, "dim" if text is selected[-1] else "") for text in selected]


@lines.register
def _(event: events.EvaluationDataReady) -> list[Line]:
    answers = "" if event.with_answer == event.rows else f", {event.with_answer} with a reference answer"
    read = count_noun(event.rows_read, "row")
    text = f"{event.source.describe()} ({format_name(event.format)}) · {event.rows} of {read}{answers}"
    return [Line("rows", text), *map(_notice, evaluation_data_notices(event))]


@lines.register
def _(event: events.SweepStarted) -> list[Line]:
    finished = sum(state.status == CellStatus.FINISHED for state in event.cells)
    arms = count_noun(len({state.arm for state in event.cells}), "arm")
    seeds = count_noun(len({state.seed for state in event.cells}), "seed")
    before = f", {finished} already finished" if finished else ""
    text = f"{event.folder} · {arms} x {seeds} = {count_noun(len(event.cells), 'cell')}{before}"
    added = [_notice("alpha 0 was added: it is the baseline of every comparison")] if event.added_baseline else []
    return [Line("sweep", text, "strong"), *added]


@lines.register
def _(event: events.PageWritten) -> list[Line]:
    return [Line("page", f"{count_noun(event.rows, 'row')} in {event.path}", "strong")]


@lines.register
def _(event: events.ChatStarted) -> list[Line]:
    result = [Line("chat", " against ".join(map(chat_model_name, event.models)), "strong")]
    forms = [_chat_form(model) for model in event.models]
    for model, form in zip(event.models, forms, strict=True):
        name = "" if len(set(forms)) == 1 else f"{model.model.name}: "
        result += [Line("chat", f"{name}{text}", "dim") for text in form]
        if not name:
            break
    result.append(
        Line("chat", f"{_decoding(event)}, at most {event.max_new_tokens} tokens per answer, no noise", "dim")
    )
    return [*result, Line("chat", "/help lists the commands; Ctrl-D leaves", "dim")]


@lines.register
def _(event: events.AnswersWritten) -> list[Line]:
    earlier = f", {event.earlier} of them by an earlier command" if event.earlier else ""
    text = f"{count_noun(event.rows, 'answer')} by {event.model.name} in {event.path}{earlier}"
    result = [Line("finished", text, "strong")]
    if event.truncated:
        share = f"{count_noun(event.truncated, 'answer')} ended at max_new_tokens"
        result.append(_notice(f"{share}; --max-new-tokens N allows longer ones (in a new file)"))
    return result


def chat_model_name(model: events.ChatModel) -> str:
    """Return the name of a model in a chat, with the alpha of a run."""
    if model.model.role == "base":
        return f"base ({model.model.name})"
    alpha = "" if model.model.alpha is None else f" · alpha {model.model.alpha:g}"
    return f"{model.model.name}{alpha}"


def answer_remark(event: events.AnswerFinished, *, compared: bool) -> str:
    """Return what to say below an answer: how it ended, and with two models its length."""
    length = count_noun(event.tokens, "token")
    if event.stop == events.StopReason.INTERRUPTED:
        return f"stopped after {length}"
    if event.stop == events.StopReason.MAX_NEW_TOKENS:
        return f"ended at {length}: --max-new-tokens {2 * event.tokens} allows more"
    return length if compared else ""


def _chat_form(model: events.ChatModel) -> tuple[str, ...]:
    if model.plain_text:
        return ("plain text: continues each line that you type; no history",)
    template = describe_template(model.template)
    if model.template == events.ChatModel.SAVED:
        template = "the run's chat template"
    return (template, f"system turn: {one_line(model.system)}") if model.system else (template,)


def _decoding(event: events.ChatStarted) -> str:
    penalty = "" if event.repetition_penalty == 1 else f", repetition penalty {event.repetition_penalty:g}"
    if not event.do_sample:
        return f"greedy{penalty}"
    top_p = "" if event.top_p == 1 else f", top-p {event.top_p:g}"
    return f"sampled with temperature {event.temperature:g}{top_p}, seed {event.seed}{penalty}"


@lines.register
def _(event: events.MergeFinished) -> list[Line]:
    text = f"{event.folder} · {event.dtype} · {format_bytes(event.size)} · {rough_duration(event.seconds)}"
    adapter = {"lora": "LoRA", "lora_int8": "LoRA", "qlora": "QLoRA"}.get(event.method)
    origin = f"{event.run} ({adapter} on {event.base})" if adapter else event.run
    reason = "talk to it; transformers and vLLM load it too"
    return [
        Line("merged", text, "strong"),
        Line("merged", f"from {origin}", "dim"),
        Line("check", comparison_text(event.comparison)),
        Line("next", f"neft chat {shlex.quote(event.folder)}    {reason}", "dim"),
    ]


@lines.register
def _(event: events.ExportFinished) -> list[Line]:
    text = f"{event.path} · {event.quantization} · {format_bytes(event.size)} · {rough_duration(event.seconds)}"
    return [
        Line("exported", text, "strong"),
        Line("check", comparison_text(event.comparison)),
        Line("next", event.command, "dim"),
    ]


@lines.register
def _(event: events.PushPlanned) -> list[Line]:
    visibility = "private" if event.private else "public"
    size = format_bytes(sum(file.size for file in event.files))
    weights = " and the merged weights" if event.merged else ""
    result = [Line("push", f"{event.url} ({visibility})", "strong")]
    result.append(Line("push", f"{count_noun(len(event.files), 'file')}, {size}{weights}:", "dim"))
    result += [Line("push", f"  {file.path} ({format_bytes(file.size)})", "dim") for file in event.files]
    result.append(Line("push", "metadata of the model card:", "dim"))
    result += [Line("push", f"  {line}", "dim") for line in event.metadata.splitlines()]
    return [*result, Line("push", "nothing was uploaded; without --dry-run neft uploads it")]


@lines.register
def _(event: events.PushFinished) -> list[Line]:
    files = f"{count_noun(event.files, 'file')}, {format_bytes(event.size)}"
    text = f"{event.url} · commit {event.commit[:7]} · {files} · {rough_duration(event.seconds)}"
    return [Line("pushed", text, "strong")]


def comparison_text(comparison: events.LogitComparison) -> str:
    """Return the comparison of a written model's logits with the run's."""
    tokens = f"{comparison.same_token} of {comparison.tokens} tokens"
    return (
        f"logits differ from the run's by at most {comparison.difference:.2g} (largest logit {comparison.largest:.3g}, "
        f"tolerance {comparison.tolerance:.2g}); same next token after {tokens}"
    )


def phase_text(event: events.Phase | events.PhaseProgress) -> str:
    """Return the text of a phase: its subject, the work, and the rows so far."""
    text = f"{event.subject}: {PHASES[event.phase]}" if event.subject else PHASES[event.phase]
    if isinstance(event, events.Phase) and event.count is not None:
        text += f", {event.count:,} rows so far" if event.phase is PhaseId.READING_DATA else f" ({event.count})"
    return text


def _notice(message: str) -> Line:
    return Line("note", message, "notice")


# Data


def format_name(name: str) -> str:
    """Return the name of a row format in words: "prompt/completion"."""
    return name.replace("_", "/")


def data_line(event: events.DataReady) -> str:
    """Return the source of the data and the rows of both splits."""
    train, held_out = event.train, event.held_out
    splits = f"{train.rows} for training, {held_out.rows or 'none'} held out"
    rows_read = event.rows_read
    for source in event.sources:
        if source.held_out and event.source == source.name == BUILTIN:
            rows_read += source.rows_read  # two parts of one set
        elif source.held_out:
            split = f" ({source.split})" if source.split else ""
            splits += f" of the {source.rows_read} in {source.name}{split}"
    name = describe_source(event.source)
    return f"{name} ({format_name(event.format)}) · {count_noun(rows_read, 'row')}: {splits}"


def template_text(event: events.DataReady) -> str:
    """Return the chat template of the data; an empty string for plain text."""
    return describe_template(event.template)


def length_line(event: events.DataReady) -> str:
    """Return the number of tokens with loss, and the lengths of the rows."""
    train = event.train
    lengths = f"{train.shortest} to {train.longest} tokens per row, median {train.median}, 90 % at most {train.p90}"
    return f"{count(train.loss_tokens)} tokens with loss ({event.loss_on.replace('_', ' ')}) · {lengths}"


def unused_lines(event: events.DataReady) -> list[str]:
    """Return the number of rows that each option of the recipe leaves out."""
    return [f"{count_noun(number, 'row')} not used because of {option}" for option, number in event.unused.items()]


def data_notices(event: events.DataReady) -> list[str]:
    """Return the notices about the data of a run."""
    notices = [*source_notices(event.sources), *_skipped(event.skipped), *row_part_notices(event)]
    train = event.train
    if event.leaked:
        prompts = choose(event.leaked, "its prompt is", "their prompts are")
        notices.append(f"{count_noun(event.leaked, 'training row')} left out: {prompts} in the held-out split")
    if event.duplicates:
        repeat = choose(event.duplicates, "repeats", "repeat")
        kept = choose(event.duplicates, "it is", "they are")
        notices.append(f"{count_noun(event.duplicates, 'row')} {repeat} an earlier row, prompt and answer; {kept} kept")
    truncated_without_stop = train.truncated == train.without_stop_token
    if train.truncated:
        stop = ""
        if truncated_without_stop:
            stop = choose(len(train.truncated), " and has no stop token", " and have no stop token")
        notices.append(f"{rows(train.truncated)} truncated at data.max_length{stop}; --max-length keeps more")
    if event.held_out.truncated:
        notices.append(f"of the held-out split, {rows(event.held_out.truncated)} truncated at data.max_length")
    if train.without_stop_token and not truncated_without_stop:
        locations = train.without_stop_token
        end = choose(len(locations), "ends", "end")
        notices.append(f"{rows(locations)} {end} without a stop token: the model does not learn to stop there")
    if event.special_token_text:
        treated = "used as the token" if event.format == "text" else "tokenized as ordinary characters"
        hold = choose(len(event.special_token_text), "holds", "hold")
        notices.append(f"{rows(event.special_token_text)} {hold} a special token as text: {treated}")
    notices += [f"{rows(locations)}: {remark}" for remark, locations in train.remarks.items()]
    if not event.held_out.rows:
        notices.append(
            "there is no held-out split (none requested, too few rows, or a single prompt), so neft can't measure "
            "whether training helped: --held-out FILE"
        )
    return notices


def evaluation_data_notices(event: events.EvaluationDataReady) -> list[str]:
    """Return the notices about the rows of an evaluation."""
    notices = [*source_notices(event.sources), *_skipped(event.skipped), *row_part_notices(event)]
    if event.trained_on:
        prompts = choose(event.trained_on, "its prompt", "their prompts")
        notices.append(f"{count_noun(event.trained_on, 'row')} left out: a model here was trained on {prompts}")
    if event.repeated:
        repeat = choose(event.repeated, "it repeats", "they repeat")
        notices.append(f"{count_noun(event.repeated, 'row')} left out: {repeat} an earlier row")
    return notices


def row_part_notices(event: events.DataReady | events.EvaluationDataReady) -> list[str]:
    """Return the notices about unread columns and turn keys, dropped turns, and remarks."""
    notices = []
    if event.unread_columns:
        notices.append(f"columns that neft does not read: {_names(event.unread_columns)}")
    if event.unread_turn_keys:
        notices.append(f"keys of turns that neft does not read: {_names(event.unread_turn_keys)}")
    if event.dropped_turns:
        notices.append(f"left out of conversations: {_names(event.dropped_turns)}")
    for remark, occurrences in event.remarks.items():
        notices.append(f"{remark} ({count_noun(occurrences.rows, 'row')}, first {occurrences.first})")
    return notices


def source_notices(sources: Sequence[events.SourceCounts]) -> list[str]:
    """Return the notices about the rows of each source, and about its files that are not read."""
    notices = []
    several = sum(not source.held_out for source in sources) > 1
    used = {(source.name, source.split) for source in sources}
    for source in sources:
        if several and not source.held_out:
            weight = f", weight {source.weight:g}" if source.weight is not None else ""
            read = count_noun(source.rows_read, "row")
            notices.append(f"{source.name}: {read} read, {source.rows_used} in the mixture{weight}")
        left_out = [files for files in source.left_out if (source.name, files.partition(" (")[0]) not in used]
        if left_out:
            read = f"neft reads the split {source.split}" if source.split else "neft reads its data files"
            notices.append(f"{source.name}: {read}, not {', '.join(left_out)}")
        if source.sample_by:
            others = " or ".join(part for part in ("paragraph", "line", "document") if part != source.sample_by)
            notices.append(f"{source.name}: each {source.sample_by} is a row; --set data.sample_by={others}")
    return notices


def rows(locations: Sequence[str]) -> str:
    """Return the number of rows and the first locations: "3 rows (rows.jsonl, line 17; line 20; ...)"."""
    first, *others = locations[:MAX_LOCATIONS]
    file = first.rpartition(", ")[0]
    same = [other.removeprefix(f"{file}, ") if file else other for other in others]  # a file is named once
    shown = "; ".join([first, *same]) + ("; ..." if len(locations) > MAX_LOCATIONS else "")
    return f"{count_noun(len(locations), 'row')} ({shown})"


def _skipped(skipped: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [f"{rows(locations)} left out: {reason}" for reason, locations in skipped.items()]


def _names(occurrences_by_name: Mapping[str, events.Occurrences]) -> str:
    """Return names with their rows: "score (12 rows, first rows.jsonl, line 3)"."""
    shown = [
        f"{name[:MAX_NAME_LENGTH]} ({count_noun(occurrences.rows, 'row')}, first {occurrences.first})"
        for name, occurrences in occurrences_by_name.items()
    ]
    more = f", and {len(shown) - MAX_OCCURRENCES} more" if len(shown) > MAX_OCCURRENCES else ""
    return ", ".join(shown[:MAX_OCCURRENCES]) + more


# Inspected rows

LEGEND = r"LOSS marks tokens with loss; numbers count tokens; \n is a line break."


@dataclass(frozen=True, slots=True)
class RowLine:
    r"""A line of an inspected row, or the part of it that carries loss.

    Attributes:
        tokens: Tokens of the span that starts here; 0 on its further lines.
        loss: True if it carries loss.
        text: The text, with a line break as \n and control characters as escapes.
    """

    tokens: int
    loss: bool
    text: str

    def gutter(self) -> str:
        """Return the 13 columns to the left of the text."""
        return f"{self.tokens or '':>6} {'LOSS' if self.loss else '':4} |"


def row_lines(event: events.InspectedRow) -> list[RowLine]:
    """Split an inspected row at every line break, and wherever loss begins or ends."""
    result = []
    for span in event.spans:
        tokens = span.tokens
        for line in span.text.splitlines(keepends=True) or [""]:
            result.append(RowLine(tokens, span.loss, spell_out(line)))
            tokens = 0
    return result


def row_title(event: events.InspectedRow) -> str:
    """Return the location of an inspected row and its number of tokens."""
    tokens = count_noun(len(event.tokens), "token")
    return f"{spell_out(event.location)}: {tokens}, {event.loss_tokens()} with loss"


def row_ending(event: events.InspectedRow) -> str:
    """Describe the end of an inspected row: truncated or not, with or without a stop token."""
    if event.truncated and event.ends_with_stop_token:
        return "truncated at data.max_length"
    if event.truncated:
        return "truncated at data.max_length, without a stop token"
    if event.ends_with_stop_token:
        return "ends with its stop token, which carries loss"
    return "has no stop token with loss at its end"


def is_complete(event: events.InspectedRow) -> bool:
    """Return whether an inspected row is complete and ends with a learned stop token."""
    return event.ends_with_stop_token and not event.truncated


# Runs

SAMPLES_NOTE = "A lower loss does not make every answer better, least of all after a short run."


def training_result_rows(event: events.RunFinished) -> list[tuple[str, str, str, str]]:
    """Return the losses of a run and its metrics of answers: name, base, tuned, difference."""
    losses = [
        (name, loss(before), loss(after), difference(before, after))
        for name, before, after in (
            ("held-out loss", event.base_held_out_loss, event.held_out_loss),
            ("training loss, no noise", event.base_train_loss, event.train_loss),
        )
    ]
    return losses + answer_metric_rows(event.base_answer_metrics, event.answer_metrics)


def answer_metric_rows(
    base_values: Mapping[str, float | None], values: Mapping[str, float | None]
) -> list[tuple[str, str, str, str]]:
    """Return metrics of answers before and after training: name, base, tuned, difference."""
    rows = []
    for metric, after in values.items():
        before = base_values.get(metric)
        change = None if before is None or after is None else after - before
        base, tuned = number_format.table_number(metric, before), number_format.table_number(metric, after)
        rows.append((label(metric), base, tuned, number_format.table_number(metric, change, signed=True)))
    return rows


def plan_rows(event: events.TrainingPlan) -> list[tuple[str, str]]:
    """Return the plan of a dry run as names and values."""
    kept = ", up to twice that in a long run (freed memory is kept)" if event.keeps_freed else ""
    trainable = f"{count(event.trainable)} of {count(event.parameters)} parameters trainable"
    libraries = [("libraries", format_bytes(event.libraries_bytes))] if event.libraries_bytes else []
    return [
        ("model", f"{event.model.describe()}, {event.method.describe()}, {trainable}"),
        ("device", f"{event.device.describe()}, {event.precision}"),
        ("steps", "unknown without the data" if event.total_steps is None else f"{event.total_steps}"),
        ("weights", format_bytes(event.weights_bytes)),
        ("gradients", format_bytes(event.gradients_bytes)),
        ("optimizer", format_bytes(event.optimizer_bytes)),
        ("activations", f"{format_bytes(event.activations_bytes)} (for the longest row)"),
        *libraries,
        ("memory", f"about {format_bytes(event.total_bytes)} in all{kept}, {format_bytes(event.available_bytes)} free"),
    ]


# Evaluations


def model_line(model: events.EvaluatedModel) -> str:
    """Return an evaluated model: its name, training and origin."""
    trained = "" if model.alpha is None else f" · alpha {model.alpha:g}, seed {model.seed}"
    return f"{model.name}{trained} · {model.source.describe()}"


def comparisons_with(report: events.EvaluationReport, role: str) -> list[events.Comparison]:
    """Return the comparisons with the model of a role."""
    return [comparison for comparison in report.comparisons if comparison.against == role]


# Sweeps


def cell_status(state: events.CellState) -> str:
    """Return the status of a cell with its progress, restarts and problem: "evaluating 32/200, try 2"."""
    text = status_text(state.status)
    if state.status == CellStatus.EVALUATING and state.to_evaluate:
        text += f" {state.evaluated}/{state.to_evaluate}"
    if state.retries:
        text += f", {state.tries()}"
    return f"{text}: {state.problem}" if state.problem else text


def status_text(status: CellStatus) -> str:
    """Return the status of a cell in words."""
    return status.replace("_", " ")


def estimate_lines(event: events.SweepEstimate) -> list[str]:
    """Return the estimated time of the cells that are not done, and its basis."""
    if not event.cells:
        return ["all cells are finished", *_power_lines(event.power)]
    seconds = [cell.seconds for cell in event.cells]
    least, most = rough_duration(min(seconds)), rough_duration(max(seconds))
    per_cell = least if least == most else f"{least} to {most}"
    cells, workers = count_noun(len(event.cells), "cell"), count_noun(event.workers, "worker")
    result = [f"about {per_cell} per cell, {rough_duration(event.seconds)} in all ({cells}, {workers})"]
    if event.parts:
        parts = [f"{name} {rough_duration(seconds)}" for name, seconds in event.parts.items() if seconds]
        result.append(f"of a cell: {', '.join(parts)}")
    basis = []
    if event.finished_cells:
        basis.append(f"the mean of {count_noun(event.finished_cells, 'finished cell')}")
    if event.timed_passes:
        passes = choose(event.timed_passes, "a timed forward pass", f"{event.timed_passes} timed forward passes")
        basis.append(f"{passes} on this machine; a finished cell gives a better estimate")
    return [*result, f"estimated from {' and '.join(basis)}", *_power_lines(event.power)]


def _power_lines(power: events.PowerAnalysis | None) -> list[str]:
    """Return the minimum detectable effect of a planned sweep."""
    if power is None:
        return []
    if power.detectable is None:
        return [f"minimum detectable effect: {power.why_not}"]
    amount = f"{number_format.format_amount(power.metric, power.detectable)} in {label(power.metric)}"
    seeds, new = count_noun(power.seeds, "seed"), "" if power.seeds > 1 else " for this one seed"
    basis = f"power 80 %, variance of {count_noun(power.pilot_seeds, 'seed')} of {power.pilot}"
    prompts = count_noun(power.prompts, "prompt")
    result = [f"minimum detectable effect: {amount}{new} with {seeds} and {prompts} ({basis})"]
    if power.delta is None:
        return result
    ways = [f"about {count_noun(power.seeds_needed, 'seed')}"] if power.seeds_needed else []
    if power.prompts_needed:
        ways.append(f"about {count_noun(power.prompts_needed, 'prompt')} with {seeds}")
    effect = f"an effect of {number_format.format_amount(power.metric, power.delta)} (sweep.delta)"
    needs = f"takes {' or '.join(ways)}" if ways else "is not possible with more seeds or more prompts alone"
    return [*result, f"to detect {effect} {needs}"]


def estimate_remarks(event: events.SweepEstimate) -> list[Line]:
    """Return what an estimate assumes; a pilot that was trained differently is a notice."""
    remarks = []
    if event.engine == "ray":
        remarks.append("estimated for one worker on this machine; the cluster may differ")
    if event.answer_tokens is not None:
        remarks.append(
            f"every answer is assumed to have the maximum length, {count_noun(event.answer_tokens, 'token')}"
        )
    if event.early_stopping:
        remarks.append("early stopping may save cells; the estimate is for all")
    if event.cells:
        remarks.append(f"not included: {', '.join(UNCOUNTED[part] for part in event.uncounted)}")
    lines = [Line("note", remark, "dim") for remark in remarks]
    if event.power is not None and event.power.differs:
        lines.append(_notice(f"the pilot was trained differently: {', '.join(event.power.differs)}"))
    return lines


# Next steps


def suggest_next_steps(
    event: events.RunFinished | events.EvaluationReport | events.SweepReport,
) -> list[tuple[str, str]]:
    """Return the commands to type next, each with its reason."""
    if isinstance(event, events.RunFinished):
        if event.held_out_loss is None or event.paired_run is None:
            return []
        return comparison_commands(event.run, event.alpha, event.paired_run)
    if isinstance(event, events.EvaluationReport):
        return _after_evaluation(event)
    return _after_sweep(event)


def comparison_commands(run: str, alpha: float, other: events.PairedRun) -> list[tuple[str, str]]:
    """Return the commands that compare a run with its baseline, after training whichever does not exist yet."""
    commands = []
    if not other.exists:
        recipe = shlex.quote(f"{run}/recipe.yaml")
        reason = "train the baseline without noise" if alpha else "train the same with noise"
        commands.append((f"neft train --recipe {recipe} --alpha {other.alpha:g}", reason))
    tuned, baseline = map(shlex.quote, (run, other.run) if alpha else (other.run, run))
    return [*commands, (f"neft eval {tuned} --baseline {baseline}", "compare both: loss and answers, with intervals")]


def _after_evaluation(report: events.EvaluationReport) -> list[tuple[str, str]]:
    main = report.models[0]
    has_baseline = any(model.role == "baseline" for model in report.models)
    commands = []
    if main.alpha and not has_baseline and report.paired_run is not None:
        commands += comparison_commands(main.source.location, main.alpha, report.paired_run)
    if report.sweep_command:
        commands.append((report.sweep_command, "compare both alphas over several seeds"))
    has_answers = any(row.metric == ANSWER_TOKENS for row in report.metrics)
    if not report.shown and has_answers and len(report.models) > 1:
        commands.append(("the same command with --show 5", "show answers side by side"))
    return commands


def _after_sweep(report: events.SweepReport) -> list[tuple[str, str]]:
    """Return no commands for an unfinished sweep: its error names the command that resumes it."""
    if report.unfinished or report.failed:
        return []
    commands = []
    folder, seeds = shlex.quote(report.folder), max(arm.seeds for arm in report.arms)
    if report.recommended:
        commands.append((f"neft eval {folder}/best --show 5", "show its answers next to those of the base model"))
    verdicts = {comparison.verdict for arm in report.arms for comparison in arm.comparisons}
    undecided = verdicts - {VerdictId.BETTER, VerdictId.WORSE}
    if undecided and not report.saved:  # a sweep that stopped early is decided
        commands.append(
            (f"{report.resume_command} --seeds {max(3, 2 * seeds)}", "train more seeds; finished cells are kept")
        )
    return commands

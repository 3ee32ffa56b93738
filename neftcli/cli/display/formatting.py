"""The words and numbers that the terminal and the plain display share."""

from __future__ import annotations

import json
import math
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

from rich.text import Text

from neftcli.evaluation import number_format
from neftcli.evaluation.metrics import label
from neftcli.events import (
    CellStatus,
    DataReady,
    EvaluationDataReady,
    ModelReady,
    NoiseMeasured,
    Occurrences,
    PairedRun,
    Phase,
    PhaseId,
    PhaseProgress,
    PowerAnalysis,
    RunFinished,
    SourceCounts,
    SweepEstimate,
    SweepStarted,
    TrainingPlan,
)

PHASES = {
    PhaseId.LOADING_LIBRARIES: "loading libraries",
    PhaseId.READING_DATA: "reading data",
    PhaseId.CONVERTING_GGUF: "converting the .gguf, once (about half a minute for 135 M parameters)",
    PhaseId.LOADING_TOKENIZER: "loading the tokenizer",
    PhaseId.TOKENIZING: "tokenizing",
    PhaseId.LOADING_MODEL: "loading the model",
    PhaseId.EVALUATING_BASE: "evaluating the model before training",
    PhaseId.GENERATING_BASE_SAMPLES: "answering held-out prompts before training",
    PhaseId.PREPARING_TRAINER: "preparing the trainer",
    PhaseId.EVALUATING: "evaluating",
    PhaseId.GENERATING_SAMPLES: "answering the same prompts after training",
    PhaseId.SAVING_CHECKPOINT: "stopping: saving a checkpoint",
    PhaseId.SAVING_MODEL: "saving the model",
    PhaseId.COMPUTING_LOSSES: "losses",
    PhaseId.GENERATING_ANSWERS: "answers",
    PhaseId.RUNNING_TASK: "benchmark task",
    PhaseId.JUDGING: "asking the judge",
    PhaseId.TIMING_STEPS: "timing a few steps",
    PhaseId.TIMING_LOSSES: "timing the losses of a few rows",
    PhaseId.TIMING_ANSWERS: "timing the beginning of a few answers",
}
"""Display texts of the phases."""
PLACES = 3
MOST_NAMES = 10
LONGEST_NAME = 60
TURN_KEY = "turn key "
SHORT = 300
ACTS = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control, format (such as reversed writing), half a character, line breaks
JOINERS = "\N{ZERO WIDTH NON-JOINER}\N{ZERO WIDTH JOINER}"  # Persian and emoji need them

Shown = TypeVar("Shown")


def count(number: float) -> str:
    """A count as a person reads it: 420, 38 k, 134.5 M, 6.74 B."""
    if number < 10_000:
        return f"{number:.0f}"
    if number < 1_000_000:
        return f"{number / 1e3:.0f} k"
    return f"{number / 1e6:.1f} M" if number < 1e9 else f"{number / 1e9:.2f} B"


def some(number: int, noun: str) -> str:
    """A number of things: "1 arm", "3 arms"."""
    return f"{number} {noun}{agree(number, '', 's')}"


def agree(number: int, one: str, several: str) -> str:
    """The form of a word that agrees with a number."""
    return one if number == 1 else several


def gibibytes(number: int) -> str:
    """Bytes in GiB."""
    return f"{number / 2**30:.1f} GiB"


def duration(seconds: float) -> str:
    """Seconds as 0:07, 2:51 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def roughly(seconds: float) -> str:
    """Estimated seconds as a person would say them, with about two digits: 45 s, 3 min 20 s, 12 min, 2 h 20 min."""
    steps = ((90, 1), (600, 10), (5400, 60), (36_000, 600), (math.inf, 3600))
    step = next(step for below, step in steps if seconds < below)
    minutes, rest = divmod(max(1, round(seconds / step) * step), 60)
    hours, minutes = divmod(minutes, 60)
    parts = ((hours, "h"), (minutes, "min"), (rest, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def phase_text(event: Phase | PhaseProgress) -> str:
    """Return the text of a phase: its subject, what is done, and the rows so far."""
    text = f"{event.subject}: {PHASES[event.phase]}" if event.subject else PHASES[event.phase]
    if isinstance(event, Phase) and event.count is not None:
        text += f", {event.count:,} so far" if event.phase is PhaseId.READING_DATA else f" ({event.count})"
    return text


def harmless(text: str) -> str:
    """Text of a model or a file without control characters, which could act on a terminal; line breaks stay."""
    return "".join("\N{REPLACEMENT CHARACTER}" if acts(letter) else letter for letter in text)


def all_harmless(value: Shown) -> Shown:
    """An event, or a part of one, with every text in it harmless: file names, models' names, problems and answers."""
    return _all_harmless(value)  # type: ignore[no-any-return]


def _all_harmless(value: Any) -> Any:
    if isinstance(value, str):
        return harmless(value)
    if isinstance(value, tuple | list):
        return type(value)(map(_all_harmless, value))
    if isinstance(value, Mapping):
        return {_all_harmless(key): _all_harmless(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _all_harmless(getattr(value, field.name)) for field in fields(value)})
    return value


def escaped(json_text: str) -> str:
    """JSON that says the same and holds no character that could act on a terminal."""
    return re.sub(r"[^ -~]", lambda found: json.dumps(found[0])[1:-1] if acts(found[0]) else found[0], json_text)


def acts(letter: str) -> bool:
    """Return whether a character could act on a terminal."""
    return letter not in "\n" + JOINERS and unicodedata.category(letter) in ACTS


def shortened(answer: str, style: str = "") -> Text:
    """A prompt or an answer as one harmless line of at most 300 characters."""
    lines = harmless(answer).strip().splitlines()
    shown = " ".join(line.strip() for line in lines if line.strip())
    return Text(shown if len(shown) <= SHORT else shown[: SHORT - 3] + "...", style=style)


def model_line(event: ModelReady) -> str:
    """The model that is trained, in a line."""
    trained = f"{count(event.trainable)} of {count(event.parameters)} trainable"
    return f"{event.name} · {event.method} · {trained} · {event.precision} · {event.device}"


def data_line(event: DataReady) -> str:
    """The data, in a line."""
    train, held_out = event.train, event.held_out
    sides = f"{train.rows} to learn from, {held_out.rows or 'none'} held out"
    rows_read = event.rows_read
    for source in event.sources:
        if source.held_out and event.source == "built-in set" and source.name == "builtin":
            rows_read += source.rows_read  # two parts of one set
        elif source.held_out:
            sides += f" of the {source.rows_read} in {source.name}{f' ({source.split})' if source.split else ''}"
    return f"{event.source} ({event.format.replace('_', '/')}) · {rows_read} rows read: {sides}"


def noise_line(event: NoiseMeasured) -> str:
    """The noise, in a line."""
    if not event.alpha:
        return "NEFTune off (alpha 0): the plain baseline"
    lengths = "real lengths" if event.length == "tokens" else "padded lengths, as Hugging Face scales"
    schedule = "" if event.schedule == "constant" else f" · {event.schedule.replace('_', ' ')}"
    return (
        f"NEFTune alpha {event.alpha:g} · {event.kind} · {lengths}{schedule} "
        f"· noise/embedding {event.ratio:.3f} at layer 0"
    )


def length_line(event: DataReady) -> str:
    """The number of tokens with loss, and the lengths of the rows."""
    side = event.train
    lengths = f"{side.shortest} to {side.longest} tokens a row, median {side.median}, 9 of 10 at most {side.p90}"
    return f"{count(side.loss_tokens)} tokens with loss ({event.loss_on}) · {lengths}"


def data_notices(event: DataReady) -> list[str]:
    """Notices about the data before training."""
    notices = [*source_notices(event.sources), *_left_out(event.skipped), *row_part_notices(event)]
    if event.leaked:
        theirs = agree(event.leaked, "its prompt is", "their prompts are")
        notices.append(f"{some(event.leaked, 'training row')} left out: {theirs} held out")
    if event.duplicates:
        repeat = agree(event.duplicates, "repeats", "repeat")
        kept = agree(event.duplicates, "it is", "they are")
        notices.append(f"{some(event.duplicates, 'row')} {repeat} an earlier row, prompt and answer; {kept} kept")
    if event.train.truncated:
        notices.append(f"{rows(event.train.truncated)} truncated at data.max_length; --max-length keeps more")
    if event.held_out.truncated:
        notices.append(f"of the held-out rows, {rows(event.held_out.truncated)} truncated at data.max_length")
    if event.train.without_stop_token:
        places = event.train.without_stop_token
        end, teach = agree(len(places), "ends", "end"), agree(len(places), "doesn't", "don't")
        notices.append(f"{rows(places)} {end} without a stop token with loss, so {teach} teach to stop")
    if event.special_token_text:
        acts = "it acts as the token" if event.format == "text" else "it is tokenised as ordinary characters"
        hold = agree(len(event.special_token_text), "holds", "hold")
        notices.append(f"{rows(event.special_token_text)} {hold} a special token as text: {acts}")
    notices += [f"{rows(having)}: {remark}" for remark, having in event.train.remarks.items()]
    if not event.held_out.rows:
        notices.append(
            "no row is held out (none asked for, too few rows, or all with one prompt), so nothing will show whether "
            "training helped: --held-out FILE"
        )
    for option, number in event.unused.items():
        are = agree(number, "is", "are")
        notices.append(f"{some(number, 'row')} {are} not used: {option} leaves {agree(number, 'it', 'them')} out")
    return notices


def row_part_notices(event: DataReady | EvaluationDataReady) -> list[str]:
    """Notices about columns and turn keys that are not read, parts of conversations that are left out, and remarks."""
    keys = {name: found for name, found in event.unread_columns.items() if name.startswith(TURN_KEY)}
    columns = {name: found for name, found in event.unread_columns.items() if name not in keys}
    notices = []
    if columns:
        notices.append(f"columns that are not read: {occurrences(columns)}")
    if keys:
        bare = {name.removeprefix(TURN_KEY): found for name, found in keys.items()}
        notices.append(f"keys of turns that are not read: {occurrences(bare)}")
    if event.dropped_turns:
        notices.append(f"left out of conversations: {occurrences(event.dropped_turns)}")
    for remark, found in event.remarks.items():
        notices.append(f"{remark} ({some(found.rows, 'row')}, first {found.first})")
    return notices


def occurrences(found: Mapping[str, Occurrences]) -> str:
    """Names with their counts and first rows: "score (12 rows, first rows.jsonl, line 3)"."""
    shown = [f"{name[:LONGEST_NAME]} ({some(each.rows, 'row')}, first {each.first})" for name, each in found.items()]
    more = f", and {len(shown) - MOST_NAMES} more" if len(shown) > MOST_NAMES else ""
    return ", ".join(shown[:MOST_NAMES]) + more


def source_notices(sources: Sequence[SourceCounts]) -> list[str]:
    """Notices about the rows of each source, and about its files that are not read."""
    notices = []
    several = sum(not source.held_out for source in sources) > 1
    used = {(source.name, source.split) for source in sources}
    for source in sources:
        if several and not source.held_out:
            weight = f", weight {source.weight:g}" if source.weight is not None else ""
            notices.append(f"{source.name}: {source.rows_read} rows read, {source.rows_used} in the mixture{weight}")
        left_out = [files for files in source.left_out if (source.name, files.partition(" (")[0]) not in used]
        if left_out:
            read = f"the split {source.split} is read" if source.split else "its data files are read"
            notices.append(f"{source.name}: {read}; not read: {', '.join(left_out)}")
        if source.sample_by:
            others = " or ".join(part for part in ("paragraph", "line", "document") if part != source.sample_by)
            notices.append(
                f"{source.name}: each {source.sample_by} of its text is a row; --set data.sample_by={others}"
            )
    return notices


def _left_out(unusable: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [f"{rows(places)} left out: {reason}" for reason, places in unusable.items()]


def sweep_line(event: SweepStarted) -> str:
    """The plan of a sweep, in a line."""
    done = sum(state.status == CellStatus.FINISHED for state in event.cells)
    arms = some(len({state.arm for state in event.cells}), "arm")
    seeds = some(len({state.seed for state in event.cells}), "seed")
    before = f", {done} of them done before" if done else ""
    return f"{event.folder} · {arms} x {seeds} = {some(len(event.cells), 'cell')}{before}"


def estimate_lines(event: SweepEstimate) -> list[str]:
    """The estimated time of what is left of a sweep, and its basis."""
    if not event.cells:
        return ["nothing is left to do", *_power_lines(event.power)]
    least, most = (roughly(bound(cell.seconds for cell in event.cells)) for bound in (min, max))
    lines = [
        f"about {least}{'' if least == most else f' to {most}'} a cell, {roughly(event.seconds)} in all "
        f"({some(len(event.cells), 'cell')}, {some(event.workers, 'worker')})"
    ]
    worker = "that of workers is in the seconds of finished cells"
    if event.worker_start is not None:
        what = "libraries, model, tokenised rows, losses of the base model"
        worker = f"{roughly(event.worker_start)} of a worker ({what})"
    lines.append(f"start-up in it: {roughly(event.own_start)} of the command (as in this dry run), {worker}")
    if event.parts:
        lines.append("of a cell: " + ", ".join(f"{name} {roughly(part)}" for name, part in event.parts.items() if part))
    timed = (f"{number} {name if number > 1 else name.removesuffix('s')}" for name, number in event.timed.items())
    return [*lines, f"measured on {', '.join(timed)}", *_power_lines(event.power)]


def _power_lines(plan: PowerAnalysis | None) -> list[str]:
    """The minimum detectable effect of a planned sweep."""
    if plan is None:
        return []
    if plan.detectable is None:
        return [f"minimum detectable effect: {plan.why_not}"]
    amount = f"{number_format.format_amount(plan.metric, plan.detectable)} in {label(plan.metric)}"
    new = "" if plan.seeds > 1 else " for this one seed"
    by = f"power 80 %, variance of {some(plan.pilot_seeds, 'seed')} of {plan.pilot}"
    lines = [
        f"minimum detectable effect: {amount}{new} with {some(plan.seeds, 'seed')} and {plan.prompts} prompts ({by})"
    ]
    if plan.delta is None:
        return lines
    ways = [f"about {some(plan.seeds_needed, 'seed')}"] if plan.seeds_needed else []
    ways += [f"about {plan.prompts_needed} prompts with {plan.seeds} seeds"] if plan.prompts_needed else []
    effect = f"an effect of {number_format.format_amount(plan.metric, plan.delta)} (sweep.delta)"
    takes = f"takes {' or '.join(ways)}" if ways else "is not possible with more seeds or more prompts alone"
    return [*lines, f"to detect {effect} {takes}"]


def estimate_notices(event: SweepEstimate) -> list[str]:
    """Notices about an estimate."""
    notices = []
    if event.engine == "ray":
        notices.append("measured on this machine, as if one worker did all; those of the cluster may differ")
    if event.answer_tokens is not None:
        notices.append(f"each answer is counted with {event.answer_tokens} tokens, the most it may have")
    if event.early_stopping:
        notices.append("early stopping may save cells; the estimate is of all")
    if event.cells:
        notices.append(f"not counted: {', '.join([*event.uncounted, 'the verdict and its plots'])}")
    if event.power is not None and event.power.differs:
        notices.append(f"the pilot was trained differently: {', '.join(event.power.differs)}")
    return notices


def row_notices(event: EvaluationDataReady) -> list[str]:
    """Notices about the rows that are evaluated on."""
    notices = [*source_notices(event.sources), *_left_out(event.skipped), *row_part_notices(event)]
    if event.trained_on:
        theirs = agree(event.trained_on, "its prompt", "their prompts")
        notices.append(f"{some(event.trained_on, 'row')} left out: a model here was trained on {theirs}")
    if event.repeated:
        repeat = agree(event.repeated, "it repeats", "they repeat")
        notices.append(f"{some(event.repeated, 'row')} left out: {repeat} an earlier row")
    return notices


def rows(places: tuple[str, ...]) -> str:
    """The number of rows and the places of the first ones: "3 rows (rows.jsonl, line 17; ...)"."""
    first, *others = places[:PLACES]
    file = first.rpartition(", ")[0]
    same = [other.removeprefix(f"{file}, ") if file else other for other in others]  # a file is named once
    shown = "; ".join([first, *same]) + ("; ..." if len(places) > PLACES else "")
    return f"{some(len(places), 'row')} ({shown})"


def difference(before: float | None, after: float | None) -> str:
    """A difference with its sign."""
    return "-" if before is None or after is None else f"{after - before:+.4f}"


def loss(value: float | None) -> str:
    """A loss, or a dash."""
    return "-" if value is None else f"{value:.4f}"


def next_commands(event: RunFinished) -> list[tuple[str, str]]:
    """Next steps: commands and reasons."""
    if event.held_out_loss is None or event.paired_run is None:
        return []
    return comparing(event.run, event.alpha, event.paired_run)


def comparing(run: str, alpha: float, other: PairedRun) -> list[tuple[str, str]]:
    """Commands that compare a run with the same one with or without noise, which may have to be trained first."""
    commands = []
    if not other.exists:
        recipe = shlex.quote(f"{run}/recipe.yaml")
        reason = "the same without noise" if alpha else "the same with noise"
        commands.append((f"neft train --recipe {recipe} --alpha {other.alpha:g}", reason))
    noisy, plain = map(shlex.quote, (run, other.run) if alpha else (other.run, run))
    return [*commands, (f"neft eval {noisy} --baseline {plain}", "how the two runs differ: loss, answers, intervals")]


def plan_rows(event: TrainingPlan) -> list[tuple[str, str]]:
    """The plan as names and values."""
    kept = ", up to twice that in a long run (freed memory is kept)" if event.keeps_freed else ""
    libraries = [("libraries", gibibytes(event.libraries_bytes))] if event.libraries_bytes else []
    return [
        ("model", f"{event.model}, {event.method}, {count(event.trainable)} of {count(event.parameters)} trainable"),
        ("device", f"{event.device}, {event.precision}"),
        ("updates", "unknown without the data" if event.total_steps is None else f"{event.total_steps}"),
        ("weights", gibibytes(event.weights_bytes)),
        ("gradients", gibibytes(event.gradients_bytes)),
        ("optimiser", gibibytes(event.optimizer_bytes)),
        ("activations", f"{gibibytes(event.activations_bytes)} (at the longest row)"),
        *libraries,
        ("memory", f"about {gibibytes(event.total_bytes)} in all{kept}, {gibibytes(event.available_bytes)} free"),
    ]

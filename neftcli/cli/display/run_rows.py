"""Runs and sweeps as words and numbers: rows of tables and sentences that all displays share."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from datetime import datetime

from neftcli import events
from neftcli.cli.display import format
from neftcli.evaluation import number_format
from neftcli.events import RunStatus, VerdictId, arm_name
from neftcli.metrics.registry import HELD_OUT_LOSS, label
from neftcli.system.files import format_bytes
from neftcli.wording import count_noun

STATUSES: Mapping[RunStatus, str] = {
    **{status: status.value for status in RunStatus},
    RunStatus.OTHER: "not a run",
}
"""Display texts of the statuses."""
TITLE = "name"
LOSS = "held-out loss"
MAX_ALPHAS = 4
MODEL_WIDTH = 24
INPUT_LABELS = {"data": "data", "tokens": "tokens", "model": "base model"}
"""Display texts of the inputs that two runs can differ in."""
ONE_RUN = "One run each "
NEW_SEEDS = f"{ONE_RUN}does not show an effect for new seeds: a different seed changes the results, too."


def table_row(run: events.RunSummary, now: float | None = None) -> dict[str, str]:
    """Return the cells of a run's row, by their column.

    Args:
        run: The run or sweep.
        now: The time to count the age from, in seconds since 1970; by default the current time.
    """
    return {
        TITLE: run.name(),
        "status": STATUSES[run.status],
        "model": _short_model(run.model),
        "method": run.method.describe() if run.method else "",
        "alpha": alphas_text(run),
        "seed": _range(run.seeds),
        "steps": steps_text(run),
        LOSS: loss_change(run),
        "verdict": verdict_text(run),
        "age": age(run.changed, now),
        "size": format_bytes(run.size_bytes),
    }


def alphas_text(run: events.RunSummary) -> str:
    """Return alpha, or those of a sweep: "0, 5, 10", or "0 to 15" if there are many."""
    numbers = list(map(format_option, run.alphas))
    return ",".join(numbers) if len(numbers) <= MAX_ALPHAS else f"{numbers[0]} to {numbers[-1]}"


def steps_text(run: events.RunSummary) -> str:
    """Return the steps of a run, or the finished cells of a sweep: "120", "7/9 cells"."""
    if run.steps is None:
        return ""
    if run.kind != "sweep":
        return str(run.steps)
    total = f"/{run.total_steps}" if run.total_steps is not None else ""
    return f"{run.steps}{total} {'cell' if run.total_steps == 1 else 'cells'}"


def loss_change(run: events.RunSummary) -> str:
    """Return the held-out loss before and after training: "2.426 -> 1.961"; the second is missing before it."""
    if run.base_held_out_loss is None and run.held_out_loss is None:
        return ""
    base, tuned = ("-" if loss is None else f"{loss:.3f}" for loss in (run.base_held_out_loss, run.held_out_loss))
    return f"{base} -> {tuned}"


def verdict_text(run: events.RunSummary) -> str:
    """Return the verdict of the latest comparison with a baseline, or what a sweep recommends."""
    if run.kind == "sweep":
        none = "none recommended" if run.status is RunStatus.FINISHED else ""
        return f"best: {arm_name(run.recommended)}" if run.recommended else none
    if run.verdict is None:
        return ""
    verdict = stored_verdict(run.verdict)
    if run.verdict.metric != HELD_OUT_LOSS:
        return f"{verdict} ({label(run.verdict.metric)})"
    return f"{verdict} loss" if run.verdict.verdict in (VerdictId.LOWER, VerdictId.HIGHER) else verdict


def stored_verdict(verdict: events.StoredVerdict) -> str:
    """Return a stored verdict in words; one that this version does not know as it is stored."""
    known = verdict.verdict in list(VerdictId)
    return number_format.format_verdict(VerdictId(verdict.verdict)) if known else verdict.verdict


def age(changed: str, now: float | None = None) -> str:
    """Format the time since a moment in ISO 8601: "45 s", "12 min", "3 h", "5 d"; empty if it is unknown."""
    if not changed:
        return ""
    seconds = max(0.0, (time.time() if now is None else now) - datetime.fromisoformat(changed).timestamp())
    for unit_seconds, limit, unit in ((1, 90, "s"), (60, 90 * 60, "min"), (3600, 36 * 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit_seconds:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def title(run: events.RunSummary) -> str:
    """Return a line about a run: name, status, model, method, alpha and seed."""
    parts = [run.name(), STATUSES[run.status]]
    if run.kind == "sweep":
        parts[0] = f"{run.name()} (sweep)"
    parts += [run.model] if run.model else []
    parts += [run.method.describe()] if run.method else []
    if run.alphas:
        parts.append(f"alpha {alphas_text(run)}")
    if run.seeds:
        parts.append(f"{'seed' if len(run.seeds) == 1 else 'seeds'} {_range(run.seeds)}")
    return " · ".join(parts)


def facts(details: events.RunDetails) -> str:
    """Return a line about a run: folder, start, time, device, precision, steps, size."""
    run = details.summary
    parts = [run.path]
    if details.started:
        parts.append(f"started {_short_time(details.started)}")
    if details.seconds is not None:
        parts.append(f"took {format.rough_duration(details.seconds)}")
    if run.steps is not None:
        parts.append(steps_text(run) if run.kind == "sweep" else count_noun(run.steps, "step"))
    parts += [part for part in (details.device, details.precision) if part]
    if details.noise_to_embedding:
        parts.append(f"noise/embedding {details.noise_to_embedding:.3f}")
    parts.append(format_bytes(run.size_bytes))
    return " · ".join(parts)


def checkpoint_text(details: events.RunDetails) -> str:
    """Return a sentence about the checkpoints of an unfinished run; empty if it has none."""
    if not details.checkpoints:
        return ""
    steps = ", ".join(map(str, details.checkpoints))
    noun = "checkpoint" if len(details.checkpoints) == 1 else "checkpoints"
    return f"{noun} after step {steps}"


def measured_rows(details: events.RunDetails) -> list[tuple[str, str, str, str]]:
    """Return losses and metrics of answers before and after training, and differences; none if nothing was measured."""
    run = details.summary
    losses = [
        ("held-out loss", run.base_held_out_loss, run.held_out_loss),
        ("training loss, no noise", details.base_train_loss, details.train_loss),
    ]
    rows = [
        (name, format.loss(base), format.loss(tuned), format.difference(base, tuned))
        for name, base, tuned in losses
        if base is not None or tuned is not None
    ]
    return rows + format.answer_metric_rows(details.base_answer_metrics, details.answer_metrics)


def format_option(value: object) -> str:
    """Return the value of an option as a recipe has it, on one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(format_option, value))}]"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def result_rows(compared: events.RunsCompared) -> list[tuple[str, str, str, str]]:
    """Return the results of two runs; if their losses are of the same rows, with the first minus the second."""
    first, second = compared.first, compared.second
    rows = []
    for name, losses in (
        ("held-out loss, base", (first.base_held_out_loss, second.base_held_out_loss)),
        ("held-out loss, tuned", (first.held_out_loss, second.held_out_loss)),
    ):
        difference = format.difference(losses[1], losses[0]) if compared.comparable else "-"
        rows.append((name, format.loss(losses[0]), format.loss(losses[1]), difference))
    seconds = (compared.first_seconds, compared.second_seconds)
    times = ["-" if value is None else format.rough_duration(value) for value in seconds]
    rows.append(("time", times[0], times[1], ""))
    rows.append(("status", STATUSES[first.status], STATUSES[second.status], ""))
    return rows


def comparison_sentences(compared: events.RunsCompared) -> list[str]:
    """Return what an honest comparison of two runs has to say."""
    sentences = []
    if not compared.options:
        sentences.append("Both have the same recipe: a difference shows what training twice changes.")
    if compared.different_inputs:
        names = " and ".join(INPUT_LABELS[name] for name in compared.different_inputs)
        sentences.append(
            f"They have different {names} (by the hashes in run.json), so their losses are not subtracted."
        )
    elif not compared.comparable:
        keys = [option.key for option in compared.options if option.key.startswith(("data.", "model."))]
        differ = "differs" if len(keys) == 1 else "differ"
        rest = "their losses may be of different rows or tokens, and are not subtracted."
        sentences.append(f"{', '.join(keys)} {differ}: {rest}")
    if compared.verdict is not None:
        sentences.append(f"neft eval has compared them: {compared.verdict.folder}")
        sentences += compared.verdict.conclusion
    said = any(sentence.startswith(ONE_RUN) for sentence in sentences)
    return sentences if said else [*sentences, NEW_SEEDS]


def suggest_after_comparison(compared: events.RunsCompared) -> list[tuple[str, str]]:
    """Return the commands that compare two runs on the same rows, and their alphas over seeds."""
    first, second = compared.first, compared.second
    if second.alphas and second.alphas[0] and first.alphas and not first.alphas[0]:
        first, second = second, first  # the run without noise is the baseline
    commands = []
    if compared.verdict is None and first.status is second.status is RunStatus.FINISHED:
        pair = f"{shlex.quote(first.path)} --baseline {shlex.quote(second.path)}"
        commands.append((f"neft eval {pair}", "compare both on the same rows: loss and answers, with intervals"))
    if compared.sweep_command:
        commands.append((compared.sweep_command, "compare both alphas over several seeds"))
    return commands


def suggest_after_details(details: events.RunDetails) -> list[tuple[str, str]]:
    """Return the commands that continue from a run or a sweep."""
    run, path = details.summary, shlex.quote(details.summary.path)
    trust = " --trust-remote-code" if details.trust_remote_code else ""
    if run.problem or run.status is RunStatus.RUNNING:
        return []
    if run.kind == "sweep":
        if run.status is not RunStatus.FINISHED:
            return [(f"neft sweep-alpha {path}{trust}", "resume the sweep; finished cells are kept")]
        more = [(f"neft sweep-alpha {path}{trust} --seeds {2 * len(run.seeds)}", "train more seeds")]
        if run.recommended:
            return [(f"neft eval {path}/best --show 5", "show the answers of the best run"), *more]
        return more
    if run.status is not RunStatus.FINISHED:
        reason = "resume it from its last checkpoint" if details.checkpoints else "start it again in the same folder"
        return [(f"neft train --resume {path}{trust}", reason)]
    paired = details.paired_run
    commands = [(f"neft eval {path} --show 5", "show its answers next to those of the base model")]
    if paired is not None and not details.is_compared:
        commands = format.comparison_commands(run.path, run.alphas[0] if run.alphas else 0.0, paired)
    return [
        *commands,
        (f"neft chat {path} --against base{trust}", "talk to it and to its base model"),
        (f"neft export {path} --to gguf{trust}", "write it for llama.cpp; neft merge writes safetensors"),
    ]


def _short_model(model: str) -> str:
    """Return the last part of a model's name, shortened."""
    name = model.rstrip("/").rpartition("/")[2]
    return name if len(name) <= MODEL_WIDTH else f"{name[: MODEL_WIDTH - 3]}..."


def _range(numbers: tuple[int, ...]) -> str:
    """Return a number, or the first and last of several consecutive ones: "0-2"."""
    if not numbers:
        return ""
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def _short_time(text: str) -> str:
    """Return a time without seconds and zone: "2026-11-30 01:38"."""
    return text[:16].replace("T", " ")

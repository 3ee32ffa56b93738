"""Remarks beside the numbers, answers side by side, and the files of an evaluation."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.data.example import Example
from neftcli.data.tokens import split_prompt_and_reference
from neftcli.evaluation import sentences
from neftcli.evaluation.answer_metrics import signatures, similarity
from neftcli.evaluation.comparison import have_same_tokens, win_rate_bounds
from neftcli.evaluation.tasks import describe_settings
from neftcli.events import Comparison, EvaluationReport, SideBySide
from neftcli.recipe.loading import differences
from neftcli.runs.directory import CELLS, RECIPE, finite, json_line
from neftcli.statistics.multiple import NOT_TESTED
from neftcli.system.files import atomic_write

if TYPE_CHECKING:
    from neftcli.evaluation.comparison import JudgeScores
    from neftcli.evaluation.held_out import EvalRows
    from neftcli.evaluation.measurement import ModelResults
    from neftcli.evaluation.targets import EvalTarget

OFTEN_CUT = 0.05
SEEDS = 6
"""Seeds of the sweep that is offered: enough for a claim about new seeds, and for stopping early."""
REFERENCE_METRICS = ("rouge_l", "bleu", "chrf")


def scope(results: Sequence[ModelResults], comparisons: Sequence[Comparison], prompts: Sequence[str]) -> str:
    """State what the intervals and verdicts are about; `prompts` has an item for each row."""
    rows, distinct = len(prompts), len(set(prompts))
    those = f"these {rows}" if distinct == rows else f"the {distinct} distinct prompts of these {rows} rows"
    if len(results) == 1:
        return f"95 % CIs are for prompts like {those}."
    if all(one.verdict == NOT_TESTED for one in comparisons):
        return ""
    seeds = list(dict.fromkeys(str(one.target.recipe.training.seed) for one in results if one.target.run))
    runs = sum(one.target.run is not None for one in results)
    parts = [f"Verdicts hold for these models and prompts like {those}."]
    if runs > 1:
        named = "seed" if len(seeds) == 1 else "seeds"
        parts.append(f"With one run each ({named} {' and '.join(seeds)}) they don't hold for other seeds.")
    parts.append("95 % CIs are of one comparison each; p is corrected for all of them (Holm).")
    parts += sentences.explain_small_samples(comparisons)
    return " ".join(parts)


def changed_options(results: Sequence[ModelResults]) -> dict[str, tuple[Any, Any]] | None:
    """Options in which the run and its baseline differ, and may differ in weights; None unless both are runs."""
    baseline = _baseline(results)
    return None if baseline is None else _changed(results[0].target, baseline)


def _baseline(results: Sequence[ModelResults]) -> EvalTarget | None:
    return next((one.target for one in results if one.target.role == "baseline"), None)


def _changed(main: EvalTarget, baseline: EvalTarget) -> dict[str, tuple[Any, Any]] | None:
    if not main.run or not baseline.run:
        return None
    return differences(main.saved_recipe(), baseline.saved_recipe())


def sweep_command(results: Sequence[ModelResults]) -> str | None:
    """The command that compares the run's alpha over seeds with its baseline's, or with alpha 0 if it has none.

    None if the two differ in more than alpha and seed, or in neither alpha.
    """
    main, baseline = results[0].target, _baseline(results)
    changed = changed_options(results)
    if main.run is None or (baseline is not None and changed is None):
        return None
    alphas = {main.recipe.neftune.alpha, 0.0 if baseline is None else baseline.recipe.neftune.alpha}
    noise = {path for path in changed or () if path.startswith("neftune.")}
    same_noise = 0.0 in alphas or noise <= {"neftune.alpha"}
    if len(alphas) < 2 or set(changed or ()) - noise - {"training.seed"} or not same_noise:
        return None
    run = main.run if main.recipe.neftune.alpha or baseline is None else baseline.run  # the one whose noise is on
    assert run is not None  # noqa: S101 - a baseline that differs in options is a run
    sweep = run.path.parent.parent
    if run.path.parent.name == CELLS and (sweep / RECIPE).is_file():  # a cell: its sweep has the other ones
        return f"neft sweep-alpha {shlex.quote(str(sweep))} --seeds {SEEDS}"
    recipe = shlex.quote(str(run.path / RECIPE))
    return f"neft sweep-alpha --recipe {recipe} --alphas {','.join(f'{a:g}' for a in sorted(alphas))} --seeds {SEEDS}"


def remarks(
    results: Sequence[ModelResults], judged: JudgeScores | None, comparisons: Sequence[Comparison]
) -> Iterator[str]:
    """State what a person should know to read the numbers."""
    main, baseline = results[0], _baseline(results)
    if main.target.run and main.target.recipe.neftune.alpha and baseline is None and len(results) > 1:
        yield (
            "This shows what fine-tuning did. What the noise did takes the same recipe without noise: --baseline RUN "
            "compares two runs, a sweep over seeds compares the recipes."
        )
    if baseline:
        yield from describe_other_differences(main.target, baseline)
    for one in results[1:]:
        if not have_same_tokens(main, one):
            yield f"{one.target.name} reads the rows as other tokens, so its loss is not compared."
    for one in results:
        cut = sum(answer.cut for answer in one.answers)
        if cut > OFTEN_CUT * len(one.answers):
            limit = main.target.recipe.evaluation.generation.max_new_tokens
            yield (
                f"{cut} of {len(one.answers)} answers of {one.target.name} were cut at {limit} tokens, and count as "
                "that long; evaluation.generation.max_new_tokens sets the limit."
            )
    if how := main.tasks and describe_settings(main.target.recipe.evaluation.task_settings):
        yield f"Benchmark tasks ran {how}."
    if judged is not None:
        yield from judge_remarks(judged)
    yield from sentences.warn_of_length_bias(comparisons)
    yield from sentences.warn_of_skewness(comparisons)
    if any(one.metric in REFERENCE_METRICS and one.verdict == "lower" for one in comparisons):
        yield (
            "ROUGE-L, BLEU and chrF measure nearness to the reference answers; lower is not worse: the paper found it "
            "where the answers were preferred."
        )


def describe_other_differences(main: EvalTarget, baseline: EvalTarget) -> Iterator[str]:
    """Name what two runs differ in besides their noise; if it is the seed alone, the conclusion does."""
    changed = _changed(main, baseline)
    if changed is None:
        return
    others = [
        f"{path} {ours} and {theirs}"
        for path, (ours, theirs) in changed.items()
        if not path.startswith("neftune.") and path != "training.seed"
    ]
    if others:
        yield f"The two runs differ in more than noise and seed: {'; '.join(others)}."
    elif "training.seed" in changed and len(changed) > 1:
        ours, theirs = changed["training.seed"]
        yield f"The two runs also differ in training.seed ({ours} and {theirs}), which may cause a difference."


def instruction(example: Example) -> str:
    """The instruction, for a judge, a leaderboard and a person; several turns are written with their roles."""
    return example.transcript() if example.turns else split_prompt_and_reference(example)[0]


def judge_remarks(judged: JudgeScores) -> Iterator[str]:
    """State what a person should know of the judge's verdicts: unreadable ones, and those that depend on the order."""
    unparsed = sum("unparsed" in verdicts for verdicts in judged.verdicts)
    pairs = len(judged.verdicts)
    if unparsed == pairs:
        yield (
            "No verdict of the judge could be read, so there is no win rate: its replies are in judge/verdicts.jsonl "
            "beside the runs; --judge-prompt asks in other words, evaluation.judge.max_tokens allows longer replies."
        )
        return
    parsed = [verdicts for verdicts in judged.verdicts if "unparsed" not in verdicts]
    split = sum(first != second for first, second in parsed)
    if split:
        yield f"The judge's verdict depended on the order in {split} of {len(parsed)} pairs, which count as ties."
    lengths = {length for length, score in zip(judged.lengths, judged.scores, strict=True) if score is not None}
    if len(lengths) == 1 and 0 not in lengths:
        yield "All answers differ in length by the same, so the win rate at equal lengths can't be estimated."
    if bounds := win_rate_bounds(judged):
        yield sentences.describe_unreadable(bounds, pairs, unparsed)


def select_most_different(results: Sequence[ModelResults], rows: EvalRows, count: int) -> Iterator[SideBySide]:
    """`count` prompts with all answers, those first whose answer is least like the one compared with."""
    if not results[0].answers or not count:
        return
    other = results[1] if len(results) > 1 else results[0]
    likeness = [
        similarity(ours.text, theirs.text) for ours, theirs in zip(results[0].answers, other.answers, strict=True)
    ]
    for place in sorted(range(len(likeness)), key=lambda place: (likeness[place], place))[:count]:
        example = rows.examples[place]
        reference = split_prompt_and_reference(example)[1]
        yield SideBySide(instruction(example), reference, tuple(one.answers[place].text for one in results))


def write(
    report: EvaluationReport,
    results: Sequence[ModelResults],
    judged: JudgeScores | None,
    rows: EvalRows,
    folder: Path,
    *,
    export: bool,
) -> None:
    """Write report.json, examples.jsonl and, if wanted, model_outputs.json."""
    settings = results[0].target.recipe.evaluation
    content = {**asdict(report), "settings": asdict(settings), "definitions": signatures()}
    atomic_write(folder / "report.json", json.dumps(finite(content), indent=2, ensure_ascii=False) + "\n")
    lines = [_line(results, judged, rows, place) for place in range(len(rows.examples))]
    atomic_write(folder / "examples.jsonl", "".join(map(json_line, lines)))
    if export:
        outputs = _outputs(results[0], rows)
        atomic_write(folder / "model_outputs.json", json.dumps(outputs, indent=2, ensure_ascii=False) + "\n")


def _line(results: Sequence[ModelResults], judged: JudgeScores | None, rows: EvalRows, place: int) -> dict[str, Any]:
    """All results of an example."""
    example = rows.examples[place]
    prompt, reference = split_prompt_and_reference(example)
    line: dict[str, Any] = {"location": example.location, "prompt": prompt, "reference": reference or None}
    for one in results:
        found: dict[str, Any] = {}
        if (loss := one.losses[place]) is not None:
            found = {"negative_log_likelihood": loss.negative_log_likelihood, "loss_tokens": loss.tokens}
            found["correct_tokens"] = loss.correct
        if one.answers:
            answer = one.answers[place]
            found |= {"answer": answer.text, "answer_tokens": answer.tokens, "cut": answer.cut}
            found |= asdict(one.metrics[place])
        line[one.target.role] = found
    if judged is not None:
        line["judge"] = {
            "against": judged.against,
            "score": judged.scores[place],
            "verdicts": judged.verdicts[place],
            "like_length": judged.matched[place],
            "length_difference": judged.lengths[place],
        }
    return line


def _outputs(main: ModelResults, rows: EvalRows) -> list[dict[str, str]]:
    """The answers in the form that AlpacaEval reads as `model_outputs`."""
    return [
        {
            "dataset": rows.label,
            "instruction": instruction(example),
            "output": answer.text,
            "generator": main.target.name,
        }
        for example, answer in zip(rows.examples, main.answers, strict=True)
    ]

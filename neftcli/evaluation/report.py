"""The report of an evaluation: scope, remarks, answers side by side, and its files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.data.tokens import instruction, split_prompt_and_reference
from neftcli.evaluation import sentences
from neftcli.evaluation.comparison import have_same_tokens, win_rate_bounds
from neftcli.events import Comparison, EvaluationReport, RowsSource, SideBySide, VerdictId
from neftcli.metrics.answer_metrics import signatures, similarity
from neftcli.metrics.registry import label, superlative
from neftcli.recipe.loading import recipe_differences
from neftcli.runs.baseline import alpha_sweep_command
from neftcli.runs.directory import format_json_line, replace_non_finite
from neftcli.system.files import atomic_write
from neftcli.wording import count_noun

if TYPE_CHECKING:
    from neftcli.evaluation.exports import Export
    from neftcli.evaluation.held_out import EvalRows
    from neftcli.evaluation.measurement import ModelResults
    from neftcli.evaluation.targets import EvalTarget
    from neftcli.metrics.registry import JudgeScores

MANY_TRUNCATED = 0.05
"""Share of truncated answers above which the report says so."""
REFERENCE_METRICS = ("rouge_l", "bleu", "chrf")


def evaluation_scope(results: Sequence[ModelResults], comparisons: Sequence[Comparison], prompts: Sequence[str]) -> str:
    """State the population of the intervals and verdicts.

    Args:
        results: Results of each model, the evaluated one first.
        comparisons: The first model compared with each other model.
        prompts: (rows,), normalized.
    """
    rows, distinct = len(prompts), len(set(prompts))
    if distinct == rows:
        those = "this one" if rows == 1 else f"these {rows}"
    else:
        those = f"the {count_noun(distinct, 'distinct prompt')} of these {rows} rows"
    if len(results) == 1:
        return f"95 % CIs are for prompts like {those}."
    if all(comparison.verdict == VerdictId.NOT_TESTED for comparison in comparisons):
        return ""
    seeds_of_runs = [str(model.target.recipe.training.seed) for model in results if model.target.run is not None]
    parts = [f"Verdicts hold for these models and prompts like {those}."]
    if len(seeds_of_runs) > 1:
        seeds = list(dict.fromkeys(seeds_of_runs))
        noun = "seed" if len(seeds) == 1 else "seeds"
        parts.append(f"With one run each ({noun} {' and '.join(seeds)}) they don't hold for other seeds.")
    parts.append("95 % CIs are of one comparison each; p is corrected for all of them (Holm).")
    parts += sentences.explain_small_samples(comparisons)
    return " ".join(parts)


def changed_options(results: Sequence[ModelResults]) -> dict[str, tuple[Any, Any]] | None:
    """Return the options that differ between the run and its baseline; None unless both are runs."""
    baseline = _baseline(results)
    return None if baseline is None else _changed(results[0].target, baseline)


def _baseline(results: Sequence[ModelResults]) -> EvalTarget | None:
    return next((model.target for model in results if model.target.role == "baseline"), None)


def _changed(main: EvalTarget, baseline: EvalTarget) -> dict[str, tuple[Any, Any]] | None:
    if not main.run or not baseline.run:
        return None
    return recipe_differences(main.saved_recipe(), baseline.saved_recipe())


def sweep_command(results: Sequence[ModelResults]) -> str | None:
    """Return the command that compares the run's alpha over seeds with the baseline's, by default alpha 0.

    None if the two differ in more than alpha and seed, or not in alpha.
    """
    main, baseline = results[0].target, _baseline(results)
    changed = changed_options(results)
    if main.run is None or (baseline is not None and changed is None):
        return None
    alphas = {main.recipe.neftune.alpha, 0.0 if baseline is None else baseline.recipe.neftune.alpha}
    run = main.run if main.recipe.neftune.alpha or baseline is None else baseline.run  # the run with noise
    return None if run is None else alpha_sweep_command(run.path, alphas, changed or ())


def remarks(
    results: Sequence[ModelResults], judged: JudgeScores | None, comparisons: Sequence[Comparison]
) -> Iterator[str]:
    """Yield what a reader of the numbers should know."""
    main, baseline = results[0], _baseline(results)
    if main.target.run and main.target.recipe.neftune.alpha and baseline is None and len(results) > 1:
        yield (
            "This shows the effect of fine-tuning. The effect of the noise needs the same recipe without noise: "
            "--baseline RUN compares two runs, a sweep over seeds compares the recipes."
        )
    if baseline:
        yield from describe_other_differences(main.target, baseline)
    for model in results[1:]:
        if not have_same_tokens(main, model):
            yield f"{model.target.name} has different tokens for these rows, so its loss is not compared."
    for model in results:
        truncated = sum(answer.truncated for answer in model.answers)
        if truncated > MANY_TRUNCATED * len(model.answers):
            limit = main.target.recipe.evaluation.generation.max_new_tokens
            were, counted = ("was", "counts") if truncated == 1 else ("were", "count")
            yield (
                f"{truncated} of {count_noun(len(model.answers), 'answer')} of {model.target.name} {were} truncated at "
                f"{count_noun(limit, 'token')}, and {counted} with that length; "
                "evaluation.generation.max_new_tokens sets the limit."
            )
    if main.tasks:
        from neftcli.evaluation.tasks import describe_settings  # imports torch

        settings = describe_settings(main.target.recipe.evaluation.task_settings)
        if settings:
            yield f"Benchmark tasks ran {settings}."
    if judged is not None:
        yield from judge_remarks(judged)
    yield from sentences.warn_of_length_bias(comparisons)
    yield from sentences.warn_of_skewness(comparisons)
    lower = {comparison.metric for comparison in comparisons if comparison.verdict == VerdictId.LOWER}
    if lower.intersection(REFERENCE_METRICS):
        yield (
            "ROUGE-L, BLEU and chrF measure similarity to the reference answers; lower is not worse: the paper found "
            "lower values with answers that were preferred."
        )


def selection_remarks(targets: Sequence[EvalTarget], source: RowsSource) -> Iterator[str]:
    """Name the runs whose weights were selected by a metric on these rows (training.keep: best)."""
    names: dict[str, list[str]] = {}
    for target in targets:
        if target.run is None:
            continue
        recipe = target.saved_recipe()
        is_held_out = bool(source.held_out_of) or source.name == recipe.data.held_out_source
        if recipe.training.keep == "best" and is_held_out:
            names.setdefault(recipe.training.best_metric, []).append(target.name)
    for metric, selected in names.items():
        yield (
            f"The {label(metric)} of {' and '.join(selected)} is optimistic: of the evaluations during training, the "
            f"one with the {superlative(metric)} on these rows selected the weights. --dataset FILE measures rows that "
            "selected none."
        )


def describe_other_differences(main: EvalTarget, baseline: EvalTarget) -> Iterator[str]:
    """Name the options besides noise in which two runs differ; if it is only the seed, the conclusion names it."""
    changed = _changed(main, baseline)
    if changed is None:
        return
    different = [
        f"{path} ({ours} and {theirs})"
        for path, (ours, theirs) in changed.items()
        if not path.startswith("neftune.") and path != "training.seed"
    ]
    if different:
        yield f"The two runs differ in more than noise and seed: {'; '.join(different)}."
    elif "training.seed" in changed and len(changed) > 1:
        ours, theirs = changed["training.seed"]
        yield f"The two runs also differ in training.seed ({ours} and {theirs}), which may cause a difference."


def judge_remarks(judged: JudgeScores) -> Iterator[str]:
    """Yield remarks on the judge's verdicts: unreadable ones, and those that depend on the order."""
    unreadable = sum("unparsed" in verdicts for verdicts in judged.verdicts)
    pairs = len(judged.verdicts)
    if unreadable == pairs:
        yield (
            "No verdict of the judge could be read, so there is no win rate. Its replies are in judge/verdicts.jsonl "
            "next to the runs; --judge-prompt changes the question, evaluation.judge.max_tokens allows longer replies."
        )
        return
    parsed = [verdicts for verdicts in judged.verdicts if "unparsed" not in verdicts]
    order_dependent = sum(first != second for first, second in parsed)
    if order_dependent:
        yield (
            f"The judge's verdict depended on the order in {order_dependent} of {count_noun(len(parsed), 'pair')}, "
            "counted as ties."
        )
    lengths = {length for length, score in zip(judged.lengths, judged.scores, strict=True) if score is not None}
    if len(lengths) == 1 and 0 not in lengths:
        yield "All pairs differ in length by the same amount, so the win rate at equal lengths can't be estimated."
    if bounds := win_rate_bounds(judged):
        yield sentences.describe_unreadable(bounds, pairs, unreadable)


def select_most_different(results: Sequence[ModelResults], rows: EvalRows, count: int) -> Iterator[SideBySide]:
    """Yield `count` prompts with all answers, those first whose two answers are least similar."""
    if not results[0].answers or not count:
        return
    other = results[1] if len(results) > 1 else results[0]
    similarities = [
        similarity(ours.text, theirs.text) for ours, theirs in zip(results[0].answers, other.answers, strict=True)
    ]
    by_similarity = sorted(range(len(similarities)), key=lambda index: (similarities[index], index))
    for index in by_similarity[:count]:
        example = rows.examples[index]
        reference = split_prompt_and_reference(example)[1]
        yield SideBySide(instruction(example), reference, tuple(model.answers[index].text for model in results))


def write_report(
    report: EvaluationReport,
    results: Sequence[ModelResults],
    judged: JudgeScores | None,
    rows: EvalRows,
    folder: Path,
    *,
    export: Export | None,
) -> None:
    """Write report.json, examples.jsonl and the file of an export."""
    settings = results[0].target.recipe.evaluation
    content = {**asdict(report), "settings": asdict(settings), "definitions": signatures()}
    atomic_write(folder / "report.json", json.dumps(replace_non_finite(content), indent=2, ensure_ascii=False) + "\n")
    lines = [_example_line(results, judged, rows, index) for index in range(len(rows.examples))]
    atomic_write(folder / "examples.jsonl", "".join(map(format_json_line, lines)))
    if export is not None:
        exported = export.build(results[0], rows)
        atomic_write(folder / export.file, json.dumps(exported, indent=2, ensure_ascii=False) + "\n")


def _example_line(
    results: Sequence[ModelResults], judged: JudgeScores | None, rows: EvalRows, index: int
) -> dict[str, Any]:
    """Return all results of a row, as a line of examples.jsonl."""
    example = rows.examples[index]
    prompt, reference = split_prompt_and_reference(example)
    line: dict[str, Any] = {"location": example.location, "prompt": prompt, "reference": reference or None}
    for model in results:
        values: dict[str, Any] = {}
        if (loss := model.losses[index]) is not None:
            values = {"negative_log_likelihood": loss.negative_log_likelihood, "loss_tokens": loss.tokens}
            values["correct_tokens"] = loss.correct
        if model.answers:
            answer = model.answers[index]
            values |= {"answer": answer.text, "answer_tokens": answer.tokens, "truncated": answer.truncated}
            values |= asdict(model.metrics[index])
        line[model.target.role] = values
    if judged is not None:
        line["judge"] = {
            "against": judged.against,
            "score": judged.scores[index],
            "verdicts": judged.verdicts[index],
            "length_matched": judged.matched[index],
            "length_difference": judged.lengths[index],
        }
    return line

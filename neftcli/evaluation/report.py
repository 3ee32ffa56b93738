"""What is said and written beside the numbers: remarks, answers side by side, the files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.data.formats import Example
from neftcli.data.tokens import prompt_and_reference
from neftcli.evaluation.comparison import same_tokens
from neftcli.evaluation.metrics import signatures, similarity
from neftcli.evaluation.tasks import described
from neftcli.events import Comparison, EvaluationReport, SideBySide
from neftcli.recipe.loading import differences
from neftcli.runs.directory import finite, json_line, write_whole

if TYPE_CHECKING:
    from neftcli.evaluation.comparison import Scores
    from neftcli.evaluation.measure import Results
    from neftcli.evaluation.rows import Rows
    from neftcli.evaluation.subjects import Subject

OFTEN_CUT = 0.05
DECIDES = "Intervals are of one comparison each; p is corrected for all of them, and decides."
REFERENCE_METRICS = ("ROUGE-L", "BLEU", "chrF")


def scope(results: Sequence[Results]) -> str:
    """What the intervals and verdicts are about."""
    examples = f"these {len(results[0].losses)} examples"
    runs = [one.subject.recipe.training.seed for one in results if one.subject.run]
    if len(results) == 1:
        return f"Intervals are over {examples}: what others of their kind would give."
    if len(runs) < 2:
        return f"Verdicts are over {examples}: what others of their kind would give, for these models. {DECIDES}"
    seeds = f"seed {runs[0]}" if len(set(runs)) == 1 else f"seeds {runs[0]} and {runs[1]}"
    return f"Verdicts are over {examples}, one run of each ({seeds}): they say nothing of other seeds. {DECIDES}"


def remarks(results: Sequence[Results], judged: Scores | None, comparisons: Sequence[Comparison]) -> Iterator[str]:
    """What a person should know to read the numbers."""
    main = results[0]
    baseline = next((one for one in results if one.subject.role == "baseline"), None)
    alpha = main.subject.recipe.neftune.alpha
    if main.subject.run and alpha and baseline is None and len(results) > 1:
        yield (
            "This shows what fine-tuning did. What the noise did shows only beside the same recipe without it: "
            "--baseline RUN, with alpha 0 and the same seed."
        )
    if baseline:
        yield from other_differences(main.subject, baseline.subject)
    for one in results[1:]:
        if not same_tokens(main, one):
            yield f"{one.subject.name} reads the rows as other tokens, so its loss is not compared."
    for one in results:
        cut = sum(answer.cut for answer in one.answers)
        if cut > OFTEN_CUT * len(one.answers):
            limit = main.subject.recipe.evaluation.generation.max_new_tokens
            yield (
                f"{cut} of {len(one.answers)} answers of {one.subject.name} were cut at {limit} tokens, and count as "
                "that long; evaluation.generation.max_new_tokens sets the limit."
            )
    if how := main.tasks and described(main.subject.recipe.evaluation.task_settings):
        yield f"Benchmark tasks ran {how}."
    if judged is not None:
        yield _judged(judged)
    if any(one.metric in REFERENCE_METRICS and one.verdict == "lower" for one in comparisons):
        yield (
            "ROUGE-L, BLEU and chrF measure nearness to the reference answers; lower is not worse: the paper found it "
            "where the answers were preferred."
        )


def other_differences(main: Subject, baseline: Subject) -> Iterator[str]:
    """Says where two runs differ in more than their noise."""
    if not main.run or not baseline.run:
        return
    found = differences(main.saved_recipe(), baseline.saved_recipe())
    others = [
        f"{path} {ours} and {theirs}" for path, (ours, theirs) in found.items() if not path.startswith("neftune.")
    ]
    if others:
        yield f"The two runs differ in more than the noise: {'; '.join(others)}."
    elif not found:
        yield "Both runs have the same recipe."


def instruction(example: Example) -> str:
    """What is asked, for a judge, a leaderboard and a person; turns with who says them where there are several."""
    return example.transcript() if example.turns else prompt_and_reference(example)[0]


def _judged(judged: Scores) -> str:
    unparsed = sum("unparsed" in verdicts for verdicts in judged.verdicts)
    if unparsed == len(judged.verdicts):
        return (
            "No verdict of the judge could be read, so there is no win rate: its replies are in judge/verdicts.jsonl "
            "beside the runs; --judge-prompt asks in other words, evaluation.judge.max_tokens allows longer replies."
        )
    parsed = [verdicts for verdicts in judged.verdicts if "unparsed" not in verdicts]
    split = sum(first != second for first, second in parsed)
    return (
        f"The judge's verdict depended on the order in {split} of {len(parsed)} pairs (ties, then); {unparsed} pairs "
        "had a verdict that could not be read or was refused, and are left out."
    )


def most_different(results: Sequence[Results], rows: Rows, count: int) -> Iterator[SideBySide]:
    """`count` prompts with all answers, those first whose answer is least like the one compared with."""
    if not results[0].answers or not count:
        return
    other = results[1] if len(results) > 1 else results[0]
    likeness = [
        similarity(ours.text, theirs.text) for ours, theirs in zip(results[0].answers, other.answers, strict=True)
    ]
    for place in sorted(range(len(likeness)), key=lambda place: (likeness[place], place))[:count]:
        example = rows.examples[place]
        reference = prompt_and_reference(example)[1]
        yield SideBySide(instruction(example), reference, tuple(one.answers[place].text for one in results))


def write(
    report: EvaluationReport,
    results: Sequence[Results],
    judged: Scores | None,
    rows: Rows,
    folder: Path,
    *,
    export: bool,
) -> None:
    """Writes report.json, examples.jsonl and, if wanted, model_outputs.json."""
    settings = results[0].subject.recipe.evaluation
    content = {**asdict(report), "settings": asdict(settings), "definitions": signatures()}
    write_whole(folder / "report.json", json.dumps(finite(content), indent=2, ensure_ascii=False) + "\n")
    lines = [_line(results, judged, rows, place) for place in range(len(rows.examples))]
    write_whole(folder / "examples.jsonl", "".join(map(json_line, lines)))
    if export:
        outputs = _outputs(results[0], rows)
        write_whole(folder / "model_outputs.json", json.dumps(outputs, indent=2, ensure_ascii=False) + "\n")


def _line(results: Sequence[Results], judged: Scores | None, rows: Rows, place: int) -> dict[str, Any]:
    """All that is known of one example."""
    example = rows.examples[place]
    prompt, reference = prompt_and_reference(example)
    line: dict[str, Any] = {"where": example.where, "prompt": prompt, "reference": reference or None}
    for one in results:
        found: dict[str, Any] = {}
        if (loss := one.losses[place]) is not None:
            found = {"negative_log_likelihood": loss.negative_log_likelihood, "loss_tokens": loss.tokens}
            found["correct_tokens"] = loss.correct
        if one.answers:
            answer = one.answers[place]
            found |= {"answer": answer.text, "answer_tokens": answer.tokens, "cut": answer.cut}
            found |= asdict(one.metrics[place])
        line[one.subject.role] = found
    if judged is not None:
        line["judge"] = {
            "against": judged.against,
            "score": judged.scores[place],
            "verdicts": judged.verdicts[place],
            "like_length": judged.matched[place],
        }
    return line


def _outputs(main: Results, rows: Rows) -> list[dict[str, str]]:
    """The answers in the form that AlpacaEval reads as `model_outputs`."""
    return [
        {
            "dataset": rows.label,
            "instruction": instruction(example),
            "output": answer.text,
            "generator": main.subject.name,
        }
        for example, answer in zip(rows.examples, main.answers, strict=True)
    ]

"""The sentences of a report.

Oracle: a checker that reads every sentence and computes each of its claims again from the comparisons, over 200 drawn
situations.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np
import pytest

from neftcli.evaluation.sentences import (
    conclusion,
    describe_unreadable,
    explain_small_samples,
    warn_of_length_bias,
    warn_of_skewness,
)
from neftcli.events import Comparison, EvaluatedModel, MetricRow, ModelSource, VerdictId
from neftcli.metrics.registry import Direction, label
from neftcli.statistics.multiple import holm_adjust, name_direction, name_verdict
from neftcli.statistics.paired import paired_difference

DIRECTIONS: dict[str, Direction] = {
    "held_out_loss": "lower",
    "token_accuracy": "higher",
    "exact_match": "higher",
    "win_rate": "higher",
    "win_rate_matched": "higher",
    "win_rate_length_controlled": "higher",
    "arc_easy/acc": "higher",
    "answer_tokens": "none",
    "repetition_2": "none",
}
POINTS = {name for name in DIRECTIONS if name not in ("held_out_loss", "answer_tokens")}
IDS = {label(metric): metric for metric in DIRECTIONS}
NAME = "|".join(sorted(map(re.escape, IDS), key=len, reverse=True))
NUMBER = r"[+-][0-9.e+-]+(?: points)?"
CLAIM = re.compile(
    rf"(?:(?P<word>lower|higher) )?(?P<metric>{NAME}) \((?:(?P<difference>{NUMBER}), )?"
    rf"(?:95 % CI (?P<low>{NUMBER}) to (?P<high>{NUMBER}), )?p (?P<sign>[=<]) (?P<p>[0-9.]+)\)"
)
DESCRIPTIVE = ("win_rate", "win_rate_matched")
"""Never tested: they count the same pairs as the win rate that is tested."""
OPTIONS = ("training.seed", "neftune.alpha", "neftune.kind", "training.learning_rate")


@dataclass(frozen=True)
class Situation:
    """A drawn report: its models, metrics, comparisons, and the options in which the two runs differ."""

    models: tuple[EvaluatedModel, ...]
    metrics: tuple[MetricRow, ...]
    comparisons: tuple[Comparison, ...]
    changed: frozenset[str] | None

    def are_runs(self, role: str) -> bool:
        """Return whether both models of a comparison are runs."""
        return role == "baseline" and self.changed is not None

    def word(self, comparison: Comparison) -> str:
        """Return the claim that the numbers support."""
        if comparison.p_adjusted is None:
            return "not_tested"
        if comparison.p_adjusted >= 0.05 or not comparison.difference:
            return "not_significant"
        grows = comparison.difference > 0
        if self.are_runs(comparison.against) or DIRECTIONS[comparison.metric] == "none":
            return "higher" if grows else "lower"
        return "better" if grows == (DIRECTIONS[comparison.metric] == "higher") else "worse"


def situation(seed: int) -> Situation:
    """Draw models, metrics, p-values, intervals and prompts, a few without a test."""
    generator = np.random.default_rng(seed)
    baseline = EvaluatedModel("baseline", "mine-a0-s1", ModelSource("run", "runs/mine-a0-s1"), 0.0, 1)
    base = EvaluatedModel("base", "smollm2-135m", ModelSource("folder", "a folder"))
    others = [[baseline, base], [baseline], [base]][generator.integers(3)]
    metrics = [name for name in DIRECTIONS if generator.random() < 0.7] or ["held_out_loss"]
    changed = frozenset(option for option in OPTIONS if generator.random() < 0.4) if generator.random() < 0.8 else None
    comparisons = []
    few = generator.random() < 0.1
    for other in others:
        runs = other.role == "baseline" and changed is not None
        for name in (name for name in metrics if generator.random() < 0.9):
            n = int(generator.integers(1, 6) if few or generator.random() < 0.1 else generator.integers(6, 200))
            difference = float(generator.choice([0.0, *generator.normal(0, 0.1, 9)]))
            half = float(abs(generator.normal(0, 0.1)))
            has_ends = n >= 6 and generator.random() < 0.9
            tested = n >= 6 and name not in DESCRIPTIVE
            p = float(generator.choice([1e-4, generator.random() * 0.05, generator.random()])) if tested else None
            words = name_direction(p, difference) if runs else name_verdict(p, difference, DIRECTIONS[name])
            comparisons.append(
                Comparison(
                    metric=name,
                    against=other.role,
                    difference=difference,
                    low=difference - half if has_ends else None,
                    high=difference + half if has_ends else None,
                    p=p,
                    p_adjusted=p,
                    n=n,
                    detectable=None,
                    verdict=words,
                    true_level=float(generator.choice([0.05, 0.0651, 0.13])) if tested else None,
                )
            )
    rows = tuple(MetricRow(name, "", DIRECTIONS[name], ()) for name in metrics)
    run = EvaluatedModel("run", "mine-a5-s0", ModelSource("run", "runs/mine-a5-s0"), 5.0, 0)
    return Situation((run, *others), rows, tuple(comparisons), changed)


def read(metric: str, number: str) -> float:
    assert number.endswith(" points") == (metric in POINTS)
    return float(number.removesuffix(" points")) / (100 if metric in POINTS else 1)


def claims(text: str, drawn: Situation, role: str, word: str | None) -> set[tuple[str, str, str]]:
    """Return the claims of a list of metrics with numbers; check each number, and that the text has nothing else."""
    rest, stated = text, set()
    for found in CLAIM.finditer(text):
        [comparison] = [
            each for each in drawn.comparisons if (each.metric, each.against) == (IDS[found["metric"]], role)
        ]
        resolution = 0.00051 if comparison.metric in POINTS else 0.000051
        numbers = {"difference": comparison.difference, "low": comparison.low, "high": comparison.high}
        for name, number in numbers.items():
            if found[name] is not None:
                assert number is not None
                assert read(comparison.metric, found[name]) == pytest.approx(number, abs=resolution)
        assert (found["low"] is None) == (comparison.low is None)
        assert comparison.p_adjusted is not None
        if found["sign"] == "<":
            assert comparison.p_adjusted < float(found["p"])
        else:
            assert float(found["p"]) == pytest.approx(comparison.p_adjusted, abs=0.00051)
        claimed = word or found["word"]
        assert (found["difference"] is None) == (claimed == "not_significant")
        stated.add((role, comparison.metric, claimed))
        rest = rest.replace(found[0], "", 1)
    assert re.fullmatch(r"[, ]*", rest), rest
    return stated


def check_sentences(drawn: Situation, sentences: list[str]) -> set[tuple[str, str, str]]:
    """Return every claim of the sentences, each checked separately."""
    claimed: set[tuple[str, str, str]] = set()
    by_name = {model.name: model.role for model in drawn.models}
    for sentence in sentences:
        if found := re.fullmatch(r"Nothing is tested: (\d+) prompts? (?:is|are) too few, a test needs 6\.", sentence):
            could_be = [comparison for comparison in drawn.comparisons if comparison.metric not in DESCRIPTIVE]
            assert {comparison.p_adjusted for comparison in could_be} == {None}
            assert int(found[1]) == max(comparison.n for comparison in could_be) < 6
            assert len(sentences) == 1
            return {(comparison.against, comparison.metric, "not_tested") for comparison in could_be}
        if found := re.fullmatch(r"These two runs differ: (\S+) has (.*) than (\S+)\.", sentence):
            assert drawn.are_runs(by_name[found[3]])
            assert found[1] == drawn.models[0].name
            claimed |= claims(found[2], drawn, by_name[found[3]], None)
        elif found := re.fullmatch(r"Not significant between (\S+) and (\S+): (.*)\.", sentence):
            assert drawn.are_runs(by_name[found[2]])
            claimed |= claims(found[3], drawn, by_name[found[2]], "not_significant")
        elif found := re.fullmatch(r"Against (\S+) (\S+): (.*)\.", sentence):
            assert by_name[found[2]] == found[1]
            assert not drawn.are_runs(found[1])
            for part in found[3].split("; "):
                word, listed = part.split(" in ", 1)
                assert word in ("better", "worse", "not significant")
                claimed |= claims(listed, drawn, found[1], word.replace(" ", "_"))
        elif found := re.fullmatch(r"Not tested against (\S+), with fewer than 6 prompts: (.*)\.", sentence):
            for metric, n in re.findall(rf"({NAME}) \((\d+)\)", found[2]):
                [comparison] = [
                    each
                    for each in drawn.comparisons
                    if (each.metric, each.against) == (IDS[metric], by_name[found[1]])
                ]
                assert comparison.n == int(n) < 6
                claimed.add((comparison.against, comparison.metric, "not_tested"))
        else:
            changed = drawn.changed
            assert changed is not None
            differ = any(word in ("lower", "higher") for role, _, word in claimed if role == "baseline")
            expected = {
                "Both runs have the same recipe: a difference shows what training twice changes.": not changed,
                "Only training.seed differs (0 and 1): a difference shows what the seed changes.": (
                    changed == {"training.seed"}
                ),
                "One run each can't show that the alpha caused it: a different seed would also change them.": (
                    differ and "neftune.alpha" in changed and "training.learning_rate" not in changed
                ),
                "One run each can't show that the noise caused it: a different seed would also change them.": (
                    differ and "neftune.kind" in changed and not changed & {"neftune.alpha", "training.learning_rate"}
                ),
                "One run each can't show that the recipe caused it: a different seed would also change them.": (
                    differ and "training.learning_rate" in changed
                ),
            }
            assert expected[sentence], f"a sentence that the numbers don't support: {sentence}"
    return claimed


def test_conclusion_in_200_drawn_situations() -> None:
    kinds = set()
    for seed in range(200):
        drawn = situation(seed)
        sentences = list(conclusion(drawn.models, drawn.metrics, drawn.comparisons, drawn.changed))
        claimed = check_sentences(drawn, sentences)
        could_be = [comparison for comparison in drawn.comparisons if comparison.metric not in DESCRIPTIVE]
        nothing = all(comparison.p_adjusted is None for comparison in could_be)
        stated = [comparison for comparison in could_be if nothing or DIRECTIONS[comparison.metric] != "none"]
        assert claimed == {(comparison.against, comparison.metric, drawn.word(comparison)) for comparison in stated}, (
            seed,
            sentences,
        )
        assert all(drawn.word(comparison) in (comparison.verdict, "not_tested") for comparison in drawn.comparisons)
        of_runs = [comparison for comparison in stated if drawn.are_runs(comparison.against)]
        differ = any(drawn.word(comparison) in ("lower", "higher") for comparison in of_runs)
        assert differ == any(sentence.startswith("These two runs differ") for sentence in sentences)
        runs = any(drawn.are_runs(model.role) for model in drawn.models[1:]) and not (nothing and could_be)
        seeds_only = runs and not (drawn.changed or frozenset()) - {"training.seed"}
        reasons = [sentence for sentence in sentences if sentence.startswith(("Both", "Only", "One run"))]
        assert len(reasons) == (seeds_only or differ)
        kinds |= {sentence.partition(" ")[0] for sentence in sentences}
    assert kinds == {"Nothing", "These", "Not", "Against", "Both", "Only", "One"}


def test_warn_of_skewness_in_200_drawn_situations() -> None:
    for seed in range(200):
        drawn = situation(seed)
        skewed = [
            comparison
            for comparison in drawn.comparisons
            if (comparison.true_level or 0) > 0.065 and comparison.verdict not in ("not_tested", "not_significant")
        ]
        lines = list(warn_of_skewness(drawn.comparisons))
        assert bool(lines) == bool(skewed)
        for line in lines:
            found = re.findall(rf"({NAME}) against (base|baseline) \((\d+) %\)", line)
            assert [
                (label(comparison.metric), comparison.against, f"{100 * (comparison.true_level or 0):.0f}")
                for comparison in skewed
            ] == found
            assert line.endswith("would have p < 0.05, not 5 %.")


def test_check_sentences_rejects_an_unknown_sentence() -> None:
    drawn = situation(0)
    with pytest.raises((KeyError, AssertionError)):
        check_sentences(drawn, ["Alpha 5 is the better one."])


@pytest.mark.parametrize(
    ("low", "controlled", "warns"), [(0.02, 0.2, True), (0.02, 0.01, False), (-0.01, 0.2, False), (0.02, None, True)]
)
def test_warn_of_length_bias(low: float, controlled: float | None, warns: bool) -> None:
    raw = Comparison("win_rate", "baseline", 0.1, low, 0.2, None, None, 60, None, VerdictId.NOT_TESTED)
    at_equal_lengths = replace(
        raw, metric="win_rate_length_controlled", p_adjusted=controlled, verdict=name_verdict(controlled, 0.1, "higher")
    )
    assert bool(list(warn_of_length_bias([raw, at_equal_lengths]))) == warns
    assert bool(list(warn_of_length_bias([raw]))) == (low > 0)


@pytest.mark.parametrize(("prompts", "explained"), [(6, True), (7, False)])
def test_explain_small_samples_number_of_prompts(prompts: int, explained: bool) -> None:
    """Three models are compared by the test itself; each prompt is better by a different amount."""
    differences = [paired_difference(np.zeros(prompts), np.arange(1, prompts + 1) * scale) for scale in (1, 2, 3)]
    adjusted = holm_adjust(
        [comparison.p or 0 for comparison in differences], [comparison.smallest_p for comparison in differences]
    )
    comparisons = [
        Comparison(
            metric="held_out_loss",
            against=role,
            difference=comparison.value,
            low=comparison.low,
            high=comparison.high,
            p=comparison.p,
            p_adjusted=p,
            n=comparison.n,
            detectable=comparison.detectable,
            verdict=name_verdict(p, comparison.value, "lower"),
            smallest_p=comparison.smallest_p,
        )
        for role, comparison, p in zip(("baseline", "base", "model"), differences, adjusted, strict=True)
    ]
    assert all(comparison.low is not None and comparison.low > 0 for comparison in comparisons)
    assert {comparison.p_adjusted == 1 for comparison in comparisons} == {explained}
    assert list(explain_small_samples(comparisons)) == explained * [
        "p is 1 for differences that can't be significant at this size (6 prompts), even if their CI excludes 0. The "
        "3 comparisons in held-out loss need at least 7 prompts that differ."
    ]


def test_explain_small_samples_names_the_metrics_of_each_correction() -> None:
    """One sentence for both: metrics with a better direction, and descriptive ones."""
    names = ["held_out_loss", "token_accuracy", "answer_tokens", "answer_characters", "bleu", "chrf", "rouge_l"]
    drawn = [
        Comparison(name, "base", 1.0, 0.5, 1.5, 0.03, 1.0, 6, None, VerdictId.NOT_SIGNIFICANT, smallest_p=2.0**-5)
        for name in names
    ]
    assert list(explain_small_samples(drawn)) == [
        "p is 1 for differences that can't be significant at this size (6 prompts), even if their CI excludes 0. The "
        "2 comparisons in held-out loss and token accuracy need at least 7 prompts that differ; the 5 comparisons in "
        "answer tokens, answer characters, BLEU and 2 other metrics need at least 8 prompts that differ."
    ]


def test_describe_unreadable() -> None:
    assert describe_unreadable((0.41, 0.63), 50, 11) == (
        "11 of 50 pairs had no readable verdict, or the server rejected the question; they are left out. The win rate "
        "would be 41.0 % if all of them were lost, and 63.0 % if all were won."
    )

"""A checker of a sweep's conclusion: each line must be known, and each claim is recomputed from numbers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pytest

from neftcli.events import ArmResult, Comparison, ScopeId, VerdictId
from neftcli.metrics.registry import HELD_OUT_LOSS, is_share, label
from neftcli.statistics.crossed import ArmDifference, compare_arms, margin_of_error
from neftcli.statistics.paired import LEVEL, RESAMPLES, SKEWNESS_THRESHOLD
from neftcli.statistics.planning import required_sizes
from neftcli.sweep.early_stopping import FUTILITY, SUCCESS, Stopped
from neftcli.sweep.plan import Arm, baseline_of
from neftcli.sweep.results import WIN_RATES, SweepResults
from neftcli.sweep.verdict import Verdict

GIVEN = r"\((?P<numbers>[^()]*)\)"
FEW_RESAMPLES = 100
"""Resamples if no p is needed; spreads and skewness don't depend on them."""
AMOUNT = r"[+-]?[\d.]+(?:e[+-]\d+)?(?: points)?"
PAPER = (
    "The paper found its gains in the answers and hardly in the loss: --metric win_rate_length_controlled --judge URL "
    "tests them."
)
ONE_SEED = "Nothing is recommended: one seed can't show how results vary between seeds; use two or more."
NO_COMMON = "Nothing is recommended: the arms to choose from have no seed, or no prompt, in common."


def read(text: str) -> float:
    """Return an amount as a number in the metric's unit."""
    return float(text.removesuffix(" points")) * (0.01 if text.endswith(" points") else 1)


def near(metric: str, value: float) -> object:
    """Return the range of a rounded amount of the metric."""
    return pytest.approx(value, abs=6e-4 if is_share(metric) else 6e-5)


def check_numbers(text: str, difference: float, low: float | None, high: float | None, p: float | None) -> None:
    """Check the difference, interval and p of a sentence within their rounding."""
    scale, half = (0.01, 6e-4) if "points" in text else (1.0, 6e-5)
    estimates, _, p_text = text.rpartition(", p ")
    numbers = [scale * float(number) for number in re.findall(r"[+-][\d.]+(?:e[+-]\d+)?", estimates)]
    expected = [difference] if low is None or high is None else [difference, low, high]
    if not text.startswith(("+", "-")):  # an interval alone
        del expected[0]
    assert numbers == pytest.approx(expected, abs=half)
    assert p is not None
    assert p < 0.001 if p_text == "< 0.001" else float(p_text.removeprefix("= ")) == pytest.approx(p, abs=6e-4)


def arms_in(line: str) -> dict[str, str]:
    """Return the name of each arm of a listing to the text in its brackets."""
    listing = line.split(": ", 1)[1].removesuffix(".")
    return {part.split(" (")[0]: part.partition(" (")[2].removesuffix(")") for part in listing.split("; ")}


def of_metric(arms: Sequence[ArmResult], metric: str) -> dict[str, Comparison]:
    """Return the name of each arm that is compared in a metric to its comparison."""
    return {arm.name(): comparison for arm in arms for comparison in arm.comparisons if comparison.metric == metric}


def check_sentences(
    verdict: Verdict,
    results: SweepResults,
    better: Mapping[str, str],
    *,
    delta: float | None = None,
    stopped: Sequence[Stopped] = (),
    dropped: Mapping[Arm, int] = MappingProxyType({}),
) -> Counter[str]:
    """Recompute each claim of the conclusion; an unknown or unsupported line is an error.

    Args:
        verdict: The verdict.
        results: The results.
        better: Metric to its good direction, the first metric first.
        delta: Smallest effect of interest.
        stopped: Groups that stopped early.
        dropped: Arms that were dropped, and after how many seeds.

    Returns:
        Kind of sentence to the number that was checked.
    """
    return _Checker(verdict, results, better, delta, stopped, dropped).check()


class _Checker:
    def __init__(
        self,
        verdict: Verdict,
        results: SweepResults,
        better: Mapping[str, str],
        delta: float | None,
        stopped: Sequence[Stopped],
        dropped: Mapping[Arm, int],
    ) -> None:
        self.verdict, self.results, self.better, self.delta = verdict, results, better, delta
        self.stopped = [stop for stop in stopped if results.evaluated_seeds(stop.baseline) < stop.planned]
        self.dropped = dropped
        self.first = next(iter(better))
        self.first_label = label(self.first)
        self.left = list(verdict.conclusion)
        self.checked: Counter[str] = Counter()
        self.by_arm = dict(zip(results.arms, verdict.arms, strict=True))

    def check(self) -> Counter[str]:
        for metric in self.better:
            self._verdict_words(metric)
            self._listings(metric)
            self._of_these_seeds(metric)
            self._not_significant(metric)
            self._not_compared(metric)
        futile = self._stops()
        self._not_recommended()
        self._recommendations(futile)
        self._warnings()
        self._plan(futile)
        found = any(row.comparisons for row in self.verdict.arms)
        self._expect(
            "paper", [PAPER] if found and self.first == HELD_OUT_LOSS and not {*self.better} & {*WIN_RATES} else []
        )
        assert self.left == [], f"sentences that the numbers don't support: {self.left}"
        return self.checked

    def _take(self, kind: str, start: str) -> list[str]:
        """Remove and return the lines that begin like this."""
        lines = [line for line in self.left if line.startswith(start)]
        self.left = [line for line in self.left if line not in lines]
        self.checked[kind] += len(lines)
        return lines

    def _expect(self, kind: str, lines: Sequence[str]) -> None:
        """Remove these lines, each of which must occur once."""
        for line in lines:
            assert self.left.count(line) == 1, (line, self.left)
            self.left.remove(line)
            self.checked[kind] += 1

    def _verdict_words(self, metric: str) -> None:
        for one in of_metric(self.verdict.arms, metric).values():
            if one.low is not None and one.high is not None:
                assert (one.low > 0 or one.high < 0) == (one.p is not None and one.p < LEVEL)
            significant = one.p_adjusted is not None and one.p_adjusted < LEVEL
            assert (one.verdict in ("better", "worse")) == (one.scope == ScopeId.NEW_SEEDS and significant)
            good = (one.difference < 0) == (self.better[metric] == "lower")
            assert one.verdict not in ("better", "worse") or good == (one.verdict == "better")
            if one.verdict in ("lower", "higher"):
                assert (one.difference < 0) == (one.verdict == "lower")

    def _listings(self, metric: str) -> None:
        compared = of_metric(self.verdict.arms, metric)
        for word in ("better", "worse"):
            lines = self._take(word, f"{word.capitalize()} than alpha 0 in {label(metric)}, for new seeds: ")
            listed = arms_in(lines[0]) if lines else {}
            assert len(lines) <= 1
            assert set(listed) == {name for name, one in compared.items() if one.verdict == word}
            for name, text in listed.items():
                one = compared[name]
                check_numbers(text, one.difference, one.low, one.high, one.p_adjusted)
        none = bool(compared) and all(one.verdict != "better" for one in compared.values())
        self._expect("none", [f"No alpha is shown to be better than alpha 0 in {label(metric)} for new seeds."] * none)

    def _of_these_seeds(self, metric: str) -> None:
        for word in ("lower", "higher"):
            for name, one in of_metric(self.verdict.arms, metric).items():
                seeds = "this one seed" if one.seeds == 1 else f"these {one.seeds} seeds"
                lines = self._take("these seeds", f"{word.capitalize()} {label(metric)} with {name} for {seeds} (")
                assert len(lines) == (one.verdict == word)
                for line in lines:
                    first, *rest = re.findall(
                        GIVEN, line.removeprefix(f"{word.capitalize()} {label(metric)} with {name}")
                    )
                    these = one.these_seeds or one  # with one seed the comparison is of it
                    check_numbers(first, one.difference, these.low, these.high, these.p_adjusted)
                    assert these.p_adjusted is not None
                    assert these.p_adjusted < LEVEL
                    assert bool(rest) == (one.these_seeds is not None) == (not line.endswith("one seed can't show it."))
                    for wide in rest:
                        check_numbers(wide, one.difference, one.low, one.high, one.p_adjusted)
                    assert "; not shown for new seeds" in line

    def _not_significant(self, metric: str) -> None:
        compared = of_metric(self.verdict.arms, metric)
        lines = self._take("not significant", f"Not significant in {label(metric)}: ")
        listed = arms_in(lines[0]) if lines else {}
        assert len(lines) <= 1
        assert set(listed) == {name for name, one in compared.items() if one.verdict == VerdictId.NOT_SIGNIFICANT}
        for name, text in listed.items():
            one = compared[name]
            if one.low is None or one.high is None:
                assert text == ""
                continue
            if text == "no prompt differs":
                assert one.low == one.high == one.difference == 0
                continue
            found = re.fullmatch(rf"95 % CI excludes (?:any gain|a gain over ({AMOUNT}))( for this seed)?", text)
            assert found, text
            gain = -one.low if self.better[metric] == "lower" else one.high
            excluded = 0.0 if found[1] is None else read(found[1])
            assert excluded == pytest.approx(max(0.0, gain), rel=0.06, abs=6e-4 if is_share(metric) else 6e-5)
            assert (found[2] is not None) == (one.scope == ScopeId.THESE_SEEDS)

    def _not_compared(self, metric: str) -> None:
        missing = {row.name() for row in self.verdict.arms if row.alpha}
        missing -= set(of_metric(self.verdict.arms, metric))
        named: list[str] = []
        for line in self._take("not compared", f"Not compared in {label(metric)}: "):
            found = re.fullmatch(r"(.*) \((.*)\)\.", line.split(": ", 1)[1])
            assert found
            for name in found[1].split("; "):
                arm = next(arm for arm in self.results.arms if arm.name() == name)
                (values, _), _ = self.results.shared(metric, [baseline_of(arm), arm])
                fewer = "fewer than 6 prompts have a value in every seed"
                assert found[2] == (fewer if len(values) else "no seed is finished both with noise and without")
                named.append(name)
        assert sorted(named) == sorted(missing)
        noised = any(row.alpha for row in self.verdict.arms)
        self._expect("nothing", [f"Nothing could be compared in {label(metric)}: no arm has noise."] * (not noised))

    def _stops(self) -> list[Arm]:
        """Check the sentences about early stopping; return the baselines whose stop for futility is stated."""
        futile = []
        for stop in self.stopped:
            look = f"Stopped early by a look after {stop.seeds} of {stop.planned} seeds"
            later = f"{look}; the verdict uses all results."
            where = f" with {stop.baseline.label()}" if stop.baseline.grid else ""
            if self.results.evaluated_seeds(stop.baseline) > stop.seeds and later in self.left:
                self._expect("stop that later seeds contradict", [later])
                continue
            [line] = self._take(f"stop for {stop.reason}", f"Stopped early{where}, after {stop.seeds} of ")
            self._stop(stop, line.partition(": ")[2])
            if stop.reason == "futility":
                futile.append(stop.baseline)
        return futile

    def _stop(self, stop: Stopped, claim: str) -> None:
        """Recompute the claim of a stop from the seeds of its look."""
        sign = -1.0 if self.better[self.first] == "lower" else 1.0
        noised = [arm for arm in self.results.arms if arm.alpha]
        looked_at = [arm for arm in noised if baseline_of(arm) == stop.baseline]
        looked_at = [arm for arm in looked_at if self.dropped.get(arm, stop.seeds) >= stop.seeds]
        group = [arm for arm in looked_at if arm not in self.dropped]
        found = self._compare(stop.baseline, looked_at, stop.seeds)
        if found_success := re.fullmatch(
            rf"(.*) is better than alpha 0 by ({AMOUNT}) in {self.first_label}, at the level for stopping early "
            r"\(p < 0\.001 after correction\)\.",
            claim,
        ):
            [arm] = [arm for arm in group if arm.name() == found_success[1]]
            assert stop.reason == "success"
            assert read(found_success[2]) == near(self.first, sign * found[arm].value)
            new_seeds = found[arm].new_seeds
            assert new_seeds is not None
            assert new_seeds.p * len(noised) < SUCCESS == 0.001
        elif claim == f"no alpha is left, each was worse than the leading arm, at last alpha 0, in {self.first_label}.":
            assert group == []
            assert stop.reason == "futility"
        else:
            text = rf"for every arm left, a gain over ({AMOUNT}) in {self.first_label} is excluded \(95 %\)\."
            excluded = re.fullmatch(text, claim)
            assert excluded, claim
            assert self.delta is not None
            assert read(excluded[1]) == near(self.first, self.delta)
            assert group
            for one in (found[arm] for arm in group):
                assert one.components is not None
                assert sign * one.value + margin_of_error(one.components, one.seeds, one.n, FUTILITY) < self.delta

    def _compare(self, baseline: Arm, arms: Sequence[Arm], seeds: int | None = None) -> dict[Arm, ArmDifference]:
        """Compare the arms with their baseline in the first metric, by their first seeds."""
        if not arms:
            return {}
        found = compare_arms(
            self.results.values(self.first, baseline)[:seeds],
            [self.results.values(self.first, arm)[:seeds] for arm in arms],
            self.results.weights(self.first, baseline),
            prompts=self.results.prompts(self.first),
            resamples=max(RESAMPLES, math.ceil(4 * len(self.results.arms) / SUCCESS)),
        )
        return dict(zip(arms, found, strict=True))

    def _worse_in(self, arm: Arm) -> list[str]:
        return [label(one.metric) for one in self.by_arm[arm].comparisons if one.verdict == "worse"]

    def _words(self, arms: Sequence[Arm]) -> dict[Arm, Comparison]:
        compared = of_metric(self.verdict.arms, self.first)
        return {arm: compared[arm.name()] for arm in arms if arm.name() in compared}

    def _not_recommended(self) -> None:
        better = [arm for arm, one in self._words(self.results.arms).items() if one.verdict == "better"]
        expected = []
        for arm in better:
            if worse := self._worse_in(arm):
                name = arm.name()[0].upper() + arm.name()[1:]
                expected.append(f"{name} is not recommended: it is worse in {', '.join(worse)}.")
        self._expect("not recommended", expected)

    def _recommendations(self, futile: Sequence[Arm]) -> None:
        groups = self.results.groups(self.first)
        chosen, expected = [], []
        for group in groups:
            words = self._words(group)
            sound = [arm for arm, one in words.items() if one.verdict == "better" and not self._worse_in(arm)]
            sound = [arm for arm in sound if arm not in self.dropped] or sound
            if not words:
                continue
            if all(one.scope == ScopeId.THESE_SEEDS for one in words.values()):
                expected.append(ONE_SEED)
                continue
            best = self._best([*sound, *(arm for arm in group if not arm.alpha)])
            if best is None:
                expected.append(NO_COMMON)
                continue
            chosen.append(best)
            others = [arm.name() for arm in sound if arm != best]
            if best in sound:
                more = (
                    f", the best in {self.first_label} of the arms that are better than alpha 0; whether it is better "
                    f"than {' and '.join(others)} was not tested"
                )
                expected.append(f"Recommended: {best.name()}{more if others else ''}.")
                continue
            verdicts = [one.verdict for one in words.values()]
            reason = "" if best in futile else ", unless more seeds show a gain"
            if "better" in verdicts:
                reason = (
                    f": no arm that is better than its own alpha 0 has a better {self.first_label} without being worse "
                    "in another metric"
                )
            elif set(verdicts) == {"worse"}:
                reason = ": every alpha is worse"
            expected.append(f"Recommended: the baseline ({best.name()}){reason}.")
        for line in dict.fromkeys(expected):
            assert self.left.count(line) == expected.count(line), (line, self.left)
            self.left = [one for one in self.left if one != line]
            self.checked[line.partition(":")[0]] += 1
        assert self.verdict.recommended == (chosen[0] if len(groups) == len(chosen) == 1 else None)
        if len(groups) > 1 and chosen:
            what = "against alpha 0 with the same options" if self.first in WIN_RATES else "over tokens"
            name = label(self.first)[0].upper() + label(self.first)[1:]
            [line] = self._take("several groups", f"{name} is {what}")
            assert line.endswith("it can't choose between these, so there is no `best`.")

    def _best(self, arms: Sequence[Arm]) -> Arm | None:
        """Return the arm with the best mean over the seeds and rows that all have."""
        columns = [self.results.values(self.first, arm) for arm in arms]
        if not columns:
            return None
        seeds = np.all([~np.isnan(one).all(1) for one in columns], axis=0)
        rows = np.all([~np.isnan(one[seeds]).any(0) for one in columns], axis=0)
        if not seeds.any() or not rows.any():
            return None
        sums = [float(one[seeds][:, rows].sum()) for one in columns]
        return arms[int(np.argmin(sums) if self.better[self.first] == "lower" else np.argmax(sums))]

    def _warnings(self) -> None:
        """Check that spreads and skewness are those of `compare_arms` on the same values."""
        levels: dict[str, float] = {}
        spreads: dict[str, tuple[float, float]] = {}
        for metric in self.better:
            names = set(of_metric(self.verdict.arms, metric))
            noised = [arm for arm in self.results.arms if arm.name() in names]
            for baseline in dict.fromkeys(map(baseline_of, noised)):
                group = [arm for arm in noised if baseline_of(arm) == baseline]
                found = compare_arms(
                    self.results.values(metric, baseline),
                    [self.results.values(metric, arm) for arm in group],
                    self.results.weights(metric, group[0]),
                    prompts=self.results.prompts(metric),
                    resamples=FEW_RESAMPLES,
                )
                levels[metric] = max([levels.get(metric, 0.0), *(one.true_level or 0.0 for one in found)])
                for arm, one in zip(group, found, strict=True):
                    if metric == self.first and one.uneven and one.seed_spread is not None:
                        assert one.others_spread is not None
                        spreads[arm.name()] = one.seed_spread, one.others_spread
        uneven = (
            rf"(.*) varies more between seeds \(standard deviation ({AMOUNT})\) than the other arms of its baseline "
            rf"\(({AMOUNT})\); it is tested with its own variance, which needs more seeds\."
        )
        for line in [line for line in self.left if re.fullmatch(uneven, line)]:
            found_uneven = re.fullmatch(uneven, line)
            assert found_uneven
            expected = spreads.pop(found_uneven[1][0].lower() + found_uneven[1][1:])
            stated = [read(found_uneven[place]) for place in (2, 3)]
            assert stated == pytest.approx(list(expected), rel=0.06, abs=6e-4 if is_share(self.first) else 6e-5)
            self._expect("uneven", [line])
        assert spreads == {}
        expected_lines = [
            f"The differences in {label(metric)} are skewed over prompts: of comparisons for these seeds without a "
            f"true difference about {100 * level:.0f} % would have p < 0.05, not 5 %."
            for metric, level in levels.items()
            if level > SKEWNESS_THRESHOLD
        ]
        self._expect("skewed", expected_lines)

    def _plan(self, futile: Sequence[Arm]) -> None:
        compared = of_metric(self.verdict.arms, self.first)
        undecided = {
            arm: compared[arm.name()]
            for arm in self.results.arms
            if arm.name() in compared
            and compared[arm.name()].verdict not in ("better", "worse")
            and compared[arm.name()].detectable is not None
            and baseline_of(arm) not in futile
        }
        lines = self._take("MDE", "Minimum detectable effect: ")
        assert bool(lines) == bool(undecided)
        if not lines:
            return
        widest = max(undecided.values(), key=lambda one: one.detectable or 0.0)
        one_seed = widest.seeds == 1
        scope = r"for this one seed \(" if one_seed else rf"\({widest.seeds} seeds, "
        last = r" A claim about other seeds needs at least two seeds, better three\." if one_seed else ""
        found = re.fullmatch(
            rf"Minimum detectable effect: ({AMOUNT}) in {self.first_label} {scope}{widest.n} prompts, "
            rf"power 80 %\)\.{last}",
            lines[0],
        )
        assert found, lines[0]
        assert read(found[1]) == near(self.first, widest.detectable or 0.0)
        if one_seed or self.delta is None:
            return
        effect = rf"[Aa]n effect of ({AMOUNT}) \(sweep\.delta\)"
        [line] = [line for line in self.left if re.search(effect, line)]
        found = re.search(effect, line)
        assert found
        assert read(found[1]) == near(self.first, self.delta)
        assert widest.detectable is not None
        if line.endswith(" would have been found in 80 % of such sweeps or more."):
            assert widest.detectable <= self.delta
        else:
            assert widest.detectable > self.delta
            more = [required_sizes(self._difference(arm, one), self.delta) for arm, one in undecided.items()]
            seeds, prompts = ([getattr(one, name) for one in more] for name in ("seeds", "prompts"))
            ways = [] if None in seeds else [f"about {max(seeds)} seeds"]
            ways += [] if None in prompts else [f"about {max(prompts)} prompts with these seeds"]
            takes = f"takes {' or '.join(ways)}."
            assert line.endswith(takes) if ways else line.startswith("Neither more seeds nor more prompts alone would")
        self._expect("delta", [line])

    def _difference(self, arm: Arm, one: Comparison) -> ArmDifference:
        """Return an arm's difference with the number of comparisons that its minimum detectable effect is for."""
        group = [other for other in self._words(self.results.arms) if baseline_of(other) == baseline_of(arm)]
        of_all = sum(len(row.comparisons) for row in self.verdict.arms)
        for comparisons in range(of_all, 0, -1):  # those that could not be significant don't count
            found = compare_arms(
                self.results.values(self.first, baseline_of(arm)),
                [self.results.values(self.first, other) for other in group],
                self.results.weights(self.first, arm),
                prompts=self.results.prompts(self.first),
                comparisons=comparisons,
            )[group.index(arm)]
            if found.detectable == pytest.approx(one.detectable, rel=1e-9):
                return found
        raise AssertionError(f"no number of comparisons gives the minimum detectable effect of {arm.name()}")

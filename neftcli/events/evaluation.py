"""What an evaluation tells."""

from __future__ import annotations

from dataclasses import dataclass

from neftcli.events.training import PairedRun


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a part of an evaluation is. Times in seconds; `remaining` is an estimate.

    Attributes:
        part: What is being done.
        done: Items done.
        total: Items in all.
        elapsed: Seconds since it began.
        remaining: Seconds that are left.
        rate: Of `unit` a second.
        unit: What the rate counts.
    """

    part: str
    done: int
    total: int
    elapsed: float
    remaining: float
    rate: float
    unit: str


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A column of an evaluation's table.

    Attributes:
        role: run, baseline, base, or model.
        name: The run's name, or the model's.
        source: Its folder, or where its weights come from.
        alpha: NEFTune's alpha of its training, or None for a model that is no run.
        seed: The seed of its training, or None.
    """

    role: str
    name: str
    source: str
    alpha: float | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Estimated:
    """A number over `n` distinct prompts with its 95 % confidence interval, or None."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A metric of every model.

    Attributes:
        metric: Its name.
        unit: Its unit, or an empty string.
        better: "lower", "higher", or "none" for a description that is neither good nor bad.
        values: One for each model, in their order; None where it has none.
    """

    metric: str
    unit: str
    better: str
    values: tuple[Estimated | None, ...]


@dataclass(frozen=True, slots=True)
class Significance:
    """A 95 % confidence interval and p-values of a difference, within one scope.

    Attributes:
        low: Lower end of the interval, or None.
        high: Its upper end.
        p: Two-sided p-value, or None without a test.
        p_adjusted: The same after Holm's correction over the comparisons of its kind.
        verdict: lower, higher, not significant, or an empty string without a test.
    """

    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    verdict: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """A model or an arm of a sweep compared with another one, prompt by prompt.

    Attributes:
        metric: The metric's name.
        against: The other one's role, or its name in a sweep.
        difference: The first one's value less the other one's.
        low: Lower end of the difference's 95 % confidence interval within `scope`, or None.
        high: Its upper end.
        p: Two-sided p-value of the paired test, or None.
        p_adjusted: The same after Holm's correction over the comparisons of its kind.
        n: Distinct prompts that have the metric on both sides.
        detectable: Minimum detectable effect: the true difference that is significant with a power of 0.8, or None.
        verdict: better, worse, higher, lower, not significant, or an empty string without a test. An arm of a sweep is
            better or worse only for new seeds; lower or higher says that of the seeds trained.
        scope: these models, these seeds or new seeds.
        seeds: Seeds that both arms of a sweep have.
        these_seeds: Of an arm of a sweep that is compared over new seeds: what holds for the seeds trained.
        true_level: Estimated rate of p < 0.05 without a true difference, which skewness raises; None if it is not
            known.
    """

    metric: str
    against: str
    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    n: int
    detectable: float | None
    verdict: str
    scope: str = "these models"
    seeds: int = 1
    these_seeds: Significance | None = None
    true_level: float | None = None


@dataclass(frozen=True, slots=True)
class SideBySide:
    """A prompt and what each model answers, in the order of the models."""

    prompt: str
    reference: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What an evaluation found.

    Attributes:
        models: The columns; the first is what was evaluated.
        rows: Rows evaluated on.
        source: Where they come from.
        metrics: What was measured.
        comparisons: The evaluated model against the others.
        scope: What the words "better" and "worse" are about.
        remarks: What a person should know to read the numbers.
        shown: Answers side by side, the most different first.
        folder: Where all of it is written.
        seconds: Wall time in all.
        paired_run: The run to compare the evaluated one with, where that is a run.
        conclusion: The result against each other model, sentence by sentence.
        over_seeds: Command that compares the alphas of two runs over seeds, if nothing else differs between them.
        win_rate_bounds: Win rate if every unreadable pair was lost, and if every one was won; None if all could be
            read, or without a judge.
    """

    models: tuple[EvaluatedModel, ...]
    rows: int
    source: str
    metrics: tuple[MetricRow, ...]
    comparisons: tuple[Comparison, ...]
    scope: str
    remarks: tuple[str, ...]
    shown: tuple[SideBySide, ...]
    folder: str
    seconds: float
    paired_run: PairedRun | None = None
    conclusion: tuple[str, ...] = ()
    over_seeds: str | None = None
    win_rate_bounds: tuple[float, float] | None = None

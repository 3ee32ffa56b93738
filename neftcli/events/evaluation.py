"""Events and their parts about an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from neftcli.events.data import RowsSource
from neftcli.events.training import ModelSource, PairedRun


class VerdictId(StrEnum):
    """Verdicts of a comparison; their display texts are in `neftcli.evaluation.number_format`."""

    BETTER = "better"
    WORSE = "worse"
    LOWER = "lower"
    HIGHER = "higher"
    NOT_SIGNIFICANT = "not_significant"
    NOT_TESTED = "not_tested"


class ScopeId(StrEnum):
    """Scopes of a verdict: the population that it holds for."""

    THESE_MODELS = "these_models"
    THESE_SEEDS = "these_seeds"
    NEW_SEEDS = "new_seeds"


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A column of an evaluation's table.

    Attributes:
        role: Role of the model: run, baseline, base or model.
        name: Name of the run or the model.
        source: The run, or the origin of the weights.
        alpha: NEFTune's alpha in training; None for a model that is not a run.
        seed: Seed of the training; None for a model that is not a run.
    """

    role: str
    name: str
    source: ModelSource
    alpha: float | None = None
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class MetricValue:
    """A metric with its 95 % confidence interval.

    Attributes:
        value: The metric.
        low: Lower end of the interval; None if there is no interval.
        high: Upper end of the interval; None if there is no interval.
        n: Distinct prompts.
    """

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class MetricRow:
    """A metric of every model.

    Attributes:
        metric: Id of the metric.
        unit: Unit: nats_per_token, or empty if it has none.
        direction: Values that are better, "lower" or "higher"; "none" if the metric only describes.
        values: A value for each model, in their order; None if the model has none.
    """

    metric: str
    unit: str
    direction: str
    values: tuple[MetricValue | None, ...]


@dataclass(frozen=True, slots=True)
class Significance:
    """Confidence interval and p-values of a difference, within one scope.

    Attributes:
        low: Lower end of the 95 % confidence interval; None without a test.
        high: Upper end of the interval; None without a test.
        p: Two-sided p-value; None without a test.
        p_adjusted: p-value after Holm's correction over the comparisons of its kind; None without a test.
        verdict: lower, higher, not_significant or not_tested.
    """

    low: float | None
    high: float | None
    p: float | None
    p_adjusted: float | None
    verdict: VerdictId


@dataclass(frozen=True, slots=True)
class Comparison:
    """A paired comparison of a model, or an arm of a sweep, with another one.

    Attributes:
        metric: Id of the metric.
        against: Role of the other model, or id of the other arm.
        difference: The first one's value minus the other one's.
        low: Lower end of the difference's 95 % confidence interval within `scope`; None without a test.
        high: Upper end of the interval; None without a test.
        p: Two-sided p-value of the paired test; None without a test.
        p_adjusted: p-value after Holm's correction over the comparisons of its kind; None without a test.
        n: Distinct prompts that have the metric on both sides.
        detectable: Minimum detectable effect with a power of 80 %; None if it is not known.
        verdict: better, worse, lower, higher, not_significant or not_tested. An arm is better or worse only for new
            seeds; lower and higher hold for the trained seeds.
        scope: Scope of the verdict: these_models, these_seeds or new_seeds.
        seeds: Seeds that both arms have.
        these_seeds: The result for the trained seeds, if the arm is compared over new seeds; else None.
        true_level: Estimated rate of p < 0.05 without a true difference, which skewness raises; None if it is not
            known.
        smallest_p: The smallest p-value that any outcome with differences of these sizes could give; None without a
            test, or if it is not known.
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
    verdict: VerdictId
    scope: ScopeId = ScopeId.THESE_MODELS
    seeds: int = 1
    these_seeds: Significance | None = None
    true_level: float | None = None
    smallest_p: float | None = None


@dataclass(frozen=True, slots=True)
class SideBySide:
    """A prompt and the answers of all models.

    Attributes:
        prompt: The prompt.
        reference: Reference answer; empty if there is none.
        answers: An answer of each model, in their order.
    """

    prompt: str
    reference: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """The results of an evaluation.

    Attributes:
        models: The columns of the table; the first is the evaluated model.
        rows: Rows that were evaluated.
        source: Origin of the rows.
        metrics: The metrics.
        comparisons: Comparisons of the evaluated model with the others.
        scope: Scope of the verdicts, as a sentence.
        remarks: Remarks that help to read the numbers.
        shown: Answers side by side, the most different first.
        folder: Folder of the evaluation.
        seconds: Wall time.
        paired_run: The run to compare the evaluated one with; None for a model that is not a run.
        conclusion: Results against each other model, as sentences.
        sweep_command: Command that compares the alphas of two runs over seeds; None if the runs differ in anything
            else.
        win_rate_bounds: Win rate if every unreadable pair was lost, and if every one was won; None without a judge, or
            if all pairs could be read.
    """

    id: ClassVar[str] = "evaluation.report"

    models: tuple[EvaluatedModel, ...]
    rows: int
    source: RowsSource
    metrics: tuple[MetricRow, ...]
    comparisons: tuple[Comparison, ...]
    scope: str
    remarks: tuple[str, ...]
    shown: tuple[SideBySide, ...]
    folder: str
    seconds: float
    paired_run: PairedRun | None = None
    conclusion: tuple[str, ...] = ()
    sweep_command: str | None = None
    win_rate_bounds: tuple[float, float] | None = None

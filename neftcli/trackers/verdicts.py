"""Report the verdict of a comparison to experiment trackers, in the run that it is about or in one of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from neftcli.events import Comparison, EvaluationReport, Notice, Observer, SweepReport, TrackerOpened
from neftcli.trackers.backends import TrackedRun
from neftcli.trackers.isolation import describe_failure, without_output
from neftcli.trackers.registry import TRACKERS

NAME_PART = re.compile(r"[^A-Za-z0-9_.-]+")
"""Characters that not every tracker allows in the name of a number."""


@dataclass(frozen=True)
class TrackedVerdict:
    """A verdict, as a tracker gets it.

    Attributes:
        sentences: The conclusion and its scope.
        numbers: Differences with their intervals and p-values, by name: "held_out_loss/difference".
        source: Folder of the report that has all of it.
    """

    sentences: tuple[str, ...]
    numbers: Mapping[str, float]
    source: str


def verdict_of_evaluation(report: EvaluationReport) -> TrackedVerdict:
    """Return the verdict of an evaluation against its baseline."""
    numbers: dict[str, float] = {}
    for comparison in report.comparisons:
        if comparison.against == "baseline":
            numbers |= _numbers(comparison, comparison.metric)
    return TrackedVerdict((*report.conclusion, report.scope), numbers, report.folder)


def verdict_of_sweep(report: SweepReport) -> TrackedVerdict:
    """Return the verdict of a sweep: each arm against alpha 0, and the recommended alpha if there is one."""
    numbers: dict[str, float] = {}
    for arm in report.arms:
        for comparison in arm.comparisons:
            numbers |= _numbers(comparison, f"{NAME_PART.sub('_', arm.name())}/{comparison.metric}")
        if arm.arm == report.recommended:
            numbers["recommended_alpha"] = arm.alpha
    return TrackedVerdict((*report.conclusion, report.scope), numbers, report.folder)


def _numbers(comparison: Comparison, prefix: str) -> dict[str, float]:
    values = {
        "difference": comparison.difference,
        "ci_low": comparison.low,
        "ci_high": comparison.high,
        "p": comparison.p_adjusted,
    }
    return {f"{prefix}/{name}": value for name, value in values.items() if value is not None}


def report_verdict(
    verdict: TrackedVerdict, runs: Iterable[tuple[str, TrackedRun]], observer: Observer
) -> dict[str, str | None]:
    """Report a verdict to trackers; one that fails is a notice, and the verdict stays in its report.

    Args:
        verdict: The verdict.
        runs: Id of a tracker, and the run in it that gets the verdict.
        observer: Receives the location of the results, and notices.

    Returns:
        The id of the tracker's run, by id of the tracker; without those that failed or report no verdicts.
    """
    ids: dict[str, str | None] = {}
    for tracker_id, run in runs:
        tracker = TRACKERS[tracker_id]
        if tracker.switch() is not None or not tracker.reports_verdicts():
            continue
        backend = tracker.backend(run)
        try:
            if not tracker.is_installed():
                raise ModuleNotFoundError(f"{tracker.module} is not installed")
            tracker.require_access()
            with without_output():
                backend.start()
                backend.add_verdict(verdict.sentences, verdict.numbers)
                backend.finish("finished")
        except BaseException as error:
            backend.finish_quietly()
            if not isinstance(error, Exception):
                raise
            message = f"{tracker.name} failed: {describe_failure(error)}"
            observer.notify(Notice(f"{message}; the verdict is in {verdict.source}"))
        else:
            ids[tracker_id] = backend.id
            observer.notify(TrackerOpened(tracker_id, backend.location, backend.view))
    return ids

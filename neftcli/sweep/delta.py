"""Smallest effect of interest, `sweep.delta`: in the unit of the metric, or as a percentage of the gain of training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from neftcli.errors import Problem, RecipeError
from neftcli.metrics.registry import HELD_OUT_LOSS, is_share, label
from neftcli.runs.directory import RunDirectory
from neftcli.sweep.early_stopping import FIRST_LOOK
from neftcli.sweep.results import WIN_RATES

if TYPE_CHECKING:
    from neftcli.sweep.results import SweepResults

AUTO = "auto"
DEFAULT_GAIN_FRACTION = 0.01
"""Default for held-out loss: this fraction of the gain over the base model."""
DEFAULT_WIN_RATE = 0.05
"""Default for a win rate: 5 points."""
KEY = "--delta (sweep.delta)"


def resolve_delta(delta: float | str, metric: str, gain: float | None) -> float | None:
    """Resolve `sweep.delta` to a number in a metric's unit.

    Args:
        delta: 0.005, "1%" of the gain, or "auto".
        metric: Id of the first metric, to which it applies.
        gain: Gain of training without noise over the base model, from `gain_of_training`; None if it is unknown.

    Returns:
        None if the gain is unknown or not above 0, or if the metric has no default.

    Raises:
        RecipeError: It is neither a number above 0 nor a percentage up to 100 %; it is a percentage and the metric is
            not held-out loss; or it is 1 or more and the metric is a share of 1.
    """
    known_gain = gain if gain is not None and gain > 0 else None
    typed = f"{delta:g}" if isinstance(delta, float) else delta.strip()
    if typed == AUTO:
        if metric in WIN_RATES:
            return DEFAULT_WIN_RATE
        if metric != HELD_OUT_LOSS or known_gain is None:
            return None
        return DEFAULT_GAIN_FRACTION * known_gain
    in_percent = typed.endswith("%")
    number = _number(delta if isinstance(delta, float) else typed.removesuffix("%"))
    if number is None:
        message = (
            f"{KEY} must be a number above 0 in the metric's unit, or a percentage of the gain over the base model"
        )
        raise RecipeError(Problem(message, typed or "nothing", "--delta 0.005 or --delta 1%"))
    if in_percent and metric != HELD_OUT_LOSS:
        known = label(HELD_OUT_LOSS)
        message = f"{KEY}: a percentage refers to the gain over the base model, which is known for {known} only"
        hint = "--delta 0.05    in the metric's unit" + ("; 0.05 is 5 points" if is_share(metric) else "")
        raise RecipeError(Problem(message, f"{typed} with {label(metric)}", hint))
    if in_percent and number > 100:
        message = f"{KEY}: a percentage refers to the gain over the base model, at most 100%"
        raise RecipeError(Problem(message, typed, "--delta 1%"))
    if not in_percent and is_share(metric) and number >= 1:
        message = f"{KEY} must be below 1 for a share such as {label(metric)}, where 0.05 is 5 points"
        hint = f"--delta {number / 100:g}" if number < 100 else "--delta 0.05"
        raise RecipeError(Problem(message, typed, hint))
    if not in_percent:
        return number
    return None if known_gain is None else number / 100 * known_gain


def gain_of_training(results: SweepResults, before: Sequence[float]) -> float | None:
    """Compute the gain of alpha 0 over the base model: loss before training minus held-out loss of alpha 0.

    Only the first `FIRST_LOOK` seeds count, so that it stays the same when seeds are added. With a grid it is that of
    the best baseline.

    Args:
        results: Results of the sweep.
        before: Held-out losses of the base model, as the cells recorded them.
    """
    tuned = []
    for arm in (arm for arm in results.arms if not arm.alpha):
        losses = [loss for loss in results.per_seed(HELD_OUT_LOSS, arm)[:FIRST_LOOK] if loss is not None]
        if losses:
            tuned.append(float(np.mean(losses)))
    return float(np.mean(before)) - min(tuned) if before and tuned else None


def losses_before(runs: Iterable[Path]) -> list[float]:
    """Read the held-out losses that runs recorded before training; runs without one are left out."""
    losses = []
    for run in runs:
        before = [row.get("held_out_loss") for row in RunDirectory(run).evaluations() if row["step"] == 0]
        losses += [loss for loss in before[:1] if loss is not None]
    return losses


def _number(text: str | float) -> float | None:
    """Return a text or a number as a number above 0; None if it is not one."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if number > 0 and math.isfinite(number) else None

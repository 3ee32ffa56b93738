"""Measurements of the cells of a sweep, by metric, arm and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from neftcli.data.splits import normalize_prompt
from neftcli.evaluation.metrics import REGISTRY, WIN_RATE, WIN_RATE_LENGTH_CONTROLLED
from neftcli.statistics.crossed import select_complete
from neftcli.statistics.multiple import Direction
from neftcli.sweep.plan import Arm, Cell, arms_of, baseline_of

Values: TypeAlias = NDArray[np.float64]

WIN_RATES = (WIN_RATE, WIN_RATE_LENGTH_CONTROLLED)
"""Metrics that compare an arm with its own alpha 0."""


class SweepResults:
    """The cells' values of each metric.

    Args:
        cells: The plan.
        measured: Key of a cell to what was measured of it, as in its `evaluation/cell.json`.
    """

    def __init__(self, cells: Sequence[Cell], measured: Mapping[str, Mapping[str, Any]]) -> None:
        self.arms = arms_of(cells)
        self.seeds = list(dict.fromkeys(cell.seed for cell in cells))
        self._of = {(cell.arm, cell.seed): measured.get(cell.key) for cell in cells}
        asked = next((content["prompts"] for content in measured.values() if "prompts" in content), None)
        self._prompts = None if asked is None else [normalize_prompt(prompt) for prompt in asked]

    def groups(self, metric: str) -> list[list[Arm]]:
        """The measured arms in groups within which the metric can choose.

        A win rate is against the arm's own alpha 0; a mean over tokens is of other things if the tokens differ.
        """
        groups: dict[object, list[Arm]] = {}
        for arm in self.arms:
            if known := self._any(metric, [arm]):
                key = baseline_of(arm).grid if metric in WIN_RATES else tuple(known["weights"] or ())
                groups.setdefault(key, []).append(arm)
        return list(groups.values())

    def values(self, metric: str, arm: Arm) -> Values:
        """(seeds, rows); NaN if a cell is missing or a row has no value."""
        known = self._any(metric)
        found = np.full((len(self.seeds), len(known["values"]) if known else 0), np.nan)
        for place, seed in enumerate(self.seeds):
            content = (self._of[arm, seed] or {}).get("metrics", {}).get(metric)
            if content is not None:
                found[place] = np.array(content["values"], dtype=np.float64)  # None becomes NaN
        return found

    def weights(self, metric: str, arm: Arm) -> Values | None:
        """(rows,), the arm's own in all its cells; None if the metric is a plain mean."""
        known = self._any(metric, [arm])
        if known is None or known["weights"] is None:
            return None
        return np.array([number or 0.0 for number in known["weights"]], dtype=float)

    def prompts(self, metric: str) -> list[str] | None:
        """The normalised prompt of each row; None for a benchmark's documents, which all differ."""
        return None if self.is_of_documents(metric) else self._prompts

    def shared(self, metric: str, arms: Sequence[Arm]) -> tuple[list[Values], Values | None]:
        """The arms' values and the weights, of the seeds and rows that all of them have; maybe none."""
        columns = [self.values(metric, arm) for arm in arms]
        arrays, weights, _ = select_complete(columns, self.weights(metric, arms[0]))
        return arrays, weights

    def per_seed(self, metric: str, arm: Arm) -> tuple[float | None, ...]:
        """The metric of each seed, over the rows that the seed has; None if a cell is missing."""
        found: list[float | None] = []
        weights = self.weights(metric, arm)
        for values in self.values(metric, arm):
            there = ~np.isnan(values)
            total = there.sum() if weights is None else weights[there].sum()
            found.append(float(values[there].sum() / total) if total else None)
        return tuple(found)

    def direction(self, metric: str) -> Direction:
        """Return which values are better; of a metric that a sweep can decide by, which it prefers."""
        if metric in REGISTRY:
            return REGISTRY[metric].sweep_direction or REGISTRY[metric].direction
        known = self._any(metric)
        direction: Direction = known["direction"] if known else "none"
        return direction

    def is_of_documents(self, metric: str) -> bool:
        """Return whether the metric is of a benchmark's documents and not of the held-out split."""
        return (self._any(metric) or {}).get("of") == "documents"

    def measured_seeds(self, arm: Arm) -> int:
        """Number of seeds whose cell of this arm is measured."""
        return sum(self._of[arm, seed] is not None for seed in self.seeds)

    def _any(self, metric: str, arms: Sequence[Arm] | None = None) -> Mapping[str, Any] | None:
        """A metric as some cell of the arms, or of all, has it."""
        cells = (cell["metrics"] for (arm, _), cell in self._of.items() if cell and (arms is None or arm in arms))
        return next((metrics[metric] for metrics in cells if metric in metrics), None)

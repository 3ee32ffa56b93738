"""Results of a sweep by metric, arm and seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from neftcli.data.splits import normalize_prompt
from neftcli.metrics.registry import METRICS_BY_ID, WIN_RATE, WIN_RATE_LENGTH_CONTROLLED, Direction
from neftcli.statistics.crossed import select_complete
from neftcli.sweep.plan import Arm, Cell, arms_of, baseline_of

Values: TypeAlias = NDArray[np.float64]

WIN_RATES = (WIN_RATE, WIN_RATE_LENGTH_CONTROLLED)
"""Metrics that compare an arm with its own alpha 0."""


class SweepResults:
    """Values of each metric in each cell.

    Args:
        cells: The plan.
        evaluations: Evaluation of each cell by its key, as in its `evaluation/cell.json`.
    """

    def __init__(self, cells: Sequence[Cell], evaluations: Mapping[str, Mapping[str, Any]]) -> None:
        self.arms = arms_of(cells)
        self.seeds = list(dict.fromkeys(cell.seed for cell in cells))
        self._evaluations = {(cell.arm, cell.seed): evaluations.get(cell.key) for cell in cells}
        prompts = next((evaluation["prompts"] for evaluation in evaluations.values() if "prompts" in evaluation), None)
        self._prompts = None if prompts is None else [normalize_prompt(prompt) for prompt in prompts]

    def groups(self, metric: str) -> list[list[Arm]]:
        """Return the arms with results in groups within which the metric can choose.

        A win rate is against the arm's own alpha 0; means over tokens are comparable only if the tokens are the same.
        """
        groups: dict[object, list[Arm]] = {}
        for arm in self.arms:
            content = self._metric(metric, [arm])
            if content:
                key = baseline_of(arm).grid if metric in WIN_RATES else tuple(content["weights"] or ())
                groups.setdefault(key, []).append(arm)
        return list(groups.values())

    def values(self, metric: str, arm: Arm) -> Values:
        """Return the values, (seeds, rows); NaN if a cell is missing or a row has no value."""
        content = self._metric(metric)
        values = np.full((len(self.seeds), len(content["values"]) if content else 0), np.nan)
        for index, seed in enumerate(self.seeds):
            cell_content = (self._evaluations[arm, seed] or {}).get("metrics", {}).get(metric)
            if cell_content is not None:
                values[index] = np.array(cell_content["values"], dtype=np.float64)  # None becomes NaN
        return values

    def weights(self, metric: str, arm: Arm) -> Values | None:
        """Return the weights of the rows, (rows,), the same in all cells of an arm; None if the metric is a mean."""
        content = self._metric(metric, [arm])
        if content is None or content["weights"] is None:
            return None
        return np.array([number or 0.0 for number in content["weights"]], dtype=float)

    def prompts(self, metric: str) -> list[str] | None:
        """Return the normalised prompt of each row; None for a benchmark's documents, which all differ."""
        return None if self.is_of_documents(metric) else self._prompts

    def shared(self, metric: str, arms: Sequence[Arm]) -> tuple[list[Values], Values | None]:
        """Return the arms' values and weights for the seeds and rows that all of them have; there may be none."""
        columns = [self.values(metric, arm) for arm in arms]
        arrays, weights, _ = select_complete(columns, self.weights(metric, arms[0]))
        return arrays, weights

    def per_seed(self, metric: str, arm: Arm) -> tuple[float | None, ...]:
        """Return the metric of each seed, over the rows that the seed has; None if a cell is missing."""
        means: list[float | None] = []
        weights = self.weights(metric, arm)
        for values in self.values(metric, arm):
            known = ~np.isnan(values)
            total = known.sum() if weights is None else weights[known].sum()
            means.append(float(values[known].sum() / total) if total else None)
        return tuple(means)

    def direction(self, metric: str) -> Direction:
        """Return which values are better; of a metric that a sweep can decide by, which it prefers."""
        if metric in METRICS_BY_ID:
            return METRICS_BY_ID[metric].sweep_direction or METRICS_BY_ID[metric].direction
        content = self._metric(metric)
        direction: Direction = content["direction"] if content else "none"
        return direction

    def is_of_documents(self, metric: str) -> bool:
        """Return whether the metric is of a benchmark's documents and not of the held-out split."""
        return (self._metric(metric) or {}).get("of") == "documents"

    def evaluated_seeds(self, arm: Arm) -> int:
        """Return the number of seeds whose cell of this arm is evaluated."""
        return sum(self._evaluations[arm, seed] is not None for seed in self.seeds)

    def _metric(self, metric: str, arms: Sequence[Arm] | None = None) -> Mapping[str, Any] | None:
        """Return a metric of the first cell that has it, of all cells or of those of some arms."""
        for (arm, _), evaluation in self._evaluations.items():
            if evaluation and (arms is None or arm in arms) and metric in evaluation["metrics"]:
                content: Mapping[str, Any] = evaluation["metrics"][metric]
                return content
        return None

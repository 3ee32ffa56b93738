"""Planted results of sweeps: plans, and evaluations of their cells with known differences."""

from __future__ import annotations

from typing import Any

import numpy as np

from neftcli.metrics.registry import HELD_OUT_LOSS, WIN_RATE
from neftcli.recipe.loading import parse_assignment, read_recipe_layers, resolve_recipe
from neftcli.sweep.plan import Arm, Cell, plan_cells

ROWS = 100
ACCURACY = "token_accuracy"
RATES = "sweep.grid=['training.learning_rate=1e-5,5e-5']"


def plan(*sets: str) -> list[Cell]:
    layers = [*read_recipe_layers("quickstart"), *map(parse_assignment, sets)]
    return plan_cells(resolve_recipe(layers), layers)


def planted_results(
    cells: list[Cell], gaps: dict[float, float], *, seed_spread: float = 0.0, number: int = 0, prompts: int = ROWS
) -> dict[str, dict[str, Any]]:
    """Return losses of rows of 5 to 9 tokens, with a gap in nats per token for each alpha and a spread of seeds."""
    rows = np.random.default_rng(number)
    hard, tokens = rows.gamma(2, 1, ROWS), rows.integers(5, 10, ROWS)
    found = {}
    for place, cell in enumerate(cells):
        draw = np.random.default_rng((place, 1, number))
        noise = draw.normal(0, 0.02, ROWS)
        nats = tokens * (hard + gaps[cell.arm.alpha] + noise + seed_spread * draw.normal())
        found[cell.key] = {
            "prompts": [f"prompt {row % prompts}" for row in range(ROWS)],
            "metrics": {
                HELD_OUT_LOSS: {"direction": "lower", "values": nats.tolist(), "weights": tokens.tolist()},
                "answer_tokens": {"direction": "none", "values": [10.0] * ROWS, "weights": None},
            },
        }
    return found


def shift(content: dict[str, dict[str, Any]], cell: Cell, gap: float, metric: str = HELD_OUT_LOSS) -> None:
    """Make a cell worse by a gap in nats per token."""
    found = content[cell.key]["metrics"][metric]
    weights = found["weights"] or [1.0] * ROWS
    found["values"] = [value + gap * weight for value, weight in zip(found["values"], weights, strict=True)]


def with_win_rates(cells: list[Cell], rates: dict[Arm, float]) -> dict[str, dict[str, Any]]:
    """Return scores of 1 or 0 against alpha 0 with the same options, with the given share of ones; alpha 0 has 0.5."""
    content = planted_results(cells, dict.fromkeys({cell.arm.alpha for cell in cells}, 0.0))
    for number, cell in enumerate(cells):
        wins = np.random.default_rng((number, 2)).random(ROWS) < rates.get(cell.arm, 0.5)
        values = wins.astype(float).tolist() if cell.arm.alpha else [0.5] * ROWS
        content[cell.key]["metrics"][WIN_RATE] = {"direction": "higher", "values": values, "weights": None}
    return content

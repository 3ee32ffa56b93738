"""Formats of values: a displayed difference is that of the displayed values.

Oracle: the numbers, parsed from the texts.
"""

from __future__ import annotations

import numpy as np
import pytest

from neftcli.evaluation.number_format import extra_decimals, table_arm_values, table_model_values, table_number
from neftcli.events import (
    ArmResult,
    Comparison,
    EvaluatedModel,
    EvaluationReport,
    MetricRow,
    MetricValue,
    ModelSource,
    RowsSource,
    VerdictId,
)


def compared(metric: str, against: str, difference: float) -> Comparison:
    return Comparison(metric, against, difference, None, None, None, None, 6, None, VerdictId.NOT_TESTED)


def test_table_model_values_decimals() -> None:
    """10.80258 - 10.77864 is 0.02394, and 10.8026 - 10.7786 is 0.0240."""
    values = tuple(MetricValue(value, None, None, 6) for value in (10.77864, 10.80258))
    row = MetricRow("held_out_loss", "nats_per_token", "lower", values)
    models = (EvaluatedModel("run", "a", ModelSource("run", "a")), EvaluatedModel("base", "b", ModelSource("hub", "b")))
    difference = compared("held_out_loss", "base", -0.02394)
    report = EvaluationReport(models, 6, RowsSource("rows"), (row,), (difference,), "", (), (), "", 0.0)
    assert table_model_values(report, row) == ["10.77864", "10.80258"]
    assert table_number("held_out_loss", difference.difference, signed=True) == "-0.0239"


def test_table_arm_values_same_decimals() -> None:
    values = {0.0: 0.5004, 5.0: 0.5106, 10.0: 0.7}
    arms = [
        ArmResult(
            f"neftune.alpha={alpha:g}",
            alpha,
            3,
            {"token_accuracy": MetricValue(value, None, None, 6)},
            (compared("token_accuracy", "neftune.alpha=0", value - values[0.0]),) if alpha else (),
        )
        for alpha, value in values.items()
    ]
    assert table_arm_values("token_accuracy", arms[:1]) == ["50.0 %"]
    assert table_arm_values("token_accuracy", arms) == ["50.04 %", "51.06 %", "70.00 %"]


def test_table_arm_values_find_the_baseline_of_an_arm_with_an_option_of_the_noise() -> None:
    """Alpha 0 has no such option, and 10.80258 - 10.77864 is 0.02394."""
    values = {"neftune.alpha=0": 10.77864, "neftune.alpha=5 neftune.noise=gaussian": 10.80258}
    comparison = compared("held_out_loss", "neftune.alpha=0", 0.02394)
    arms = [
        ArmResult(arm, alpha, 3, {"held_out_loss": MetricValue(value, None, None, 6)}, (comparison,) if alpha else ())
        for (arm, value), alpha in zip(values.items(), (0.0, 5.0), strict=True)
    ]
    assert table_arm_values("held_out_loss", arms) == ["10.77864", "10.80258"]


@pytest.mark.parametrize("metric", ["held_out_loss", "token_accuracy", "answer_tokens"])
def test_extra_decimals_make_2000_drawn_differences_agree(metric: str) -> None:
    generator = np.random.default_rng(0)
    for _ in range(2000):
        first = float(generator.uniform(0, 1) if metric == "token_accuracy" else generator.lognormal(2, 2))
        second = first * float(generator.uniform(0.9, 1.1))
        extra = extra_decimals(metric, [(first, second, first - second)])
        texts = [
            table_number(metric, first, extra_decimals=extra),
            table_number(metric, second, extra_decimals=extra),
            table_number(metric, first - second, signed=True),
        ]
        numbers = [float(text.removesuffix(" %")) for text in texts]
        coarsest = min(len(text.removesuffix(" %").partition(".")[2]) for text in texts)
        assert round(numbers[0] - numbers[1], coarsest) == pytest.approx(round(numbers[2], coarsest), abs=1e-9)


def test_extra_decimals_ignore_a_difference_over_other_rows() -> None:
    assert extra_decimals("held_out_loss", [(1.5, 1.25, 0.5)]) == 0

"""The registry of metrics: its ids are identifiers, and the docs and the recipe's options have its entries."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_type_hints

import pytest

from neftcli.metrics.registry import METRICS_BY_ID, heading, is_share, is_tested, label, task_metric_id, unit
from neftcli.recipe.keys import choices
from neftcli.recipe.schema import Sweep

DOCS = Path(__file__).parents[3] / "docs" / "evaluation.md"
SWEEP_DOCS = DOCS.with_name("sweep.md")
ROW = re.compile(r"\| (?P<label>.+?) \| `(?P<id>\w+)` \| (?P<definition>.+?) \| (?P<direction>\w*) *\|")


def test_registry_ids_are_identifiers_and_labels_are_unique() -> None:
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", metric_id) for metric_id in METRICS_BY_ID)
    assert len({metric.label for metric in METRICS_BY_ID.values()}) == len(METRICS_BY_ID)
    assert len({heading(metric_id) for metric_id in METRICS_BY_ID}) == len(METRICS_BY_ID)


def test_registry_is_the_table_of_the_docs() -> None:
    """Each entry has its row in docs/evaluation.md, in the same order and with the same definition."""
    rows = [match.groupdict() for match in map(ROW.fullmatch, DOCS.read_text().splitlines()) if match]
    assert rows == [
        {
            "label": metric.label,
            "id": metric.id,
            "definition": metric.definition,
            "direction": "" if metric.direction == "none" else metric.direction,
        }
        for metric in METRICS_BY_ID.values()
    ]


def test_registry_metrics_of_sweeps() -> None:
    """`sweep.metrics` takes the metrics with a direction for sweeps, and "tasks"; docs/sweep.md lists them."""
    hints = get_type_hints(Sweep, include_extras=True)
    metrics = [metric.id for metric in METRICS_BY_ID.values() if metric.sweep_direction is not None]
    assert choices(hints["metrics"]) == [*metrics, "tasks"]
    documented = " ".join(SWEEP_DOCS.read_text(encoding="utf-8").split())
    listed = ", ".join(f"`{metric}`" for metric in metrics)
    assert f"`--metric` selects the metrics that decide: {listed} or `tasks`." in documented


@pytest.mark.parametrize(
    ("metric_id", "expected"),
    [
        ("held_out_loss", ("held-out loss", "held-out loss", "nats per token", False, True)),
        ("answer_tokens", ("answer tokens", "tokens", "", False, True)),
        ("win_rate", ("win rate", "win rate", "", True, False)),
        ("win_rate_length_controlled", ("win rate, length-controlled", "win rate, length-controlled", "", True, True)),
        (task_metric_id("arc_easy", "acc"), ("arc_easy/acc", "arc_easy/acc", "", True, True)),
        (task_metric_id("wikitext", "word_perplexity"), (*["wikitext/word_perplexity"] * 2, "", False, True)),
    ],
)
def test_metric_label_heading_unit_share_and_test(metric_id: str, expected: tuple[object, ...]) -> None:
    found = label(metric_id), heading(metric_id), unit(metric_id), is_share(metric_id), is_tested(metric_id)
    assert found == expected

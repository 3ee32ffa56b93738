"""A sweep's verdict as Markdown: names of tasks, swept options and problems are shown letter by letter.

Oracle: markdown-it-py, an independent reader of CommonMark and its tables, which says what a text would become.
"""

from __future__ import annotations

from markdown_it import MarkdownIt

from neftcli import events
from neftcli.sweep.outputs import to_markdown
from tests.unit.cli.sample_events import SWEEP
from tests.unit.training.test_model_card import HOSTILE

READER = MarkdownIt("commonmark").enable("table")


def kinds(text: str) -> list[str]:
    """Everything that a reader makes of a text, in order: headings, tables, code, images, links, tags."""
    return [part.type for block in READER.parse(text) for part in [block, *(block.children or [])]]


def report_with(text: str) -> events.SweepReport:
    """A report whose task, swept option and problem hold a text."""
    metric = f"{text} acc"
    arms = tuple(
        events.ArmResult(
            f"{arm.arm} model.chat_template={text}", arm.alpha, 3, {metric: events.MetricValue(0.5, 0.4, 0.6, 54)}, ()
        )
        for arm in SWEEP.arms
    )
    failed = (events.CellState("abc", f"neftune.alpha=10 model.chat_template={text}", 1, "failed", problem=text),)
    return events.SweepReport(
        folder=f"runs/{text}",
        arms=arms,
        metrics=(metric,),
        recommended="neftune.alpha=0",
        conclusion=SWEEP.conclusion,
        scope=SWEEP.scope,
        failed=failed,
        retried=(),
        unfinished=0,
        saved=0,
        seconds=1.0,
        resume_command="neft sweep-alpha x",
    )


def test_names_in_the_verdict_bring_nothing_with_them() -> None:
    plain, hostile_one = to_markdown(report_with("x")), to_markdown(report_with(HOSTILE))
    assert not any(kind.startswith(("image", "link", "html")) for kind in kinds(hostile_one))
    assert kinds(hostile_one) == kinds(plain)

"""The registry of exports: files with the answers of an evaluation, for other programs.

To add one, add an entry to `EXPORTS`. `--export`, its help, its error message, the written file and the reference page
use it, and a test finds its file in docs/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neftcli.evaluation.held_out import EvalRows
    from neftcli.evaluation.measurement import ModelResults


@dataclass(frozen=True, slots=True)
class Export:
    """A file with the answers of the evaluated model.

    Attributes:
        id: Its name in `--export`.
        file: Name of the file in the report's folder.
        content: Content of the file, for the docs.
        build: From the model's results and the rows to the content, which is written as JSON.
    """

    id: str
    file: str
    content: str
    build: Callable[[ModelResults, EvalRows], Any]


def _alpaca_eval_outputs(results: ModelResults, rows: EvalRows) -> list[dict[str, str]]:
    """Return the answers in the format that AlpacaEval reads as `model_outputs`."""
    from neftcli.data.tokens import instruction

    return [
        {
            "dataset": rows.label,
            "instruction": instruction(example),
            "output": answer.text,
            "generator": results.target.name,
        }
        for example, answer in zip(rows.examples, results.answers, strict=True)
    ]


EXPORTS: dict[str, Export] = {
    export.id: export
    for export in (
        Export("alpaca-eval", "model_outputs.json", "the answers in AlpacaEval's format", _alpaca_eval_outputs),
    )
}
"""Id to export."""

"""What the parts of a cell take on this machine, and what that makes of a cell.

cell  = preparing + updates x update + evaluations x rows x row + answers to samples, then loss and answer of each row
start = process, libraries, model and rows, then losses and answers of the base model: once a worker
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe

BEGUN = "begun answers"


@dataclass(frozen=True)
class Costs:
    """What the parts of a cell take on this machine, in seconds, and how much of them there is.

    Attributes:
        start: Process, libraries, model and tokenised rows.
        preparing: A cell's copy of the model, and its trainer.
        update: An update of the optimiser.
        row: The loss of a row.
        batches: A batch of answers by its size, of one size or two; empty without answers.
        updates: Updates of a cell.
        held_out: Held-out rows.
        probe_rows: Training rows whose loss is evaluated.
        timed: What was timed, by its name, and how much of it.
    """

    start: float
    preparing: float
    update: float
    row: float
    batches: Mapping[int, float]
    updates: int
    held_out: int
    probe_rows: int
    timed: Mapping[str, int]

    def worker(self, recipe: Recipe) -> float:
        """Seconds until a worker's first cell begins."""
        rows = self.held_out + self.probe_rows
        return self.start + rows * self.row + self._answers(recipe.evaluation.samples, recipe)

    def cell(self, recipe: Recipe) -> dict[str, float]:
        """Seconds of the parts of a cell."""
        rows = evaluations(self.updates, recipe.evaluation.every) * (self.held_out + self.probe_rows)
        after = self.measuring(recipe)
        return {
            "updates": self.preparing + self.updates * self.update,
            "losses": rows * self.row + after["losses"],
            "sample answers": self._answers(recipe.evaluation.samples, recipe),
            "answers": after["answers"],
        }

    def measuring(self, recipe: Recipe) -> dict[str, float]:
        """Seconds of what is measured behind a cell's training."""
        answers = self.held_out if recipe.sweep.answers else 0
        return {"losses": self.held_out * self.row, "answers": self._answers(answers, recipe)}

    def _answers(self, answers: int, recipe: Recipe) -> float:
        whole, rest = divmod(answers, recipe.evaluation.generation.batch_size)
        return whole * self._batch(recipe.evaluation.generation.batch_size) + (self._batch(rest) if rest else 0.0)

    def _batch(self, size: int) -> float:
        """Seconds of a batch; of another size than those that were timed, on the line through these."""
        if not self.batches:
            return 0.0
        (small, less), (large, more) = min(self.batches.items()), max(self.batches.items())
        slope = max(0.0, (more - less) / (large - small)) if large > small else 0.0
        return max(0.0, less + slope * (size - small))


def evaluations(updates: int, every: float) -> int:
    """Evaluations in a run of `updates` updates: behind each share `every` of it, and behind the last update."""
    return len({int(step / updates / every + 1e-9) for step in range(1, updates)} - {0}) + 1

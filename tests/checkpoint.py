"""The files of a checkpoint, for tests that write one without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FACTS: dict[str, Any] = {
    "recipe_sha256": "a recipe",
    "data_sha256": "rows",
    "tokens_sha256": "tokens",
    "model_fingerprint": "a model",
}
"""Facts for the manifest."""


def write_trainer_state(folder: Path, step: int) -> None:
    """Write `trainer_state.json` of a run that was not evaluated since it began."""
    before = {"evaluated": {"step": 0, "held_out_loss": 2.0, "train_loss": 2.0}, "answers": []}
    before |= {"evaluation_seconds": 1.0, "answer_seconds": 0.0}
    unlogged = {"loss": [0.0], "tokens": [0.0], "since": step}
    progress = {"evaluated": None, "base": before, "unlogged": unlogged, "seconds": 1.0}
    folder.mkdir(parents=True, exist_ok=True)
    callbacks = {"TrainerControl": {}, "run": progress}
    content = {
        "global_step": step,
        "epoch": 0.0,
        "total_flos": 0.0,
        "log_history": [],
        "stateful_callbacks": callbacks,
    }
    (folder / "trainer_state.json").write_text(json.dumps(content), encoding="utf-8")

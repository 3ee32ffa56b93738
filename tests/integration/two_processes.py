"""Trains a tiny model in two processes that save checkpoints; run by torchrun from `test_resume_slow.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from neftcli.data.rows import TokenRows
from neftcli.data.tokens import TokenRow
from neftcli.machine.device import Machine
from neftcli.recipe.loading import assignment, resolve
from neftcli.runs.checkpoints import Checkpoints
from neftcli.training.trainer import build_trainer
from tests.tiny import tiny_model, tiny_tokenizer


class SaveEach(TrainerCallback):
    """Saves behind every update, and stops behind one."""

    def on_step_end(self, args: object, state: object, control: object, **kwargs: object) -> None:
        """Asks for a checkpoint, and for the end."""
        control.should_save = True  # type: ignore[attr-defined]
        control.should_training_stop = state.global_step == steps  # type: ignore[attr-defined]


folder, steps, resumed = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
sets = {"training.max_steps": 4, "training.per_device_train_batch_size": 2, "training.batching": "padded"}
recipe = resolve([assignment(f"{key}={value}") for key, value in sets.items()])
rows = [TokenRow([5 + n, 9, 20 + n, 31, 7], [-100, 9, 20 + n, 31, 7], False, True, f"row {n}") for n in range(24)]
machine = Machine("cpu", "CPU", False, torch.float32)
checkpoints = Checkpoints(folder / "checkpoints", 9)
facts = {"recipe": "name: two\n", "recipe_sha256": "0"}
trainer = build_trainer(
    recipe, machine, tiny_model("llama"), tiny_tokenizer(), TokenRows.of(rows), checkpoints, facts, SaveEach()
)
trainer.train(resume_from_checkpoint=resumed[0] if resumed else None)
if trainer.args.should_save:
    trainer.model.save_pretrained(folder / "model")

"""Resuming the real SmolLM2-135M (slow).

Oracle: the uninterrupted run, by the hash of its weights.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.killed_runs import Killer, run_result, run_training

pytestmark = pytest.mark.slow
SETTINGS: dict[str, Any] = {
    "name": "run",
    "data.max_rows": 48,
    "data.held_out_rows": 6,
    "data.max_length": 128,
    "training.num_train_epochs": 2,
    "training.per_device_train_batch_size": 8,
    "training.logging_steps": 2,
    "evaluation.samples": 1,
    "evaluation.probe_rows": 2,
    "evaluation.generation.max_new_tokens": 8,
    "checkpoints.save_steps": 3,
}


@pytest.mark.parametrize("method", [{}, {"adapter.type": "lora", "adapter.lora_dropout": 0.1}])
def test_resume_killed_run_of_smollm2_bit_identical(method: dict[str, Any], tmp_path: Path) -> None:
    settings = {**SETTINGS, **method}
    assert run_training(settings, tmp_path / "whole") == 0
    broken = tmp_path / "broken" / "run-a5-s0"
    first, second = sorted(random.Random(str(method)).sample(range(4, 11), 2))  # noqa: S311
    assert run_training(settings, broken.parent, killer=Killer(first)) == -signal.SIGKILL
    assert run_training(settings, broken.parent, resume=broken, killer=Killer(second, signal.SIGTERM)) == 75
    assert run_training(settings, broken.parent, resume=broken) == 0
    assert run_result(broken) == run_result(tmp_path / "whole" / "run-a5-s0")

"""The real SmolLM2-135M (slow): a short quickstart.

Oracle: the model's held-out loss falls, and a repeated run is bit-identical.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from tests.conftest import Result, events

pytestmark = pytest.mark.slow
OPTIONS = ("--max-steps", "10", "--held-out-rows", "24", "--samples", "1", "--set", "evaluation.probe_rows=8")


def test_train_ten_steps_lower_the_held_out_loss(neft: Callable[..., Result], tmp_path: Path) -> None:
    finished = events(neft("train", *OPTIONS, "--output-dir", tmp_path, "--json").out)[-1]
    assert finished["event"] == "training.finished"
    assert finished["held_out_loss"] < finished["base_held_out_loss"] - 0.05


def test_train_same_recipe_is_bit_identical(neft: Callable[..., Result], tmp_path: Path) -> None:
    hashes = set()
    for _ in range(2):
        result = neft("train", *OPTIONS, "--max-steps", "3", "--lora", "--output-dir", tmp_path, "--json")
        run = Path(events(result.out)[-1]["run"])
        assert json.loads((run / "run.json").read_text())["status"] == "finished"
        hashes.add(sha256((run / "model" / "adapter_model.safetensors").read_bytes()).hexdigest())
    assert len(hashes) == 1

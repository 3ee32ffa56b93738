"""Whole runs on a GPU: the same recipe and seed give the same bits."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from tests.conftest import neft_process
from tests.tiny import save_tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SIZE = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 512}


def inputs(folder: Path) -> list[str]:
    """A model and rows of up to 800 tokens, so that attention's backward pass adds what several blocks found."""
    save_tiny(folder / "model", "llama", num_hidden_layers=4, **SIZE)
    drawn = random.Random(0)  # noqa: S311
    text = ["".join(drawn.choices("abcdefgh ", k=drawn.randint(100, 800))) for _ in range(48)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in text))
    return ["--model", str(folder / "model"), "--dataset", str(folder / "rows.jsonl"), "--max-length", "1000"]


@pytest.mark.parametrize("method", [[], ["--lora"], ["--qlora"], ["--set", "training.batching=packed"]])
def test_the_same_seed_gives_the_same_bits(method: list[str], tmp_path: Path) -> None:
    common = ["train", *inputs(tmp_path), *method, "--max-steps", "6", "--batch-size", "6", "--learning-rate", "1e-3"]
    weights = []
    for place in ("one", "two"):
        done = neft_process(*common, "--output-dir", tmp_path / place, "--json")
        assert done.code == 0, done.err[-2000:]
        [record] = (tmp_path / place).glob("*/run.json")
        found = json.loads(record.read_text())
        assert "NVIDIA" in found["device"]
        weights.append(found["weights_sha256"])
    assert weights[0] == weights[1]

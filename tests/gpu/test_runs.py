"""Whole runs on a GPU: the same recipe and seed give bit-identical weights."""

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
    """A model and rows of up to 800 tokens, so that attention's backward pass sums over several blocks."""
    save_tiny(folder / "model", "llama", num_hidden_layers=4, **SIZE)
    generator = random.Random(0)  # noqa: S311
    text = ["".join(generator.choices("abcdefgh ", k=generator.randint(100, 800))) for _ in range(48)]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in text))
    return ["--model", str(folder / "model"), "--dataset", str(folder / "rows.jsonl"), "--max-length", "1000"]


@pytest.mark.parametrize("method", [[], ["--lora"], ["--qlora"], ["--set", "training.batching=packed"]])
def test_train_same_seed_is_bit_identical(method: list[str], tmp_path: Path) -> None:
    common = ["train", *inputs(tmp_path), *method, "--max-steps", "6", "--batch-size", "6", "--learning-rate", "1e-3"]
    weights = []
    for run in ("first", "second"):
        done = neft_process(*common, "--output-dir", tmp_path / run, "--json")
        assert done.code == 0, done.err[-2000:]
        [file] = (tmp_path / run).glob("*/run.json")
        record = json.loads(file.read_text())
        assert "NVIDIA" in record["device"]
        weights.append(record["weights_sha256"])
    assert weights[0] == weights[1]

"""The real SmolLM2-135M (slow): a short quickstart, and its way to other programs.

Oracles: the held-out loss falls, a repeated run is bit-identical, and merged, exported and pushed models give the
greedy answers of the run.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Result, call_neft, events, neft_process
from tests.hub_server import TOKEN, loopback_hub

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


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a LoRA adapter for a few steps."""
    few_rows = ("--held-out-rows", "2", "--samples", "0", "--set", "evaluation.probe_rows=0", "--batch-size", "2")
    arguments = ("train", *few_rows, "--max-steps", "4", "--lora", "--learning-rate", "1e-3", "--json")
    result = call_neft(*arguments, "--output-dir", tmp_path_factory.mktemp("adapter"))
    assert result.code == 0, result.err
    return Path(events(result.out)[-1]["run"])


def greedy_answers(model: Path, folder: Path) -> list[str]:
    """Answer two questions by `neft answer` in float32."""
    asked = ["What is the capital of France?", "Write a sentence about the sea."]
    questions, out = folder / "questions.jsonl", folder / f"{model.name}.answers.jsonl"
    questions.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in asked))
    result = call_neft("answer", model, "--dataset", questions, "--out", out, "--max-new-tokens", "16")
    assert result.code == 0, result.err
    return [json.loads(line)["completion"] for line in out.read_text().splitlines()]


def last_event(*arguments: object) -> dict[str, Any]:
    result = call_neft(*arguments, "--json")
    assert result.code == 0, result.err
    return events(result.out)[-1]


@pytest.mark.xdist_group("smollm2 adapter")
def test_merge_and_export_answer_like_the_run(adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEFT_CACHE", str(tmp_path / "cache"))  # of converted .gguf files
    expected = greedy_answers(adapter, tmp_path)
    merged = last_event("merge", adapter, "--out", tmp_path / "merged")["comparison"]
    assert merged["same_token"] == merged["tokens"]
    assert merged["difference"] < 1e-3
    assert greedy_answers(tmp_path / "merged", tmp_path) == expected
    exported = last_event("export", adapter, "--to", "gguf", "--quantize", "f16", "--out", tmp_path / "model.gguf")
    assert exported["comparison"]["difference"] < 0.5
    assert greedy_answers(tmp_path / "model.gguf", tmp_path) == expected


@pytest.mark.enable_socket
@pytest.mark.xdist_group("smollm2 adapter")
def test_push_merged_uploads_what_merge_writes(adapter: Path, tmp_path: Path) -> None:
    last_event("merge", adapter, "--out", tmp_path / "merged")
    with loopback_hub() as hub:
        settings = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        result = neft_process("push", adapter, "me/my-model", "--merged", **settings)
        assert result.code == 0, result.err
        uploaded = hub.repositories["me/my-model"]
    assert uploaded["model.safetensors"] == (tmp_path / "merged" / "model.safetensors").read_bytes()
    assert b"NEFTune alpha 5" in uploaded["README.md"]

"""A run that was killed and resumed is bit-identical to the uninterrupted run.

Oracle: the same recipe, uninterrupted. Runs kill themselves (-9) after a step or while a checkpoint is written, or are
stopped by a signal; then they are resumed in a new process until they finish. The tests compare the hash of the weights
and every line of metrics.jsonl except times.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from neftcli.events import PhaseId
from tests.killed_runs import LORA, SETTINGS, Killer, run_result, run_training
from tests.tiny import save_tiny

PISSA = {**LORA, "adapter.init_lora_weights": "pissa", "model.dtype": "float32"}
MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "full, dropout in the model, schedule": {"neftune.schedule": "linear_decay"},
    "LoRA with dropout": LORA,
    "LoRA, embedding trained in full": {**LORA, "adapter.modules_to_save": "[embed_tokens]"},
    "LoRA in fused layers": {"adapter.type": "lora", "adapter.r": 2, "training.precision": "bfloat16"},
    "QLoRA": {**LORA, "quantization.type": "nf4"},
    "LoRA on 8-bit weights": {**LORA, "quantization.type": "int8"},
    "DoRA, rsLoRA, Lion, decay at the end": {
        **LORA,
        "adapter.use_dora": "true",
        "adapter.use_rslora": "true",
        "training.optim": "lion_32bit",
        "training.lr_scheduler_type": "warmup_stable_decay",
    },
    "Adafactor, a least learning rate": {
        "training.optim": "adafactor",
        "training.lr_scheduler_type": "cosine_with_min_lr",
        "training.min_lr_ratio": 0.3,
    },
    "PiSSA, best weights": {**PISSA, "training.keep": "best"},
    "new tokens": {"model.new_tokens": "['<tool>', 'the ']"},
    "LoRA, new tokens": {**LORA, "model.new_tokens": "['<tool>', 'the ']"},
    "LoRA+": {**LORA, "adapter.loraplus_lr_ratio": 16, "training.weight_decay": 0.1},
    "PiSSA by a fast SVD": {**PISSA, "adapter.pissa_niter": 2},
    "full, frozen layers": {"training.freeze": "[embed_tokens, layers.0]", "training.weight_decay": 0.1},
    "paged 8-bit Lion": {"training.optim": "paged_lion_8bit", "training.learning_rate": "5e-4"},
    "packed": {"training.batching": "packed", "data.max_length": 400, "training.per_device_train_batch_size": 1},
    "padded": {"training.batching": "padded"},
    "length-bucketed, accumulation, dropout": {
        **LORA,
        "training.batching": "bucketed",
        "training.gradient_accumulation_steps": 2,
        "training.per_device_train_batch_size": 2,
    },
    "accumulation with a rest, 8-bit optimiser, part of an epoch": {
        "training.gradient_accumulation_steps": 4,
        "training.per_device_train_batch_size": 2,
        "training.num_train_epochs": 2.6,
        "training.optim": "adamw_8bit",
    },
    "symmetric noise, checkpointed activations": {
        "neftune.noise": "symmetric",
        "training.gradient_checkpointing": "true",
    },
}


@pytest.fixture(scope="module")
def settings_of(
    tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """Return a function that returns the settings of a mode."""

    def settings(mode: str) -> dict[str, Any]:
        model = tiny_folder("llama")
        if "dropout in the model" in mode:
            model = tmp_path_factory.mktemp("models") / "opt"
            save_tiny(model, "opt", dropout=0.2)
        if "new tokens" in mode:  # no spare embeddings
            model = tmp_path_factory.mktemp("models") / "llama"
            save_tiny(model, "llama", vocab_size=247, tie_word_embeddings="LoRA" in mode)
        inputs = {"model.name": model, "data.source": rows_file}
        if "NEFT_TEST_GPU" in os.environ:  # whose attention adds in another order each time in 16 bits only
            inputs["training.precision"] = "bfloat16"
        return {**SETTINGS, **inputs, **MODES[mode]}

    return settings


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_resume_after_kills_bit_identical(
    mode: str, settings_of: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    settings = settings_of(mode)
    assert run_training(settings, tmp_path / "whole") == 0
    whole = tmp_path / "whole" / "run-a5-s0"
    total = max(line["step"] for line in run_result(whole)[1][:-1])
    steps = sorted(random.Random(mode).sample(range(3, total + 1), 3))  # noqa: S311
    broken = tmp_path / "broken" / "run-a5-s0"
    assert run_training(settings, broken.parent, killer=Killer(steps[0])) == -signal.SIGKILL
    for step in steps[1:]:
        assert json.loads((broken / "run.json").read_text())["status"] == "running"
        assert run_training(settings, broken.parent, resume=broken, killer=Killer(step)) == -signal.SIGKILL
    assert run_training(settings, broken.parent, resume=broken) == 0
    assert run_result(broken) == run_result(whole), f"killed after {steps} of {total} steps"
    record = json.loads((broken / "run.json").read_text())
    assert record["status"] == "finished"
    assert [entry["checkpoint"] for entry in record["resumed"]] == [
        f"checkpoint-{(step - 1) // 2 * 2}" for step in steps
    ]
    assert not (broken / "checkpoints").exists()


@pytest.fixture(scope="module")
def uninterrupted(
    settings_of: Callable[[str], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """Return the settings of the LoRA mode, and an uninterrupted run with them."""
    settings, output = settings_of("LoRA with dropout"), tmp_path_factory.mktemp("whole")
    assert run_training(settings, output) == 0
    return settings, output / "run-a5-s0"


RESUMABLE = 75


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killer", "code", "status", "checkpoint"),
    [
        (Killer(7, signal.SIGTERM), RESUMABLE, "preempted", "checkpoint-7"),
        (Killer(7, signal.SIGUSR1), RESUMABLE, "preempted", "checkpoint-7"),
        (Killer(7, signal.SIGINT), RESUMABLE, "preempted", "checkpoint-7"),
        (Killer(5, signal.SIGTERM), RESUMABLE, "preempted", "checkpoint-5"),  # followed by an evaluation
        (Killer(5, signal.SIGTERM, evaluating=True), RESUMABLE, "preempted", "checkpoint-5"),
        (Killer(16, signal.SIGTERM, evaluating=True), RESUMABLE, "preempted", "checkpoint-16"),
        (Killer(16, signal.SIGTERM), RESUMABLE, "preempted", "checkpoint-16"),  # the last step
        (Killer(5, evaluating=True), -signal.SIGKILL, "running", "checkpoint-4"),
        (Killer(5, saving=True), -signal.SIGKILL, "running", "checkpoint-4"),
        (Killer(phase=PhaseId.SAVING_MODEL), -signal.SIGKILL, "running", "checkpoint-14"),
        (Killer(phase=PhaseId.GENERATING_SAMPLES), -signal.SIGKILL, "running", "checkpoint-14"),
        (
            Killer(phase=PhaseId.GENERATING_SAMPLES, signal=signal.SIGTERM),
            RESUMABLE,
            "preempted",
            "checkpoint-16",
        ),
        (Killer(phase=PhaseId.LOADING_MODEL), -signal.SIGKILL, "running", None),
        (Killer(phase=PhaseId.LOADING_MODEL, signal=signal.SIGTERM), RESUMABLE, "preempted", None),
        (Killer(1), -signal.SIGKILL, "running", None),
    ],
)
def test_resume_after_any_stop_bit_identical(
    killer: Killer,
    code: int,
    status: str,
    checkpoint: str | None,
    uninterrupted: tuple[dict[str, Any], Path],
    tmp_path: Path,
) -> None:
    settings, whole = uninterrupted
    stopped = tmp_path / "run-a5-s0"
    assert run_training(settings, tmp_path, killer=killer) == code
    assert json.loads((stopped / "run.json").read_text())["status"] == status
    assert run_training(settings, tmp_path, resume=stopped) == 0
    assert run_result(stopped) == run_result(whole)
    [entry] = json.loads((stopped / "run.json").read_text())["resumed"]
    assert (entry["checkpoint"], entry["after"]) == (checkpoint, status)


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 16])
def test_resume_stopped_again_in_the_postponed_evaluation(
    step: int, uninterrupted: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    settings, whole = uninterrupted
    stopped = tmp_path / "run-a5-s0"
    assert run_training(settings, tmp_path, killer=Killer(step, signal.SIGTERM, evaluating=True)) == RESUMABLE
    again = Killer(0, signal.SIGTERM, evaluating=True)
    assert run_training(settings, tmp_path, resume=stopped, killer=again) == RESUMABLE
    assert run_training(settings, tmp_path, resume=stopped) == 0
    assert run_result(stopped) == run_result(whole)


@pytest.mark.slow
def test_resume_after_a_second_signal(uninterrupted: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    settings, whole = uninterrupted
    stopped = tmp_path / "run-a5-s0"
    assert run_training(settings, tmp_path, killer=Killer(7, signal.SIGTERM, twice=True)) == 130
    assert json.loads((stopped / "run.json").read_text())["status"] == "interrupted"
    assert run_training(settings, tmp_path, resume=stopped) == 0
    assert run_result(stopped) == run_result(whole)

"""`training.keep: best` and `training.patience`: the model has the weights of the best evaluation, also after kills.

Oracles: the checkpoint that an equal run saved at that step, and the uninterrupted run. With these learning rates the
held-out loss is lowest before the last step, and is higher after the second evaluation than after the first.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from neftcli.events import PhaseId
from tests.killed_runs import LORA, SETTINGS, Killer, run_result, run_training

SELECTION = {
    "training.lr_scheduler_type": "constant",
    "training.keep": "best",
    "evaluation.every": 0.12,
    "checkpoints.save_steps": 3,
}
MODES: dict[str, dict[str, Any]] = {
    "full": {"training.learning_rate": "5e-2"},
    "LoRA": {**LORA, "training.learning_rate": "2e-1"},
}
RESUMABLE = 75
RUN = "run-a5-s0"


@pytest.fixture(scope="module")
def settings_of(tiny_folder: Callable[[str], Path], rows_file: Path) -> Callable[[str], dict[str, Any]]:
    """Return a function that returns the settings of a mode."""
    inputs = {"model.name": tiny_folder("llama"), "data.source": rows_file}
    return lambda mode: {**SETTINGS, **inputs, **SELECTION, **MODES[mode]}


def selected(run: Path) -> dict[str, Any]:
    """Return the entry of run.json about the selection."""
    entry: dict[str, Any] = json.loads((run / "run.json").read_text())["selected"]
    return entry


def weights(folder: Path) -> str:
    """Return the hash of the weights in a folder."""
    [file] = folder.glob("*.safetensors")
    return sha256(file.read_bytes()).hexdigest()


def evaluations(run: Path) -> dict[int, float]:
    """Return the held-out loss of each evaluation during training."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: line["held_out_loss"] for line in lines if line["event"].endswith("evaluated") and line["step"]
    }


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_keep_best_after_kills(mode: str, settings_of: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    """Killed before the best step, after it with an older checkpoint, and after it with a newer one."""
    settings = settings_of(mode)
    assert run_training(settings, tmp_path / "whole") == 0
    whole = tmp_path / "whole" / RUN
    losses = evaluations(whole)
    best = min(losses, key=lambda step: losses[step])
    assert best == 14 < max(losses)
    record = selected(whole)
    assert (record["step"], record["held_out_loss"], record["last_step"]) == (best, losses[best], 16)
    assert not {"best", "checkpoints"} & {path.name for path in whole.iterdir()}

    every_step = {**settings, "checkpoints.save_steps": 1}
    assert run_training(every_step, tmp_path / "saved", killer=Killer(best + 1)) == -signal.SIGKILL
    assert weights(whole / "model") == weights(tmp_path / "saved" / RUN / "checkpoints" / f"checkpoint-{best}")

    broken = tmp_path / "broken" / RUN
    assert run_training(settings, broken.parent, killer=Killer(13)) == -signal.SIGKILL
    for step in (15, 16):  # from checkpoint 12, then from checkpoint 15
        assert run_training(settings, broken.parent, resume=broken, killer=Killer(step)) == -signal.SIGKILL
    assert run_training(settings, broken.parent, resume=broken) == 0
    assert run_result(broken) == run_result(whole)
    assert selected(broken) == record


@pytest.mark.slow
@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize(
    ("killer", "code"),
    [
        (Killer(5), -signal.SIGKILL),
        (Killer(6, evaluating=True), -signal.SIGKILL),
        (Killer(6, signal.SIGTERM, evaluating=True), RESUMABLE),
        (Killer(6, signal.SIGTERM), RESUMABLE),
        (Killer(phase=PhaseId.GENERATING_SAMPLES, signal=signal.SIGTERM), RESUMABLE),
    ],
)
def test_patience_after_stops(
    killer: Killer, code: int, keep: str, settings_of: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    """Two evaluations without a lower loss end the training; it ends at the same step however it was stopped."""
    settings = {**settings_of("LoRA"), "training.patience": 2, "training.keep": keep}
    assert run_training(settings, tmp_path / "whole") == 0
    whole = tmp_path / "whole" / RUN
    losses = evaluations(whole)
    assert list(losses) == [2, 4, 6]
    assert min(losses, key=lambda step: losses[step]) == 2
    record = selected(whole)
    assert (record["step"], record["last_step"], record["total_steps"]) == (2 if keep == "best" else 6, 6, 16)
    broken = tmp_path / "broken" / RUN
    assert run_training(settings, broken.parent, killer=killer) == code
    assert run_training(settings, broken.parent, resume=broken) == 0
    assert run_result(broken) == run_result(whole)
    assert selected(broken) == record
    assert not {"best", "checkpoints"} & {path.name for path in broken.iterdir()}

"""A run that was killed and gone on with equals the run that was never stopped, bit for bit.

Oracle: the same recipe, undisturbed. Runs are killed (-9) by themselves behind an update, in the middle of writing a
checkpoint, or stopped by a signal; then gone on with in a new process until they end. Compared are the hash of the
weights and every line of metrics.jsonl but its times.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from neftcli.events import Event, Phase, PhaseId, TrainingProgress
from neftcli.recipe.loading import parse_assignment, resolve_recipe
from neftcli.runs.checkpoints import Checkpoints
from tests.tiny import save_tiny

PRELOADED = [
    "neftcli.training.train",
    "neftcli.training.callbacks",
    "neftcli.training.trainer",
    "neftcli.models.loading",
]
BASIS = {
    "name": "run",
    "training.num_train_epochs": 2,
    "training.per_device_train_batch_size": 4,
    "training.learning_rate": "5e-3",
    "training.logging_steps": 3,
    "training.precision": "float32",
    "data.max_rows": 36,
    "data.held_out_rows": 6,
    "evaluation.every": 0.3,
    "evaluation.samples": 1,
    "evaluation.probe_rows": 2,
    "evaluation.generation.max_new_tokens": 3,
    "checkpoints.save_steps": 2,
}
LORA = {"adapter.type": "lora", "adapter.r": 2, "adapter.lora_dropout": 0.1}
MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "full, dropout in the model, schedule": {"neftune.schedule": "linear_decay"},
    "LoRA with dropout": LORA,
    "LoRA, embedding trained in full": {**LORA, "adapter.modules_to_save": "[embed_tokens]"},
    "LoRA in fused layers": {"adapter.type": "lora", "adapter.r": 2, "training.precision": "bfloat16"},
    "QLoRA": {**LORA, "quantization.type": "nf4"},
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


@dataclass
class Killer:
    """Ends its own process: behind an update, in an evaluation, or where a phase begins.

    Attributes:
        step: The update behind which it strikes; 0 for never.
        signal: With what.
        evaluating: Strikes in the first evaluation behind `step`, in place of at once.
        phase: Strikes when this phase begins, instead of after a step.
        twice: Strikes twice.
        saving: Strikes in the first checkpoint from `step` on, when all but the manifest is written.
    """

    step: int = 0
    signal: int = signal.SIGKILL
    evaluating: bool = False
    phase: PhaseId | None = None
    saving: bool = False
    twice: bool = False
    done: int = 0

    def notify(self, event: Event) -> None:
        """Strikes when its time has come."""
        if isinstance(event, TrainingProgress):
            self.done = event.step
        behind = (
            isinstance(event, TrainingProgress) and event.step == self.step and not self.evaluating and not self.saving
        )
        if behind or (isinstance(event, Phase) and event.phase == self.phase):
            self.strike()

    def strike(self) -> None:
        """Sends the signal."""
        for _ in range(1 + self.twice):
            os.kill(os.getpid(), self.signal)

    def watch(self) -> None:
        """Has evaluations, or checkpoints that lack their manifest only, be struck."""
        from neftcli.evaluation import loss

        row_losses, publish = loss.row_losses, Checkpoints.publish

        def evaluating(*arguments: Any) -> Any:
            if self.done >= self.step and self.evaluating:
                self.evaluating = False
                self.strike()
            return row_losses(*arguments)

        def saving(checkpoints: Checkpoints, step: int, facts: Mapping[str, Any]) -> None:
            if step >= self.step and self.saving:
                self.strike()
            publish(checkpoints, step, facts)

        loss.row_losses, Checkpoints.publish = evaluating, saving  # type: ignore[method-assign, assignment]


def child(settings: dict[str, Any], output: Path, resume: str | None, killer: Killer) -> None:
    """Trains in a process of its own, which ends as `neft train` would."""
    import torch

    from neftcli.errors import NeftError
    from neftcli.training.resume import find_resume_state
    from neftcli.training.signals import StopSignal
    from neftcli.training.train import train

    torch.set_num_threads(1)
    killer.watch()
    stop = StopSignal()
    try:
        with stop.handle_signals():
            if resume is None:
                layers = [parse_assignment(f"{key}={value}") for key, value in settings.items()]
                train(resolve_recipe([*layers, parse_assignment(f"output_dir={output}")]), killer, stop=stop)
            else:
                recipe, resume_state = find_resume_state(resume, [], accept_changes=False)
                train(recipe, killer, stop=stop, resume=resume_state)
    except NeftError as error:
        raise SystemExit(error.exit_code) from None


def run(settings: dict[str, Any], output: Path, resume: Path | None = None, killer: Killer | None = None) -> int:
    """The exit code of a run in a process of its own."""
    context = multiprocessing.get_context("spawn" if "NEFT_TEST_GPU" in os.environ else "forkserver")
    if isinstance(context, multiprocessing.context.ForkServerContext):  # a GPU can't be used in a forked process
        context.set_forkserver_preload(PRELOADED)
    process = context.Process(
        target=child, args=(settings, output, str(resume) if resume else None, killer or Killer())
    )
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def result(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """What must be equal: the weights' hash, and what was measured but for times and memory."""
    [weights] = (folder / "model").glob("*.safetensors")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("tokens_per_second", None), line.pop("memory_bytes", None)
    samples = (folder / "samples.jsonl").read_text()
    return sha256(weights.read_bytes()).hexdigest(), [*lines, json.loads(samples)]


@pytest.fixture(scope="module")
def settings_of(
    tiny_folder: Callable[[str], Path], rows_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    """The settings of a mode."""

    def settings(mode: str) -> dict[str, Any]:
        model = tiny_folder("llama")
        if "dropout in the model" in mode:
            model = tmp_path_factory.mktemp("models") / "opt"
            save_tiny(model, "opt", dropout=0.2)
        inputs = {"model.name": model, "data.source": rows_file}
        if "NEFT_TEST_GPU" in os.environ:  # whose attention adds in another order each time in 16 bits only
            inputs["training.precision"] = "bfloat16"
        return {**BASIS, **inputs, **MODES[mode]}

    return settings


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_resume_after_kills_bit_identical(
    mode: str, settings_of: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    settings = settings_of(mode)
    assert run(settings, tmp_path / "whole") == 0
    whole = tmp_path / "whole" / "run-a5-s0"
    total = max(line["step"] for line in result(whole)[1][:-1])
    steps = sorted(random.Random(mode).sample(range(3, total + 1), 3))  # noqa: S311
    broken = tmp_path / "broken" / "run-a5-s0"
    assert run(settings, broken.parent, killer=Killer(steps[0])) == -signal.SIGKILL
    for step in steps[1:]:
        assert json.loads((broken / "run.json").read_text())["status"] == "running"
        assert run(settings, broken.parent, resume=broken, killer=Killer(step)) == -signal.SIGKILL
    assert run(settings, broken.parent, resume=broken) == 0
    assert result(broken) == result(whole), f"killed behind {steps} of {total} updates"
    record = json.loads((broken / "run.json").read_text())
    assert record["status"] == "finished"
    assert [entry["checkpoint"] for entry in record["resumed"]] == [
        f"checkpoint-{(step - 1) // 2 * 2}" for step in steps
    ]
    assert not (broken / "checkpoints").exists()


@pytest.fixture(scope="module")
def undisturbed(
    settings_of: Callable[[str], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], Path]:
    """The settings of the LoRA mode, and a run by them that nobody stopped."""
    settings, output = settings_of("LoRA with dropout"), tmp_path_factory.mktemp("whole")
    assert run(settings, output) == 0
    return settings, output / "run-a5-s0"


RESUMABLE = 75


@pytest.mark.slow
@pytest.mark.parametrize(
    ("killer", "code", "status", "checkpoint"),
    [
        (Killer(7, signal.SIGTERM), RESUMABLE, "preempted", "checkpoint-7"),
        (Killer(7, signal.SIGUSR1), RESUMABLE, "preempted", "checkpoint-7"),
        (Killer(7, signal.SIGINT), RESUMABLE, "preempted", "checkpoint-7"),
        (Killer(5, signal.SIGTERM), RESUMABLE, "preempted", "checkpoint-5"),  # an evaluation is due behind it
        (Killer(5, signal.SIGTERM, evaluating=True), RESUMABLE, "preempted", "checkpoint-5"),
        (Killer(16, signal.SIGTERM, evaluating=True), RESUMABLE, "preempted", "checkpoint-16"),
        (Killer(16, signal.SIGTERM), RESUMABLE, "preempted", "checkpoint-16"),  # the last update
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
    undisturbed: tuple[dict[str, Any], Path],
    tmp_path: Path,
) -> None:
    settings, whole = undisturbed
    stopped = tmp_path / "run-a5-s0"
    assert run(settings, tmp_path, killer=killer) == code
    assert json.loads((stopped / "run.json").read_text())["status"] == status
    assert run(settings, tmp_path, resume=stopped) == 0
    assert result(stopped) == result(whole)
    [entry] = json.loads((stopped / "run.json").read_text())["resumed"]
    assert (entry["checkpoint"], entry["after"]) == (checkpoint, status)


@pytest.mark.slow
@pytest.mark.parametrize("step", [5, 16])
def test_resume_stopped_again_in_the_postponed_evaluation(
    step: int, undisturbed: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    settings, whole = undisturbed
    stopped = tmp_path / "run-a5-s0"
    assert run(settings, tmp_path, killer=Killer(step, signal.SIGTERM, evaluating=True)) == RESUMABLE
    again = Killer(0, signal.SIGTERM, evaluating=True)
    assert run(settings, tmp_path, resume=stopped, killer=again) == RESUMABLE
    assert run(settings, tmp_path, resume=stopped) == 0
    assert result(stopped) == result(whole)


@pytest.mark.slow
def test_resume_after_a_second_signal(undisturbed: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    settings, whole = undisturbed
    stopped = tmp_path / "run-a5-s0"
    assert run(settings, tmp_path, killer=Killer(7, signal.SIGTERM, twice=True)) == 130
    assert json.loads((stopped / "run.json").read_text())["status"] == "interrupted"
    assert run(settings, tmp_path, resume=stopped) == 0
    assert result(stopped) == result(whole)

"""Runs in their own processes, which can be killed or stopped at a given step or phase."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from neftcli.events import Event, Phase, PhaseId, TrainingProgress
from neftcli.recipe.loading import parse_assignment, resolve_recipe
from neftcli.runs.checkpoints import CheckpointFolder

PRELOADED = [
    "neftcli.training.train",
    "neftcli.training.callbacks",
    "neftcli.training.trainer",
    "neftcli.models.loading",
]
SETTINGS = {
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


@dataclass
class Killer:
    """Observer that kills its own process: after a step, in an evaluation, or when a phase begins.

    Attributes:
        step: The step after which the signal is sent; 0 for never.
        signal: The signal.
        evaluating: Send it in the first evaluation after `step`, instead of at once.
        answering: Send it when answers are generated for the first time after `step`, instead of at once.
        phase: Send it when this phase begins, instead of after a step.
        twice: Send it twice.
        saving: Send it in the first checkpoint from `step` on, when all files but the manifest are written.
    """

    step: int = 0
    signal: int = signal.SIGKILL
    evaluating: bool = False
    answering: bool = False
    phase: PhaseId | None = None
    saving: bool = False
    twice: bool = False
    done: int = 0

    def notify(self, event: Event) -> None:
        """Send the signal if the event is the one."""
        if isinstance(event, TrainingProgress):
            self.done = event.step
        later = self.evaluating or self.answering or self.saving
        behind = isinstance(event, TrainingProgress) and event.step == self.step and not later
        if behind or (isinstance(event, Phase) and event.phase == self.phase):
            self.strike()

    def strike(self) -> None:
        """Send the signal."""
        for _ in range(1 + self.twice):
            os.kill(os.getpid(), self.signal)

    def watch(self) -> None:
        """Watch evaluations, answers, and checkpoints without their manifest."""
        from neftcli.evaluation import generation, loss

        row_losses, publish = loss.row_losses, CheckpointFolder.publish
        generate_answers = generation.generate_answers

        def evaluating(*arguments: Any) -> Any:
            if self.done >= self.step and self.evaluating:
                self.evaluating = False
                self.strike()
            return row_losses(*arguments)

        def saving(checkpoints: CheckpointFolder, step: int, facts: Mapping[str, Any]) -> None:
            if step >= self.step and self.saving:
                self.strike()
            publish(checkpoints, step, facts)

        def answering(*arguments: Any) -> Any:
            if self.done >= self.step and self.answering:
                self.answering = False
                self.strike()
            return generate_answers(*arguments)

        loss.row_losses, CheckpointFolder.publish = evaluating, saving  # type: ignore[method-assign, assignment]
        generation.generate_answers = answering  # type: ignore[assignment]


def train_in_child(settings: dict[str, Any], output: Path, resume: str | None, killer: Killer) -> None:
    """Train in this process, and end it as `neft train` would."""
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


def run_training(
    settings: dict[str, Any], output: Path, resume: Path | None = None, killer: Killer | None = None
) -> int:
    """Train in a new process, and return its exit code."""
    context = multiprocessing.get_context("spawn" if "NEFT_TEST_GPU" in os.environ else "forkserver")
    if isinstance(context, multiprocessing.context.ForkServerContext):  # a GPU can't be used in a forked process
        context.set_forkserver_preload(PRELOADED)
    process = context.Process(
        target=train_in_child, args=(settings, output, str(resume) if resume else None, killer or Killer())
    )
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def run_result(folder: Path) -> tuple[str, list[dict[str, Any]]]:
    """Return the weights' hash, and all metrics without times and memory."""
    [weights] = (folder / "model").glob("*.safetensors")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("tokens_per_second", None), line.pop("memory_bytes", None)
    samples = (folder / "samples.jsonl").read_text()
    return sha256(weights.read_bytes()).hexdigest(), [*lines, json.loads(samples)]

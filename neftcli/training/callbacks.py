"""Turns what the trainer does into events, evaluates and saves on the way, and tells the noise which update begins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from neftcli.errors import NonFiniteLossError, Problem
from neftcli.events import Evaluated, Observer, Phase, PhaseId, StepLogged, TrainingProgress
from neftcli.neftune import Noise
from neftcli.system.device import peak_memory
from neftcli.system.distributed import all_gather_object, broadcast_object
from neftcli.training.signals import StopRequested, StopSignal

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.runs.schemas import TrainingState
    from neftcli.training.resume import BaseEvaluation

SAVING = Phase(PhaseId.SAVING_CHECKPOINT)


class Watch(TrainerCallback, ExportableState):
    """The one callback of the trainer.

    `before_last` is called before the evaluation behind the last update; `base` is kept with the checkpoints; `begun`
    is when the run began, by time.perf_counter.

    Attributes:
        trainer: Whose callback it is.
        noise: The attached noise; set when training begins.
        evaluated: The last evaluation and its step, so that none is done twice.
    """

    def __init__(
        self,
        observer: Observer,
        evaluate: Callable[[int], Evaluated],
        recipe: Recipe,
        device: str,
        before_last: Callable[[], None],
        stop: StopSignal,
        base: BaseEvaluation,
        begun: float,
    ) -> None:
        self.trainer: Any = None
        self.noise: Noise | None = None
        self.evaluated: Evaluated | None = None
        self._observer, self._evaluate, self._device = observer, evaluate, device
        self._every, self._saving = recipe.evaluation.every, recipe.checkpoints
        self._before_last, self._stop, self._base, self._begun = before_last, stop, base, begun
        self._evaluation_seconds = 0.0
        self._started = self._row_started = self._saved = 0.0
        self._first_step, self._row_tokens = 0, 0.0
        self._stopping = False
        self._resumed: TrainingState | None = None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        if not hasattr(self.trainer, "unlogged"):  # nothing was saved yet
            return {}
        return {
            "evaluated": asdict(self.evaluated) if self.evaluated else None,
            "unlogged": self.trainer.unlogged,
            "base": asdict(self._base),
            "seconds": time.perf_counter() - self._begun,
        }

    def resume(self, progress: TrainingState) -> None:
        """Resume from what a checkpoint kept."""
        self._resumed = progress
        self.evaluated = Evaluated(**progress["evaluated"]) if progress["evaluated"] else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clocks, and makes up for an evaluation that a stop was asked before."""
        if self._resumed:
            self.trainer.restore_log_row(self._resumed["unlogged"])
            self._row_tokens = sum(self._resumed["unlogged"]["tokens"])
            if self._is_due(state):
                self.evaluate_now(state.global_step, last=False)
            if self._is_due(state):  # stopped again; its checkpoint is there
                raise StopRequested
        self._first_step, self._evaluation_seconds = state.global_step, 0.0
        self._started = self._row_started = self._saved = time.perf_counter()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Tells the loader which epoch begins, so that its order is its own.

        Where several processes go on in the middle of an epoch, it is told through one wrapper too many to reach a
        sampler that is not accelerate's.
        """
        train_dataloader.set_epoch(int(state.epoch or 0))

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seeds the noise of this update."""
        if self.noise is not None:
            self.noise.begin_step(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tells of the progress; asks for a checkpoint where one is due, and for a log row where an evaluation is."""
        step, total = state.global_step, state.max_steps
        elapsed = time.perf_counter() - self._started
        training = elapsed - self._evaluation_seconds
        remaining = training / (step - self._first_step) * (total - step)
        done = self._done(step, total) - self._done(self._first_step, total)
        remaining += self._evaluation_seconds / max(1, done) * (round(1 / self._every) - self._done(step, total))
        self._observer.notify(TrainingProgress(step, total, elapsed, max(remaining, 0.0)))
        if self._is_due(state):
            control.should_log = True
        if self._is_to_stop():
            self._observer.notify(SAVING)
            control.should_save = True
        elif step < total and broadcast_object(self._save_is_due(step)):
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint is whole.

        Raises:
            StopRequested: It was the last, since the run is to stop.
        """
        self._saved = time.perf_counter()
        if self._is_to_stop():
            raise StopRequested

    def _is_to_stop(self) -> bool:
        """Whether all processes are to stop, asked at the same places in each of them."""
        self._stopping = self._stopping or self._stop.is_agreed()
        return self._stopping

    def _save_is_due(self, step: int) -> bool:
        by_steps = self._saving.save_steps is not None and step % self._saving.save_steps == 0
        minutes = (time.perf_counter() - self._saved) / 60
        return by_steps or (self._saving.save_minutes is not None and minutes >= self._saving.save_minutes)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """A log row, then the evaluation that is due after it.

        Raises:
            NonFiniteLossError: The gradient or a loss is no number.
        """
        if "loss" in logs:
            _require_finite("the norm of the gradient", logs.get("grad_norm", 0.0), state.global_step)
            now = time.perf_counter()
            tokens = sum(all_gather_object(logs.get("num_tokens", 0.0)))
            rate = (tokens - self._row_tokens) / (now - self._row_started)
            self._observer.notify(
                StepLogged(
                    step=state.global_step,
                    epoch=float(state.epoch or 0.0),
                    loss=logs["loss"],
                    learning_rate=logs.get("learning_rate", 0.0),
                    grad_norm=logs.get("grad_norm", float("nan")),
                    tokens_per_second=rate,
                    memory_bytes=peak_memory(self._device),
                )
            )
            self._row_tokens = tokens
            if self._is_due(state) and not self._stopping:
                self.evaluate_now(state.global_step, last=state.global_step == state.max_steps)
            if self._is_to_stop() and not control.should_save:  # in the evaluation
                self._observer.notify(SAVING)
                control.should_save = True
            self._row_started = time.perf_counter()

    def _is_due(self, state: Any) -> bool:
        """Whether an evaluation belongs behind this update."""
        last = self.evaluated.step if self.evaluated else 0
        step, total = state.global_step, state.max_steps
        return bool(step == total or self._done(step, total) > self._done(last, total))

    def evaluate_now(self, step: int, *, last: bool) -> None:
        """The evaluation behind update `step`; a stop that is asked for meanwhile puts it off until the run goes on."""
        begun = time.perf_counter()
        if last:
            self._before_last()
        with suppress(StopRequested):
            self.evaluated = self._evaluate(step)
        self._evaluation_seconds += time.perf_counter() - begun
        if self.evaluated is not None and self.evaluated.step == step:
            _require_finite("the held-out loss", self.evaluated.held_out_loss or 0.0, step)
            _require_finite("the loss of training rows without noise", self.evaluated.train_loss or 0.0, step)
            self._observer.notify(self.evaluated)

    def _done(self, step: int, total: int) -> int:
        """How many evaluations are due up to `step`."""
        return int(step / total / self._every + 1e-9)


def _require_finite(name: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise NonFiniteLossError(
            Problem(
                f"{name} became {value} in update {step}",
                "",
                "a smaller --learning-rate, or training.precision=float32",
            )
        )

"""Callbacks of the trainer, one for each concern: noise, progress, evaluation, checkpoints.

The trainer calls them in this order: a step's log row comes before its evaluation, and both come before the checkpoint
that contains them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from neftcli.errors import NonFiniteLossError, Problem
from neftcli.events import Observer, Phase, PhaseId, StepLogged, TrainingProgress
from neftcli.system.device import peak_memory
from neftcli.system.distributed import all_gather_object, broadcast_object
from neftcli.training.signals import StopRequested, StopSignal

if TYPE_CHECKING:
    from neftcli.neftune import Noise
    from neftcli.recipe.schema import Checkpoints
    from neftcli.training.progress import EvaluationSchedule, TrainingClock
    from neftcli.training.resume import LossEvaluation, RunState

SAVING = Phase(PhaseId.SAVING_CHECKPOINT)


class NoiseCallback(TrainerCallback):
    """Seeds the noise of each step."""

    def __init__(self, noise: Noise) -> None:
        self._noise = noise

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seed the noise with the number of the step."""
        self._noise.begin_step(state.global_step)


class ProgressCallback(TrainerCallback):
    """Reports each step and each log row.

    Args:
        observer: Receives the events.
        clock: Times the steps.
        run_state: State with the step of the last evaluation, and the tokens of a resumed run.
        device: Device whose peak memory is reported.
    """

    def __init__(self, observer: Observer, clock: TrainingClock, run_state: RunState, device: str) -> None:
        self._observer, self._clock, self._run_state, self._device = observer, clock, run_state, device
        self._logged_tokens = float(sum(run_state.unlogged["tokens"])) if run_state.unlogged else 0.0
        self._logged_seconds = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._clock.start(state.global_step)
        self._logged_seconds = 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report the step and the time left."""
        remaining = self._clock.finish_step(state.global_step, self._run_state.evaluated_step)
        self._observer.notify(TrainingProgress(state.global_step, state.max_steps, self._clock.elapsed(), remaining))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Report a log row.

        Raises:
            NonFiniteLossError: The norm of the gradient is NaN or infinite.
        """
        if "loss" not in logs:  # the summary of the whole training
            return
        require_finite("the norm of the gradient", logs.get("grad_norm", 0.0), state.global_step)
        tokens = sum(all_gather_object(logs.get("num_tokens", 0.0)))
        seconds = self._clock.training_seconds()
        self._observer.notify(
            StepLogged(
                step=state.global_step,
                epoch=float(state.epoch or 0.0),
                loss=logs["loss"],
                learning_rate=logs.get("learning_rate", 0.0),
                grad_norm=logs.get("grad_norm", float("nan")),
                tokens_per_second=(tokens - self._logged_tokens) / max(seconds - self._logged_seconds, 1e-9),
                memory_bytes=peak_memory(self._device),
            )
        )
        self._logged_tokens, self._logged_seconds = tokens, seconds


class EvaluationCallback(TrainerCallback):
    """Evaluates the model during training and after the last step.

    Args:
        observer: Receives the events.
        clock: Times the evaluations.
        schedule: Steps after which the model is evaluated.
        measure: Evaluates the model after a step.
        save_model: Called before the evaluation after the last step, so that training is not lost if that fails.
        run_state: Stores the results.
        stop: A requested stop postpones an evaluation until the run resumes.
        save_best: Called after the best evaluation during training so far; None to keep the weights of the last step.
        patience: Training ends after this many evaluations that are not better; None to train to the end.
    """

    def __init__(
        self,
        observer: Observer,
        clock: TrainingClock,
        schedule: EvaluationSchedule,
        measure: Callable[[int], LossEvaluation],
        save_model: Callable[[], None],
        run_state: RunState,
        stop: StopSignal,
        save_best: Callable[[], None] | None = None,
        patience: int | None = None,
    ) -> None:
        self._observer, self._clock, self._schedule = observer, clock, schedule
        self._measure, self._save_model = measure, save_model
        self._run_state, self._stop = run_state, stop
        self._save_best, self._patience = save_best, patience

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request a log row if an evaluation is due."""
        if self.is_due(state.global_step):
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Evaluate after the log row if an evaluation is due."""
        if "loss" in logs and self.is_due(state.global_step) and not self._stop.stopping:
            self.evaluate(state.global_step)
            if self._run_state.has_lost_patience(self._patience):
                control.should_training_stop = True

    def is_due(self, step: int) -> bool:
        """Return whether an evaluation is due after `step`."""
        return self._schedule.is_due(step, self._run_state.evaluated_step)

    def evaluate(self, step: int) -> None:
        """Evaluate the model after `step`, unless a requested stop postpones it.

        Raises:
            NonFiniteLossError: A loss is NaN or infinite.
        """
        if step == self._schedule.total_steps:
            self._save_model()
        try:
            with self._clock.evaluating():
                evaluation = self._measure(step)
        except StopRequested:
            return
        losses = evaluation.measured
        require_finite("the held-out loss", losses.held_out_loss or 0.0, step)
        require_finite("the loss of training rows without noise", losses.train_loss or 0.0, step)
        improved = self._run_state.add_evaluation(evaluation)
        if improved and self._save_best is not None and step != self._schedule.total_steps:
            with self._clock.saving():
                self._save_best()
        self._observer.notify(losses)


class CheckpointCallback(TrainerCallback):
    """Requests checkpoints when they are due, and ends training after the checkpoint of a requested stop.

    Args:
        observer: Receives the events.
        clock: Times the saving.
        settings: The recipe's `checkpoints`.
        stop: A requested stop needs a last checkpoint.
    """

    def __init__(self, observer: Observer, clock: TrainingClock, settings: Checkpoints, stop: StopSignal) -> None:
        self._observer, self._clock, self._settings, self._stop = observer, clock, settings, stop
        self._last_saved = self._save_started = clock.now()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the interval to the first checkpoint."""
        self._last_saved = self._clock.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Request a checkpoint if one is due or a stop was requested."""
        if self._stop.synchronize():
            self._save_and_stop(control)
        elif state.global_step < state.max_steps and broadcast_object(self._is_due(state.global_step)):
            control.should_save = True
        self._save_started = self._clock.now()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Request a checkpoint if a stop was requested during the evaluation after this log row."""
        if "loss" in logs and self._stop.synchronize() and not control.should_save:
            self._save_and_stop(control)
        self._save_started = self._clock.now()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End training after the checkpoint of a requested stop."""
        self._last_saved = self._clock.now()
        self._clock.add_checkpoint(self._last_saved - self._save_started)
        if self._stop.synchronize():
            control.should_training_stop = True

    def _save_and_stop(self, control: Any) -> None:
        self._observer.notify(SAVING)
        control.should_save = True

    def _is_due(self, step: int) -> bool:
        by_steps = self._settings.save_steps is not None and step % self._settings.save_steps == 0
        minutes = (self._clock.now() - self._last_saved) / 60
        return by_steps or (self._settings.save_minutes is not None and minutes >= self._settings.save_minutes)


def require_finite(name: str, value: float, step: int) -> None:
    """Check that a measured number is finite.

    Raises:
        NonFiniteLossError: It is NaN or infinite.
    """
    if not math.isfinite(value):
        raise NonFiniteLossError(
            Problem(
                f"{name} became {value} in step {step}",
                hint="a smaller --learning-rate, or training.precision=float32",
            )
        )

"""Turns what the trainer does into events, evaluates on the way, and tells the noise which update begins."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from neftcli.errors import NonFiniteLossError, Problem
from neftcli.events import Evaluated, Observer, Progress, StepLogged
from neftcli.machine.device import peak_memory
from neftcli.neftune import Noise


class Watch(TrainerCallback):
    """The one callback of the trainer.

    `before_last` is called before the evaluation behind the last update, and `stop` is asked behind each update.

    Attributes:
        noise: The attached noise; set when training begins.
        evaluated: The last evaluation and its step, so that none is done twice.
    """

    def __init__(
        self,
        observer: Observer,
        evaluate: Callable[[int], Evaluated],
        every: float,
        device: str,
        before_last: Callable[[], None],
        stop: Callable[[], bool] | None = None,
    ) -> None:
        self.noise: Noise | None = None
        self.evaluated: Evaluated | None = None
        self._observer, self._evaluate, self._every, self._device = observer, evaluate, every, device
        self._before_last, self._stop = before_last, stop
        self._evaluation_seconds = 0.0
        self._started = self._row_started = 0.0
        self._row_tokens = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clocks."""
        self._started = self._row_started = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Seeds the noise of this update."""
        if self.noise is not None:
            self.noise.begin_step(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Tells of the progress; asks for a log row where an evaluation follows.

        Raises:
            KeyboardInterrupt: The run is to stop here.
        """
        elapsed = time.perf_counter() - self._started
        training = elapsed - self._evaluation_seconds
        remaining = training / state.global_step * (state.max_steps - state.global_step)
        evaluations = self._evaluation_seconds / max(1, self._done(state.global_step, state.max_steps))
        remaining += evaluations * (round(1 / self._every) - self._done(state.global_step, state.max_steps))
        self._observer.notify(Progress(state.global_step, state.max_steps, elapsed, max(remaining, 0.0)))
        if self._stop is not None and self._stop():
            raise KeyboardInterrupt
        if self._is_due(state):
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """A log row, then the evaluation that is due after it.

        Raises:
            NonFiniteLossError: The gradient or a loss is no number.
        """
        if "loss" in logs:
            _require_finite("the norm of the gradient", logs.get("grad_norm", 0.0), state.global_step)
            now = time.perf_counter()
            tokens = logs.get("num_tokens", 0.0)
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
            if self._is_due(state):
                if state.global_step == state.max_steps:
                    self._before_last()
                self._evaluate_now(state.global_step)
            self._row_started = time.perf_counter()

    def _is_due(self, state: Any) -> bool:
        """Whether an evaluation belongs behind this update."""
        last = self.evaluated.step if self.evaluated else 0
        step, total = state.global_step, state.max_steps
        return bool(step == total or self._done(step, total) > self._done(last, total))

    def _evaluate_now(self, step: int) -> None:
        begun = time.perf_counter()
        self.evaluated = self._evaluate(step)
        self._evaluation_seconds += time.perf_counter() - begun
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

"""Progress of a run: rows read and tokenised, and the time that training still takes."""

from __future__ import annotations

import math
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from neftcli.events import Observer, Phase, PhaseId, PhaseProgress

if TYPE_CHECKING:
    from neftcli.recipe.schema import Training

REPORT_SECONDS = 2.0
"""Seconds between two reports on rows; shorter work reports nothing."""
BASIS_SECONDS = 1.0
"""Seconds of work after the first rows before a rate is reported."""
BYTES_PER_SECOND = 200 * 2**20
"""Assumed speed of saving before the first checkpoint is written."""

Clock = Callable[[], float]


class ReadingProgress:
    """Reports how many rows were read so far."""

    def __init__(self, observer: Observer, now: Clock = time.monotonic) -> None:
        self._observer, self._now = observer, now
        self._reported = now()

    def __call__(self, rows: int) -> None:
        """Report the rows read, at most every `REPORT_SECONDS`."""
        now = self._now()
        if now - self._reported >= REPORT_SECONDS:
            self._reported = now
            self._observer.notify(Phase(PhaseId.READING_DATA, count=rows))


class TokenisingProgress:
    """Reports how many rows were tokenised, with a rate and the time left once the rate can be measured.

    The first rows warm up the tokenizer and its template, so the rate is that of the rows after them.
    """

    def __init__(self, observer: Observer, now: Clock = time.monotonic) -> None:
        observer.notify(Phase(PhaseId.TOKENIZING))
        self._observer, self._now = observer, now
        self._started = self._reported = now()
        self._warm: tuple[int, float] | None = None  # rows and time after the first call

    def __call__(self, done: int, total: int) -> None:
        """Report the rows tokenised, at most every `REPORT_SECONDS`; a rate of 0 is unknown."""
        now = self._now()
        if self._warm is None:
            self._warm = (done, now)
        if now - self._reported < REPORT_SECONDS:
            return
        self._reported = now
        warm_rows, warm_time = self._warm
        rate = (done - warm_rows) / (now - warm_time) if now - warm_time >= BASIS_SECONDS else 0.0
        remaining = (total - done) / rate if rate else 0.0
        self._observer.notify(
            PhaseProgress(PhaseId.TOKENIZING, done, total, now - self._started, remaining, "rows", rate, "rows")
        )


def count_steps(training: Training, batches: int) -> int:
    """Count the optimiser steps of all epochs, each of `batches` batches; training.max_steps is ignored."""
    batches_per_process = math.ceil(batches / training.processes)
    steps_per_epoch = math.ceil(batches_per_process / training.gradient_accumulation_steps)
    return math.ceil(training.num_train_epochs * steps_per_epoch)


@dataclass(frozen=True)
class EvaluationSchedule:
    """The steps after which the model is evaluated.

    Attributes:
        total_steps: Steps of the whole run.
        every: Fraction of the run between two evaluations; the last step has one in any case.
    """

    total_steps: int
    every: float

    def is_due(self, step: int, last: int) -> bool:
        """Return whether an evaluation is due after `step`; the last one was after step `last` (0: before training)."""
        return step == self.total_steps or self._passed(step) > self._passed(last)

    def count_remaining(self, step: int, last: int) -> int:
        """Count the evaluations that are still to do once `step` is done, that of `step` included."""
        return len(self._steps) - max(bisect_left(self._steps, step), bisect_right(self._steps, last))

    def _passed(self, step: int) -> int:
        """Count the fractions of the run that are complete after `step`."""
        return int(step / self.total_steps / self.every + 1e-9)

    @cached_property
    def _steps(self) -> list[int]:
        steps, last = [], 0
        for step in range(1, self.total_steps + 1):
            if self.is_due(step, last):
                steps.append(step)
                last = step
        return steps


@dataclass(frozen=True)
class SavePlan:
    """Checkpoints and model that a run will save.

    Attributes:
        save_steps: Steps between two checkpoints, or None.
        save_minutes: Minutes between two checkpoints, or None.
        checkpoint_bytes: Size of a checkpoint.
        model_bytes: Size of the tuned model, which is saved once, after the last step.
    """

    save_steps: int | None = None
    save_minutes: float | None = None
    checkpoint_bytes: int = 0
    model_bytes: int = 0

    def count_remaining(self, step: int, total_steps: int, training_seconds: float) -> int:
        """Count the checkpoints that are still to save once `step` is done, `training_seconds` before the end."""
        by_steps = (total_steps - 1) // self.save_steps - (step - 1) // self.save_steps if self.save_steps else 0
        by_minutes = training_seconds / (60 * self.save_minutes) if self.save_minutes else 0
        return int(min(max(by_steps, 0) + by_minutes, max(total_steps - step, 0)))


class TrainingClock:
    """Times a training and estimates how long the rest of its run takes.

        time left = steps * seconds a step + evaluations * seconds an evaluation + bytes to save / speed + answers

    Seconds a step are measured in this process, without evaluations and saving. The first step, which allocates memory
    and may compile, counts only until there is a second one.

    Args:
        evaluations: Steps after which the model is evaluated.
        saves: Checkpoints and model that will be saved.
        evaluation_seconds: Duration of the evaluation before training; used until one during training was timed.
        answer_seconds: Duration of generating the answers before training; it is repeated after training.
        now: Returns the time in seconds.
    """

    def __init__(
        self,
        evaluations: EvaluationSchedule,
        saves: SavePlan,
        evaluation_seconds: float,
        answer_seconds: float,
        now: Clock = time.perf_counter,
    ) -> None:
        self.now = now
        self._evaluations, self._saves = evaluations, saves
        self._evaluation_seconds, self._answer_seconds = evaluation_seconds, answer_seconds
        self._evaluated: list[float] = []  # seconds of each evaluation of this process
        self._bytes_per_second: float = BYTES_PER_SECOND
        self._pauses = 0.0  # seconds of evaluations and saving
        self._started = now()
        self._first_step = 0
        self._warm: tuple[int, float] | None = None  # step and training seconds after this process's first step

    def start(self, step: int) -> None:
        """Start the clock; `step` steps were done by earlier processes."""
        self._started, self._pauses, self._first_step, self._warm = self.now(), 0.0, step, None

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return self.now() - self._started

    def training_seconds(self) -> float:
        """Return the seconds since the start without evaluations and saving."""
        return self.elapsed() - self._pauses

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Time an evaluation."""
        started = self.now()
        try:
            yield
        finally:
            seconds = self.now() - started
            self._evaluated.append(seconds)
            self._pauses += seconds

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Leave the time of saving a model out of that of the steps."""
        started = self.now()
        try:
            yield
        finally:
            self._pauses += self.now() - started

    def add_checkpoint(self, seconds: float) -> None:
        """Record the seconds that a checkpoint took to save."""
        self._pauses += seconds
        if seconds > 0 and self._saves.checkpoint_bytes:
            self._bytes_per_second = self._saves.checkpoint_bytes / seconds

    def finish_step(self, step: int, last_evaluated: int) -> float:
        """Return the estimated seconds from the end of `step` to the end of the run.

        Args:
            step: Steps done.
            last_evaluated: Step of the last evaluation.
        """
        training = (self._evaluations.total_steps - step) * self._seconds_per_step(step)
        evaluation = sum(self._evaluated) / len(self._evaluated) if self._evaluated else self._evaluation_seconds
        evaluations = self._evaluations.count_remaining(step, last_evaluated) * evaluation
        checkpoints = self._saves.count_remaining(step, self._evaluations.total_steps, training)
        saved_bytes = checkpoints * self._saves.checkpoint_bytes + self._saves.model_bytes
        return training + evaluations + saved_bytes / self._bytes_per_second + self._answer_seconds

    def _seconds_per_step(self, step: int) -> float:
        seconds = self.training_seconds()
        if self._warm is None:
            self._warm = (step, seconds)
        warm_step, warm_seconds = self._warm
        if step > warm_step:
            return (seconds - warm_seconds) / (step - warm_step)
        return seconds / max(1, step - self._first_step)

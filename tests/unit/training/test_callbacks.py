"""The callbacks: when they evaluate and save, and how a stop ends training.

Oracle: the steps and numbers counted by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from neftcli import events
from neftcli.errors import NonFiniteLossError
from neftcli.recipe.schema import Checkpoints
from neftcli.training.callbacks import CheckpointCallback, EvaluationCallback, ProgressCallback
from neftcli.training.progress import EvaluationSchedule, SavePlan, TrainingClock
from neftcli.training.resume import BaseEvaluation, LossEvaluation, RunState
from neftcli.training.signals import StopRequested, StopSignal
from tests.unit.training.conftest import Collector, FakeClock


def losses_at(step: int) -> LossEvaluation:
    """An evaluation in which all losses are 1."""
    return LossEvaluation(events.Evaluated(step, 1.0, 1.0), ())


class Loop:
    """The trainer's loop, as far as callbacks see it."""

    def __init__(
        self,
        collector: Collector,
        clock: FakeClock,
        total: int,
        every: float = 1.0,
        logging_steps: int = 1,
        checkpoints: Checkpoints | None = None,
        measure: Callable[[int], LossEvaluation] = losses_at,
        stop: StopSignal | None = None,
    ) -> None:
        self.collector, self.clock, self.total, self.logging_steps = collector, clock, total, logging_steps
        self.saved: list[int] = []
        self.state = SimpleNamespace(global_step=0, max_steps=total, epoch=0.0)
        self.control = SimpleNamespace(should_log=False, should_save=False, should_training_stop=False)
        stop = stop or StopSignal()
        settings = checkpoints or Checkpoints(save_minutes=None)
        schedule = EvaluationSchedule(total, every)
        saves = SavePlan(settings.save_steps, settings.save_minutes)
        self.run_state = RunState(BaseEvaluation(events.Evaluated(0, 1.0, 1.0), [], 2.0, 1.0), 0.0, {}, "")
        training_clock = TrainingClock(schedule, saves, 2.0, 1.0, clock)
        save_model = lambda: collector.notify(events.Notice("model saved"))  # noqa: E731
        self.evaluation = EvaluationCallback(
            collector, training_clock, schedule, measure, save_model, self.run_state, stop
        )
        self.progress = ProgressCallback(collector, training_clock, self.run_state, "cpu")
        self.callbacks: list[Any] = [
            self.progress,
            self.evaluation,
            CheckpointCallback(collector, training_clock, settings, stop),
        ]

    def call(self, event: str, *arguments: Any) -> None:
        """Call all callbacks, as transformers does it."""
        for callback in self.callbacks:
            getattr(callback, event)(None, self.state, self.control, *arguments)

    def run(self, seconds: float = 1.0) -> None:
        """Train all steps, each of which takes `seconds`."""
        self.call("on_train_begin")
        for step in range(1, self.total + 1):
            self.control.should_log = self.control.should_save = False
            self.call("on_step_begin")
            self.clock.wait(seconds)
            self.state.global_step = step
            self.control.should_log = step % self.logging_steps == 0
            self.call("on_step_end")
            if self.control.should_log:
                self.call("on_log", {"loss": 1.0, "num_tokens": 10.0 * step})
            if self.control.should_save:
                self.control.should_save = False
                self.saved.append(step)
                self.call("on_save")
            if self.control.should_training_stop:
                break

    def steps(self, kind: type[Any]) -> list[int]:
        """Return the steps of the events of a kind."""
        return [event.step for event in self.collector.events if isinstance(event, kind)]


@pytest.mark.parametrize(
    ("total", "every", "logging_steps", "expected"),
    [
        (20, 0.25, 1, [5, 10, 15, 20]),
        (20, 0.25, 2, [5, 10, 15, 20]),
        (20, 1.0, 1, [20]),
        (7, 0.5, 1, [4, 7]),
        (1, 0.25, 1, [1]),
        (10, 0.5, 7, [5, 10]),
    ],
)
def test_evaluation_callback_steps(
    total: int, every: float, logging_steps: int, expected: list[int], collector: Collector, clock: FakeClock
) -> None:
    """Whatever the logging steps; the last step always has an evaluation."""
    loop = Loop(collector, clock, total, every, logging_steps)
    loop.run()
    assert loop.steps(events.Evaluated) == expected
    assert loop.run_state.evaluated_step == total


def test_evaluation_callback_logs_the_last_step(collector: Collector, clock: FakeClock) -> None:
    loop = Loop(collector, clock, 10, logging_steps=4)
    loop.run()
    assert loop.steps(events.StepLogged) == [4, 8, 10]


def test_evaluation_callback_saves_the_model_once_before_the_last_evaluation(
    collector: Collector, clock: FakeClock
) -> None:
    Loop(collector, clock, 4, every=0.5).run()
    kinds = [type(event) for event in collector.events if not isinstance(event, events.TrainingProgress)]
    assert kinds.count(events.Notice) == 1
    assert kinds[-3:] == [events.StepLogged, events.Notice, events.Evaluated]


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ((float("inf"), 1.0), "the held-out loss became inf in step 1"),
        ((None, float("nan")), "the loss of training rows without noise became nan in step 1"),
    ],
)
def test_evaluation_callback_loss_not_finite(
    losses: tuple[float | None, float | None], message: str, collector: Collector, clock: FakeClock
) -> None:
    loop = Loop(collector, clock, 1, measure=lambda step: LossEvaluation(events.Evaluated(step, *losses), ()))
    with pytest.raises(NonFiniteLossError, match=message):
        loop.evaluation.evaluate(1)
    assert loop.run_state.evaluated_step == 0


def test_evaluation_callback_stopped_in_the_evaluation(collector: Collector, clock: FakeClock) -> None:
    """The evaluation is put off, a checkpoint is saved, and training ends."""
    requested = False

    def measure(step: int) -> LossEvaluation:
        nonlocal requested
        requested = True
        raise StopRequested

    loop = Loop(collector, clock, 8, every=0.5, measure=measure, stop=StopSignal(lambda: requested))
    loop.run()
    assert (loop.saved, loop.run_state.evaluated_step, loop.state.global_step) == ([4], 0, 4)
    assert loop.control.should_training_stop


@pytest.mark.parametrize("step", [1, 4, 8])
def test_checkpoint_callback_stop(step: int, collector: Collector, clock: FakeClock) -> None:
    """The step ends, its checkpoint is saved and its evaluation is put off, also after the last step."""
    stop = StopSignal(lambda: loop.state.global_step == step)
    loop = Loop(collector, clock, 8, every=0.5, stop=stop)
    loop.run()
    assert loop.saved == [step]
    assert (loop.state.global_step, loop.control.should_training_stop) == (step, True)
    assert step not in loop.steps(events.Evaluated)


def test_checkpoint_callback_steps_and_minutes(collector: Collector, clock: FakeClock) -> None:
    """No checkpoint after the last step: the model itself is saved."""
    loop = Loop(collector, clock, 9, checkpoints=Checkpoints(save_steps=3, save_minutes=None))
    loop.run()
    assert loop.saved == [3, 6]
    loop = Loop(collector, clock, 9, checkpoints=Checkpoints(save_steps=None, save_minutes=0.5))
    loop.run(seconds=10)
    assert loop.saved == [3, 6]


def test_progress_callback_gradient_not_finite(collector: Collector, clock: FakeClock) -> None:
    loop = Loop(collector, clock, 1)
    loop.state.global_step = 1
    with pytest.raises(NonFiniteLossError, match="the norm of the gradient became nan in step 1"):
        loop.progress.on_log(None, loop.state, loop.control, {"loss": 1.0, "grad_norm": float("nan")})


def test_progress_callback_tokens_per_second(collector: Collector, clock: FakeClock) -> None:
    """10 tokens a step of 2 seconds, evaluations not counted; a resumed run counts its own."""

    def measure(step: int) -> LossEvaluation:
        clock.wait(50)
        return losses_at(step)

    Loop(collector, clock, 6, every=0.5, measure=measure).run(seconds=2)
    rates = [event.tokens_per_second for event in collector.events if isinstance(event, events.StepLogged)]
    assert rates == [5.0] * 6


def test_progress_callback_time_left_at_the_end(collector: Collector, clock: FakeClock) -> None:
    """After the last step only its evaluation (2 s) and the answers (1 s) are left."""
    Loop(collector, clock, 5).run()
    last = [event for event in collector.events if isinstance(event, events.TrainingProgress)][-1]
    assert (last.step, last.total_steps, last.remaining) == (5, 5, 3.0)


HELD_OUT = {2: 3.0, 4: 2.0, 6: 2.0, 8: 2.5, 10: 1.0}


@pytest.mark.parametrize(
    ("patience", "last_step", "saved"),
    [(None, 10, [2, 4]), (3, 10, [2, 4]), (2, 8, [2, 4]), (1, 6, [2, 4])],
)
def test_evaluation_callback_best_and_patience(
    patience: int | None, last_step: int, saved: list[int], collector: Collector, clock: FakeClock
) -> None:
    """An equal loss is no improvement; the model of the last step is saved anyway, so it is not saved as the best."""
    loop = Loop(
        collector, clock, 10, 0.2, measure=lambda step: LossEvaluation(events.Evaluated(step, HELD_OUT[step], 1.0), ())
    )
    best: list[int] = []
    schedule, stop = EvaluationSchedule(10, 0.2), StopSignal()
    loop.callbacks[1] = EvaluationCallback(
        collector,
        TrainingClock(schedule, SavePlan(None, None), 2.0, 1.0, clock),
        schedule,
        lambda step: LossEvaluation(events.Evaluated(step, HELD_OUT[step], 1.0), ()),
        lambda: None,
        loop.run_state,
        stop,
        save_best=lambda: best.append(loop.state.global_step),
        patience=patience,
    )
    loop.run()
    assert (loop.state.global_step, best) == (last_step, saved)
    assert loop.run_state.best is not None
    assert loop.run_state.best.measured.step == (10 if last_step == 10 else 4)
    assert loop.run_state.is_over(last_step, 10, patience)


def test_run_state_add_evaluation_by_a_metric_of_answers() -> None:
    """The highest value is the best, whatever the loss; an evaluation without a value counts as none."""
    state = RunState(BaseEvaluation(events.Evaluated(0, 1.0, 1.0), [], 2.0, 1.0), 0.0, {}, "", best_metric="rouge_l")
    values = {1: None, 2: 0.2, 3: 0.4, 4: 0.4, 5: 0.1}
    improved = [
        state.add_evaluation(LossEvaluation(events.Evaluated(step, 1.0 / step, None, {"rouge_l": value}), ()))
        for step, value in values.items()
    ]
    assert improved == [False, True, True, False, False]
    assert state.best is not None
    assert (state.best.measured.step, state.without_improvement) == (3, 2)
    assert state.has_lost_patience(2)

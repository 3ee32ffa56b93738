"""The callback: when it evaluates, and what it tells of the time left.

Oracle: the steps and numbers counted by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from neftcli import events
from neftcli.errors import NonFiniteLossError
from neftcli.events import Observer
from neftcli.recipe.schema import Checkpoints, Evaluation, Recipe
from neftcli.training.callbacks import Watch
from neftcli.training.resume import BaseEvaluation
from neftcli.training.signals import StopSignal


class Collector:
    """Keeps the events."""

    def __init__(self) -> None:
        self.events: list[events.Event] = []

    def notify(self, event: events.Event) -> None:
        """Keeps one."""
        self.events.append(event)


def watching(
    observer: Observer, evaluate: Callable[[int], events.Evaluated], every: float, before_last: Callable[[], None]
) -> Watch:
    """A watch of a new run that nobody stops and that saves nothing."""
    recipe = Recipe(evaluation=Evaluation(every=every), checkpoints=Checkpoints(save_minutes=None))
    base = BaseEvaluation(events.Evaluated(0, 1.0, 1.0), [])
    return Watch(observer, evaluate, recipe, "cpu", before_last, StopSignal(), base, 0.0)


def run(total: int, every: float, logging_steps: int) -> tuple[Collector, Watch]:
    """A run of `total` updates, as the trainer calls its callback."""
    collector = Collector()
    saved = lambda: collector.notify(events.Notice("saved"))  # noqa: E731
    watch = watching(collector, lambda step: events.Evaluated(step, 1.0, 1.0), every, saved)
    state = SimpleNamespace(global_step=0, max_steps=total, epoch=0.0)
    control = SimpleNamespace(should_log=False, should_save=False)
    watch.on_train_begin(None, state, control)
    for step in range(1, total + 1):
        watch.on_step_begin(None, state, control)
        state.global_step = step
        control.should_log = step % logging_steps == 0
        watch.on_step_end(None, state, control)
        if control.should_log:
            watch.on_log(None, state, control, {"loss": 1.0, "num_tokens": 10.0 * step})
    return collector, watch


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
def test_evaluations_come_when_due_whatever_the_log_rows_and_at_the_end(
    total: int, every: float, logging_steps: int, expected: list[int]
) -> None:
    collector, watch = run(total, every, logging_steps)
    assert [event.step for event in collector.events if isinstance(event, events.Evaluated)] == expected
    assert watch.evaluated is not None
    assert watch.evaluated.step == total


def test_the_last_update_has_a_log_row_whatever_the_logging_steps() -> None:
    collector, _ = run(10, 1.0, 4)
    assert [event.step for event in collector.events if isinstance(event, events.StepLogged)] == [4, 8, 10]


def test_the_model_is_saved_once_between_the_last_update_and_its_evaluation() -> None:
    collector, _ = run(4, 0.5, 1)
    told = [type(event) for event in collector.events if not isinstance(event, events.TrainingProgress)]
    assert told.count(events.Notice) == 1
    assert told[-3:] == [events.StepLogged, events.Notice, events.Evaluated]


@pytest.mark.parametrize(
    ("logs", "losses", "says"),
    [
        ({"loss": 1.0, "grad_norm": float("nan")}, (1.0, 1.0), "the norm of the gradient became nan in update 1"),
        ({"loss": 1.0}, (float("inf"), 1.0), "the held-out loss became inf in update 1"),
        ({"loss": 1.0}, (None, float("nan")), "the loss of training rows without noise became nan in update 1"),
    ],
)
def test_a_number_that_is_none_stops_the_run(
    logs: dict[str, float], losses: tuple[float | None, float | None], says: str
) -> None:
    watch = watching(Collector(), lambda step: events.Evaluated(step, *losses), 1.0, lambda: None)
    with pytest.raises(NonFiniteLossError, match=says):
        watch.on_log(None, SimpleNamespace(global_step=1, max_steps=1, epoch=1.0), None, logs)


def test_no_time_is_left_at_the_end() -> None:
    collector, _ = run(5, 0.5, 1)
    last = [event for event in collector.events if isinstance(event, events.TrainingProgress)][-1]
    assert (last.step, last.total_steps, last.remaining) == (5, 5, 0.0)

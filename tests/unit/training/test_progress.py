"""Progress of rows and of training. Oracles: the number of rows, and times counted by hand with a fake clock."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neftcli.events import Phase, PhaseId, PhaseProgress
from neftcli.recipe.loading import parse_assignment, resolve_recipe
from neftcli.training.dry_run import plan_run
from neftcli.training.progress import (
    BYTES_PER_SECOND,
    EvaluationSchedule,
    ReadingProgress,
    SavePlan,
    TokenisingProgress,
    TrainingClock,
)
from tests.unit.training.conftest import Collector, FakeClock


def test_reading_progress(collector: Collector, clock: FakeClock) -> None:
    report = ReadingProgress(collector, clock)
    for rows in range(1, 7):
        clock.wait(1)
        report(rows * 1000)
    assert collector.events == [Phase(PhaseId.READING_DATA, count=rows) for rows in (2000, 4000, 6000)]


def tokenised(collector: Collector) -> list[PhaseProgress]:
    return [event for event in collector.events if isinstance(event, PhaseProgress)]


def test_tokenising_progress_slow_first_rows(collector: Collector, clock: FakeClock) -> None:
    """The first row takes 3 seconds, the others 0.1: no time left is shown before it is known."""
    report = TokenisingProgress(collector, clock)
    clock.wait(3)
    report(1, 1001)
    for row in range(2, 101):
        clock.wait(0.1)
        report(row, 1001)
    first, *others = tokenised(collector)
    assert (first.done, first.rate, first.remaining) == (1, 0.0, 0.0)
    assert len(others) == 4
    for event in others:
        assert event.rate == pytest.approx(10)
        assert event.remaining == pytest.approx((1001 - event.done) / 10)


def test_tokenising_progress_last_row(collector: Collector, clock: FakeClock) -> None:
    report = TokenisingProgress(collector, clock)
    for row in range(1, 4):
        clock.wait(2)
        report(row, 3)
    assert [event.done for event in tokenised(collector)] == [1, 2, 3]
    assert tokenised(collector)[-1].remaining == 0


def test_progress_of_quick_rows(rows_file: Path, tiny_folder: Callable[[str], Path], collector: Collector) -> None:
    """Rows that take no time are not reported."""
    sets = {"model.name": tiny_folder("llama"), "data.source": rows_file, "data.held_out_rows": 2}
    plan_run(resolve_recipe([parse_assignment(f"{key}={value}") for key, value in sets.items()]), collector)
    assert not tokenised(collector)
    assert not [event for event in collector.events if isinstance(event, Phase) and event.count]


@given(st.integers(1, 60), st.floats(0.01, 1), st.data())
def test_evaluation_schedule_count_remaining(total: int, every: float, data: st.DataObject) -> None:
    """The count equals the number of later steps that are due; before the first step, of all steps."""
    schedule = EvaluationSchedule(total, every)
    steps, last = [], 0
    for step in range(1, total + 1):
        if schedule.is_due(step, last):
            steps.append(step)
            last = step
    assert steps[-1] == total
    assert schedule.count_remaining(0, 0) == len(steps)
    step = data.draw(st.integers(1, total))
    before = max([each for each in steps if each < step], default=0)
    assert schedule.count_remaining(step, before) == len([each for each in steps if each >= step])
    if step in steps:
        assert schedule.count_remaining(step, step) == len([each for each in steps if each > step])


def test_save_plan_count_remaining() -> None:
    assert SavePlan(save_steps=10).count_remaining(1, 100, 0) == 9
    assert SavePlan(save_steps=10).count_remaining(10, 100, 0) == 9  # that of this step is still to come
    assert SavePlan(save_steps=10).count_remaining(100, 100, 0) == 0
    assert SavePlan(save_minutes=15).count_remaining(1, 100, 3600) == 4
    assert SavePlan(save_minutes=1e-309).count_remaining(90, 100, 3600) == 10  # at most one a step
    assert SavePlan().count_remaining(1, 100, 3600) == 0


class TestTrainingClock:
    """20 steps of 2 seconds after a first one of 10, evaluations of 30 seconds each quarter, answers of 7."""

    def run(self, clock: FakeClock, saves: SavePlan, step: int = 0) -> dict[int, tuple[float, float]]:
        """Estimated and real seconds to the end after each step, from `step` on."""
        training_clock = TrainingClock(EvaluationSchedule(20, 0.25), saves, 30.0, 7.0, clock)
        training_clock.start(step)
        estimates, times = {}, {}
        for current in range(step + 1, 21):
            clock.wait(10 if current == step + 1 else 2)
            estimates[current] = training_clock.finish_step(current, (current - 1) // 5 * 5)
            times[current] = clock.time
            if current % 5 == 0:
                with training_clock.evaluating():
                    clock.wait(30)
            if saves.save_steps and current % saves.save_steps == 0 and current < 20:
                clock.wait(4)
                training_clock.add_checkpoint(4)
        end = clock.time + 7
        return {current: (estimates[current], end - times[current]) for current in estimates}

    def test_finish_step_counts_evaluations_and_answers(self, clock: FakeClock) -> None:
        """The first step's time is all that is known after it."""
        left = self.run(clock, SavePlan())
        assert left[1] == (19 * 10 + 4 * 30 + 7, 19 * 2 + 4 * 30 + 7)
        for step in range(2, 21):
            assert left[step][0] == pytest.approx(left[step][1])

    def test_finish_step_after_a_resume(self, clock: FakeClock) -> None:
        """The rate is this process's; steps and evaluations of earlier ones don't count."""
        left = self.run(clock, SavePlan(), step=14)
        for step in range(16, 21):
            assert left[step][0] == pytest.approx(left[step][1])

    def test_finish_step_counts_saving(self, clock: FakeClock) -> None:
        """By an assumed speed before the first checkpoint, then by the measured one."""
        saves = SavePlan(save_steps=8, checkpoint_bytes=3 * BYTES_PER_SECOND, model_bytes=0)
        left = self.run(clock, saves)
        assert left[2][0] == pytest.approx(left[2][1] - 2 * (4 - 3))
        for step in range(9, 21):
            assert left[step][0] == pytest.approx(left[step][1])
        model = self.run(clock, SavePlan(model_bytes=5 * BYTES_PER_SECOND))
        assert model[20][0] == pytest.approx(model[20][1] + 5)  # the model is saved before its last evaluation

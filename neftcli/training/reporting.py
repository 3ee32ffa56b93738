"""Report a run to experiment trackers. A tracker that fails does not end the run, and none changes the weights.

What the trainer logs goes to transformers' own callbacks. neft adds, by the same callbacks, its evaluations and the
strength of the noise, and by `neftcli.trackers` the recipe and the results. Rows that an earlier process has reported
are not reported again, and those that a kill has lost are reported from `metrics.jsonl`.
"""

from __future__ import annotations

import copy
import json
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerState

from neftcli.errors import InputError, Problem
from neftcli.events import Evaluated, NoiseMeasured, Notice, Observer, RunFinished, StepLogged, TrackerOpened
from neftcli.recipe.keys import keys
from neftcli.recipe.loading import to_yaml, value_at
from neftcli.runs.directory import METRICS, RunDirectory
from neftcli.runs.schemas import MetricsLine, read_jsonl
from neftcli.runs.tracking import sweep_of, tracked_run
from neftcli.trackers.backends import HELD_OUT_LOSS, Backend
from neftcli.trackers.isolation import describe_failure, without_output
from neftcli.trackers.registry import TRACKERS, Tracker

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.runs.record import RunRecord
    from neftcli.training.resume import ResumeState
    from neftcli.training.trainer import NeftTrainer

PROBE_LOSS = "eval_train_loss_noise_off"
REPORTED_AGAIN = ("loss", "learning_rate", "grad_norm", "epoch", "held_out_loss", "train_loss")
"""Values of `metrics.jsonl` that are reported again after a kill."""
CONTINUES = "the run continues without it"
INCOMPLETE = "it may lack the last rows"

logger = logging.getLogger(__name__)


@dataclass
class _Connection:
    """A tracker of this run.

    Attributes:
        tracker: Its entry in the registry.
        backend: Its run.
        callback: transformers' callback.
        reported: Last step that an earlier process has reported, by kind of row.
        lost: Rows of `metrics.jsonl` up to the checkpoint that a kill has lost.
        problem: Why it is incomplete; empty if it is complete.
        is_over: It has failed, so nothing more is reported.
    """

    tracker: Tracker
    backend: Backend
    callback: Any = None
    reported: dict[str, int] = field(default_factory=dict)
    lost: list[dict[str, Any]] = field(default_factory=list)
    problem: str = ""
    is_over: bool = False


class Reporter(TrainerCallback):
    """Reports a run to its trackers; a callback of the trainer, in the main process only.

    Args:
        recipe: The resolved recipe, as in the run's files.
        directory: The run's folder, whose `metrics.jsonl` still has all rows of earlier processes.
        record: The run's record, which stores the ids of the trackers' runs.
        resume: The state that the run resumes from; None for a new run.
        observer: Receives notices.
    """

    def __init__(
        self,
        recipe: Recipe,
        directory: RunDirectory,
        record: RunRecord,
        resume: ResumeState | None,
        observer: Observer,
    ) -> None:
        self._recipe, self._record, self._observer = recipe, record, observer
        self._connections: list[_Connection] = []
        self._pending: list[Evaluated | NoiseMeasured] = []
        self._trainer: NeftTrainer | None = None
        self._step = resume.step if resume else 0
        is_cell = sweep_of(directory.path) is not None
        earlier = record.fields["trackers"]
        logged = _logged_rows(directory)
        for tracker_id in dict.fromkeys(recipe.training.report_to):
            tracker = TRACKERS[tracker_id]
            if switch := tracker.switch():
                observer.notify(Notice(f"nothing is reported to {tracker.name}: {switch} switches it off"))
                continue
            run = tracked_run(directory.path, earlier.get(tracker_id), self._step)
            problem = earlier.get(tracker_id, {}).get("problem", "")
            connection = _Connection(tracker, tracker.backend(run), problem=problem)
            self._connections.append(connection)
            is_mixed = resume is not None and bool(resume.changes)  # its rows differ from those that were reported
            self._start(connection, logged, is_mixed=is_mixed, must_start=resume is None and not is_cell)

    def _start(
        self, connection: _Connection, logged: Sequence[dict[str, Any]], *, is_mixed: bool, must_start: bool
    ) -> None:
        """Start or resume the run of a tracker, and find out which rows it has.

        Raises:
            InputError: It can't be started, and nothing would be lost by not training.
        """
        backend = connection.backend

        def start() -> None:
            connection.callback = backend.start()
            if backend.run.resumes and not is_mixed:
                reported = backend.reported_steps()
                connection.reported = _last_steps(logged) if reported is None else reported
                if backend.loses_rows:
                    earlier = [row for row in logged if row["step"] <= self._step]
                    connection.lost = [
                        row for row in earlier if row["step"] > connection.reported.get(row["event"], -1)
                    ]

        self._call(connection, start, outlook="" if must_start else CONTINUES)
        if connection.is_over and must_start:
            name = connection.tracker.id
            for other in self._connections:
                _end_after_failure(other)
            message = f"training.report_to: {name} can't be started"
            hint = "make it work, or leave it out of --report-to"
            raise InputError(Problem(message, connection.problem, hint))
        self._write_record()
        if not connection.is_over:
            self._observer.notify(TrackerOpened(connection.tracker.id, backend.location, backend.view))

    def begin(self, trainer: NeftTrainer) -> None:
        """Describe the run to the trackers, before its first step, and report what was measured so far."""
        self._trainer = trainer
        settings = {key.path: value_at(self._recipe, key.path) for key in keys()}
        plain = {path: list(value) if isinstance(value, tuple) else value for path, value in settings.items()}
        plain = {path: dict(value) if isinstance(value, Mapping) else value for path, value in plain.items()}
        recipe = to_yaml(self._recipe)
        for connection in self._connections:
            arguments = (trainer.args, self._state(self._step), trainer.control)
            self._call(connection, lambda: connection.callback.on_train_begin(*arguments, model=trainer.model))  # noqa: B023
            self._call(connection, lambda: connection.backend.add_settings(plain, recipe))  # noqa: B023
            self._report_lost(connection)
        self._write_record()  # some trackers have their id only now
        for event in self._pending:
            self.report(event)
        trainer.add_callback(self)

    def _report_lost(self, connection: _Connection) -> None:
        """Report the rows that a kill has lost."""
        assert self._trainer is not None  # noqa: S101 - set by begin
        trainer, names = self._trainer, {"held_out_loss": HELD_OUT_LOSS, "train_loss": PROBE_LOSS}
        for row in connection.lost:
            logs = {names.get(name, name): row[name] for name in REPORTED_AGAIN if row.get(name) is not None}
            metrics = row.get("answer_metrics", {})
            logs |= {f"eval_{metric}": value for metric, value in metrics.items() if value is not None}
            arguments = (trainer.args, self._state(row["step"]), trainer.control)
            self._call(connection, lambda: connection.callback.on_log(*arguments, logs=logs, model=trainer.model))  # noqa: B023
        connection.reported |= _last_steps(connection.lost)

    def report(self, event: Evaluated | NoiseMeasured) -> None:
        """Report an evaluation, or the strength of the noise."""
        if self._trainer is None:
            self._pending.append(event)
        elif isinstance(event, Evaluated):
            values = {HELD_OUT_LOSS: event.held_out_loss, PROBE_LOSS: event.train_loss}
            values |= {f"eval_{metric}": value for metric, value in event.answer_metrics.items()}
            logs = {name: value for name, value in values.items() if value is not None}
            self._log(Evaluated.id, self._state(event.step), logs)
        elif not self._step:
            self._log(StepLogged.id, self._state(0), {"noise_to_embedding": event.ratio})

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        """Pass on what the trainer logs."""
        self._log(StepLogged.id, state, logs)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Pass on that a checkpoint was saved: with their own variables set, some trackers upload it."""
        for connection in self._connections:
            self._call(connection, lambda: connection.callback.on_save(args, state, control, **kwargs))  # noqa: B023

    def finish(self, status: str, results: RunFinished | None = None) -> None:
        """Report the results, end the trackers' runs, and say which are incomplete.

        After "interrupted" they are only ended: the callbacks could upload a model.
        """
        if self._trainer is not None and status != "interrupted":
            trainer, state = self._trainer, self._state(max(self._step, self._trainer.state.global_step))
            values = {} if results is None else _final_values(results)
            final = {name: value for name, value in values.items() if value is not None}
            for connection in self._connections:
                backend, callback = connection.backend, connection.callback
                if final:
                    self._call(connection, lambda: backend.add_results(final, state.global_step), INCOMPLETE)  # noqa: B023
                self._call(
                    connection,
                    lambda: callback.on_train_end(  # noqa: B023
                        trainer.args, state, trainer.control, model=trainer.model, processing_class=None
                    ),
                    INCOMPLETE,
                )
        for connection in self._connections:
            self._call(connection, lambda: connection.backend.finish(status), INCOMPLETE)  # noqa: B023
        self._write_record()
        if status == "finished":
            for connection in self._connections:
                if connection.problem:
                    message = f"{connection.tracker.name} has only a part of this run ({connection.problem}); all rows"
                    self._observer.notify(Notice(f"{message} are in {METRICS}"))
        self._connections.clear()

    def _log(self, kind: str, state: Any, logs: Mapping[str, float]) -> None:
        if self._trainer is None:
            return
        trainer, control = self._trainer, copy.copy(self._trainer.control)
        for connection in self._connections:
            if state.global_step <= connection.reported.get(kind, -1):
                continue
            self._call(
                connection,
                lambda: connection.callback.on_log(  # noqa: B023
                    trainer.args, state, control, logs=dict(logs), model=trainer.model
                ),
            )

    def _state(self, step: int) -> TrainerState:
        """Return a state of the trainer as callbacks read it."""
        state = TrainerState() if self._trainer is None else copy.copy(self._trainer.state)
        state.global_step, state.is_world_process_zero = step, True
        return state

    def _call(self, connection: _Connection, action: Callable[[], object], outlook: str = CONTINUES) -> None:
        """Call a tracker; if it fails, end its run and call it no more.

        Args:
            connection: The tracker.
            action: The call.
            outlook: End of the notice about a failure; empty for no notice.
        """
        if connection.is_over:
            return
        try:
            with _preserved_random_state(), without_output():
                action()
        except Exception as error:
            connection.is_over, connection.problem = True, describe_failure(error)
            logger.warning("%s failed: %s", connection.tracker.id, connection.problem)
            _end_after_failure(connection)
            if outlook:
                self._observer.notify(Notice(f"{connection.tracker.name} failed: {connection.problem}; {outlook}"))

    def _write_record(self) -> None:
        trackers = dict(self._record.fields["trackers"])
        for connection in self._connections:
            entry = {"id": connection.backend.id, "location": connection.backend.location}
            trackers[connection.tracker.id] = {**entry, "problem": connection.problem}
        self._record.update(trackers=trackers)


def _end_after_failure(connection: _Connection) -> None:
    connection.is_over = True
    with _preserved_random_state():
        connection.backend.finish_quietly()


def _final_values(results: RunFinished) -> dict[str, float | None]:
    """Return the results of a run by their names in trackers."""
    return {
        "held_out_loss": results.held_out_loss,
        "train_loss_noise_off": results.train_loss,
        "base_held_out_loss": results.base_held_out_loss,
        "base_train_loss": results.base_train_loss,
        **results.answer_metrics,
        **{f"base_{metric}": value for metric, value in results.base_answer_metrics.items()},
    }


def _logged_rows(directory: RunDirectory) -> list[dict[str, Any]]:
    """Return the reported rows in `metrics.jsonl`; each was written before it was reported."""
    rows = read_jsonl(directory.path / METRICS, MetricsLine)
    return [json.loads(line) for line, row in rows if row is not None and row["event"] in (StepLogged.id, Evaluated.id)]


def _last_steps(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Return the last step by kind of row."""
    steps: dict[str, int] = {}
    for row in rows:
        steps[row["event"]] = max(row["step"], steps.get(row["event"], 0))
    return steps


@contextmanager
def _preserved_random_state() -> Iterator[None]:
    """Restore the global random states after the block: a tracker draws names and ids."""
    of_python, of_numpy, of_torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(of_python)
        np.random.set_state(of_numpy)
        torch.set_rng_state(of_torch)

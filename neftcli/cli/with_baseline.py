"""`neft train --with-baseline`: train a run, the same recipe at alpha 0, and compare the two."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.cli.display import choose_display
from neftcli.errors import InputError, Problem
from neftcli.events import Notice, RunFinished
from neftcli.recipe.loading import recipe_fingerprint
from neftcli.recipe.trust import TRUST
from neftcli.runs.directory import LOCK, STOPPED, RunDirectory, find_run
from neftcli.system.distributed import launched_externally, world_size
from neftcli.system.locks import is_locked
from neftcli.trackers.registry import TRACKERS

if TYPE_CHECKING:
    from neftcli.events import Event, Observer
    from neftcli.recipe.schema import Recipe
    from neftcli.recipe.yaml_file import Layer
    from neftcli.training.signals import StopSignal

SHOWN_PROMPTS = 3


def train_with_baseline(
    recipe: Recipe,
    layers: Sequence[Layer],
    stop: StopSignal,
    requeue_signal: str,
    *,
    json_lines: bool,
    quiet: bool,
) -> None:
    """Train a recipe and its baseline, evaluate both and report the difference.

    A run of the same recipe that is finished is used as it is, and one that was stopped or killed is resumed, so the
    same command continues.

    Args:
        recipe: The resolved recipe.
        layers: Layers of the command line.
        stop: Requests a stop.
        requeue_signal: Signal that saves a checkpoint and stops.
        json_lines: Print events as JSON.
        quiet: Print only results and errors.

    Raises:
        InputError: The recipe has no noise or no held-out rows, several processes train it, or the rows have changed
            since one of the runs was trained.
    """
    from neftcli.evaluation.evaluate import EvalRequest, evaluate
    from neftcli.training.inputs import require_unchanged_rows

    _require_comparable(recipe)
    trust = [{TRUST: layer[TRUST]} for layer in layers if TRUST in layer]
    arms = (recipe, replace(recipe, neftune=replace(recipe.neftune, alpha=0.0)))
    with (
        choose_display(json_lines=json_lines, quiet=quiet) as display,
        stop.handle_signals(requeue_signal),
        stop.interruptible(),
    ):
        finished = [folder for folder, status in map(_find_same, arms) if folder is not None and status == "finished"]
        if finished:
            require_unchanged_rows(recipe, finished, display)
    runs = []
    for arm in arms:
        with (
            choose_display(json_lines=json_lines, quiet=quiet) as display,
            stop.handle_signals(requeue_signal, first=partial(stop.announce, display)),
            _own_tracker_run(arm, display),
        ):
            runs.append(_train_once(arm, trust, _WithoutNextSteps(display), stop))
    request = EvalRequest(str(runs[0]), str(runs[1]), overrides=tuple(trust), show=SHOWN_PROMPTS)
    with (
        choose_display(json_lines=json_lines, quiet=quiet) as display,
        stop.handle_signals(requeue_signal),
        stop.interruptible(),
    ):
        evaluate(request, display)


def _require_comparable(recipe: Recipe) -> None:
    problems = []
    if not recipe.neftune.alpha:
        problems.append(Problem("--with-baseline compares noise with none", "neftune.alpha 0", "--alpha 5"))
    if not recipe.data.held_out_rows:
        problems.append(
            Problem("--with-baseline compares held-out rows", "data.held_out_rows 0", "--held-out-rows 200")
        )
    if recipe.training.processes > 1 or launched_externally():
        hint = "neft train ..., the same with --alpha 0, then neft eval RUN --baseline RUN"
        processes = str(max(recipe.training.processes, world_size()))
        problems.append(Problem("--with-baseline trains in one process", processes, hint))
    if problems:
        raise InputError(*problems)


class _WithoutNextSteps:
    """Pass events on to a display, without the run to compare with, for which it would suggest commands."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def notify(self, event: Event) -> None:
        if isinstance(event, RunFinished):
            event = replace(event, paired_run=None)
        self._observer.notify(event)


def _train_once(recipe: Recipe, trust: Sequence[Layer], observer: Observer, stop: StopSignal) -> Path:
    """Return the run of a recipe: a finished one, a stopped one after resuming it, or a new one."""
    from neftcli.training.resume import find_resume_state
    from neftcli.training.train import train

    folder, status = _find_same(recipe)
    if folder is None:
        return Path(train(recipe, observer, stop=stop).run)
    if status == "finished":
        observer.notify(Notice(f"{folder} is a finished run of this recipe, so it is not trained again"))
    else:
        resolved, state = find_resume_state(str(folder), trust, accept_changes=False)
        train(resolved, observer, stop=stop, resume=state)
    return folder


@contextmanager
def _own_tracker_run(recipe: Recipe, observer: Observer) -> Iterator[None]:
    """Leave out the variables that name a tracker's run while the baseline is trained: they are for the other run."""
    names = [] if recipe.neftune.alpha else [TRACKERS[name].run_id_variable for name in recipe.training.report_to]
    before = {name: os.environ.pop(name) for name in dict.fromkeys(names) if os.environ.get(name)}
    for name in before:
        observer.notify(Notice(f"{name} is for the run with noise; the baseline is reported as a run of its own"))
    try:
        yield
    finally:
        os.environ.update(before)


def _find_same(recipe: Recipe) -> tuple[Path | None, str]:
    """Return the run of a recipe that is used or resumed, and its status; None if there is none."""
    for folder in RunDirectory.candidate_paths(recipe.output_folder(), recipe.run_name()):
        status = _status_of_same(folder, recipe)
        if not folder.exists():
            break
        if status in ("finished", *STOPPED) or (status == "running" and not is_locked(folder / LOCK)):
            return folder, status
    return None, ""


def _status_of_same(folder: Path, recipe: Recipe) -> str:
    """Return the status of a run if it has the same recipe; otherwise an empty string."""
    if find_run(str(folder)) is None:
        return ""
    try:
        record = RunDirectory(folder).record()
    except InputError:  # a damaged run: another folder is used
        return ""
    return record["status"] if record["recipe_sha256"] == recipe_fingerprint(recipe) else ""

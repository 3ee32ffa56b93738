"""One cell: trained, then measured on the held-out rows. Both are kept in its run, and neither is done twice."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import InputError, Preempted, Problem
from neftcli.events import CellEvaluationStarted, Event, Notice, Observer, Phase, PhaseProgress
from neftcli.models.files import is_truncated_safetensors
from neftcli.recipe.loading import differences, fingerprint, load_recipe
from neftcli.recipe.schema import TaskSettings
from neftcli.runs.directory import RECIPE, RECORD, RunDirectory
from neftcli.runs.schemas import CellMetric, MeasuredCell, Record, parse
from neftcli.system.files import remove

if TYPE_CHECKING:
    from neftcli.data.tokens import TokenRow
    from neftcli.evaluation.held_out import EvalRows
    from neftcli.evaluation.loss import RowLoss
    from neftcli.evaluation.measurement import ModelResults
    from neftcli.recipe.schema import Recipe
    from neftcli.system.device import ComputeConfig
    from neftcli.training.assets import AssetCache
    from neftcli.training.resume import ResumeState
    from neftcli.training.signals import StopSignal
    from neftcli.training.train import TrainedRun

MEASURED = "evaluation/cell.json"


def finished_run(cells: Path, key: str) -> RunDirectory | None:
    """Return the finished run of `key` below `cells`; None if there is none."""
    for run, record in runs_of(cells, key):
        weights = sorted(run.model.glob("*.safetensors"))
        if record.get("status") == "finished" and weights and not any(map(is_truncated_safetensors, weights)):
            return run
    return None


def stopped_run(cells: Path, key: str, recipe: Recipe, observer: Observer | None = None) -> ResumeState | None:
    """Return the run of `key` that was stopped and can be resumed.

    Others of it are removed, but for those whose checkpoints are damaged: a person may still want them.

    Args:
        cells: Where runs are.
        key: The hash of the cell's recipe.
        recipe: By what it is gone on with.
        observer: Is told of what is not gone on with.

    Raises:
        InputError: Another process is training it.
    """
    found = None
    for run, record in runs_of(cells, key):
        if record.get("status") == "finished":
            continue
        with nullcontext() if run.path.is_symlink() else run.lock():
            resume_state, why_not = _resume_state(run, recipe)
            if observer is not None:
                for reason in why_not:
                    observer.notify(Notice(reason))
            if found is None and resume_state is not None:
                found = resume_state
            elif not why_not or resume_state is not None:
                remove(run.path)
    return found


def _resume_state(run: RunDirectory, recipe: Recipe) -> tuple[ResumeState | None, list[str]]:
    """Return the state from which a run resumes, or None and, if something of it stays, why."""
    from neftcli.training.resume import MEASUREMENT_SETTINGS, read_resume_state

    try:
        resume_state = read_resume_state(run, recipe)
        if resume_state.checkpoint is None:
            return None, []
        other = differences(load_recipe(str(run.path / RECIPE)), recipe, MEASUREMENT_SETTINGS)
    except InputError as error:
        begun = f"{run.path} stays as it is, and the cell begins again in another folder"
        return None, [*(problem.message for problem in error.problems), begun]
    if other:  # what was measured before training would stand beside something else
        begun = f"{', '.join(other)} differs from what it was begun with"
        return None, [f"{run.path} stays as it is, and the cell begins again in another folder: {begun}"]
    return resume_state, []


def clear_incomplete_runs(cells: Path) -> None:
    """Remove folders of runs without a record, which killed workers left; only while no worker is at work."""
    for folder in cells.glob("*/"):
        if folder.name.startswith(".") or not (folder / RECORD).is_file():
            with suppress(InputError), nullcontext() if folder.is_symlink() else RunDirectory(folder).lock():
                remove(folder)


def records(cells: Path) -> Iterator[tuple[RunDirectory, Record]]:
    """Runs below `cells` that have their name and a record, without those whose record is damaged."""
    return ((run, record) for run, record in _all_records(cells) if record is not None)


def damaged_records(cells: Path) -> list[str]:
    """Return the names of runs below `cells` whose record is damaged: their cells are trained again."""
    return [run.path.name for run, record in _all_records(cells) if record is None]


def _all_records(cells: Path) -> Iterator[tuple[RunDirectory, Record | None]]:
    for file in sorted(cells.glob(f"[!.]*/{RECORD}")):
        run = RunDirectory(file.parent)
        try:
            yield run, run.record()
        except InputError:
            yield run, None


def runs_of(cells: Path, key: str) -> Iterator[tuple[RunDirectory, Record]]:
    """Return the runs below `cells` by the recipe of `key`, with their records."""
    return ((run, record) for run, record in records(cells) if record["recipe_sha256"] == key)


def measured(run: RunDirectory, recipe: Recipe) -> dict[str, Any] | None:
    """Read what was measured of a cell by the settings of `recipe`; None if that is still to do, or damaged."""
    try:
        content = dict(parse((run.path / MEASURED).read_bytes(), MeasuredCell))
    except (OSError, ValueError):
        return None
    return content if content["settings"] == settings_key(recipe) else None


def settings_key(recipe: Recipe) -> str:
    """Return the hash of all that the measuring of a cell depends on, its weights aside."""
    evaluation = recipe.evaluation
    parts: tuple[object, ...] = (recipe.data, evaluation.generation, evaluation.tasks, recipe.sweep.answers)
    if evaluation.task_settings != TaskSettings():
        parts = (*parts, evaluation.task_settings)
    return sha256(repr(parts).encode()).hexdigest()


def do_cell(recipe: Recipe, asset_cache: AssetCache, observer: Observer, stop: StopSignal) -> str:
    """Train and measure a cell, as far as it is not done, and return its folder.

    Raises:
        NeftError: It can't be trained or measured.
        Preempted: It was asked to stop, and what there is of it is saved.
    """
    from neftcli.training.signals import StopRequested
    from neftcli.training.train import train

    cells, key = Path(recipe.output_dir), fingerprint(recipe)
    run = finished_run(cells, key)
    if run is not None:
        run.clean_up_finished()
        if measured(run, recipe) is None:
            _measure_saved(run, recipe, asset_cache, _Stoppable(observer, stop))
        return str(run.path)
    resume = stopped_run(cells, key, recipe, observer)

    def on_finish(trained: TrainedRun) -> None:
        prepared, compute = trained.assets.prepared, trained.assets.compute
        rows = _rows(recipe, prepared.held_out_examples, prepared.counts.format)
        known = tuple(zip(prepared.held_out, trained.losses, strict=False))
        _measure(trained.directory, recipe, rows, compute, _Stoppable(observer, stop), trained.model, known)

    try:
        return train(recipe, observer, asset_cache, on_finish, stop, resume).run
    except StopRequested:
        raise Preempted(Problem("stopped before the cell was begun")) from None


class _Stoppable:
    """Pass on the events of a measurement, and end it if a stop was asked for.

    What is told of is on the disk by then, so that nothing is measured twice.
    """

    def __init__(self, observer: Observer, stop: StopSignal) -> None:
        self._observer, self._stop = observer, stop

    def notify(self, event: Event) -> None:
        """Pass it on.

        Raises:
            Preempted: A stop was asked for.
        """
        if isinstance(event, PhaseProgress | Phase) and self._stop.is_requested():
            raise Preempted(Problem("stopped while the cell was measured; what was measured is kept"))
        self._observer.notify(event)


def _measure_saved(run: RunDirectory, recipe: Recipe, asset_cache: AssetCache, observer: Observer) -> None:
    """Measure a run that was finished and not measured, without the model that it began from."""
    from neftcli.data.chat import load_chat_format
    from neftcli.data.prepare import tokenize_dataset
    from neftcli.system.device import resolve_compute_config
    from neftcli.system.libraries import capture_library_output
    from neftcli.training.inputs import read_inputs

    with capture_library_output(run.log):
        assets = asset_cache.get(recipe)
        if assets is not None:
            examples, row_format = assets.prepared.held_out_examples, assets.prepared.counts.format
        else:
            reference, found = read_inputs(recipe, observer)
            row_format, data = found.row_format, recipe.data
            chat, _ = load_chat_format(recipe, reference, row_format, observer)
            places = tokenize_dataset(chat, found.held_out, data.max_length, data.loss_on)[1]
            examples = found.held_out.select(places)
        training, frozen_weights = recipe.training, recipe.adapter.type != "none"
        compute = resolve_compute_config(training.precision, recipe.model.dtype, frozen_weights=frozen_weights)
        _measure(run, recipe, _rows(recipe, examples, row_format), compute, observer, None, ())


def _rows(recipe: Recipe, examples: Any, row_format: Any) -> EvalRows:
    from neftcli.evaluation.held_out import EvalRows

    return EvalRows(examples, recipe.data, row_format, "held-out rows", "held-out")


def _measure(
    run: RunDirectory,
    recipe: Recipe,
    rows: EvalRows,
    compute: ComputeConfig,
    observer: Observer,
    tuned: Any,
    known: Sequence[tuple[TokenRow, RowLoss]],
) -> None:
    from neftcli.evaluation.measurement import ModelEvaluator
    from neftcli.evaluation.targets import resolve_target

    begun = time.perf_counter()
    observer.notify(CellEvaluationStarted())
    target = resolve_target(str(run.path), "run", ())
    # The run's own recipe may be somebody else's: whether a model's own code runs is for the cell's to say.
    model = replace(target.recipe.model, trust_remote_code=recipe.model.trust_remote_code)
    target = replace(target, recipe=replace(target.recipe, model=model))
    seed, answers = recipe.training.seed, recipe.sweep.answers
    measurement = ModelEvaluator(
        target, rows, recipe.evaluation, compute, seed, observer, answers=answers, model=tuned, known=known
    )
    content = _content(measurement.run(), rows, settings_key(recipe))
    run.write_json(MEASURED, content | {"seconds": time.perf_counter() - begun})


def _content(results: ModelResults, rows: EvalRows, settings: str) -> MeasuredCell:
    """Return a cell's numbers, example by example."""
    from neftcli.evaluation.comparison import task_metrics, values_of_rows
    from neftcli.evaluation.metrics import REGISTRY, PerRow
    from neftcli.evaluation.report import instruction

    metrics: dict[str, CellMetric] = {}
    for metric in REGISTRY.values():
        if isinstance(metric.source, PerRow):
            values, weights = values_of_rows(metric.source, results)
            if values.size and not all(value != value for value in values):
                metrics[metric.id] = {
                    "direction": metric.direction,
                    "values": values.tolist(),
                    "weights": None if weights is None else weights.tolist(),
                }
    metrics |= task_metrics(results)
    return {
        "settings": settings,
        "prompts": [instruction(example) for example in rows.examples],
        "references": [example.answer() for example in rows.examples],
        "answers": [answer.text for answer in results.answers],
        "metrics": metrics,
    }

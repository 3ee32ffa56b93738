"""One cell: train its run, then evaluate it on the held-out split. The run keeps both, and neither is repeated."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from neftcli.errors import Preempted, Problem
from neftcli.events import CellEvaluationStarted, Event, Observer, Phase, PhaseProgress, RowsSource
from neftcli.recipe.loading import recipe_fingerprint
from neftcli.runs.schemas import CellMetric, MeasuredCell
from neftcli.sweep.cell_runs import CELL_METRICS, CellRuns, evaluation_key, read_evaluation

if TYPE_CHECKING:
    from neftcli.data.tokens import TokenRow
    from neftcli.evaluation.held_out import EvalRows
    from neftcli.evaluation.loss import RowLoss
    from neftcli.evaluation.measurement import ModelResults
    from neftcli.recipe.schema import Recipe
    from neftcli.runs.directory import RunDirectory
    from neftcli.system.device import ComputeConfig
    from neftcli.training.assets import AssetCache
    from neftcli.training.signals import StopSignal
    from neftcli.training.train import TrainedRun


def run_cell(recipe: Recipe, asset_cache: AssetCache, observer: Observer, stop: StopSignal) -> str:
    """Train and evaluate a cell as far as that is not done, and return the folder of its run.

    Raises:
        RunLockedError: Another process is training it.
        NeftError: It can't be trained or evaluated.
        Preempted: A stop was requested; its progress is saved.
    """
    from neftcli.training.signals import StopRequested
    from neftcli.training.train import train

    runs, key = CellRuns(recipe.output_folder()), recipe_fingerprint(recipe)
    run, resume = runs.finished(key), None
    if run is None:
        resume = runs.find_resume_state(key, recipe, observer)
        run = runs.finished(key)  # a former worker may have finished it before this one had the lock
    if run is not None:
        run.clean_up_finished()
        if read_evaluation(run, recipe) is None:
            _evaluate_saved(run, recipe, asset_cache, _StoppableObserver(observer, stop))
        return str(run.path)

    def evaluate(trained: TrainedRun) -> None:
        prepared = trained.assets.prepared
        rows = _held_out_rows(recipe, prepared.held_out_examples, prepared.counts.format)
        known = tuple(zip(prepared.held_out, trained.losses, strict=False))
        stoppable = _StoppableObserver(observer, stop)
        _evaluate(trained.directory, recipe, rows, trained.assets.compute, stoppable, trained.model, known)

    try:
        return train(recipe, observer, asset_cache, evaluate, stop, resume).run
    except StopRequested:
        raise Preempted(Problem("stopped before the cell was started")) from None


class _StoppableObserver:
    """Pass on the events of an evaluation, and end it if a stop is requested.

    Everything that an event reports is already saved, so nothing is evaluated twice.
    """

    def __init__(self, observer: Observer, stop: StopSignal) -> None:
        self._observer = observer
        self._stop = stop

    def notify(self, event: Event) -> None:
        """Pass the event on.

        Raises:
            Preempted: A stop was requested.
        """
        if isinstance(event, PhaseProgress | Phase | CellEvaluationStarted) and self._stop.is_requested():
            raise Preempted(Problem("stopped during the evaluation of the cell; its results so far are kept"))
        self._observer.notify(event)


def _evaluate_saved(run: RunDirectory, recipe: Recipe, asset_cache: AssetCache, observer: Observer) -> None:
    """Evaluate a finished run without loading its base model."""
    from neftcli.data.chat import load_chat_format
    from neftcli.data.prepare import tokenize_dataset
    from neftcli.system.device import resolve_compute_config
    from neftcli.system.libraries import capture_library_output
    from neftcli.training.inputs import read_inputs

    with capture_library_output(run.log):
        assets = asset_cache.get(recipe)
        if assets is not None:
            held_out, row_format = assets.prepared.held_out_examples, assets.prepared.counts.format
        else:
            reference, examples = read_inputs(recipe, observer)
            row_format = examples.row_format
            chat, _ = load_chat_format(recipe, reference, row_format, observer)
            indices = tokenize_dataset(chat, examples.held_out, recipe.data.max_length, recipe.data.loss_on)[1]
            held_out = examples.held_out.select(indices)
        rows = _held_out_rows(recipe, held_out, row_format)
        frozen_weights = recipe.adapter.type != "none"
        compute = resolve_compute_config(recipe.training.precision, recipe.model.dtype, frozen_weights=frozen_weights)
        _evaluate(run, recipe, rows, compute, observer, None, ())


def _held_out_rows(recipe: Recipe, examples: Any, row_format: Any) -> EvalRows:
    from neftcli.evaluation.held_out import EvalRows

    source = RowsSource(recipe.data.held_out_source or recipe.data.source_name(), held_out_of=recipe.run_name())
    return EvalRows(examples, recipe.data, row_format, source, "held-out")


def _evaluate(
    run: RunDirectory,
    recipe: Recipe,
    rows: EvalRows,
    compute: ComputeConfig,
    observer: Observer,
    model: Any,
    known: Sequence[tuple[TokenRow, RowLoss]],
) -> None:
    """Evaluate a run and write the result to its `CELL_METRICS` file.

    Args:
        run: The finished run.
        recipe: Recipe of the cell.
        rows: Held-out rows.
        compute: Device and precision.
        observer: Receives the progress.
        model: The tuned model; None to load it.
        known: Held-out rows whose loss is known from the last evaluation during training.
    """
    from neftcli.evaluation.measurement import ModelEvaluator
    from neftcli.evaluation.targets import resolve_target

    started = time.perf_counter()
    observer.notify(CellEvaluationStarted())
    target = resolve_target(str(run.path), "run", ())
    # The recipe in the run's folder may be someone else's; only the cell's recipe decides if a model's own code runs.
    trusted = replace(target.recipe.model, trust_remote_code=recipe.model.trust_remote_code)
    target = replace(target, recipe=replace(target.recipe, model=trusted))
    seed, answers = recipe.training.seed, recipe.sweep.answers
    evaluator = ModelEvaluator(
        target, rows, recipe.evaluation, compute, seed, observer, answers=answers, model=model, known=known
    )
    evaluation = _to_json(evaluator.run(), rows, evaluation_key(recipe))
    run.write_json(CELL_METRICS, evaluation | {"seconds": time.perf_counter() - started})


def _to_json(results: ModelResults, rows: EvalRows, settings: str) -> MeasuredCell:
    """Return the evaluation of a cell with a value of each metric for each row."""
    import numpy as np

    from neftcli.data.tokens import instruction
    from neftcli.evaluation.comparison import task_metrics, values_of_rows
    from neftcli.metrics.registry import METRICS_BY_ID, PerRow

    metrics: dict[str, CellMetric] = {}
    for metric in METRICS_BY_ID.values():
        if isinstance(metric.source, PerRow):
            values, weights = values_of_rows(metric.source, results)
            if not np.isnan(values).all():
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

"""Time of a sweep before it starts: the mean of its finished cells, or one timed training step.

seconds = loading + max(longest cell, sum of all cells / workers)
cell    = steps x step + evaluated rows x row + batches of answers x longest answer x token
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from neftcli.evaluation.metrics import WIN_RATE_LENGTH_CONTROLLED
from neftcli.events import (
    CellEstimate,
    Event,
    Observer,
    Phase,
    PhaseId,
    SweepEstimate,
    TrainingProgress,
    TrainingStarted,
)
from neftcli.sweep.cell_runs import read_evaluation
from neftcli.sweep.engines.local_engine import list_devices
from neftcli.training.assets import AssetCache, Assets, load_assets
from neftcli.training.progress import EvaluationSchedule

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe
    from neftcli.sweep.cell_runs import CellRuns
    from neftcli.sweep.plan import Cell

TIMED_TOKENS = 3
BACKWARD = 2  # a backward pass takes about as long as two forward passes
SAFE_LEARNING_RATE = 1e-8  # no NaN in the timed steps; the rate does not change their time


@dataclass(frozen=True)
class StepTimes:
    """Seconds of the parts of a cell on this machine, and their numbers.

    Attributes:
        loading: Seconds to load the libraries, the model and the tokenised rows.
        step: Seconds of an optimiser step.
        row: Seconds of the loss of a row, a forward pass.
        token: Seconds of one token of each answer in a batch; 0 without answers.
        steps: Optimiser steps of a cell.
        held_out: Held-out rows.
        probe_rows: Training rows whose loss is evaluated without noise.
    """

    loading: float
    step: float
    row: float
    token: float
    steps: int
    held_out: int
    probe_rows: int

    def parts(self, recipe: Recipe, *, is_trained: bool = False) -> dict[str, float]:
        """Return the seconds of the training, the losses and the answers of a cell.

        Args:
            recipe: The recipe of the cell.
            is_trained: Only the evaluation after training is left.
        """
        rows, answers = self.held_out, [self.held_out if recipe.sweep.answers else 0]
        if not is_trained:
            evaluations = EvaluationSchedule(self.steps, recipe.evaluation.every).count_remaining(0, 0)
            rows += evaluations * (self.held_out + self.probe_rows)
            answers.append(recipe.evaluation.samples)
        generation = recipe.evaluation.generation
        batches = sum(math.ceil(number / generation.batch_size) for number in answers)
        return {
            "training": 0.0 if is_trained else self.steps * self.step,
            "losses": rows * self.row,
            "answers": batches * generation.max_new_tokens * self.token,
        }


def estimate_sweep(
    cells: Sequence[Cell], runs: CellRuns, engine: str, observer: Observer, *, early_stopping: bool
) -> SweepEstimate:
    """Estimate the time of the cells that are not finished. Nothing is written to their folder.

    Args:
        cells: All cells of the sweep.
        runs: The runs in its folder.
        engine: "local" or "ray".
        observer: Receives the phases of the timing.
        early_stopping: Fewer cells may be needed.

    Raises:
        InputError: The model or the data can't be used.
        NeftError: The timed step failed, for example with OOM.
    """
    recorded: dict[str, list[tuple[float, float]]] = defaultdict(list)  # seconds of training and of evaluation
    cells_left: list[tuple[Cell, bool]] = []  # a cell, and if it is trained already
    for cell in cells:
        run = runs.finished(cell.key)
        evaluation = read_evaluation(run, cell.recipe) if run else None
        if run is None or evaluation is None:
            cells_left.append((cell, run is not None))
        elif "seconds" in evaluation:
            recorded[timing_key(cell.recipe)].append((run.record()["results"]["seconds"], evaluation["seconds"]))

    asset_cache = AssetCache()
    timed: dict[str, StepTimes] = {}
    estimates: list[CellEstimate] = []
    parts: dict[str, float] = {}
    for cell, is_trained in cells_left:
        key = timing_key(cell.recipe)
        if key in recorded:
            seconds = mean(evaluation + (0.0 if is_trained else training) for training, evaluation in recorded[key])
        else:
            if key not in timed:
                timed[key] = time_step(cell.recipe, asset_cache, observer)
            parts = timed[key].parts(cell.recipe, is_trained=is_trained)
            seconds = sum(parts.values())
        estimates.append(CellEstimate(cell.key[:8], cell.arm.name(), cell.seed, seconds))

    each = [estimate.seconds for estimate in estimates]
    workers = 1 if engine == "ray" else max(1, min(len(list_devices()), len(estimates)))
    loading = max((times.loading for times in timed.values()), default=0.0)
    recipe = cells[0].recipe
    uncounted = {
        "tasks": bool(timed) and bool(recipe.evaluation.tasks),
        "the judge": WIN_RATE_LENGTH_CONTROLLED in recipe.sweep.metrics,
    }
    return SweepEstimate(
        seconds=loading + max(max(each), sum(each) / workers) if each else 0.0,
        workers=workers,
        cells=tuple(estimates),
        parts=parts if len(set(each)) == 1 else {},
        finished_cells=sum(
            len(recorded[key]) for key in {timing_key(cell.recipe) for cell, _ in cells_left} & {*recorded}
        ),
        timed_steps=len(timed),
        answer_tokens=recipe.evaluation.generation.max_new_tokens if any(t.token for t in timed.values()) else None,
        uncounted=tuple(name for name, is_used in uncounted.items() if is_used),
        engine=engine,
        early_stopping=early_stopping,
    )


def timing_key(recipe: Recipe) -> str:
    """Return the parts of a recipe that its time depends on; cells with the same key take equally long."""
    is_symmetric = recipe.neftune.noise == "symmetric" and recipe.neftune.alpha > 0  # two passes in each step
    same: dict[str, Any] = {
        "seed": 0,
        "learning_rate": SAFE_LEARNING_RATE,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }
    training = replace(recipe.training, **same)
    parts = (recipe.model, recipe.data, is_symmetric, recipe.adapter, recipe.quantization, training, recipe.evaluation)
    return repr((*parts, recipe.sweep.answers))


class _StepTimedError(Exception):
    """The timed step is done; leaves the training without saving anything."""


class _StepTimer:
    """Observer that times the first step and then ends the training."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._started = 0.0
        self.seconds = 0.0

    def notify(self, event: Event) -> None:
        """Take the time of a step.

        Raises:
            _StepTimedError: The step is done.
        """
        if isinstance(event, Phase):
            self._observer.notify(event)
        elif isinstance(event, TrainingStarted):
            self._started = time.perf_counter()
        elif isinstance(event, TrainingProgress) and event.step:
            self.seconds = time.perf_counter() - self._started
            raise _StepTimedError


def time_step(recipe: Recipe, asset_cache: AssetCache, observer: Observer) -> StepTimes:
    """Time a training step and the first tokens of a batch of answers.

    Raises:
        InputError: The model or the data can't be used.
        NeftError: A step failed, for example with OOM.
    """
    from neftcli.system.libraries import capture_library_output, prepare_libraries
    from neftcli.training.inputs import read_inputs
    from neftcli.training.trainer import num_training_steps

    prepare_libraries()
    started, timer = time.perf_counter(), _StepTimer(observer)
    with tempfile.TemporaryDirectory(prefix="neft-estimate-") as folder:
        with capture_library_output(Path(folder) / "libraries.log"):
            assets = asset_cache.get(recipe)
            if assets is None:
                assets = load_assets(recipe, *read_inputs(recipe, timer), timer)
                asset_cache.put(recipe, assets)
            loading = time.perf_counter() - started
            timer.notify(Phase(PhaseId.TIMING_ANSWERS))
            token = _time_token(recipe, assets)
        timer.notify(Phase(PhaseId.TIMING_STEPS))
        _train_one_step(recipe, assets, Path(folder), timer)
    prepared, training = assets.prepared, recipe.training
    rows_per_step = training.per_device_train_batch_size * training.gradient_accumulation_steps
    return StepTimes(
        loading=loading,
        step=timer.seconds,
        row=timer.seconds / rows_per_step / (1 + BACKWARD),
        token=token,
        steps=num_training_steps(recipe, prepared.train.lengths()),
        held_out=len(prepared.held_out),
        probe_rows=min(recipe.evaluation.probe_rows, len(prepared.train)),
    )


def _time_token(recipe: Recipe, assets: Assets) -> float:
    """Return the seconds in which a batch of answers grows by a token; 0 if no answers are generated."""
    from neftcli.data.tokens import tokenize_prompt
    from neftcli.evaluation.generation import generate_answers

    if not (recipe.sweep.answers or recipe.evaluation.samples):
        return 0.0
    examples = assets.prepared.held_out_examples
    number = min(recipe.evaluation.generation.batch_size, len(examples))
    prompts = [tokenize_prompt(assets.chat, examples[index]) for index in range(number)]
    seconds = []
    for batch, tokens in ((prompts[:1], 1), (prompts, 1), (prompts, 1 + TIMED_TOKENS)):  # the first call warms up
        generation = replace(recipe.evaluation.generation, max_new_tokens=tokens)
        started = time.perf_counter()
        generate_answers(assets.model, assets.chat, batch, generation, assets.compute.autocast())
        seconds.append(time.perf_counter() - started)
    return max(0.0, seconds[2] - seconds[1]) / TIMED_TOKENS


def _train_one_step(recipe: Recipe, assets: Assets, folder: Path, timer: _StepTimer) -> None:
    """Train for a step, with one held-out row."""
    from neftcli.training.train import train

    prepared = assets.prepared
    one_row = replace(prepared, held_out=prepared.held_out[:1], held_out_examples=prepared.held_out_examples[:1])
    evaluation = replace(recipe.evaluation, samples=0, probe_rows=0, every=1.0, tasks=())
    training = replace(recipe.training, learning_rate=SAFE_LEARNING_RATE)
    timed = replace(recipe, output_dir=str(folder), training=training, evaluation=evaluation)
    asset_cache = AssetCache()
    asset_cache.put(timed, replace(assets, prepared=one_row))
    with suppress(_StepTimedError):
        train(timed, timer, asset_cache)

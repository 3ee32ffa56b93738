"""Time of a sweep before it starts: the mean of its finished cells, or a timed forward pass of the model.

seconds = loading + max(longest cell, sum of all cells / workers)
cell    = steps x step + evaluated rows x row + batches of answers x longest answer x token
step    = tokens of a step x forward seconds per token x passes

A timed training step would be more exact, but it takes a minute on two cores, with the import of the trainer.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from neftcli.events import CellEstimate, Observer, Phase, PhaseId, SweepEstimate
from neftcli.metrics.registry import WIN_RATE_LENGTH_CONTROLLED
from neftcli.sweep.cell_runs import read_evaluation
from neftcli.sweep.engines.local_engine import list_devices
from neftcli.training.assets import assets_key
from neftcli.training.progress import EvaluationSchedule, count_steps

if TYPE_CHECKING:
    from neftcli.data.prepare import PreparedData
    from neftcli.models.registry import ModelReference
    from neftcli.recipe.schema import Recipe
    from neftcli.sweep.cell_runs import CellRuns
    from neftcli.sweep.plan import Cell

TIMED_TOKENS = 128
"""Tokens of the forward pass that is timed first, one row."""
MAX_TIMED_TOKENS = 4096
"""Tokens at most of a batch that is timed after it, so that its logits fit in memory."""
QUICK = 1.0
"""Seconds: a batch that should take less is timed, because a GPU needs large batches to be fast; a pass that takes less
is timed twice, because the first one of its shape may choose kernels."""
BACKWARD = 2
"""A backward pass takes about as long as two forward passes."""
BACKWARD_FROZEN = 1
"""If only an adapter is trained, the gradients of the other weights are not computed."""


@dataclass(frozen=True)
class StepTimes:
    """Seconds of the parts of a cell on this machine, and their numbers.

    Attributes:
        loading: Seconds to load the libraries and the model.
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
            if recipe.evaluation.during:
                answers += [min(recipe.evaluation.during_rows, self.held_out)] * evaluations
        generation = recipe.evaluation.generation
        batches = sum(math.ceil(number / generation.batch_size) for number in answers)
        return {
            "training": 0.0 if is_trained else self.steps * self.step,
            "losses": rows * self.row,
            "answers": batches * generation.max_new_tokens * self.token,
        }


def estimate_sweep(
    cells: Sequence[Cell], runs: CellRuns, engine: str, timer: ModelTimer, *, early_stopping: bool
) -> SweepEstimate:
    """Estimate the time of the cells that are not finished. Nothing is written to their folder.

    Args:
        cells: All cells of the sweep.
        runs: The runs in its folder.
        engine: "local" or "ray".
        timer: Times the model if no cell of a kind is finished.
        early_stopping: Fewer cells may be needed.

    Raises:
        InputError: The model can't be used.
    """
    recorded: dict[str, list[tuple[float, float]]] = defaultdict(list)  # seconds of training and of evaluation
    cells_left: list[tuple[Cell, bool]] = []  # a cell, and whether it is trained
    for cell in cells:
        run = runs.finished(cell.key)
        evaluation = read_evaluation(run, cell.recipe) if run else None
        if run is None or evaluation is None:
            cells_left.append((cell, run is not None))
        elif "seconds" in evaluation:
            recorded[timing_key(cell.recipe)].append((run.record()["results"]["seconds"], evaluation["seconds"]))

    timed: dict[str, StepTimes] = {}
    estimates: list[CellEstimate] = []
    parts: dict[str, float] = {}
    for cell, is_trained in cells_left:
        key = timing_key(cell.recipe)
        if key in recorded:
            seconds = mean(evaluation + (0.0 if is_trained else training) for training, evaluation in recorded[key])
        else:
            if key not in timed:
                timed[key] = timer.time_cell(cell.recipe)
            parts = timed[key].parts(cell.recipe, is_trained=is_trained)
            seconds = sum(parts.values())
        estimates.append(CellEstimate(cell.short_key(), cell.arm.id(), cell.seed, seconds))

    seconds_of_cells = [estimate.seconds for estimate in estimates]
    workers = 1 if engine == "ray" else max(1, min(len(list_devices()), len(estimates)))
    total = 0.0
    if estimates:
        loading = max((times.loading for times in timed.values()), default=0.0)
        total = loading + max(max(seconds_of_cells), sum(seconds_of_cells) / workers)
    used_keys = {timing_key(cell.recipe) for cell, _ in cells_left}
    recipe = cells[0].recipe
    with_answers = any(times.token for times in timed.values())
    uncounted = []
    if timed and recipe.evaluation.tasks:
        uncounted.append("tasks")
    if WIN_RATE_LENGTH_CONTROLLED in recipe.sweep.metrics:
        uncounted.append("judge")
    uncounted.append("report")
    return SweepEstimate(
        seconds=total,
        workers=workers,
        cells=tuple(estimates),
        parts=parts if len(set(seconds_of_cells)) == 1 else {},
        finished_cells=sum(len(recorded[key]) for key in used_keys if key in recorded),
        timed_passes=len(timed),
        answer_tokens=recipe.evaluation.generation.max_new_tokens if with_answers else None,
        uncounted=tuple(uncounted),
        engine=engine,
        early_stopping=early_stopping,
    )


def timing_key(recipe: Recipe) -> str:
    """Return the parts of a recipe that its time depends on; cells with the same key take equally long."""
    same: dict[str, Any] = {
        "seed": 0,
        "learning_rate": 1.0,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }
    training = replace(recipe.training, **same)
    parts = (
        recipe.model,
        recipe.data,
        _is_symmetric(recipe),
        recipe.adapter,
        recipe.quantization,
        training,
        recipe.evaluation,
    )
    return repr((*parts, recipe.sweep.answers))


def _is_symmetric(recipe: Recipe) -> bool:
    """Return whether each step has two forward and backward passes, with opposite noise."""
    return recipe.neftune.noise == "symmetric" and recipe.neftune.alpha > 0


class ModelTimer:
    """Times forward passes of a sweep's model on this machine.

    Args:
        reference: The model.
        prepared: The tokenised rows, which all cells share.
        observer: Receives the phases.
    """

    def __init__(self, reference: ModelReference, prepared: PreparedData, observer: Observer) -> None:
        self._reference, self._prepared, self._observer = reference, prepared, observer
        self._key = ""
        self._model: Any = None
        self._compute: Any = None
        self._loading = 0.0

    def time_cell(self, recipe: Recipe) -> StepTimes:
        """Time the model, and return the times of the parts of a cell.

        Raises:
            InputError: The model can't be used.
        """
        prepared, training = self._prepared, recipe.training
        self.load(recipe)
        self._observer.notify(Phase(PhaseId.TIMING_MODEL))
        answers = min(recipe.evaluation.generation.batch_size, len(prepared.held_out))
        per_token = self._time_token_of_rows(training.per_device_train_batch_size)
        lengths = [int(length) for length in prepared.train.lengths()]
        batches, tokens = _batches(recipe, lengths)
        passes = 1 + (BACKWARD if recipe.adapter.type == "none" else BACKWARD_FROZEN)
        passes += training.gradient_checkpointing  # computes the activations a second time
        passes *= 2 if _is_symmetric(recipe) else 1
        has_answers = recipe.sweep.answers or recipe.evaluation.samples or recipe.evaluation.during
        return StepTimes(
            loading=self._loading,
            step=per_token * passes * tokens / batches * training.gradient_accumulation_steps,
            row=per_token * mean(int(length) for length in prepared.held_out.lengths()),
            token=self.time_forward(answers, 1) if has_answers else 0.0,
            steps=training.max_steps or count_steps(training, batches),
            held_out=len(prepared.held_out),
            probe_rows=min(recipe.evaluation.probe_rows, len(prepared.train)),
        )

    def load(self, recipe: Recipe) -> None:
        """Load the model as the recipe has it, unless it is loaded already."""
        key = assets_key(recipe)
        if key == self._key:
            return
        self._observer.notify(Phase(PhaseId.LOADING_LIBRARIES))
        from neftcli.models.loading import load_model_for_recipe
        from neftcli.system.device import resolve_compute_config
        from neftcli.system.libraries import capture_library_output, prepare_libraries

        prepare_libraries()
        started = time.perf_counter()
        frozen_weights = recipe.adapter.type != "none"
        compute = resolve_compute_config(recipe.training.precision, recipe.model.dtype, frozen_weights=frozen_weights)
        self._observer.notify(Phase(PhaseId.LOADING_MODEL))
        self._model = None  # two models may not fit in memory
        with (
            tempfile.TemporaryDirectory(prefix="neft-estimate-") as folder,
            capture_library_output(Path(folder) / "libraries.log"),
        ):
            self._model = load_model_for_recipe(recipe, self._reference, compute).eval()
        self._key, self._compute, self._loading = key, compute, time.perf_counter() - started

    def _time_token_of_rows(self, batch_size: int) -> float:
        """Return the seconds of a forward pass per token, in one row, or in a batch if that is quick."""
        length = min(TIMED_TOKENS, max(int(length) for length in self._prepared.train.lengths()))
        seconds = self.time_forward(1, length)
        rows = min(batch_size, MAX_TIMED_TOKENS // length)
        if seconds * rows > QUICK:
            return seconds / length
        return self.time_forward(rows, length) / (rows * length)

    def time_forward(self, rows: int, length: int) -> float:
        """Return the seconds of a forward pass of `rows` rows of `length` tokens; if it is quick, the faster of two."""
        import torch

        input_ids = torch.zeros(rows, length, dtype=torch.int64, device=self._model.device)

        def forward(batch: torch.Tensor) -> float:
            started = time.perf_counter()
            logits = self._model(input_ids=batch, use_cache=False).logits
            float(logits[-1, -1, 0])  # waits for the device
            return time.perf_counter() - started

        with torch.inference_mode(), self._compute.autocast():
            forward(input_ids[:1, :1])  # warms up
            seconds = forward(input_ids)
            return min(seconds, forward(input_ids)) if seconds < QUICK else seconds


def _batches(recipe: Recipe, lengths: Sequence[int]) -> tuple[int, int]:
    """Return the batches of an epoch and their tokens, pads included; packed rows are assumed to fit exactly."""
    size = recipe.training.per_device_train_batch_size
    if recipe.training.batching == "packed":
        return math.ceil(sum(lengths) / recipe.data.max_length / size), sum(lengths)
    batches = [lengths[start : start + size] for start in range(0, len(lengths), size)]
    if recipe.training.batching == "padded":
        return len(batches), sum(len(batch) * max(batch) for batch in batches)
    return len(batches), sum(lengths)

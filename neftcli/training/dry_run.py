"""Plan a run without training: `neft train --dry-run`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.data.prepare import PreparedData
from neftcli.data.sources import is_hub_id
from neftcli.errors import InputError
from neftcli.events import Notice, Observer, RecipeResolved, TrainingPlan
from neftcli.models.limits import load_embedding_size
from neftcli.models.new_tokens import extended_size
from neftcli.models.registry import ModelReference, resolve_model
from neftcli.recipe.loading import to_yaml
from neftcli.runs.directory import require_writable
from neftcli.system.distributed import local_world_size
from neftcli.system.files import format_bytes
from neftcli.system.libraries import capture_library_output, keep_freed_memory
from neftcli.trackers.registry import require_trackers
from neftcli.training.inputs import prepare_inputs, report_data

if TYPE_CHECKING:
    from neftcli.data.splits import Indices
    from neftcli.recipe.schema import Recipe


def plan_run(recipe: Recipe, observer: Observer) -> TrainingPlan:
    """Report the resolved recipe, the counts of the rows, the number of steps, and the memory that they need.

    If the hub can't be reached, the memory of a known model is still reported, for rows of data.max_length tokens.

    Raises:
        InputError: The recipe names a model or data that can't be used; raised for the same recipes as by `train`.
    """
    require_writable(recipe.output_folder())
    require_trackers(recipe.training.report_to)
    reference = resolve_model(recipe.model.name, recipe.model.revision)
    training = replace(recipe.training, learning_rate=recipe.learning_rate())
    resolved = RecipeResolved(to_yaml(replace(recipe, training=training)))
    with tempfile.TemporaryDirectory() as folder, capture_library_output(Path(folder) / "log", load=False):
        try:
            prepared, chat, notices = prepare_inputs(recipe, observer)
        except InputError:
            if _may_be_unreachable(recipe, reference) and reference.alias and reference.alias.architecture:
                observer.notify(resolved)
                observer.notify(_measure_plan(recipe, reference, None)[0])
            raise
        observer.notify(resolved)
        report_data(prepared, notices, observer)
        vocabulary = load_embedding_size(reference, recipe.model.trust_remote_code)
        vocabulary = extended_size(vocabulary, chat.tokenizer, recipe)
        plan, memory_notices = _measure_plan(recipe, reference, prepared, vocabulary)
    for notice in memory_notices:
        observer.notify(Notice(notice))
    observer.notify(plan)
    if plan.total_bytes > plan.available_bytes:
        needed, free = format_bytes(plan.total_bytes), format_bytes(plan.available_bytes)
        observer.notify(
            Notice(
                f"this needs about {needed}, and {free} are free: --batch-size with fewer rows, "
                "--gradient-checkpointing, --lora or --qlora"
            )
        )
    return plan


def _measure_plan(
    recipe: Recipe, reference: ModelReference, prepared: PreparedData | None, vocabulary: int | None = None
) -> tuple[TrainingPlan, tuple[str, ...]]:
    """Return the plan, and notices about its adapter or frozen layers."""
    from neftcli.models.memory import estimate_memory
    from neftcli.models.pissa import require_float32_weights
    from neftcli.system.device import available_memory, process_memory, resolve_compute_config
    from neftcli.training.trainer import num_training_steps

    frozen_weights = recipe.adapter.type != "none"
    compute = resolve_compute_config(recipe.training.precision, recipe.model.dtype, frozen_weights=frozen_weights)
    require_float32_weights(recipe, compute)
    row_tokens = recipe.data.max_length
    if prepared is not None and recipe.training.batching != "packed":
        row_tokens = prepared.counts.train.longest
    activation_bytes = 2 if compute.precision() == "bf16" else 4
    weight_bytes = compute.weights_dtype.itemsize
    memory = estimate_memory(recipe, reference, weight_bytes, activation_bytes, row_tokens, compute.device, vocabulary)
    libraries = process_memory() if compute.device == "cpu" else 0
    lengths: Sequence[int] | Indices = prepared.train.lengths() if prepared else ()
    plan = TrainingPlan(
        model=reference.source(),
        method=recipe.method(),
        device=compute.hardware,
        precision=compute.precision(),
        total_steps=num_training_steps(recipe, lengths) if prepared or recipe.training.max_steps else None,
        parameters=memory.parameters,
        trainable=memory.trainable,
        weights_bytes=int(memory.weights),
        gradients_bytes=int(memory.gradients),
        optimizer_bytes=int(memory.optimizer),
        activations_bytes=int(memory.activations),
        libraries_bytes=libraries,
        total_bytes=(int(memory.total()) + libraries) * (local_world_size() if compute.device == "cpu" else 1),
        available_bytes=available_memory(compute.device),
        keeps_freed=compute.device == "cpu" and keep_freed_memory(),
    )
    return plan, memory.notices


def _may_be_unreachable(recipe: Recipe, reference: ModelReference) -> bool:
    """Return whether the model or rows are on the hub; if it can't be reached, the plan is shown without them."""
    return reference.kind == "hub" or any(map(is_hub_id, recipe.data.named_sources()))

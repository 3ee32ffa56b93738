"""What a run would do, without doing it: `neft train --dry-run` and `neft data inspect`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.data.prepare import Prepared, prepare
from neftcli.events import InspectedRow, Notice, Observer, Phase, Plan, Token
from neftcli.recipe.loading import to_yaml
from neftcli.training.run import check_inputs, library_chatter

if TYPE_CHECKING:
    from neftcli.models.names import Reference
    from neftcli.recipe.schema import Recipe


def plan(recipe: Recipe, observer: Observer) -> Plan:
    """The resolved recipe, the counted data, the number of updates and the memory that they need.

    Raises:
        InputError: The recipe names a model or data that can't be used, as `train` would.
    """
    reference, prepared = _prepare(recipe, observer)
    observer.notify(Phase("estimating memory"))
    from neftcli.models.memory import estimate
    from neftcli.training.machine import available_memory, choose_machine
    from neftcli.training.trainer import updates

    machine = choose_machine(recipe)
    packed = recipe.training.batching == "packed"
    memory = estimate(
        recipe,
        reference,
        machine.weights.itemsize,
        2 if machine.bfloat16 else 4,
        recipe.data.max_length if packed else prepared.counts.train.longest,
    )
    result = Plan(
        recipe=to_yaml(recipe),
        model=reference.source(),
        method=recipe.method(),
        device=machine.name,
        precision=machine.precision(),
        updates=updates(recipe, [len(row.input_ids) for row in prepared.train]),
        parameters=memory.parameters,
        trainable=memory.trainable,
        weights_bytes=int(memory.weights),
        gradients_bytes=int(memory.gradients),
        optimizer_bytes=int(memory.optimizer),
        activations_bytes=int(memory.activations),
        total_bytes=int(memory.total()),
        available_bytes=available_memory(machine.device),
    )
    observer.notify(result)
    if result.available_bytes is not None and result.total_bytes > result.available_bytes:
        observer.notify(
            Notice(
                f"this needs about {result.total_bytes / 2**30:.1f} GiB and {result.available_bytes / 2**30:.1f} GiB "
                "are free: --batch-size with fewer rows, --gradient-checkpointing, --lora or --qlora"
            )
        )
    return result


def inspect_data(recipe: Recipe, rows: int, observer: Observer) -> None:
    """Counts the data and shows its first training rows token by token.

    Raises:
        InputError: The recipe names a model or data that can't be used.
    """
    from neftcli.data.tokens import IGNORED
    from neftcli.models.loading import load_tokenizer

    reference, prepared = _prepare(recipe, observer)
    tokenizer, _ = load_tokenizer(reference, recipe.model.trust_remote_code)
    for row in prepared.train[:rows]:
        labels = [IGNORED, *row.labels[1:]]
        tokens = tuple(
            Token(tokenizer.decode([token_id]), label != IGNORED)
            for token_id, label in zip(row.input_ids, labels, strict=True)
        )
        observer.notify(InspectedRow(row.where, tokens, row.cut, row.stops))


def _prepare(recipe: Recipe, observer: Observer) -> tuple[Reference, Prepared]:
    from neftcli.training.run import load_tokenizer_of

    reference, examples = check_inputs(recipe, observer)
    with tempfile.TemporaryDirectory() as folder, library_chatter(Path(folder) / "log"):
        tokenizer, template, notices = load_tokenizer_of(recipe, reference, examples.layout, observer)
        observer.notify(Phase("tokenising"))
        prepared = prepare(examples, recipe.data, tokenizer, template)
    observer.notify(prepared.counts)
    for notice in notices:
        observer.notify(Notice(notice))
    return reference, prepared

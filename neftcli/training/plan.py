"""What a run would do, without doing it: `neft train --dry-run` and `neft data inspect`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.data.prepare import Prepared, prepare
from neftcli.errors import InputError
from neftcli.events import InspectedRow, Notice, Observer, Plan, Resolved, Token
from neftcli.machine.chatter import library_chatter
from neftcli.machine.process import keep_freed_memory, prepare_process
from neftcli.machine.processes import local_count
from neftcli.models.by_recipe import load_tokenizer_of, vocabulary_of
from neftcli.models.names import Reference, resolve
from neftcli.recipe.loading import to_yaml
from neftcli.training.inputs import check_inputs
from neftcli.training.materials import require_embedded_rows
from neftcli.training.pace import tokenising

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from neftcli.data.splits import Places
    from neftcli.recipe.schema import Recipe


def plan(recipe: Recipe, observer: Observer) -> Plan:
    """The resolved recipe, the counted data, the number of updates and the memory that they need.

    Where model or data can't be reached, what is known without them is still told, at data.max_length.

    Raises:
        InputError: The recipe names a model or data that can't be used, as `train` would.
    """
    reference = resolve(recipe.model.name, recipe.model.revision)
    observer.notify(Resolved(to_yaml(recipe)))
    with tempfile.TemporaryDirectory() as folder, library_chatter(Path(folder) / "log", loaded=False):
        try:
            prepared, _ = _prepare(recipe, observer)
        except InputError:
            if reference.alias and reference.alias.architecture:
                observer.notify(_plan(recipe, reference, None)[0])
            raise
        result, notices = _plan(recipe, reference, prepared)
    for notice in notices:
        observer.notify(Notice(notice))
    observer.notify(result)
    if result.total_bytes > result.available_bytes:
        needed, free = result.total_bytes / 2**30, result.available_bytes / 2**30
        observer.notify(
            Notice(
                f"this needs about {needed:.1f} GiB and {free:.1f} GiB are free: --batch-size with fewer rows, "
                "--gradient-checkpointing, --lora or --qlora"
            )
        )
    return result


def _plan(recipe: Recipe, reference: Reference, prepared: Prepared | None) -> tuple[Plan, tuple[str, ...]]:
    """The plan, and what a person should know of its adapter."""
    from neftcli.machine.device import available_memory, choose_machine, process_memory
    from neftcli.models.memory import estimate
    from neftcli.training.trainer import updates

    machine = choose_machine(recipe)
    whole_rows = prepared is None or recipe.training.batching == "packed"
    row_tokens = recipe.data.max_length if whole_rows or prepared is None else prepared.counts.train.longest
    activation_bytes = 2 if machine.precision() == "bf16" else 4
    memory = estimate(recipe, reference, machine.weights.itemsize, activation_bytes, row_tokens, machine.device)
    libraries = process_memory() if machine.device == "cpu" else 0
    lengths: Sequence[int] | Places = prepared.train.lengths() if prepared else ()
    planned = Plan(
        model=reference.source(),
        method=recipe.method(),
        device=machine.name,
        precision=machine.precision(),
        updates=updates(recipe, lengths) if prepared or recipe.training.max_steps else None,
        parameters=memory.parameters,
        trainable=memory.trainable,
        weights_bytes=int(memory.weights),
        gradients_bytes=int(memory.gradients),
        optimizer_bytes=int(memory.optimizer),
        activations_bytes=int(memory.activations),
        libraries_bytes=libraries,
        total_bytes=(int(memory.total()) + libraries) * (local_count() if machine.device == "cpu" else 1),
        available_bytes=available_memory(machine.device),
        keeps_freed=machine.device == "cpu" and keep_freed_memory(),
    )
    return planned, memory.notices


def inspect_data(recipe: Recipe, rows: int, observer: Observer) -> None:
    """Counts the data and shows its first training rows token by token.

    Raises:
        InputError: The recipe names a model or data that can't be used.
    """
    from neftcli.data.tokens import IGNORED

    prepared, tokenizer = _prepare(recipe, observer)
    for row in prepared.train[:rows]:
        loss = [False, *(label != IGNORED for label in row.labels[1:])]
        texts = token_texts(tokenizer, row.input_ids)
        tokens = tuple(Token(text, carries) for text, carries in zip(texts, loss, strict=True))
        observer.notify(InspectedRow(row.where, tokens, row.cut, row.stops))


def token_texts(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> list[str]:
    """What each token adds to the text; a character of several tokens stands with the last of them."""
    texts, known = [], ""
    for end in range(1, len(token_ids) + 1):
        text = str(tokenizer.decode(token_ids[:end]))
        complete = text.startswith(known) and not text.endswith("\N{REPLACEMENT CHARACTER}")
        texts.append(text[len(known) :] if complete else "")
        known = text if complete else known
    return texts


def _prepare(recipe: Recipe, observer: Observer) -> tuple[Prepared, PreTrainedTokenizerBase]:
    prepare_process()
    reference, examples = check_inputs(recipe, observer)
    with tempfile.TemporaryDirectory() as folder, library_chatter(Path(folder) / "log"):
        tokenizer, template, notices = load_tokenizer_of(recipe, reference, examples.layout, observer)
        prepared = prepare(examples, recipe.data, tokenizer, template, tokenising(observer))
        require_embedded_rows(prepared, tokenizer, vocabulary_of(reference, recipe.model.trust_remote_code))
    observer.notify(prepared.counts)
    for notice in notices:
        observer.notify(Notice(notice))
    return prepared, tokenizer

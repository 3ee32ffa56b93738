"""Validate a recipe's model and rows before anything is shown, written or loaded."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.data.chat import ChatFormat, load_chat_format
from neftcli.data.prepare import PreparedData, prepare
from neftcli.events import Observer
from neftcli.models.limits import load_embedding_size, max_prompt_length, require_embeddings, require_positions
from neftcli.system.library_output import library_chatter
from neftcli.system.process import prepare_process
from neftcli.training.inputs import read_inputs
from neftcli.training.progress import tokenising

if TYPE_CHECKING:
    from neftcli.data.prepare import ExampleSplits
    from neftcli.models.registry import ModelReference
    from neftcli.recipe.schema import Recipe


def prepare_inputs(
    recipe: Recipe, observer: Observer, *, weights: bool = True
) -> tuple[PreparedData, ChatFormat, list[str]]:
    """Read and tokenise a recipe's rows without training on them.

    `weights` is that of `read_inputs`; returns and raises as `tokenize_inputs`.
    """
    prepare_process()
    reference, examples = read_inputs(recipe, observer, weights=weights)
    with tempfile.TemporaryDirectory() as folder, library_chatter(Path(folder) / "log"):
        return tokenize_inputs(recipe, reference, examples, observer)


def tokenize_inputs(
    recipe: Recipe, reference: ModelReference, examples: ExampleSplits, observer: Observer, *, answers: bool = False
) -> tuple[PreparedData, ChatFormat, list[str]]:
    """Load the tokenizer, tokenise the rows, and check that rows and answers fit the model.

    Args:
        recipe: The recipe.
        reference: Its model.
        examples: Its rows, as they were read.
        observer: Receives the progress.
        answers: Answers to held-out prompts are generated, regardless of evaluation.samples.

    Returns:
        The rows, the tokenizer with its chat template, and notices about it.

    Raises:
        InputError: The tokenizer or the template can't be used, no token would carry loss, or the model has too few
            positions for a row or an answer.
    """
    chat, notices = load_chat_format(recipe, reference, examples.row_format, observer)
    prepared = prepare(examples, recipe.data, chat, tokenising(observer))
    require_room(recipe, reference, prepared, answers=answers)
    require_embedded_rows(prepared, chat, load_embedding_size(reference, recipe.model.trust_remote_code))
    return prepared, chat, notices


def require_room(recipe: Recipe, reference: ModelReference, prepared: PreparedData, *, answers: bool) -> None:
    """Check that the model has positions for the rows, and for the answers that are generated.

    Raises:
        ModelError: It has too few, or its configuration can't be read.
    """
    from neftcli.models.loading import load_config

    config = load_config(reference, recipe.model.trust_remote_code)
    require_positions(config, max(prepared.counts.train.longest, prepared.counts.held_out.longest))
    if prepared.held_out and (answers or recipe.evaluation.samples):
        max_prompt_length(config, recipe.evaluation.generation.max_new_tokens)


def require_embedded_rows(prepared: PreparedData, chat: ChatFormat, vocabulary: int | None) -> None:
    """Check that the model has an embedding for every token that it is trained or measured on.

    Raises:
        ModelError: A row holds a token beyond the model's vocabulary.
    """
    for rows in (prepared.train, prepared.held_out):
        require_embeddings(((row.location, row.input_ids) for row in rows), chat.tokenizer, vocabulary)

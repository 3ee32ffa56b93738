"""The model that a recipe asks for, and whether its rows fit the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neftcli.errors import ModelError, Problem
from neftcli.models.loading import missing_embedding_error
from neftcli.models.registry import ModelReference

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedTokenizerBase


def embedding_size(config: Any) -> int | None:
    """Tokens that a model has embeddings for; None if its configuration doesn't say."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) else None


def load_embedding_size(reference: ModelReference, trust_remote_code: bool) -> int | None:
    """Tokens that a model has embeddings for; None if its configuration doesn't say.

    Raises:
        ModelError: The model can't be reached.
    """
    from neftcli.models.loading import load_config

    return embedding_size(load_config(reference, trust_remote_code))


def require_embeddings(
    rows: Iterable[tuple[str, Sequence[int]]], tokenizer: PreTrainedTokenizerBase, vocabulary: int | None
) -> None:
    """Check that the model has an embedding for every token.

    Rows are read only if the tokenizer has more tokens than the model.

    Args:
        rows: The place of each row, and its token ids.
        tokenizer: The model's.
        vocabulary: Tokens that the model embeds; None if that isn't known.

    Raises:
        ModelError: A row holds a token beyond the model's vocabulary, as tokens that were added to a tokenizer can be.
    """
    if vocabulary is None or len(tokenizer) <= vocabulary:
        return
    for where, input_ids in rows:
        if (token := max(input_ids, default=0)) >= vocabulary:
            raise missing_embedding_error(f"{where}: in this row", tokenizer, token, vocabulary)


def max_sequence_length(config: Any) -> int | None:
    """The longest sequence that a model has positions for, in tokens; None where its configuration names none."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


def max_prompt_length(config: Any, max_new_tokens: int) -> int | None:
    """Tokens of a prompt that leave positions for an answer; None where the configuration names no limit.

    Raises:
        ModelError: An answer alone would fill all positions.
    """
    limit = max_sequence_length(config)
    if limit is not None and max_new_tokens >= limit:
        raise ModelError(
            Problem(
                f"evaluation.generation.max_new_tokens must leave positions for a prompt: this model has {limit}",
                str(max_new_tokens),
                f"--set evaluation.generation.max_new_tokens={limit // 2}",
            )
        )
    return None if limit is None else limit - max_new_tokens


def require_positions(config: Any, longest: int) -> None:
    """Checks that the model has a position for every token of the longest row.

    Raises:
        ModelError: A row is longer than the model's longest sequence.
    """
    limit = max_sequence_length(config)
    if limit is not None and longest > limit:
        raise ModelError(
            Problem(
                f"data.max_length: this model has positions for {limit} tokens",
                f"a row of {longest} tokens",
                f"--max-length {limit}",
            )
        )

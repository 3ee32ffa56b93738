"""Sizes that limit a model's inputs: embeddings in its vocabulary and positions in its context."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neftcli.errors import ModelError, Problem
from neftcli.models.loading import load_config, missing_embedding_error
from neftcli.models.registry import ModelReference

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedTokenizerBase


def embedding_size(config: Any) -> int | None:
    """Return the number of tokens that a model has embeddings for; None if its configuration doesn't contain it."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) else None


def load_embedding_size(reference: ModelReference, trust_remote_code: bool) -> int | None:
    """Load a model's configuration and return its `embedding_size`.

    Raises:
        ModelError: The model can't be reached.
    """
    return embedding_size(load_config(reference, trust_remote_code))


def require_embeddings(
    rows: Iterable[tuple[str, Sequence[int]]], tokenizer: PreTrainedTokenizerBase, vocabulary: int | None
) -> None:
    """Check that the model has an embedding for every token; rows are read only if the tokenizer has more tokens.

    Args:
        rows: Location and token ids of each row.
        tokenizer: The tokenizer.
        vocabulary: Number of tokens that the model has embeddings for; None if unknown.

    Raises:
        ModelError: A row has a token without an embedding, for example one that was added to the tokenizer only.
    """
    if vocabulary is None or len(tokenizer) <= vocabulary:
        return
    for location, input_ids in rows:
        token = max(input_ids, default=0)
        if token >= vocabulary:
            raise missing_embedding_error(f"{location}: in this row", tokenizer, token, vocabulary)


def max_sequence_length(config: Any) -> int | None:
    """Return the number of tokens that a model has positions for; None if its configuration has no limit."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


def max_prompt_length(config: Any, max_new_tokens: int) -> int | None:
    """Return the number of prompt tokens that leave positions for an answer; None if there is no limit.

    Raises:
        ModelError: An answer alone could fill all positions.
    """
    limit = max_sequence_length(config)
    if limit is None:
        return None
    if max_new_tokens >= limit:
        raise ModelError(
            Problem(
                f"evaluation.generation.max_new_tokens must leave positions for a prompt; this model has {limit}",
                str(max_new_tokens),
                f"--set evaluation.generation.max_new_tokens={limit // 2}",
            )
        )
    return limit - max_new_tokens


def require_positions(config: Any, longest: int) -> None:
    """Check that the model has a position for every token of the longest row.

    Raises:
        ModelError: The row is longer than the model's context.
    """
    limit = max_sequence_length(config)
    if limit is not None and longest > limit:
        raise ModelError(
            Problem(
                f"data.max_length: the model's context has {limit} tokens",
                f"a row of {longest} tokens",
                f"--max-length {limit}",
            )
        )

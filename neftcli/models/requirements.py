"""The model that a recipe asks for, and whether its rows fit the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neftcli.errors import ModelError, Problem
from neftcli.models.loading import beyond_the_embedding
from neftcli.models.registry import Reference

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from neftcli.recipe.schema import Recipe
    from neftcli.system.device import ComputeConfig


def load_model_of(recipe: Recipe, reference: Reference, compute: ComputeConfig) -> PreTrainedModel:
    """The model on the device, quantised if the recipe says so, without adapters.

    Raises:
        ModelError: It can't be found or read.
    """
    import torch

    from neftcli.models.loading import load_model

    quantization = recipe.quantization
    model = load_model(
        reference,
        compute.weights_dtype,
        four_bit=quantization.type == "nf4",
        double_quantization=quantization.double_quantization,
        compute_dtype=torch.bfloat16 if compute.bfloat16 else torch.float32,
        trust_remote_code=recipe.model.trust_remote_code,
    )
    if not getattr(model, "is_quantized", False):  # those are on the device already
        model.to(compute.device)
    return model


def embedded_tokens(config: Any) -> int | None:
    """Tokens that a model has embeddings for; None if its configuration doesn't say."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    return size if isinstance(size, int) else None


def vocabulary_of(reference: Reference, trust_remote_code: bool) -> int | None:
    """Tokens that a model has embeddings for; None if its configuration doesn't say.

    Raises:
        ModelError: The model can't be reached.
    """
    from neftcli.models.loading import load_config

    return embedded_tokens(load_config(reference, trust_remote_code))


def require_embedded(
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
            raise beyond_the_embedding(f"{where}: in this row", tokenizer, token, vocabulary)


def longest_sequence(config: Any) -> int | None:
    """The longest sequence that a model has positions for, in tokens; None where its configuration names none."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


def longest_prompt(config: Any, max_new_tokens: int) -> int | None:
    """Tokens of a prompt that leave positions for an answer; None where the configuration names no limit.

    Raises:
        ModelError: An answer alone would fill all positions.
    """
    limit = longest_sequence(config)
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
    limit = longest_sequence(config)
    if limit is not None and longest > limit:
        raise ModelError(
            Problem(
                f"data.max_length: this model has positions for {limit} tokens",
                f"a row of {longest} tokens",
                f"--max-length {limit}",
            )
        )

"""Tokens that a recipe adds to the tokenizer (`model.new_tokens`), and their embeddings.

They are ordinary added tokens, not special ones: neft tokenises special tokens in the data as text, and leaves them out
of answers. transformers gives each new row of the embedding and of the output layer the mean of all others. Full
fine-tuning trains these rows with all weights; beside an adapter, peft trains them alone (`trainable_token_indices`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from neftcli.errors import ModelError, Problem, RecipeError
from neftcli.models.adapters import match_modules_to_save, match_target_modules, validate_adapter
from neftcli.models.freezing import find_frozen_weights, validate_freeze

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from neftcli.recipe.schema import Adapter, Recipe

SEED = 0
"""Seed of the new rows, which differ from the mean by a thousandth of a percent; equal in all runs, for comparisons."""


def add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    """Add tokens to the tokenizer of a base model.

    Raises:
        ModelError: The tokenizer has one of them already.
    """
    known = tokenizer.get_vocab()
    if existing := [token for token in tokens if token in known]:
        message = "model.new_tokens: the tokenizer already has this token"
        hint = "leave it out; beside an adapter, adapter.modules_to_save=[embed_tokens,lm_head] trains all embeddings"
        raise ModelError(*(Problem(message, token, hint) for token in existing))
    _add_missing(tokenizer, tokens)


def _add_missing(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[str]) -> None:
    from tokenizers import AddedToken

    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in tokens])


def require_new_tokens(tokenizer: PreTrainedTokenizerBase, recipe: Recipe, folder: Path) -> None:
    """Check that the tokenizer of a run has the tokens that the run was trained with.

    Raises:
        ModelError: It lacks some, so it is not the run's tokenizer, and the results would be wrong.
    """
    known = tokenizer.get_vocab()
    if missing := [token for token in recipe.model.new_tokens if token not in known]:
        message = f"{folder}: the tokenizer lacks tokens of model.new_tokens, so it is not the run's"
        raise ModelError(Problem(message, ", ".join(missing[:5]), "repeat the run with neft train"))


def extended_size(vocabulary: int | None, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> int | None:
    """Return the number of embeddings of a model with the recipe's new tokens.

    Args:
        vocabulary: Number of embeddings of the base model; None if unknown.
        tokenizer: The tokenizer with the new tokens.
        recipe: The recipe.
    """
    if vocabulary is None or not recipe.model.new_tokens:
        return vocabulary
    return max(vocabulary, 1 + max(new_token_ids(tokenizer, recipe)))


def new_token_ids(tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> list[int]:
    """Return the ids of the recipe's new tokens."""
    return [int(index) for index in tokenizer.convert_tokens_to_ids(list(recipe.model.new_tokens))]


def add_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> None:
    """Give a model embeddings for the recipe's new tokens, unless it has them; the same ones each time.

    Args:
        model: The model without adapters.
        tokenizer: The model's tokenizer, which has the new tokens if the model was trained with them.
        recipe: The recipe.
    """
    import torch

    _add_missing(tokenizer, recipe.model.new_tokens)
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    size = extended_size(vocabulary, tokenizer, recipe)
    if size != vocabulary:
        with torch.random.fork_rng():
            torch.manual_seed(SEED)
            model.resize_token_embeddings(size, mean_resizing=True)


def find_token_layers(model: Any, adapter: Adapter) -> dict[str, Any]:
    """Find the layers in which an adapter trains the rows of new tokens: last part of the path to module.

    They are the embedding and the output layer, without those that are trained in full. One of two that share a matrix
    stands for both.
    """
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    if layers[1] is None or _are_tied(model):
        layers.pop()
    copied = [module for name in adapter.modules_to_save for module in match_modules_to_save(model, name)]
    return {
        path.rpartition(".")[2]: module
        for path, module in model.named_modules()
        if any(module is layer for layer in layers) and not any(module is other for other in copied)
    }


def _are_tied(model: Any) -> bool:
    """Return whether embedding and output layer share a matrix."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def validate_layers(model: Any, recipe: Recipe) -> None:
    """Check the layers and tokens that a recipe names against a model, loaded or on the meta device.

    Raises:
        RecipeError: A layer is missing, can't be adapted or is frozen, or a new token would not be trained.
    """
    validate_adapter(model, recipe.adapter)
    validate_freeze(model, recipe.training.freeze)
    validate_new_tokens(model, recipe)


def validate_new_tokens(model: Any, recipe: Recipe) -> None:
    """Check that the embeddings of new tokens are trained once.

    Raises:
        RecipeError: They are frozen, get low-rank matrices, or are copied in one of two layers that share a matrix.
    """
    if not recipe.model.new_tokens:
        return
    layers = {"embedding": model.get_input_embeddings(), "output layer": model.get_output_embeddings()}
    adapter, tokens = recipe.adapter, ", ".join(recipe.model.new_tokens)
    if adapter.type == "none":
        frozen = {id(weight) for weight in find_frozen_weights(model, recipe.training.freeze)}
        for name, layer in layers.items():
            if layer is not None and id(layer.weight) in frozen:
                message = f"model.new_tokens: training.freeze freezes the {name}, so new tokens would not be trained"
                raise RecipeError(Problem(message, tokens, "leave it out of training.freeze"))
        return
    if getattr(layers["output layer"], "bias", None) is not None:
        message = (
            "model.new_tokens and an adapter can't be combined if the output layer has a bias, which peft leaves out"
        )
        raise RecipeError(Problem(message, tokens, "--set adapter.type=none"))
    for name in () if adapter.target_modules == "all-linear" else adapter.target_modules:
        if any(module is layers["embedding"] for module in match_target_modules(model, name)):
            message = f"model.new_tokens and {name} in adapter.target_modules can't be combined"
            hint = f"--set adapter.modules_to_save=[{name}]    trains the layer in full"
            raise RecipeError(Problem(message, tokens, hint))
    if _are_tied(model):
        copied = [module for name in adapter.modules_to_save for module in match_modules_to_save(model, name)]
        if any(module is layer for module in copied for layer in layers.values()):
            message = "model.new_tokens and adapter.modules_to_save can't both name a tied embedding"
            got = f"adapter.modules_to_save {', '.join(adapter.modules_to_save)}"
            raise RecipeError(Problem(message, got, "leave the layer out; the new tokens are trained in both"))

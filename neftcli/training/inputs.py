"""What a run starts from: the model's name resolved, the rows read, the tokenizer with its chat template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.data.prepare import Examples, read_examples
from neftcli.data.sources import is_hub
from neftcli.errors import ModelError, Problem
from neftcli.events import DataReady, Notice, Observer, Phase
from neftcli.models.hub import prefer_cache_if_unreachable
from neftcli.models.names import Reference, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from neftcli.recipe.schema import Recipe


def check_inputs(recipe: Recipe, observer: Observer) -> tuple[Reference, Examples]:
    """Resolves the model's name and reads the data, without torch.

    Raises:
        InputError: Either can't be used.
    """
    reference = resolve(recipe.model.name, recipe.model.revision)
    sources = [source for source in (recipe.data.source, recipe.data.held_out_source) if source]
    if (reference.kind == "hub" or any(map(is_hub, sources))) and prefer_cache_if_unreachable():
        observer.notify(Notice("the hub can't be reached; only what is in the local cache can be used"))
    observer.notify(Phase("reading data"))
    return reference, read_examples(recipe.data, recipe.training.seed)


def load_tokenizer_of(
    recipe: Recipe, reference: Reference, layout: str, observer: Observer
) -> tuple[PreTrainedTokenizerBase, str, list[str]]:
    """The tokenizer with its chat template, the template's name, and notices.

    Raises:
        ModelError: The model or the template can't be found or read.
    """
    from neftcli.models.gguf import is_converted
    from neftcli.models.loading import load_tokenizer
    from neftcli.models.templates import set_template

    if reference.kind == "gguf" and not is_converted(Path(reference.location)):
        observer.notify(Phase("converting the .gguf, once (about half a minute for 135 M parameters)"))
    else:
        observer.notify(Phase("loading the tokenizer"))
    tokenizer, notices = load_tokenizer(reference, recipe.model.trust_remote_code)
    template = "" if layout == "text" else set_template(tokenizer, recipe.model.chat_template)
    return tokenizer, template, notices


def longest_sequence(config: Any) -> int | None:
    """The longest sequence that a model has positions for, in tokens; None where its configuration names none."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


def require_positions(config: Any, counts: DataReady) -> None:
    """Checks that the model has a position for every token.

    Raises:
        ModelError: A row is longer than the model's longest sequence.
    """
    limit = longest_sequence(config)
    longest = max(counts.train.longest, counts.held_out.longest)
    if limit is not None and longest > limit:
        raise ModelError(
            Problem(
                f"data.max_length: this model has positions for {limit} tokens",
                f"a row of {longest} tokens",
                f"--max-length {limit}",
            )
        )

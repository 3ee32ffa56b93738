"""Inputs of a run: resolve and check the model's name, and read the rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from neftcli.data.prepare import ExampleSplits, read_examples
from neftcli.data.sources import BUILTIN, HUB_ALIASES, is_hub_id
from neftcli.events import Notice, Observer, Phase, PhaseId
from neftcli.models.chat_templates import NAMED, validate_chat_template
from neftcli.models.gguf import is_gguf_converted
from neftcli.models.loading import require_pinned_code
from neftcli.models.registry import ALIASES, ModelReference, resolve_model
from neftcli.models.validate import validate_model, validate_weight_files
from neftcli.recipe.loading import path_values
from neftcli.recipe.path_suggestions import at_home, exists
from neftcli.recipe.schema import Data
from neftcli.runs.directory import require_name
from neftcli.system.cache import written_in_cache
from neftcli.system.hub import UNREACHABLE, prefer_cache_if_unreachable
from neftcli.training.progress import reading

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe


def read_inputs(recipe: Recipe, observer: Observer, *, weights: bool = True) -> tuple[ModelReference, ExampleSplits]:
    """Resolves the model's name, reads the data, and checks what the model's `config.json` says.

    Bad data is rejected before torch is imported.

    Args:
        recipe: The recipe.
        observer: Receives the progress.
        weights: The model's weights will be loaded, so its files are checked as well.

    Raises:
        InputError: Either can't be used.
    """
    reference = resolve_model(recipe.model.name, recipe.model.revision)
    require_name(recipe.run_name())
    validate_chat_template(recipe.model.chat_template)
    require_pinned_code(reference, recipe.model.trust_remote_code)
    if reference.kind == "gguf" and not is_gguf_converted(Path(reference.location)):
        with written_in_cache(f"{Path(reference.location).name} as safetensors"):
            pass  # converted later; a folder that can't be written is an error before rows are read
    if reference.kind == "hub" or any(map(is_hub_id, recipe.data.named_sources())):
        reason = prefer_cache_if_unreachable()
        if reason:
            observer.notify(Notice(UNREACHABLE.format(reason)))
    observer.notify(Phase(PhaseId.READING_DATA))
    examples = read_examples(recipe.data, reading(observer))
    validate_model(reference, recipe, trains=True)
    if weights:
        validate_weight_files(reference)
    asked, found = recipe.data.held_out_rows, len(examples.held_out)
    if found < asked != Data.held_out_rows and examples.splits_itself:  # the default is a wish
        limit = "a fifth at most, and rows of one prompt together"
        held_out = "1 row is held out" if found == 1 else f"{found} rows are held out"
        observer.notify(Notice(f"{held_out}, not {asked}: {limit}"))
    return reference, examples


def local_paths(recipe: Recipe) -> list[str]:
    """The values of a recipe that lead to a file or folder of this machine, from the current folder."""
    names = {BUILTIN, *HUB_ALIASES, *ALIASES, *NAMED}  # they take precedence over a folder of the same name
    return [value for value in path_values(recipe) if value not in names and exists(at_home(value))]

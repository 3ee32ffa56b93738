"""What a run starts from: the model's name resolved and checked, and the rows read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from neftcli.data.prepare import Examples, read_examples
from neftcli.data.sources import is_hub
from neftcli.events import Notice, Observer, Phase
from neftcli.models.hub import prefer_cache_if_unreachable
from neftcli.models.loading import require_pinned_code
from neftcli.models.names import Reference, resolve
from neftcli.models.templates import require_template
from neftcli.models.validate import require_usable
from neftcli.recipe.schema import Data
from neftcli.runs.directory import require_name
from neftcli.training.pace import reading

if TYPE_CHECKING:
    from neftcli.recipe.schema import Recipe


def check_inputs(recipe: Recipe, observer: Observer) -> tuple[Reference, Examples]:
    """Resolves the model's name, reads the data, and checks what the model's `config.json` says.

    Bad data is refused before torch is imported.

    Raises:
        InputError: Either can't be used.
    """
    reference = resolve(recipe.model.name, recipe.model.revision)
    require_name(recipe.run_name())
    require_template(recipe.model.chat_template)
    require_pinned_code(reference, recipe.model.trust_remote_code)
    if (reference.kind == "hub" or any(map(is_hub, recipe.data.named_sources()))) and prefer_cache_if_unreachable():
        observer.notify(Notice("the hub can't be reached; only what is in the local cache can be used"))
    observer.notify(Phase("reading data"))
    examples = read_examples(recipe.data, reading(observer))
    require_usable(reference, recipe, trains=True)
    asked, found = recipe.data.held_out_rows, len(examples.held_out)
    if found < asked != Data.held_out_rows and examples.splits_itself:  # the default is a wish
        limit = "a fifth at most, and rows of one prompt together"
        observer.notify(Notice(f"{found} rows are held out, not {asked}: {limit}"))
    return reference, examples

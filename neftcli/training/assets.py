"""What a run needs before its first update: tokenizer, tokenised rows and the model, with what the model can do so far.

None of it depends on noise, seed or optimiser, so a process that trains several runs of like recipes loads it once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from neftcli.data.chat import ChatFormat
from neftcli.data.prepare import ExampleSplits, PreparedData
from neftcli.events import Notice, Observer, Phase, PhaseId
from neftcli.models.loading import load_model_for_recipe
from neftcli.models.registry import ModelReference
from neftcli.training.validate import tokenize_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neftcli.data.tokens import TokenRow
    from neftcli.recipe.schema import Recipe
    from neftcli.system.device import ComputeConfig

Found = TypeVar("Found")


@dataclass
class Assets:
    """What runs of like recipes share.

    Attributes:
        reference: Where the model comes from.
        compute: Device and arithmetic.
        chat: The tokenizer with its chat template and stop tokens.
        notices: What had to be filled in in the tokenizer.
        prepared: Tokenised rows.
        model: As it was loaded; a run that shares it trains a copy.
        fingerprint: What identifies its weights.
    """

    reference: ModelReference
    compute: ComputeConfig
    chat: ChatFormat
    notices: list[str]
    prepared: PreparedData
    model: PreTrainedModel
    fingerprint: str
    _known: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, measure: Callable[[], Found]) -> Found:
        """What `measure` returns of the untrained model, measured at the first call with this key."""
        if key not in self._known:
            self._known[key] = measure()
        found: Found = self._known[key]
        return found


class AssetCache:
    """Keeps the materials of the last recipe for the next one that needs the same."""

    def __init__(self) -> None:
        self._key = ""
        self._assets: Assets | None = None

    def find(self, recipe: Recipe) -> Assets | None:
        """The materials that `recipe` needs, if they are here."""
        return self._assets if self._key == assets_key(recipe) else None

    def keep(self, recipe: Recipe, assets: Assets) -> None:
        """Keeps them in the place of what was here."""
        self._key, self._assets = assets_key(recipe), assets


def assets_key(recipe: Recipe) -> str:
    """All of a recipe that materials depend on."""
    return repr((recipe.model, recipe.data, recipe.quantization, recipe.adapter.type, recipe.training.precision))


def load_assets(recipe: Recipe, reference: ModelReference, examples: ExampleSplits, observer: Observer) -> Assets:
    """Loads what `recipe` needs.

    Raises:
        InputError: The model or the rows can't be used.
    """
    observer.notify(Phase(PhaseId.LOADING_LIBRARIES))
    from neftcli.models.loading import model_fingerprint
    from neftcli.system.device import resolve_compute_config

    compute = resolve_compute_config(recipe)
    prepared, chat, notices = tokenize_inputs(recipe, reference, examples, observer)
    report_data(prepared, notices, observer)
    observer.notify(Phase(PhaseId.LOADING_MODEL))
    model = load_model_for_recipe(recipe, reference, compute)
    return Assets(reference, compute, chat, notices, prepared, model, model_fingerprint(reference, model.config))


def hash_tokens(rows: Sequence[TokenRow]) -> str:
    """SHA-256 of what is learned: the rows' tokens and labels, in their order."""
    digest = sha256()
    for row in rows:
        digest.update(repr((row.input_ids, row.labels)).encode())
    return digest.hexdigest()


def report_data(prepared: PreparedData, notices: Sequence[str], observer: Observer) -> None:
    """Tells of the rows and the tokenizer."""
    observer.notify(prepared.counts)
    for notice in notices:
        observer.notify(Notice(notice))

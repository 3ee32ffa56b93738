"""Assets of a run, loaded before its first step: tokenizer, tokenised rows and model, with the model's measurements.

None of them depends on noise, seed or optimiser, so a process that trains several similar recipes loads them once.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

from neftcli.data.chat import ChatFormat
from neftcli.data.mixture import ExampleSplits
from neftcli.data.prepare import PreparedData
from neftcli.events import Observer, Phase, PhaseId
from neftcli.models.loading import load_model_for_recipe
from neftcli.models.registry import ModelReference
from neftcli.training.inputs import report_data, tokenize_inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neftcli.data.tokens import TokenRow
    from neftcli.recipe.schema import Recipe
    from neftcli.system.device import ComputeConfig

Measurement = TypeVar("Measurement")


@dataclass
class Assets:
    """Assets that runs of similar recipes share.

    Attributes:
        reference: Where the model comes from.
        compute: Device and arithmetic.
        chat: The tokenizer with its chat template and stop tokens.
        notices: What had to be added to the tokenizer.
        prepared: Tokenised rows.
        model: The model as it was loaded; a run that shares it trains a copy.
        fingerprint: Identifies the model's weights.
    """

    reference: ModelReference
    compute: ComputeConfig
    chat: ChatFormat
    notices: list[str]
    prepared: PreparedData
    model: PreTrainedModel
    fingerprint: str
    _measured: dict[Hashable, Any] = field(default_factory=dict)

    def measure_once(self, key: Hashable, measure: Callable[[], Measurement]) -> Measurement:
        """Return what `measure` returns for the untrained model, measured at the first call with this key."""
        if key not in self._measured:
            self._measured[key] = measure()
        measured: Measurement = self._measured[key]
        return measured


class AssetCache:
    """Keeps the assets of the last recipe for the next one that needs the same."""

    def __init__(self) -> None:
        self._key = ""
        self._assets: Assets | None = None

    def get(self, recipe: Recipe) -> Assets | None:
        """Return the assets that `recipe` needs if they are kept."""
        return self._assets if self._key == assets_key(recipe) else None

    def put(self, recipe: Recipe, assets: Assets) -> None:
        """Keep the assets of `recipe`, and drop the previous ones."""
        self._key, self._assets = assets_key(recipe), assets


def assets_key(recipe: Recipe) -> str:
    """Return a key made of all options that the assets depend on."""
    return repr((recipe.model, recipe.data, recipe.quantization, recipe.adapter.type, recipe.training.precision))


def load_assets(recipe: Recipe, reference: ModelReference, examples: ExampleSplits, observer: Observer) -> Assets:
    """Tokenise the rows and load the model.

    Raises:
        InputError: The model or the rows can't be used.
    """
    observer.notify(Phase(PhaseId.LOADING_LIBRARIES))
    from neftcli.models.loading import model_fingerprint
    from neftcli.system.device import resolve_compute_config

    compute = resolve_compute_config(
        recipe.training.precision, recipe.model.dtype, frozen_weights=recipe.adapter.type != "none"
    )
    prepared, chat, notices = tokenize_inputs(recipe, reference, examples, observer)
    report_data(prepared, notices, observer)
    observer.notify(Phase(PhaseId.LOADING_MODEL))
    model = load_model_for_recipe(recipe, reference, compute)
    return Assets(reference, compute, chat, notices, prepared, model, model_fingerprint(reference, model.config))


def hash_tokens(rows: Sequence[TokenRow]) -> str:
    """Return the SHA-256 of the rows' tokens and labels, in their order."""
    digest = sha256()
    for row in rows:
        digest.update(repr((row.input_ids, row.labels)).encode())
    return digest.hexdigest()

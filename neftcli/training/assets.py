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
        reference: The model.
        compute: Device and precision.
        chat: The tokenizer with its chat template and stop tokens.
        notices: Notices about the tokenizer, such as a pad token that was set.
        prepared: Tokenised rows.
        model: The model before training; a run that shares it trains a copy.
        fingerprint: Fingerprint of the model's files.
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
        """Return the result of `measure` for the untrained model; it is called once for each key."""
        if key not in self._measured:
            self._measured[key] = measure()
        measured: Measurement = self._measured[key]
        return measured


class AssetCache:
    """Cache of one entry: the assets of the last recipe."""

    def __init__(self) -> None:
        self._key = ""
        self._assets: Assets | None = None

    def get(self, recipe: Recipe) -> Assets | None:
        """Return the cached assets if `recipe` needs the same; else None."""
        return self._assets if self._key == assets_key(recipe) else None

    def put(self, recipe: Recipe, assets: Assets) -> None:
        """Cache the assets of `recipe` instead of the previous ones."""
        self._key, self._assets = assets_key(recipe), assets


def assets_key(recipe: Recipe) -> str:
    """Return a cache key: all options that the assets depend on."""
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

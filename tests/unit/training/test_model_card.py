"""The model card as Markdown: names in it are shown literally.

Oracle: markdown-it-py, an independent reader of CommonMark and its tables, which shows how a text would be rendered.
"""

from __future__ import annotations

import string

from neftcli.events import RunFinished
from neftcli.models.registry import ModelReference
from neftcli.recipe.schema import Data, Recipe
from neftcli.training.model_card import model_card
from tests.markdown import HOSTILE, element_types

RECORD = {
    "noise_to_embedding": 0.1,
    "model_fingerprint": "sha256 0",
    "data_sha256": "0",
    "recipe_sha256": "0",
    "device": "CPU",
    "precision": "fp32",
    "weights_sha256": {"model.safetensors": "0"},
    "versions": {"torch": "2"},
    "resumed": [{"checkpoint": "checkpoint-4", "changes": {"neftune.alpha": [5.0, 10.0], "data.source": ["a", "b"]}}],
}
FINISHED = RunFinished("runs/x", 1.0, 2.0, 1.0, 2.0, 1.0, (), 5.0)


def card_of(name: str, source: str) -> str:
    recipe = Recipe(data=Data(source=source))
    return model_card(recipe, ModelReference(name, "folder", name), RECORD, FINISHED, chat=True)


def test_model_card_hostile_names() -> None:
    """A card with hostile names has the elements of one with plain names: no more images, links, tags or columns."""
    plain, hostile = card_of("model", "rows.jsonl"), card_of(HOSTILE, HOSTILE)
    assert element_types(hostile) == element_types(plain)
    assert not any(kind.startswith(("image", "link", "html")) for kind in element_types(hostile))
    assert set(hostile) <= set(string.printable) | {"\N{REPLACEMENT CHARACTER}"}
    assert not set(hostile) & set("\x1b\x07\r")


def test_model_card_front_matter() -> None:
    """The hub reads it as YAML."""
    from ruamel.yaml import YAML

    card = model_card(Recipe(), ModelReference("x", "hub", 'a/b"\nlicense: none'), RECORD, FINISHED, chat=True)
    head = YAML(typ="safe", pure=True).load(card.split("---")[1])
    assert head["base_model"] == 'a/b"\nlicense: none'
    assert sorted(head) == ["base_model", "library_name", "tags"]

"""The model card of a repository on the hub.

Oracle: huggingface_hub's own reader of cards.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from neftcli.errors import InputError
from neftcli.export.hub_card import hub_card
from neftcli.models.registry import ALIASES, ModelReference
from neftcli.recipe.schema import Recipe
from neftcli.training.model_card import base_model_lines

RUN: Any = SimpleNamespace(path=Path("runs/x"), record=lambda: {"results": {"held_out_loss": 1.23456789}})


def target(reference: ModelReference) -> Any:
    return SimpleNamespace(recipe=Recipe(), reference=reference)


def test_hub_card_has_no_path_of_this_machine(tmp_path: Path) -> None:
    """A base model in a .gguf file of a package is loaded from the hub instead."""
    alias = ALIASES["smollm2-135m"]
    reference = ModelReference("smollm2-135m", "gguf", str(tmp_path / "model.gguf"), None, alias)
    file = tmp_path / "README.md"
    code = "\n".join(base_model_lines(reference, ""))
    file.write_text(f"---\nlibrary_name: peft\n---\n\n```python\n{code}\n```\n")
    card = ModelCard(str(hub_card(file, RUN, target(reference), "me/my-model")))
    assert str(tmp_path) not in card.content
    assert f'base = "{alias.hub_id}"' in card.text
    assert (card.data.library_name, card.data.model_name) == ("peft", "my-model")
    assert card.data.eval_results[0].metric_value == 1.234568


@pytest.mark.parametrize("content", [None, "---\n[\n---\n", "---\n- a\n---\n"])
def test_hub_card_rejects_a_missing_or_damaged_card(content: str | None, tmp_path: Path) -> None:
    file = tmp_path / "README.md"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match="no model card" if content is None else "can't be read"):
        hub_card(file, RUN, target(ModelReference("m", "folder", "m")), "me/my-model")

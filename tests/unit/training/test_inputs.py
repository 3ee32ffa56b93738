"""Inputs of a run: held-out rows if the held-out loss selects the weights, and new tokens in the rows.

Oracle: four rows, of which a fifth is none.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from neftcli.errors import DataError
from neftcli.recipe.loading import parse_assignment, read_recipe_layers, resolve_recipe
from neftcli.training.inputs import prepare_inputs


class Silent:
    """Observer that ignores all events."""

    def notify(self, event: object) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("setting", "option"), [("keep=best", "training.keep best"), ("patience=1", "training.patience"), ("seed=1", None)]
)
def test_no_held_out_rows_to_select_by(
    setting: str, option: str | None, tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Say {word}", "completion": word}) + "\n" for word in "abcd"))
    sets = {"model.name": tiny_folder("llama"), "data.source": rows, "evaluation.every": 0.2}
    assignments = [*(f"{key}={value}" for key, value in sets.items()), f"training.{setting}"]
    recipe = resolve_recipe([*read_recipe_layers("quickstart"), *map(parse_assignment, assignments)])
    assert recipe.data.held_out_rows > 0
    if option is None:
        assert len(prepare_inputs(recipe, Silent())[0].held_out) == 0
        return
    with pytest.raises(DataError) as error:
        prepare_inputs(recipe, Silent())
    [problem] = error.value.problems
    assert f"{option} needs held-out rows, and no row could be held out" in problem.message
    assert problem.got.startswith("4 rows for training, data.held_out_rows ")


def test_prepare_inputs_new_tokens_in_rows(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """New tokens are one token each; those that no training row has are named."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Say {word}", "completion": f"<{word}>"}) + "\n" for word in "abcd"))
    sets = {"model.name": tiny_folder("llama"), "data.source": rows, "model.new_tokens": "['<x>', '<c>', '<y>']"}
    layers = [parse_assignment(f"{key}={value}") for key, value in sets.items()]
    prepared, chat, notices = prepare_inputs(resolve_recipe(layers), Silent())
    assert notices[-1] == "model.new_tokens: not in any training row: <x>, <y>"
    token = chat.tokenizer.convert_tokens_to_ids("<c>")
    assert [row.input_ids.count(token) for row in prepared.train] == [0, 0, 1, 0]
    assert all(chat.tokenizer.convert_tokens_to_ids("<x>") not in row.input_ids for row in prepared.train)


def test_prepare_inputs_metric_without_a_value(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """Exact match has no value for references of six words or more; ROUGE-L has."""
    rows, answer = tmp_path / "rows.jsonl", "one two three four five six"
    rows.write_text("".join(json.dumps({"prompt": f"Say {word}", "completion": answer}) + "\n" for word in range(10)))
    sets = {"model.name": tiny_folder("llama"), "data.source": rows, "evaluation.during": "[rouge_l,exact_match]"}
    recipe = resolve_recipe([parse_assignment(f"{key}={value}") for key, value in sets.items()])
    with pytest.raises(DataError) as error:
        prepare_inputs(recipe, Silent())
    [problem] = error.value.problems
    assert problem.message == "evaluation.during: exact_match has no value for any of the first 2 held-out prompts"
    assert problem.got == "no reference answer of at most five words"
    assert problem.hint == "--during rouge_l, or --set evaluation.during_rows=N with more prompts"

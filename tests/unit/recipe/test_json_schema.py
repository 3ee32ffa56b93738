"""The JSON schema of recipes.

Oracles: the package jsonschema, the shipped recipes, and neft's own validation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from neftcli.errors import RecipeError
from neftcli.recipe.catalog import find_recipe, list_recipes
from neftcli.recipe.json_schema import build_json_schema
from neftcli.recipe.keys import keys
from neftcli.recipe.loading import load_recipe, to_yaml

VALIDATOR = jsonschema.Draft202012Validator(build_json_schema())
INVALID = (
    "training: {learning_rat: 1e-4}",
    "training: {learning_rate: -1.0}",
    "training: {max_steps: 1.5}",
    "neftune: {noise: cauchy}",
    "data: {format: parquet}",
    "data: {sources: [{weight: 1.0}]}",
    "data: {max_rows: many}",
    "model: 3",
    "alpha: 5",
)


def read(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def test_build_json_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(build_json_schema())


@pytest.mark.parametrize("name", list_recipes())
def test_build_json_schema_accepts_shipped_recipes(name: str) -> None:
    """As they are written, and resolved with every option."""
    VALIDATOR.validate(read(find_recipe(name).read_text(encoding="utf-8")))
    VALIDATOR.validate(read(to_yaml(load_recipe(name))))


@pytest.mark.parametrize("text", INVALID)
def test_build_json_schema_rejects_what_neft_rejects(text: str, tmp_path: Path) -> None:
    assert not VALIDATOR.is_valid(read(text))
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError):
        load_recipe(str(tmp_path / "recipe.yaml"))


def test_build_json_schema_describes_every_option() -> None:
    schema = build_json_schema()
    for key in keys():
        definition = schema
        *sections, name = key.path.split(".")
        for section in sections:
            definition = schema["$defs"][definition["properties"][section]["$ref"].removeprefix("#/$defs/")]
        assert definition["properties"][name]["description"] == key.description

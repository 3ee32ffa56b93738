"""JSON schema of recipe files, with which editors complete and check them."""

from __future__ import annotations

from typing import Any

from neftcli.recipe.keys import keys
from neftcli.recipe.loading import EXTENDS
from neftcli.recipe.schema import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def build_json_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe: every option with its type, bounds, default and help; no other keys.

    A file that the schema accepts may still be rejected: neft also checks options against each other.
    """
    from pydantic import TypeAdapter

    schema = TypeAdapter(Recipe).json_schema()
    definitions = schema["$defs"]
    for definition in (schema, *definitions.values()):
        definition["additionalProperties"] = False
        for option in definition["properties"].values():
            option.pop("title", None)
    for key in keys():
        *sections, name = key.path.split(".")
        definition = schema
        for section in sections:
            definition = definitions[definition["properties"][section]["$ref"].rpartition("/")[2]]
        definition["properties"][name]["description"] = key.description
    schema["properties"][EXTENDS] = {"type": "string", "description": "Shipped recipe or YAML file to start from."}
    return {"$schema": DIALECT, **schema, "title": "neft recipe"}

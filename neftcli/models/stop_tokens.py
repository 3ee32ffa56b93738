"""The tokens that end generation by the model's own files."""

from __future__ import annotations

import json
from typing import Any

from neftcli.errors import ModelError, Problem, first_line
from neftcli.models.damaged_files import AGAIN
from neftcli.models.registry import Reference
from neftcli.models.saving import CONFIG, GENERATION, files_of
from neftcli.models.validate import Settings, find_file, read_json


def declared_stop_tokens(reference: Reference) -> set[int]:
    """`eos_token_id` (one id or a list) of generation_config.json, else of config.json; empty if neither names one.

    Raises:
        ModelError: generation_config.json is damaged, or the hub can't be reached.
    """
    base = files_of(reference)
    config = read_json(base, CONFIG)
    of_text = config.get("text_config")
    settings = (_generation_settings(base), config, of_text if isinstance(of_text, dict) else {})
    named: Any = next((part["eos_token_id"] for part in settings if part.get("eos_token_id") is not None), [])
    return {index for index in (named if isinstance(named, list) else [named]) if isinstance(index, int)}


def _generation_settings(base: Reference) -> Settings:
    file = find_file(base, GENERATION)
    if file is None:
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        got = first_line(error)
        raise ModelError(Problem(f"model.name: {GENERATION} of {base.name} can't be read", got, AGAIN)) from None
    if not isinstance(content, dict):
        got = type(content).__name__
        raise ModelError(Problem(f"model.name: {GENERATION} of {base.name} must hold an object", got, AGAIN))
    return content

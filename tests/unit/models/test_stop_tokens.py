"""Stop tokens in a model's files."""

import json
from pathlib import Path
from typing import Any

import pytest

from neftcli.errors import ModelError
from neftcli.models.registry import resolve_model
from neftcli.models.settings_files import read_stop_tokens


def folder(path: Path, config: Any, generation: Any = None) -> str:
    (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}), encoding="utf-8")
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, None, set()),
        ({"eos_token_id": 2}, None, {2}),
        ({"eos_token_id": [1, 106]}, None, {1, 106}),
        ({"eos_token_id": 2}, {"eos_token_id": [2, 106]}, {2, 106}),
        ({"eos_token_id": 2}, {"eos_token_id": 7}, {7}),
        ({"eos_token_id": 2}, {"temperature": 0.6}, {2}),
        ({"text_config": {"eos_token_id": [1, 106]}}, {}, {1, 106}),
    ],
)
def test_read_stop_tokens(tmp_path: Path, config: Any, generation: Any, expected: set[int]) -> None:
    """generation_config.json has precedence over config.json; one id or a list."""
    assert read_stop_tokens(resolve_model(folder(tmp_path, config, generation))) == expected


def test_read_stop_tokens_damaged_file(tmp_path: Path) -> None:
    """A damaged generation_config.json is an error."""
    name = folder(tmp_path, {"eos_token_id": 2})
    (tmp_path / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        read_stop_tokens(resolve_model(name))

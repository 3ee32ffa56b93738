"""Settings files of a tuned model.

Oracles: the base model's own JSON files, key by key, and what transformers reads.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig

from neftcli.models.gguf import settings_reference
from neftcli.models.registry import ModelReference
from neftcli.models.settings_files import (
    convert_to_transformers_4,
    needs_transformers_5,
    read_base_settings,
    write_config,
    write_generation_config,
    write_tokenizer,
)
from neftcli.training.trainer import save_weights
from tests.tiny import save_tiny, tiny_tokenizer

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes a key."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


@pytest.fixture
def base(tmp_path: Path) -> ModelReference:
    """A folder in transformers 4's format."""
    folder = tmp_path / "base"
    save_tiny(folder, "llama")
    edit(
        folder / "config.json",
        **{"rope_parameters": None, "rope_theta": 500000.0, "dtype": None, "torch_dtype": "bfloat16"},
        **{"use_cache": False, "transformers_version": "4.43.1", "own_key": [1]},
    )
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<s>"]}
    edit(folder / "tokenizer_config.json", chat_template=TEMPLATE, **names)
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 2, "temperature": 0.6, "do_sample": False, "transformers_version": "4.43.1"})
    )
    return settings_reference(ModelReference("base", "folder", str(folder)))


def saved(base: ModelReference, folder: Path, template: str | None = None) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base.location, dtype=torch.float32)
    model.config.use_cache = True  # as training may leave it
    tokenizer = AutoTokenizer.from_pretrained(base.location)
    tokenizer.chat_template = template or tokenizer.chat_template
    config, generation = read_base_settings(base)
    save_weights(model, folder)
    write_config(folder, config, "float32")
    write_generation_config(folder, generation, config, {5}, 0)
    write_tokenizer(folder, tokenizer, base)
    return folder


def test_write_config_changes_the_type_of_the_weights_only(base: ModelReference, tmp_path: Path) -> None:
    folder = saved(base, tmp_path / "tuned")
    assert read(folder / "config.json") == read(Path(base.location) / "config.json") | {"torch_dtype": "float32"}
    assert AutoConfig.from_pretrained(folder).rope_parameters["rope_theta"] == 500000.0
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32
    assert needs_transformers_5(folder) == ""


def test_write_config_types_of_parts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gemma3", "architectures": ["A"]}))
    parts = {"model_type": "gemma3", "torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16", "x": 1}}
    write_config(tmp_path, parts, "float32")
    assert read(tmp_path / "config.json") == {
        "model_type": "gemma3",
        "torch_dtype": "float32",
        "text_config": {"dtype": "float32", "x": 1},
        "architectures": ["A"],
    }


def test_write_config_of_a_part_is_unchanged(tmp_path: Path) -> None:
    """The text model of a vision-language model has its own configuration."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3_5_text"}))
    write_config(tmp_path, {"model_type": "qwen3_5"}, "float32")
    assert read(tmp_path / "config.json") == {"model_type": "qwen3_5_text"}


def test_write_tokenizer_is_the_base_models(base: ModelReference, tmp_path: Path) -> None:
    folder = saved(base, tmp_path / "tuned")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (folder / name).read_bytes() == (Path(base.location) / name).read_bytes()
    assert not (folder / "chat_template.jinja").exists()
    assert AutoTokenizer.from_pretrained(folder).chat_template == TEMPLATE


@pytest.mark.parametrize("in_a_file", [True, False])
def test_write_tokenizer_different_template(in_a_file: bool, base: ModelReference, tmp_path: Path) -> None:
    """It is the one that transformers loads; everything else is unchanged."""
    there = Path(base.location)
    if in_a_file:
        edit(there / "tokenizer_config.json", chat_template=None)
        (there / "chat_template.jinja").write_text(TEMPLATE)
    folder = saved(base, tmp_path / "tuned", "{{ 'another' }}")
    assert AutoTokenizer.from_pretrained(folder).chat_template == "{{ 'another' }}"
    expected = read(there / "tokenizer_config.json") | {"chat_template": "{{ 'another' }}"}
    assert read(folder / "tokenizer_config.json") == expected


def test_write_generation_config_keeps_settings_that_transformers_rejects(base: ModelReference, tmp_path: Path) -> None:
    """Published models have, for example, a temperature without sampling."""
    folder = saved(base, tmp_path / "tuned")
    assert read(folder / "generation_config.json") == {
        "eos_token_id": [2, 5],
        "temperature": 0.6,
        "do_sample": False,
        "transformers_version": "4.43.1",
        "bos_token_id": 1,
        "pad_token_id": 0,
    }


@pytest.mark.parametrize(
    ("known", "stops", "expected"),
    [(2, {2}, 2), (None, {7}, 7), ([2, 9], {5}, [2, 5, 9]), (2, set(), 2), ([9, 2], {2, 9}, [2, 9])],
)
def test_write_generation_config_stop_tokens(known: Any, stops: set[int], expected: Any, tmp_path: Path) -> None:
    write_generation_config(tmp_path, {}, {"eos_token_id": known}, stops, 3)
    loaded = GenerationConfig.from_pretrained(tmp_path)
    assert (loaded.eos_token_id, loaded.pad_token_id) == (expected, 3)


def test_convert_to_transformers_4(tmp_path: Path) -> None:
    """Both formats are the same for transformers 5, and the folder no longer needs it."""
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = LlamaConfig(rope_parameters={**rope, "original_max_position_embeddings": 512})
    config.save_pretrained(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path)
    assert needs_transformers_5(tmp_path) == "rope_parameters in config.json"
    convert_to_transformers_4(tmp_path)
    assert needs_transformers_5(tmp_path) == ""
    settings = read(tmp_path / "config.json")
    assert settings["rope_theta"] == 5e5
    assert settings["rope_scaling"]["factor"] == 8.0
    assert AutoConfig.from_pretrained(tmp_path).rope_parameters == config.rope_parameters
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("Größe")["input_ids"] == tokenizer("Größe")["input_ids"]
    assert again.chat_template == TEMPLATE

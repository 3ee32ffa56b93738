"""Locate, read and write the files around the weights: `config.json`, generation settings and the tokenizer's files.

transformers 5 writes settings that transformers 4, vLLM and llama.cpp's converter may not read (`rope_parameters`
instead of `rope_theta`, `TokenizersBackend` instead of `Qwen2Tokenizer`), and settings of training (`use_cache` off).
So a tuned model gets copies of the base model's files, with these values changed:

    config.json              the type of the weights in the file
    generation_config.json   the tokens that end an answer; a pad token if there was none
    tokenizer_config.json    the chat template, if a different one was used in training
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neftcli.errors import ModelError, Problem, first_line
from neftcli.models.load_errors import translate_load_errors
from neftcli.models.model_files import REFETCH
from neftcli.models.registry import ModelReference
from neftcli.system.files import read_json_object

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerBase

CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILES = (
    *(TOKENIZER, TEMPLATE_FILE, "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json", "vocab.txt", "merges.txt"),
)
DTYPE_KEYS = ("torch_dtype", "dtype")
Settings = dict[str, Any]
"""Content of a file of settings."""


def find_file(reference: ModelReference, name: str, *, cached: bool = False) -> Path | None:
    """Locate a file of a model's folder or repository on this machine; None if there is none.

    Args:
        reference: The model.
        name: Name of the file.
        cached: Find only downloaded files of a model on the hub.

    Raises:
        ModelError: The hub can't be reached.
    """
    if reference.kind == "gguf":
        return None
    if reference.kind == "folder":
        file = Path(reference.location) / name
        return file if file.is_file() else None
    from transformers.utils.hub import cached_file

    with translate_load_errors(reference):
        path = cached_file(
            reference.location,
            name,
            revision=reference.revision,
            local_files_only=cached,
            _raise_exceptions_for_gated_repo=True,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    return Path(path) if path else None


def read_json(reference: ModelReference, name: str, *, cached: bool = False) -> Settings:
    """Read a JSON file of the model's folder; empty if it is missing or damaged, or if the model is a .gguf file.

    Args:
        reference: The model.
        name: Name of the file.
        cached: Read only downloaded files of a model on the hub.

    Raises:
        ModelError: The hub can't be reached.
    """
    file = find_file(reference, name, cached=cached)
    return read_json_object(file) if file is not None else {}  # damage is reported when the model is loaded


def write_config(folder: Path, base: Settings, dtype: str) -> None:
    """Write the base model's `config.json` with the type of the saved weights.

    Args:
        folder: The folder in which `save_pretrained` wrote the tuned model.
        base: The base model's `config.json`. If the tuned model is a part of it, such as the text model of a
            vision-language model, the `config.json` that `save_pretrained` wrote is kept.
        dtype: Type of the saved weights, for example "float32".
    """
    saved = _read(folder / CONFIG)
    if base.get("model_type") != saved.get("model_type"):
        return
    settings = _replace_dtype(base, dtype)
    if not any(key in settings for key in DTYPE_KEYS):
        settings["dtype" if "dtype" in saved and "rope_parameters" in base else "torch_dtype"] = dtype
    settings.setdefault("architectures", saved.get("architectures"))
    settings = _replace_vocabulary_size(settings, saved)
    _write(folder / CONFIG, _copy_auto_map(saved, settings))


def write_generation_config(
    folder: Path, base: Settings, config: Settings, stop_ids: Iterable[int], pad_id: int | None
) -> None:
    """Write the base model's generation settings, with all tokens that end an answer.

    Args:
        folder: The folder of the tuned model or the adapter.
        base: The base model's `generation_config.json`; empty if it has none.
        config: The base model's `config.json`, whose token ids are used if `base` has none.
        stop_ids: Tokens that end the answers in the training data.
        pad_id: The pad token, used if the base model has none.
    """
    settings = dict(base)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if settings.get(key) is None and config.get(key) is not None:
            settings[key] = config[key]
    known = settings.get("eos_token_id")
    if known is None:
        known = []
    elif not isinstance(known, list):
        known = [known]
    ends = sorted({*known, *stop_ids})
    if ends:
        settings["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    if settings.get("pad_token_id") is None and pad_id is not None:
        settings["pad_token_id"] = pad_id
    settings.pop("_from_model_config", None)  # otherwise transformers takes the tokens from config.json
    _write(folder / GENERATION, settings)


def write_tokenizer(
    folder: Path, tokenizer: PreTrainedTokenizerBase, base: ModelReference, *, changed: bool = False
) -> None:
    """Write the base model's tokenizer files, with the chat template used in training.

    Args:
        folder: The folder of the tuned model or the adapter.
        tokenizer: The tokenizer used in training. Files that the base model doesn't have are written by transformers.
        base: The base model, from `settings_reference`.
        changed: The tokenizer has new tokens, so the base model's files don't fit it.
    """
    tokenizer.save_pretrained(folder)
    if changed:
        return
    names = (*TOKENIZER_FILES, *_vocabulary_files(tokenizer))
    located = {name: find_file(base, name, cached=True) for name in names}
    files = {name: file for name, file in located.items() if file is not None}
    if TOKENIZER not in files:
        return
    saved = _read(folder / TOKENIZER)
    (folder / TEMPLATE_FILE).unlink(missing_ok=True)
    for name, file in files.items():
        shutil.copyfile(file, folder / name)
    settings = _read(folder / TOKENIZER)
    template = tokenizer.chat_template
    base_template = settings.get("chat_template")
    if TEMPLATE_FILE in files:
        base_template = files[TEMPLATE_FILE].read_text(encoding="utf-8")
    if isinstance(template, str) and template != base_template:
        settings["chat_template"] = template
        for name in (TEMPLATE_FILE, "chat_template.json"):
            (folder / name).unlink(missing_ok=True)
        _write(folder / TOKENIZER, settings)
    if (with_code := _copy_auto_map(saved, settings)) != settings:
        _write(folder / TOKENIZER, with_code)


def needs_transformers_5(folder: Path) -> str:
    """Name the setting of a saved folder that transformers 4 can't read; empty if there is none."""
    config, tokenizer = _read(folder / CONFIG), _read(folder / TOKENIZER)
    if config.get("rope_parameters") and "rope_theta" not in config:
        return f"rope_parameters in {CONFIG}"
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        return f"TokenizersBackend in {TOKENIZER}"
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        return f"a list of extra_special_tokens in {TOKENIZER}"
    return ""


def convert_to_transformers_4(folder: Path) -> None:
    """Convert settings of transformers 5 to those that transformers 4, vLLM and llama.cpp's converter read."""
    config = _read(folder / CONFIG)
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:  # otherwise it has one entry per type of layer
        config["rope_theta"] = rope["rope_theta"]
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        if scaling.get("rope_type", "default") != "default":
            config["rope_scaling"] = scaling
        if "partial_rotary_factor" in rope:
            config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if "dtype" in config:
        config["torch_dtype"] = config.pop("dtype")
    _write(folder / CONFIG, config)
    tokenizer = _read(folder / TOKENIZER)
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(tokenizer.get("extra_special_tokens"), list):
        tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
    template = folder / TEMPLATE_FILE
    if template.is_file():
        tokenizer["chat_template"] = template.read_text(encoding="utf-8")
        template.unlink()
    _write(folder / TOKENIZER, tokenizer)


def read_generation_settings(base: ModelReference) -> Settings:
    """Read generation_config.json; empty if there is none.

    Raises:
        ModelError: The file is damaged, or the hub can't be reached.
    """
    file = find_file(base, GENERATION)
    if file is None:
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        got = first_line(error)
        raise ModelError(Problem(f"model.name: {GENERATION} of {base.name} can't be read", got, REFETCH)) from None
    if not isinstance(content, dict):
        got = type(content).__name__
        raise ModelError(Problem(f"model.name: {GENERATION} of {base.name} must hold an object", got, REFETCH))
    return content


def read_base_settings(base: ModelReference) -> tuple[Settings, Settings]:
    """Read the base model's `config.json` and `generation_config.json`; each empty if there is none."""
    return read_json(base, CONFIG, cached=True), read_json(base, GENERATION, cached=True)


def _vocabulary_files(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """List the names of a tokenizer's vocabulary files."""
    return [str(name) for name in getattr(tokenizer, "vocab_files_names", {}).values()]


def _replace_dtype(settings: Settings, dtype: str) -> Settings:
    """Return the settings with the type of the weights replaced, also in the settings of a model's parts."""
    changed: Settings = {}
    for key, value in settings.items():
        if key in DTYPE_KEYS and value is not None:
            changed[key] = dtype
        else:
            changed[key] = _replace_dtype(value, dtype) if isinstance(value, dict) else value
    return changed


def _replace_vocabulary_size(settings: Settings, saved: Settings) -> Settings:
    """Return the settings with the number of embeddings of the saved model, which new tokens increase."""
    if "vocab_size" in settings and "vocab_size" in saved:
        return settings | {"vocab_size": saved["vocab_size"]}
    text, saved_text = settings.get("text_config"), saved.get("text_config")
    if isinstance(text, dict) and isinstance(saved_text, dict) and "vocab_size" in saved_text:
        return settings | {"text_config": text | {"vocab_size": saved_text["vocab_size"]}}
    return settings


def _copy_auto_map(saved: Settings, settings: Settings) -> Settings:
    """Return the settings with the `auto_map` that `save_pretrained` wrote: the copied code, or its hub id."""
    return settings | {"auto_map": saved["auto_map"]} if "auto_map" in saved else settings


def _read(file: Path) -> Settings:
    content: Any = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content if isinstance(content, dict) else {}


def _write(file: Path, settings: Settings) -> None:
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

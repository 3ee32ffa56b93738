"""Check, from `config.json` and the headers of the weight files, that neft can train or evaluate a model.

Before it loads weights, neft rejects models with an adapter in their folder, models that aren't causal language models,
quantised weights that it can't train or compute with, and weight files that are missing, pickled or damaged.
"""

from __future__ import annotations

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from neftcli.errors import ModelError, Problem
from neftcli.models.load_errors import translate_load_errors
from neftcli.models.model_files import WEIGHTS_INDEX, require_inside
from neftcli.models.registry import ADAPTER, ALIASES, ModelReference, adapter_error
from neftcli.models.settings_files import Settings, find_file, read_json
from neftcli.recipe.schema import Quantization

if TYPE_CHECKING:
    from collections.abc import Mapping

    from neftcli.recipe.schema import Recipe

WEIGHTS = "model.safetensors"

UNQUANTISED = "use the original model with unquantised weights"
DEQUANTISED = {
    "mxfp4": "Mxfp4Config(dequantize=True)",
    "fp8": "FineGrainedFP8Config(dequantize=True)",
    "compressed-tensors": "CompressedTensorsConfig(run_compressed=False)",
}
"""Quantisations that transformers can undo, with the `quantization_config` that does so."""

CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel", "WithLMHead")
OTHER_TASKS = {
    "Classification": "a classifier",
    "QuestionAnswering": "a classifier of answers",
    "MultipleChoice": "a classifier",
    "RewardModel": "a reward model",
    "MaskedLM": "a masked language model",
    "ForPreTraining": "a masked language model",
    "EncoderModel": "an encoder",
    "Model": "a model without an output layer, as embedding models are",
}
"""Suffix or part of an architecture's name, and its kind."""


def validate_model(reference: ModelReference, recipe: Recipe, *, trains: bool) -> None:
    """Check that the recipe can train a model, or evaluate it.

    Args:
        reference: The model.
        recipe: The resolved recipe.
        trains: The model is trained, not only evaluated.

    Raises:
        ModelError: It can't, or the hub can't be reached.
    """
    if reference.kind == "hub" and find_file(reference, ADAPTER) is not None:
        raise adapter_error(reference.name, with_model=find_file(reference, "config.json") is not None)
    settings = read_json(reference, "config.json")
    _require_causal(reference, settings)
    if trains:
        _require_trainable_weights(reference, settings, recipe)
    else:
        _require_computable_weights(reference, settings)


def validate_weight_files(reference: ModelReference) -> None:
    """Check that a model's folder holds its weights as safetensors, by the index of its files and their headers.

    Other models are checked when they are loaded: a model on the hub would need a request for its list of files.

    Raises:
        ModelError: A file is missing, pickled or damaged.
    """
    if reference.kind != "folder":
        return
    from safetensors import safe_open

    folder = Path(reference.location)
    require_inside(folder, reference.name)
    names = {WEIGHTS}
    with translate_load_errors(reference):
        if not (folder / WEIGHTS).is_file():
            if not (folder / WEIGHTS_INDEX).is_file():
                raise OSError(f"no {WEIGHTS} and no {WEIGHTS_INDEX}")
            names = set(json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        for name in sorted(names):
            if not name.endswith(".safetensors"):
                raise UnpicklingError(name)
            with safe_open(folder / name, framework="np"):  # reads the header and compares the size
                pass


def _require_causal(reference: ModelReference, settings: Settings) -> None:
    """Check that the model is a causal language model: it predicts each token from the previous ones.

    Raises:
        ModelError: It is a different kind of model.
    """
    kind = _other_kind(settings)
    if not kind and find_file(reference, "modules.json") is not None:
        kind = "an embedding model of sentence-transformers (modules.json)"
    if not kind:
        return
    architectures = ", ".join(_architectures(settings)) or "no architecture in its config.json"
    raise ModelError(
        Problem(
            f"model.name: {reference.name} is not a causal language model ({settings.get('model_type')})",
            f"{kind}: {architectures}",
            f"use a decoder (an architecture ...ForCausalLM), for example --model {next(iter(ALIASES))}",
        )
    )


def _architectures(settings: Settings) -> list[str]:
    """Return the architectures that a config.json names."""
    names = settings.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _other_kind(settings: Settings) -> str:
    """Describe a model that isn't a causal language model; empty if it is one, or transformers doesn't know it."""
    model_type = settings.get("model_type")
    auto_map = settings.get("auto_map")
    if not isinstance(model_type, str) or (isinstance(auto_map, dict) and "AutoModelForCausalLM" in auto_map):
        return ""
    named = _architectures(settings)
    if settings.get("is_causal") is False or settings.get("use_bidirectional_attention") is True:
        return "its attention is bidirectional, as in embedding models"
    may_be_encoder = settings.get("is_encoder_decoder") or "type_vocab_size" in settings
    if named and all(name.endswith("ForCausalLM") for name in named) and not may_be_encoder:
        return ""  # nearly all models; decided without importing torch
    from transformers.models.auto import modeling_auto as known
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if model_type not in CONFIG_MAPPING_NAMES:
        return ""  # reported when the model is loaded: transformers may be too old
    sees_images = model_type in known.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    causal = known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(model_type)
    if settings.get("is_encoder_decoder") or (
        causal is None and model_type in known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    ):
        return "an encoder-decoder"
    if causal is None:
        if sees_images or "vision_config" in settings:
            return "a vision-language model, from which transformers loads no text model"
        if model_type in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
            return "an encoder: its attention is bidirectional"
        return "an audio model" if "audio_config" in settings else "a different kind of model"
    if model_type in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not settings.get("is_decoder", False):
        return "an encoder: its attention is bidirectional (is_decoder is not set)"
    every_causal = {causal, *known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()}
    if not named or any(name in every_causal or name.endswith(CAUSAL_ENDINGS) for name in named):
        return ""
    if sees_images and any(name.endswith("ForConditionalGeneration") for name in named):
        return ""  # transformers loads its text model, or the whole model
    for part, kind in OTHER_TASKS.items():
        if any(name.endswith(part) if part == "Model" else part in name for name in named):
            return kind
    return "a different kind of model"


def stored_quantization(settings: Mapping[str, Any]) -> Settings:
    """Return the quantisation of the stored weights from `config.json`; empty if they aren't quantised.

    The result always has the key `quant_method`: bitsandbytes_4bit, bitsandbytes_8bit, or the method.
    """
    text = settings.get("text_config")
    quantization: Settings = {}
    for section in (settings, text if isinstance(text, dict) else {}):
        for key in ("quantization_config", "compression_config"):
            if not quantization and isinstance(section.get(key), dict):
                quantization = section[key]
    if not quantization:
        return {}
    method = str(quantization.get("quant_method", "an unnamed method"))
    if quantization.get("load_in_4bit"):
        method = "bitsandbytes_4bit"
    elif quantization.get("load_in_8bit"):
        method = "bitsandbytes_8bit"
    return {**quantization, "quant_method": method}


def _describe_quantization(quantization: Settings) -> str:
    """Describe the quantisation of stored weights: method, bits and type."""
    method = quantization["quant_method"]
    if method == "bitsandbytes_4bit":
        return f"quantization_config: bitsandbytes, 4-bit {quantization.get('bnb_4bit_quant_type', 'fp4')}"
    if method == "bitsandbytes_8bit":
        return "quantization_config: bitsandbytes, 8-bit"
    bits = quantization.get("bits") or quantization.get("w_bit") or quantization.get("nbits")
    return f"quantization_config: {method}{f', {bits} bits' if bits else ''}"


def _unquantised_hint(method: str) -> str:
    """Return the hint for quantised weights that neft can't use."""
    if method not in DEQUANTISED:
        return UNQUANTISED
    return f"{UNQUANTISED}; or from_pretrained(..., quantization_config={DEQUANTISED[method]}), then save_pretrained"


def _find_quantization(reference: ModelReference, settings: Settings) -> Settings:
    """Return the quantisation of the stored weights, also of AutoGPTQ's folders; empty if they aren't quantised."""
    quantization = stored_quantization(settings)
    if not quantization and (old := read_json(reference, "quantize_config.json")):  # AutoGPTQ
        return {**old, "quant_method": str(old.get("quant_method", "gptq"))}
    return quantization


def _require_trainable_weights(reference: ModelReference, settings: Settings, recipe: Recipe) -> None:
    """Check that the recipe can train the stored weights.

    Raises:
        ModelError: They are quantised, and the recipe can't train that quantisation.
    """
    quantization = _find_quantization(reference, settings)
    if not quantization:
        return
    method, got = quantization["quant_method"], _describe_quantization(quantization)
    double = bool(quantization.get("bnb_4bit_use_double_quant", False))
    name = reference.name
    if method != "bitsandbytes_4bit" or quantization.get("bnb_4bit_quant_type", "fp4") != "nf4":
        raise ModelError(
            Problem(
                f"model.name: the weights of {name} are quantised ({method}), and can't be trained, with or without an "
                "adapter",
                got,
                f"{_unquantised_hint(method)}; --qlora quantises them to 4 bits",
            )
        )
    if recipe.quantization.type != "nf4":
        lora = recipe.adapter.type != "none"
        raise ModelError(
            Problem(
                f"model.name: the weights of {name} are stored in 4 bits, so "
                + ("LoRA on them needs --qlora" if lora else "they can't be trained without an adapter"),
                got,
                f"{_qlora(double)}    trains a LoRA adapter on the 4-bit weights"
                + ("" if lora else f"; or {UNQUANTISED}"),
            )
        )
    if double != recipe.quantization.double_quantization:
        raise ModelError(
            Problem(
                f"quantization.double_quantization: the weights of {name} are stored in 4 bits "
                f"{'with' if double else 'without'} double quantisation",
                str(recipe.quantization.double_quantization).lower(),
                _qlora(double),
            )
        )


def _qlora(double: bool) -> str:
    """Name the options that train on 4-bit weights with or without double quantisation."""
    default = Quantization().double_quantization
    return "--qlora" if double == default else f"--qlora --set quantization.double_quantization={str(double).lower()}"


def _require_computable_weights(reference: ModelReference, settings: Settings) -> None:
    """Check that neft can compute a forward pass with the stored weights.

    Raises:
        ModelError: They are quantised, and not by bitsandbytes.
    """
    quantization = _find_quantization(reference, settings)
    if quantization and not quantization["quant_method"].startswith("bitsandbytes"):
        method = quantization["quant_method"]
        raise ModelError(
            Problem(
                f"model.name: the weights of {reference.name} are quantised ({method}), which neft doesn't support",
                _describe_quantization(quantization),
                _unquantised_hint(method),
            )
        )

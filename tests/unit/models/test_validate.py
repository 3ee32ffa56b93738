"""Models that neft can train or evaluate, by `config.json` only.

Oracles: the class that transformers maps each configuration to, and what published configurations say.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from neftcli.errors import ModelError
from neftcli.models.registry import ModelReference
from neftcli.models.validate import stored_quantization, validate_model, validate_weight_files
from neftcli.recipe.schema import Adapter, Quantization, Recipe

FULL = Recipe()
LORA = replace(FULL, adapter=Adapter(type="lora"))
QLORA = replace(LORA, quantization=Quantization(type="nf4"))
METHODS = {"full": FULL, "lora": LORA, "qlora": QLORA}

CAUSAL: dict[str, dict[str, Any]] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "gpt2": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
    "no architecture": {"model_type": "llama"},
    "another class's name": {"model_type": "llama", "architectures": ["LLaMAForCausalLM"]},
    "bert as a decoder": {"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True},
    "its own code": {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Own"}},
    "sees images, text model loads": {
        "model_type": "qwen3_5",
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "vision_config": {},
    },
    "sees images, loads whole": {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]},
    "unknown to transformers": {"model_type": "zzz"},
}
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "t5": ({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}, "an encoder-decoder"),
    "bart": (
        {"model_type": "bart", "architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True},
        "an encoder-decoder",
    ),
    "bert": ({"model_type": "bert", "architectures": ["BertForSequenceClassification"]}, "an encoder"),
    "bert without is_decoder": ({"model_type": "bert", "architectures": ["BertLMHeadModel"]}, "an encoder"),
    "roberta": (
        {"model_type": "roberta", "architectures": ["RobertaForCausalLM"], "type_vocab_size": 1},
        "an encoder",
    ),
    "distilbert": ({"model_type": "distilbert", "architectures": ["DistilBertForMaskedLM"]}, "an encoder"),
    "a classifier": ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, "a classifier"),
    "a token classifier": ({"model_type": "qwen3", "architectures": ["Qwen3ForTokenClassification"]}, "a classifier"),
    "a reward model": ({"model_type": "qwen2", "architectures": ["Qwen2ForRewardModel"]}, "a reward model"),
    "embeddings": ({"model_type": "mistral", "architectures": ["MistralModel"]}, "a model without an output layer"),
    "sees what is behind": (
        {"model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "use_bidirectional_attention": True},
        "its attention is bidirectional",
    ),
    "sees images": (
        {"model_type": "qwen2_5_vl", "architectures": ["Qwen2_5_VLForConditionalGeneration"], "vision_config": {}},
        "a vision-language model",
    ),
    "hears": (
        {"model_type": "whisper", "architectures": ["WhisperForConditionalGeneration"], "is_encoder_decoder": True},
        "an encoder-decoder",
    ),
}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
QUANTISED: dict[str, tuple[dict[str, Any], str]] = {
    "nf4": ({"quant_method": "bitsandbytes", **NF4}, "bitsandbytes_4bit"),
    "nf4 of old": (NF4, "bitsandbytes_4bit"),
    "fp4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes_4bit"),
    "8 bits": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes_8bit"),
    **{
        method: ({"quant_method": method}, method)
        for method in ("gptq", "awq", "fp8", "mxfp4", "hqq", "compressed-tensors", "aqlm", "torchao")
    },
}


def model(folder: Path, **settings: Any) -> ModelReference:
    save_file({"a": numpy.zeros(4)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    return ModelReference("m", "folder", str(folder))


def refusal(reference: ModelReference, recipe: Recipe, *, trains: bool = True) -> str:
    with pytest.raises(ModelError) as raised:
        validate_model(reference, recipe, trains=trains)
    return str(raised.value)


@pytest.mark.parametrize("case", CAUSAL)
def test_validate_model_causal(case: str, tmp_path: Path) -> None:
    for recipe in METHODS.values():
        validate_model(model(tmp_path, **CAUSAL[case]), recipe, trains=True)


@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("case", OTHERS)
def test_validate_model_other_kind(case: str, trains: bool, tmp_path: Path) -> None:
    settings, what = OTHERS[case]
    first, received, hint = refusal(model(tmp_path, **settings), FULL, trains=trains).splitlines()
    assert first == f"model.name: m is not a causal language model ({settings['model_type']})"
    assert received.startswith(f"  got      {what}")
    assert received.endswith(settings["architectures"][0])
    assert hint.startswith("  hint     use a decoder")


def test_validate_model_sentence_transformers(tmp_path: Path) -> None:
    """Qwen3-Embedding names a causal class, but has a modules.json."""
    (tmp_path / "modules.json").write_text("[]")
    said = refusal(model(tmp_path, **CAUSAL["llama"]), FULL)
    assert "an embedding model of sentence-transformers (modules.json)" in said


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", QUANTISED)
def test_validate_model_quantised(case: str, method: str, tmp_path: Path) -> None:
    """Only nf4 trains, with --qlora; each message names the quantisation and has a hint."""
    quantization, name = QUANTISED[case]
    reference = model(tmp_path, **CAUSAL["llama"], quantization_config=quantization)
    assert stored_quantization({"quantization_config": quantization})["quant_method"] == name
    if case.startswith("nf4") and method == "qlora":
        validate_model(reference, QLORA, trains=True)
        return
    said = refusal(reference, METHODS[method])
    if case.startswith("nf4"):
        assert "stored in 4 bits" in said
        assert "\n  hint     --qlora" in said
    else:
        assert f"are quantised ({name})" in said
        assert "\n  hint     use the original model with unquantised weights" in said


@pytest.mark.parametrize("case", QUANTISED)
def test_validate_model_quantised_for_evaluation(case: str, tmp_path: Path) -> None:
    """Weights of bitsandbytes can be evaluated; others are rejected by name."""
    quantization, name = QUANTISED[case]
    reference = model(tmp_path, **CAUSAL["llama"], quantization_config=quantization)
    if name.startswith("bitsandbytes"):
        validate_model(reference, FULL, trains=False)
    else:
        assert f"({name})" in refusal(reference, FULL, trains=False)


def test_validate_model_double_quantization(tmp_path: Path) -> None:
    """The recipe must match the weights, because it is recorded."""
    stored = {"quant_method": "bitsandbytes", **NF4, "bnb_4bit_use_double_quant": False}
    reference = model(tmp_path, **CAUSAL["llama"], quantization_config=stored)
    options = "--qlora --set quantization.double_quantization=false"
    assert refusal(reference, QLORA).endswith(options)
    assert f"  hint     {options}    trains" in refusal(reference, FULL), "one step to a command that trains"
    said = replace(QLORA, quantization=Quantization(type="nf4", double_quantization=False))
    validate_model(reference, said, trains=True)


def test_stored_quantization_of_a_text_model() -> None:
    assert stored_quantization({"text_config": {"quantization_config": {"quant_method": "awq"}}}) == {
        "quant_method": "awq"
    }
    assert stored_quantization({"quantization_config": {}}) == {}
    assert stored_quantization({}) == {}


def test_validate_model_quantize_config_of_autogptq(tmp_path: Path) -> None:
    (tmp_path / "quantize_config.json").write_text('{"bits": 4}')
    assert "(gptq)" in refusal(model(tmp_path, **CAUSAL["llama"]), LORA)


SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def sharded(folder: Path, **settings: Any) -> ModelReference:
    reference = model(folder, **settings)
    (folder / "model.safetensors").unlink()
    for shard in SHARDS:
        save_file({"a": numpy.zeros(4)}, folder / shard)
    index = {"weight_map": dict(zip("abc", (*SHARDS, SHARDS[0]), strict=True))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return reference


def unusable_weights(reference: ModelReference) -> str:
    with pytest.raises(ModelError) as raised:
        validate_weight_files(reference)
    return str(raised.value)


def test_validate_weight_files(tmp_path: Path) -> None:
    """Whole files pass; missing, truncated and pickled files are rejected."""
    reference = sharded(tmp_path, **CAUSAL["llama"])
    validate_weight_files(reference)
    last = tmp_path / SHARDS[1]
    whole = last.read_bytes()
    last.write_bytes(whole[:-8])
    assert "a weight file of m is damaged" in unusable_weights(reference)
    last.unlink()
    assert f"No such file or directory: {last}" in unusable_weights(reference)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "pytorch_model.bin"}}')
    assert "has only pickled weights (.bin)" in unusable_weights(reference)
    (tmp_path / "model.safetensors.index.json").write_text("{")
    assert "model.safetensors.index.json is not valid JSON" in unusable_weights(reference)
    (tmp_path / "model.safetensors.index.json").unlink()
    assert "no model.safetensors and no model.safetensors.index.json" in unusable_weights(reference)
    (tmp_path / "pytorch_model.bin").touch()
    assert "has only pickled weights (.bin)" in unusable_weights(reference)

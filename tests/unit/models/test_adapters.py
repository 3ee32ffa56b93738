"""Weights that an adapter leaves out, and layers that merging changes: neft's notices against peft 0.21.

Oracles: peft's own adapters on tiny models, parameter by parameter, and the loss before and after merging.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel, Qwen3MoeConfig, Qwen3MoeForCausalLM

from neftcli.errors import RecipeError
from neftcli.models.adapters import (
    adapter_notices,
    find_fused_experts,
    match_modules_to_save,
    match_target_modules,
    validate_adapter,
)
from neftcli.models.memory import estimate_model_memory
from neftcli.recipe.schema import Adapter, Recipe
from tests.tiny import FAMILIES, Family, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning", "ignore::FutureWarning")
LORA = Adapter(type="lora", r=4)
TOKENS = torch.randint(3, 200, (4, 40), generator=torch.Generator().manual_seed(0))


def qwen_moe() -> PreTrainedModel:
    sizes = {"hidden_size": 64, "moe_intermediate_size": 32, "intermediate_size": 64, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=256, num_hidden_layers=2, **sizes, **heads))


def mixtral() -> PreTrainedModel:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_local_experts": 4}
    return MixtralForCausalLM(
        MixtralConfig(vocab_size=256, num_hidden_layers=1, hidden_size=64, intermediate_size=64, **heads)
    )


def peft_model(model: Any, adapter: Adapter) -> Any:
    named = adapter.target_modules
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=adapter.r,
            target_modules=named if isinstance(named, str) else list(named),
            modules_to_save=list(adapter.modules_to_save) or None,
        ),
    )


def trained_then_merged(adapter: Adapter) -> tuple[float, float]:
    """Loss of a tied model with a trained adapter, before and after merging it."""
    torch.manual_seed(0)
    model = peft_model(tiny_model("llama", tie_word_embeddings=True), adapter)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(10):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        before = model(input_ids=TOKENS, labels=TOKENS).loss.item()
        after = model.merge_and_unload()(input_ids=TOKENS, labels=TOKENS).loss.item()
    return before, after


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_adapter_notices_low_rank_on_a_tied_matrix(name: str) -> None:
    """Merging changes the model, and a notice says so; there is none for an untied model or without that layer."""
    adapter = replace(LORA, target_modules=("q_proj", name))
    [notice] = adapter_notices(tiny_model("llama", tie_word_embeddings=True), adapter)
    assert notice.startswith(
        f"adapter.target_modules has {name}, and this model's embedding and output layer share one "
    )
    assert "the merged model is not the tuned one" in notice
    assert notice.endswith("--set adapter.modules_to_save=[embed_tokens]")
    before, after = trained_then_merged(adapter)
    assert abs(after - before) > 0.1
    assert adapter_notices(tiny_model("llama", tie_word_embeddings=False), adapter) == []
    assert adapter_notices(tiny_model("llama", tie_word_embeddings=True), LORA) == []


def test_validate_adapter_rejects_the_output_layer() -> None:
    """A ValueError of trl would come later; a full copy is possible."""
    model = tiny_model("llama")
    with pytest.raises(RecipeError, match="can't train low-rank matrices on the output layer") as raised:
        validate_adapter(model, replace(LORA, target_modules=("q_proj", "lm_head")))
    assert raised.value.problems[0].hint == "--set adapter.modules_to_save=[lm_head]    trains it in full"
    validate_adapter(model, replace(LORA, target_modules=("q_proj",), modules_to_save=("lm_head",)))


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
def test_adapter_notices_copy_of_a_tied_matrix(name: str) -> None:
    """The recommended alternative: the merged model equals the tuned one, with two matrices."""
    adapter = replace(LORA, target_modules=("q_proj",), modules_to_save=(name,))
    [notice] = adapter_notices(tiny_model("llama", tie_word_embeddings=True), adapter)
    assert notice.endswith("the merged model has two matrices (tie_word_embeddings: false)")
    before, after = trained_then_merged(adapter)
    assert after == pytest.approx(before, abs=1e-5)


@pytest.mark.parametrize("make", [qwen_moe, mixtral])
def test_estimate_model_memory_of_experts_equals_peft(make: Any) -> None:
    """These experts and their router get adapters from peft; all of it is counted, and there is no notice."""
    model = make()
    assert find_fused_experts(model)
    assert adapter_notices(model, LORA) == []
    counted = estimate_model_memory(replace(Recipe(), adapter=LORA), model, 4, 4, 10, "cpu").trainable
    wrapped = peft_model(model, LORA)
    assert any("experts" in name for name, weight in wrapped.named_parameters() if weight.requires_grad)
    assert counted == sum(weight.numel() for weight in wrapped.parameters() if weight.requires_grad)


def test_adapter_notices_experts_without_an_adapter() -> None:
    """The notice contains the number of weights without an adapter."""
    model = qwen_moe()
    adapter = replace(LORA, target_modules=("q_proj",))
    experts = 2 * 4 * (64 * 64 + 32 * 64)
    [notice] = adapter_notices(model, adapter)
    assert notice == (
        f"{experts:,} of {model.num_parameters():,} weights get no adapter and stay frozen: the experts "
        "(down_proj, gate_up_proj), one tensor per layer"
    )
    wrapped = peft_model(model, adapter)
    assert not any("experts" in name for name, weight in wrapped.named_parameters() if weight.requires_grad)


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (replace(LORA, target_modules=("q_proj", "gate_up_proj")), "this tensor holds the weights of all experts"),
        (replace(LORA, target_modules=("q_proj", "gate_proj")), "without also targeting up_proj"),
        (replace(LORA, lora_dropout=0.1), "adapter.lora_dropout must be 0"),
    ],
)
def test_validate_adapter_experts(adapter: Adapter, said: str) -> None:
    with pytest.raises(RecipeError) as raised:
        validate_adapter(qwen_moe(), adapter)
    assert said in str(raised.value)


def test_validate_adapter_experts_by_their_old_names() -> None:
    validate_adapter(qwen_moe(), replace(LORA, target_modules=("q_proj", "gate_proj", "up_proj", "down_proj")))


# Layers that an adapter names; oracle: peft, on the same tiny models


@pytest.mark.parametrize("family", FAMILIES)
def test_validate_adapter_accepts_names_that_peft_matches(family: Family) -> None:
    model = tiny_model(family)
    validate_adapter(model, LORA)
    adapted = get_peft_model(tiny_model(family), LoraConfig(r=2, target_modules="all-linear"))
    names = {path.split(".lora_A")[0].rpartition(".")[2] for path, _ in adapted.named_parameters() if ".lora_A" in path}
    validate_adapter(model, replace(LORA, target_modules=tuple(sorted(names)), modules_to_save=("lm_head",)))


def test_match_modules_to_save_equals_peft() -> None:
    """Matched by the end of the path: norm is every norm of a Llama."""
    for name in ("norm", "head", "embed_tokens"):
        model = tiny_model("llama")
        validate_adapter(model, replace(LORA, modules_to_save=(name,)))
        found = sum(
            parameter.numel() for module in match_modules_to_save(model, name) for parameter in module.parameters()
        )
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=[name]))
        copies = (p.numel() for path, p in adapted.named_parameters() if "modules_to_save" in path and p.requires_grad)
        assert found == sum(copies), name


def test_match_target_modules_with_a_path_equals_peft() -> None:
    model = tiny_model("llama")
    only = replace(LORA, target_modules=("0.self_attn.q_proj",))
    validate_adapter(model, only)
    assert match_target_modules(model, "0.self_attn.q_proj") == [model.model.layers[0].self_attn.q_proj]
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules=list(only.target_modules)))
    assert sum(".lora_A" in path for path, _ in adapted.named_parameters()) == 1
    assert match_target_modules(model, "elf_attn.q_proj") == []


@pytest.mark.parametrize(
    ("adapter", "said", "nearest"),
    [
        ({"target_modules": ("q_porj",)}, "target_modules: the model has no such layer", "q_proj"),
        ({"target_modules": ("q_proj", "nosuch")}, "target_modules: the model has no such layer", ""),
        ({"target_modules": ("mlp",)}, "target_modules: layers of this type can't get an adapter", ""),
        ({"modules_to_save": ("embed_token",)}, "modules_to_save: the model has no such layer", "embed_tokens"),
    ],
)
def test_validate_adapter_rejects_missing_layers(adapter: dict[str, tuple[str]], said: str, nearest: str) -> None:
    with pytest.raises(RecipeError) as refused:
        validate_adapter(tiny_model("llama"), replace(LORA, **adapter))
    [problem] = refused.value.problems
    assert said in problem.message
    assert problem.did_you_mean == nearest
    assert "q_proj" in problem.hint


def test_validate_adapter_without_an_adapter() -> None:
    validate_adapter(tiny_model("llama"), replace(LORA, type="none", target_modules=("nosuch",)))

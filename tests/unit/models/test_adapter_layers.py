"""Layers that an adapter names. Oracle: peft, on the same real tiny models."""

from __future__ import annotations

from dataclasses import replace

import pytest
from peft import LoraConfig, get_peft_model

from neftcli.errors import RecipeError
from neftcli.models.adapters import match_modules_to_save, match_target_modules, validate_adapter
from neftcli.recipe.schema import Adapter
from tests.tiny import FAMILIES, Family, tiny_model

LORA = Adapter(type="lora", r=2)

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


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

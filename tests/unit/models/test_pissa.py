"""PiSSA on tiny models: the saved adapter on the original base model is the trained one.

Oracles: peft's own conversion of a PiSSA adapter, and the logits of the model that was trained.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from neftcli.errors import ModelError, RecipeError
from neftcli.events import Device
from neftcli.models.adapters import lora_config, validate_adapter
from neftcli.models.pissa import adapter_weights, load_converted, require_float32_weights, save_converted
from neftcli.recipe.schema import Adapter, Recipe
from neftcli.system.device import ComputeConfig
from tests.tiny import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
TOKENS = torch.randint(3, 200, (4, 40), generator=torch.Generator().manual_seed(0))
PISSA = Adapter(type="lora", r=4, lora_alpha=8, init_lora_weights="pissa")
VARIANTS = {
    "exact": PISSA,
    "fast": replace(PISSA, pissa_niter=4),
    "rslora": replace(PISSA, use_rslora=True),
    "a copy of the embedding": replace(PISSA, target_modules=("q_proj", "up_proj"), modules_to_save=("embed_tokens",)),
}
each_variant = pytest.mark.parametrize("adapter", VARIANTS.values(), ids=list(VARIANTS))


def adapted(adapter: Adapter) -> Any:
    torch.manual_seed(1)
    return get_peft_model(tiny_model("llama"), lora_config(adapter))


def tune(model: Any) -> None:
    """Five steps."""
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=5e-3)
    for _ in range(5):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.eval()(input_ids=TOKENS).logits
    return found


@each_variant
def test_save_converted_fits_the_original_model(adapter: Adapter, tmp_path: Path) -> None:
    base = logits(tiny_model("llama"))
    model = adapted(adapter)
    initial = adapter_weights(model)
    torch.testing.assert_close(logits(model), base, rtol=1e-4, atol=1e-5)
    changed = model.get_base_model().model.layers[0].self_attn.q_proj.get_base_layer().weight
    assert not torch.equal(changed, tiny_model("llama").model.layers[0].self_attn.q_proj.weight)
    tune(model.train())
    tuned = logits(model)
    assert (tuned - base).abs().max() > 0.1
    save_converted(model, tmp_path, initial)
    loaded = PeftModel.from_pretrained(tiny_model("llama"), str(tmp_path))
    assert (loaded.peft_config["default"].r, loaded.peft_config["default"].init_lora_weights) == (8, True)
    torch.testing.assert_close(logits(loaded), tuned, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), tuned, rtol=1e-4, atol=1e-5)
    assert model.peft_config["default"].r == 4


@pytest.mark.parametrize("adapter", [PISSA, VARIANTS["rslora"]], ids=["exact", "rslora"])
def test_save_converted_equals_pefts_conversion(adapter: Adapter, tmp_path: Path) -> None:
    model = adapted(adapter)
    initial = adapter_weights(model)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(str(tmp_path / "initial"))
    model.peft_config["default"].init_lora_weights = "pissa"
    tune(model)
    (tmp_path / "neft").mkdir()
    save_converted(model, tmp_path / "neft", initial)
    model.save_pretrained(str(tmp_path / "peft"), path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    ours, pefts = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("neft", "peft"))
    assert ours.keys() == pefts.keys()
    assert all(torch.equal(weight, pefts[name]) for name, weight in ours.items())
    configs = [(tmp_path / name / "adapter_config.json").read_text() for name in ("neft", "peft")]
    assert configs[0].replace(str(tmp_path / "neft"), "") == configs[1].replace(str(tmp_path / "peft"), "")


def test_load_converted_restores_the_trained_adapter(tmp_path: Path) -> None:
    model = adapted(VARIANTS["a copy of the embedding"])
    initial = adapter_weights(model)
    tune(model)
    tuned, best = logits(model), adapter_weights(model)
    save_converted(model, tmp_path, initial)
    tune(model.train())
    assert not torch.equal(logits(model), tuned)
    load_converted(model, tmp_path)
    assert torch.equal(logits(model), tuned)
    restored = adapter_weights(model)
    assert all(torch.equal(weight, best[name]) for name, weight in restored.items())


def test_validate_adapter_rejects_layers_that_pissa_cannot_split() -> None:
    with pytest.raises(RecipeError, match="pissa can split linear layers only") as raised:
        validate_adapter(tiny_model("llama"), replace(PISSA, target_modules=("q_proj", "embed_tokens")))
    assert raised.value.problems[0].got == "model.embed_tokens"
    with pytest.raises(RecipeError, match=r"adapter\.r must be at most 64 with pissa: model.layers.0.self_attn.q_proj"):
        validate_adapter(tiny_model("llama"), replace(PISSA, r=65))
    validate_adapter(tiny_model("llama"), replace(PISSA, r=64))
    sizes = {"vocab_size": 256, "n_embd": 64, "n_layer": 1, "n_head": 2, "n_positions": 64}
    validate_adapter(GPT2LMHeadModel(GPT2Config(**sizes)), replace(PISSA, target_modules=("c_attn",)))


def test_require_float32_weights_of_pissa() -> None:
    recipe = replace(Recipe(), adapter=PISSA)
    half, full = (ComputeConfig("cpu", Device("cpu"), False, dtype) for dtype in (torch.bfloat16, torch.float32))
    with pytest.raises(ModelError, match="pissa needs weights in float32") as raised:
        require_float32_weights(recipe, half)
    assert (raised.value.problems[0].got, raised.value.problems[0].hint) == (
        "model.dtype bfloat16",
        "--set model.dtype=float32",
    )
    require_float32_weights(recipe, full)
    require_float32_weights(replace(recipe, adapter=replace(PISSA, init_lora_weights="default")), half)

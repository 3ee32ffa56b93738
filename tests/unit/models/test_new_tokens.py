"""New tokens of tiny models: their rows, the layers that train them, and what can't be combined with them.

Oracles: transformers' own resizing, and peft's adapters, parameter by parameter.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import PhiConfig, PhiForCausalLM

from neftcli.errors import ModelError, RecipeError
from neftcli.models.adapters import lora_config
from neftcli.models.memory import estimate_memory
from neftcli.models.new_tokens import (
    add_embeddings,
    add_tokens,
    extended_size,
    find_token_layers,
    new_token_ids,
    validate_new_tokens,
)
from neftcli.models.registry import resolve_model
from neftcli.recipe.schema import Adapter, Model, Recipe, Training
from tests.tiny import FAMILIES, Family, save_tiny, tiny_model, tiny_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
TOKENS = ("<tool>", "</tool>")
FULL = Recipe(model=Model(new_tokens=TOKENS))
LORA = replace(FULL, adapter=Adapter(type="lora", r=4))
SIZE = len(tiny_tokenizer())


def test_add_tokens_are_one_token_each_and_stay_in_answers() -> None:
    tokenizer = tiny_tokenizer()
    add_tokens(tokenizer, TOKENS)
    ids = new_token_ids(tokenizer, FULL)
    assert ids == [SIZE, SIZE + 1]
    text = "Call<tool> it</tool>."
    encoded = tokenizer(text)["input_ids"]
    assert [token for token in encoded if token >= SIZE] == ids
    assert tokenizer.decode(encoded, skip_special_tokens=True) == text
    assert (extended_size(SIZE, tokenizer, FULL), extended_size(300, tokenizer, FULL)) == (SIZE + 2, 300)
    assert (extended_size(None, tokenizer, FULL), extended_size(SIZE, tokenizer, Recipe())) == (None, SIZE)
    with pytest.raises(ModelError, match="the tokenizer already has this token") as raised:
        add_tokens(tokenizer, ["</s>", "<new>", "<tool>"])
    assert [problem.got for problem in raised.value.problems] == ["</s>", "<tool>"]


@pytest.mark.parametrize("tied", [True, False])
def test_add_embeddings_have_the_mean_of_the_others_each_time(tied: bool) -> None:
    resized = []
    for seed in (1, 2):
        model = tiny_model("llama", vocab_size=SIZE, tie_word_embeddings=tied)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        add_embeddings(model, tiny_tokenizer(), FULL)
        assert torch.equal(torch.get_rng_state(), before)
        resized.append(model)
    base = tiny_model("llama", vocab_size=SIZE, tie_word_embeddings=tied)
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        first, second, old = (getattr(model, layer)().weight for model in (*resized, base))
        assert torch.equal(first, second)
        assert torch.equal(first[:SIZE], old)
        torch.testing.assert_close(first[SIZE:], old.mean(0).expand(2, -1), rtol=1e-2, atol=1e-4)
    assert resized[0].config.vocab_size == SIZE + 2
    add_embeddings(resized[0], tiny_tokenizer(), FULL)
    assert resized[0].config.vocab_size == SIZE + 2, "they are there already"


@pytest.mark.parametrize(("tied", "copied"), [(True, ()), (False, ()), (False, ("lm_head",))])
@pytest.mark.parametrize("family", FAMILIES)
def test_find_token_layers_train_what_is_counted(
    family: Family, tied: bool, copied: tuple[str, ...], tmp_path: Path
) -> None:
    """As many trained weights as peft has; only rows of new tokens, of tied layers once."""
    save_tiny(tmp_path, family, tie_word_embeddings=tied, vocab_size=SIZE)
    recipe = replace(LORA, adapter=replace(LORA.adapter, modules_to_save=copied))
    found = estimate_memory(recipe, resolve_model(str(tmp_path)), 4, 4, 100, "cpu", SIZE + 2)
    model: Any = tiny_model(family, tie_word_embeddings=tied, vocab_size=SIZE + 2)
    assert found.parameters == model.num_parameters()
    layers = find_token_layers(model, recipe.adapter)
    assert list(layers) == (["embed_tokens"] if tied or copied else ["embed_tokens", "lm_head"])
    tuned = get_peft_model(model, lora_config(recipe.adapter, {name: [SIZE, SIZE + 1] for name in layers}))
    trained = {name: weight.numel() for name, weight in tuned.named_parameters() if weight.requires_grad}
    assert found.trainable == sum(trained.values())
    assert sum("trainable_tokens_delta" in name for name in trained) == len(layers)


@pytest.mark.parametrize(
    ("recipe", "tied", "message"),
    [
        (replace(FULL, training=Training(freeze=("embed_tokens",))), False, "training.freeze freezes the embedding"),
        (replace(FULL, training=Training(freeze=("lm_head",))), False, "training.freeze freezes the output layer"),
        (
            replace(LORA, adapter=Adapter(type="lora", target_modules=("embed_tokens",))),
            False,
            "target_modules can't be",
        ),
        (
            replace(LORA, adapter=Adapter(type="lora", modules_to_save=("lm_head",))),
            True,
            "can't both name a tied embedding",
        ),
    ],
)
def test_validate_new_tokens_rejects_rows_that_are_not_trained_once(recipe: Recipe, tied: bool, message: str) -> None:
    model = tiny_model("llama", tie_word_embeddings=tied)
    with pytest.raises(RecipeError, match=message):
        validate_new_tokens(model, recipe)
    validate_new_tokens(model, replace(recipe, model=Model()))


def test_validate_new_tokens_rejects_an_output_layer_with_a_bias() -> None:
    sizes = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    model = PhiForCausalLM(PhiConfig(**sizes, num_attention_heads=2))
    with pytest.raises(RecipeError, match="if the output layer has a bias"):
        validate_new_tokens(model, LORA)
    validate_new_tokens(model, FULL)

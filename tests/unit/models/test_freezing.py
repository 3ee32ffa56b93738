"""Frozen layers of full fine-tuning, on tiny models.

Oracles: the modules' own weights, and training steps with and without frozen layers.
"""

import pytest

from neftcli.errors import RecipeError
from neftcli.models.freezing import find_frozen_weights, freeze_layers, freeze_notices, validate_freeze
from tests.tiny import FAMILIES, Family, tiny_model


def test_freeze_layers_freezes_what_the_names_match() -> None:
    model = tiny_model("llama")
    freeze_layers(model, ["embed_tokens", "layers.0", "layers.1.mlp", "embed_tokens"])
    inner = model.model
    frozen = [*inner.embed_tokens.parameters(), *inner.layers[0].parameters(), *inner.layers[1].mlp.parameters()]
    assert {name for name, weight in model.named_parameters() if not weight.requires_grad} == {
        name for name, weight in model.named_parameters() if any(weight is other for other in frozen)
    }


def test_find_frozen_weights_of_a_number_is_one_layer() -> None:
    """layers.1 is not layers.11."""
    model = tiny_model("llama", num_hidden_layers=12)
    frozen = find_frozen_weights(model, ["layers.1"])
    assert [id(weight) for weight in frozen] == [id(weight) for weight in model.model.layers[1].parameters()]


@pytest.mark.parametrize(
    ("names", "received", "nearest"),
    [
        (("embed_token",), "embed_token", "embed_tokens"),
        (("layers.9", "q_proj"), "layers.9", "layers.1"),
        (("layers.1.self_atn",), "layers.1.self_atn", "layers.1.self_attn"),
        (("act_fn",), "act_fn", ""),  # a module without weights
    ],
)
def test_validate_freeze_rejects_missing_layers(names: tuple[str, ...], received: str, nearest: str) -> None:
    with pytest.raises(RecipeError, match=r"training\.freeze: the model has no such layer") as raised:
        validate_freeze(tiny_model("llama"), names)
    [problem] = raised.value.problems
    assert (problem.got, problem.did_you_mean) == (received, nearest)
    assert problem.hint.startswith("one of down_proj, embed_tokens, ")
    assert problem.hint.endswith(", layers.0")


@pytest.mark.parametrize(
    ("names", "tied"), [(("model", "lm_head"), False), (("model",), True), (("layers", "norm", "lm_head"), True)]
)
def test_validate_freeze_rejects_a_model_without_trained_weights(names: tuple[str, ...], tied: bool) -> None:
    model = tiny_model("llama", tie_word_embeddings=tied)
    with pytest.raises(RecipeError, match="all weights would be frozen"):
        validate_freeze(model, names)
    validate_freeze(model, names[:-1] or ("layers",))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_freeze_notices_of_a_shared_matrix(family: Family, tied: bool) -> None:
    model = tiny_model(family, tie_word_embeddings=tied)
    for name in ("embed_tokens", "lm_head"):
        notices = freeze_notices(model, [name])
        assert len(notices) == tied
        assert all("share one matrix" in notice for notice in notices)
        frozen = find_frozen_weights(model, [name])
        assert any(weight is model.get_output_embeddings().weight for weight in frozen) is (tied or name == "lm_head")
    assert freeze_notices(model, ["layers.0"]) == freeze_notices(model, []) == []

"""The loss at the vocabulary head.

Oracle: all logits of the model, cross-entropy and its gradients by torch.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neftcli.kernels import cross_entropy
from neftcli.kernels.cross_entropy import can_sum_labels, label_scores, sum_of_labels
from tests.tiny import Family, tiny_model


def batch(*, masked: float = 0.4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 250, (3, 21), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    labels = ids.masked_fill((torch.rand(ids.shape, generator=generator) < masked) | (mask == 0), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def by_torch(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]).float(), inputs["labels"][:, 1:].reshape(-1), reduction="sum"
    )


def gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    (loss / 7).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("tile", [4, 1024])
@pytest.mark.parametrize("family", ["llama", "opt"])  # tied and untied heads
def test_loss_and_gradients_are_those_of_all_logits(family: Family, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "TILE", tile)
    monkeypatch.setattr(cross_entropy, "STRIP", max(1, tile // 3))
    model, inputs = tiny_model(family).eval(), batch()
    loss, expected = sum_of_labels(model, inputs), by_torch(model, inputs)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(model, loss), gradients(model, expected), atol=1e-6, rtol=1e-4)


def test_in_bfloat16_the_loss_is_that_of_autocast() -> None:
    model, inputs = tiny_model("llama").eval(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, expected = sum_of_labels(model, inputs), by_torch(model, inputs)
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=0)
    for found, wanted in zip(gradients(model, loss), gradients(model, expected), strict=True):
        assert float((found - wanted).norm()) <= 0.02 * float(wanted.norm()) + 1e-6


def test_a_frozen_head_gets_no_gradient_and_a_batch_without_labels_is_zero() -> None:
    model, inputs = tiny_model("llama").eval(), batch()
    model.requires_grad_(False)
    layer = model.model.layers[0].mlp.up_proj.requires_grad_(True)
    expected = gradients(model, by_torch(model, inputs))
    torch.testing.assert_close(gradients(model, sum_of_labels(model, inputs)), expected, atol=1e-6, rtol=1e-4)
    assert layer.weight.grad is not None
    nothing = sum_of_labels(model, {**inputs, "labels": torch.full_like(inputs["labels"], -100)})
    [zero] = gradients(model, nothing)
    assert nothing.item() == 0.0
    assert not zero.any()


def peculiar(name: str) -> Any:
    """A tiny model whose logits are no W h + b of its decoder."""
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    extra: dict[str, dict[str, Any]] = {
        "recurrent_gemma": {"intermediate_size": 64, "num_key_value_heads": 1, "num_hidden_layers": 3},
        "modernbert-decoder": {"intermediate_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
        "gemma2": {"intermediate_size": 64, "num_key_value_heads": 1, "head_dim": 16, "final_logit_softcapping": 1.0},
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**small, **extra[name]})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("name", ["recurrent_gemma", "modernbert-decoder", "gemma2"])
def test_logits_that_are_capped_or_come_from_another_layer_are_the_models_own(name: str) -> None:
    model, inputs = peculiar(name), batch()
    with torch.no_grad():
        for weight in model.parameters():  # logits large enough to be capped
            weight.mul_(4.0)
        losses, _ = label_scores(model, inputs)
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    assert not can_sum_labels(model)
    labels = inputs["labels"][:, 1:]
    exact = logits.double()
    expected = torch.nn.functional.cross_entropy(exact[labels != -100], labels[labels != -100], reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


def test_heads_that_rescale_or_hold_an_adapter_are_left_to_trl() -> None:
    assert can_sum_labels(tiny_model("llama"))
    assert not can_sum_labels(tiny_model("granite", logits_scaling=8.0))
    from peft import LoraConfig, get_peft_model

    model = tiny_model("llama")
    assert can_sum_labels(model)  # as before training, when the model as it was is evaluated
    adapted = get_peft_model(model, LoraConfig(target_modules=["lm_head"], r=2)).get_base_model()
    assert adapted is model
    assert not can_sum_labels(adapted)
    torch.nn.init.normal_(adapted.lm_head.lora_B["default"].weight)
    losses, _ = label_scores(adapted.eval(), batch())
    torch.testing.assert_close(losses.sum().float(), by_torch(adapted, batch()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", [4, 1024])
@pytest.mark.parametrize("family", ["llama", "opt", "granite"])  # tied, untied, and with rescaled logits
def test_the_scores_of_labels_are_those_of_all_logits(
    family: Family, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_entropy, "TILE", tile)
    model = tiny_model(family, **({"logits_scaling": 8.0} if family == "granite" else {})).eval()
    inputs = batch()
    with torch.no_grad():
        losses, hits = label_scores(model, inputs)
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1].double()
    labels = inputs["labels"][:, 1:]
    scored = labels != -100
    expected = torch.nn.functional.cross_entropy(logits[scored], labels[scored], reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(hits, logits[scored].argmax(-1) == labels[scored])


def test_a_batch_without_labels_has_no_scores() -> None:
    inputs = batch(masked=1.0)
    assert [len(found) for found in label_scores(tiny_model("llama").eval(), inputs)] == [0, 0]


# Exactness


@pytest.mark.parametrize("vocabulary", [256, 32_000, 50_257, 151_936])
@pytest.mark.parametrize("scale", [0.5, 2.0, 6.0, 12.0, 40.0])  # 6 is where float32's cross_entropy is off with AVX2
def test_losses_of_labels_are_those_in_float64(vocabulary: int, scale: float) -> None:
    """Every label to 1e-6 nat, likely and unlikely ones; the mean without bias to 1e-7."""
    generator = torch.Generator().manual_seed(vocabulary)
    scores = torch.randn(64, vocabulary, generator=generator) * scale
    wanted = torch.randint(0, vocabulary, (64,), generator=generator)
    wanted[::2] = scores[::2].argmax(1)
    exact = scores.double()
    expected = exact.logsumexp(1) - exact.gather(1, wanted[:, None])[:, 0]
    losses, exponentials, sums = cross_entropy._negative_log_likelihoods(scores, wanted[:, None])
    assert losses.dtype == torch.float64
    assert float((losses - expected).abs().max()) < 1e-6
    assert abs(float((losses - expected).mean())) < 1e-7
    torch.testing.assert_close((exponentials / sums).double(), exact.softmax(1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rescaled", [False, True], ids=["plain head", "rescaled logits"])
@pytest.mark.parametrize("scale", [1.0, 30.0, 150.0])
def test_evaluation_and_training_lose_the_same_to_a_millionth(scale: float, rescaled: bool) -> None:
    """A vocabulary of 50,257 and weights of several sizes: 1e-6 nat a label from the logits in float64."""
    family: Family = "granite" if rescaled else "llama"
    options = {"logits_scaling": 8.0} if rescaled else {}
    model, inputs = tiny_model(family, vocab_size=50_257, **options).eval(), batch()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1].double()
        losses, _ = label_scores(model, inputs)
    labels = inputs["labels"][:, 1:]
    exact = torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")
    assert float((losses - exact).abs().max()) < (1e-6 if rescaled else 1e-5)  # the matrix product in tiles
    assert abs(float((losses - exact).mean())) < 1e-6
    if not rescaled:
        assert sum_of_labels(model, inputs).item() == pytest.approx(float(exact.sum()), rel=1e-6)

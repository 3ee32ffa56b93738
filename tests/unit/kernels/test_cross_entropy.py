"""The cross-entropy loss at the labels.

Oracle: all logits of the model, and torch's cross-entropy with its gradients.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neftcli.kernels import cross_entropy
from neftcli.kernels.cross_entropy import fused_linear_cross_entropy, score_labels, supports_fused_cross_entropy
from tests.tiny import Family, tiny_model


def batch(*, masked: float = 0.4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 250, (3, 21), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    labels = ids.masked_fill((torch.rand(ids.shape, generator=generator) < masked) | (mask == 0), -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def torch_loss(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
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
def test_fused_linear_cross_entropy_equals_torch(family: Family, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "GRADIENT_TILE", tile)
    monkeypatch.setattr(cross_entropy, "LOGITS_TILE", max(1, tile // 3))
    model, inputs = tiny_model(family).eval(), batch()
    loss, expected = fused_linear_cross_entropy(model, inputs), torch_loss(model, inputs)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradients(model, loss), gradients(model, expected), atol=1e-6, rtol=1e-4)


def test_fused_linear_cross_entropy_bfloat16() -> None:
    model, inputs = tiny_model("llama").eval(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, expected = fused_linear_cross_entropy(model, inputs), torch_loss(model, inputs)
    torch.testing.assert_close(loss, expected, rtol=2e-3, atol=0)
    for result, expected_gradient in zip(gradients(model, loss), gradients(model, expected), strict=True):
        assert float((result - expected_gradient).norm()) <= 0.02 * float(expected_gradient.norm()) + 1e-6


def test_fused_linear_cross_entropy_frozen_head_and_no_labels() -> None:
    model, inputs = tiny_model("llama").eval(), batch()
    model.requires_grad_(False)
    layer = model.model.layers[0].mlp.up_proj.requires_grad_(True)
    expected = gradients(model, torch_loss(model, inputs))
    torch.testing.assert_close(
        gradients(model, fused_linear_cross_entropy(model, inputs)), expected, atol=1e-6, rtol=1e-4
    )
    assert layer.weight.grad is not None
    empty = fused_linear_cross_entropy(model, {**inputs, "labels": torch.full_like(inputs["labels"], -100)})
    [zero] = gradients(model, empty)
    assert empty.item() == 0.0
    assert not zero.any()


def peculiar(name: str) -> Any:
    """A tiny model whose logits aren't W h + b of its decoder's output."""
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
def test_score_labels_uses_the_logits_of_peculiar_heads(name: str) -> None:
    model, inputs = peculiar(name), batch()
    with torch.no_grad():
        for weight in model.parameters():  # logits large enough to be capped
            weight.mul_(4.0)
        losses, _ = score_labels(model, inputs)
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    assert not supports_fused_cross_entropy(model)
    labels = inputs["labels"][:, 1:]
    exact = logits.double()
    expected = torch.nn.functional.cross_entropy(exact[labels != -100], labels[labels != -100], reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)


def test_supports_fused_cross_entropy_rescaled_head_and_adapter() -> None:
    assert supports_fused_cross_entropy(tiny_model("llama"))
    assert not supports_fused_cross_entropy(tiny_model("granite", logits_scaling=8.0))
    from peft import LoraConfig, get_peft_model

    model = tiny_model("llama")
    assert supports_fused_cross_entropy(model)  # as in the evaluation before training, without an adapter
    adapted = get_peft_model(model, LoraConfig(target_modules=["lm_head"], r=2)).get_base_model()
    assert adapted is model
    assert not supports_fused_cross_entropy(adapted)
    torch.nn.init.normal_(adapted.lm_head.lora_B["default"].weight)
    losses, _ = score_labels(adapted.eval(), batch())
    torch.testing.assert_close(losses.sum().float(), torch_loss(adapted, batch()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", [4, 1024])
@pytest.mark.parametrize("family", ["llama", "opt", "granite"])  # tied, untied, and with rescaled logits
def test_score_labels_equals_torch(family: Family, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "GRADIENT_TILE", tile)
    model = tiny_model(family, **({"logits_scaling": 8.0} if family == "granite" else {})).eval()
    inputs = batch()
    with torch.no_grad():
        losses, hits = score_labels(model, inputs)
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1].double()
    labels = inputs["labels"][:, 1:]
    has_label = labels != -100
    expected = torch.nn.functional.cross_entropy(logits[has_label], labels[has_label], reduction="none")
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(hits, logits[has_label].argmax(-1) == labels[has_label])


def test_score_labels_no_labels() -> None:
    inputs = batch(masked=1.0)
    assert [len(scores) for scores in score_labels(tiny_model("llama").eval(), inputs)] == [0, 0]


# Exactness


@pytest.mark.slow
@pytest.mark.parametrize("vocabulary", [256, 32_000, 50_257, 151_936])
@pytest.mark.parametrize("scale", [0.5, 2.0, 6.0, 12.0, 40.0])  # at 6 torch's float32 cross_entropy is wrong with AVX2
def test_negative_log_likelihoods_equal_float64(vocabulary: int, scale: float) -> None:
    """Each loss to 1e-6 nat, of likely and unlikely labels; the mean to 1e-7."""
    generator = torch.Generator().manual_seed(vocabulary)
    scores = torch.randn(64, vocabulary, generator=generator) * scale
    targets = torch.randint(0, vocabulary, (64,), generator=generator)
    targets[::2] = scores[::2].argmax(1)
    exact = scores.double()
    expected = exact.logsumexp(1) - exact.gather(1, targets[:, None])[:, 0]
    losses, exponentials, sums = cross_entropy.negative_log_likelihoods(scores, targets[:, None])
    assert losses.dtype == torch.float64
    assert float((losses - expected).abs().max()) < 1e-6
    assert abs(float((losses - expected).mean())) < 1e-7
    torch.testing.assert_close((exponentials / sums).double(), exact.softmax(1), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rescaled", [False, True], ids=["linear head", "rescaled logits"])
@pytest.mark.parametrize("scale", [1.0, 30.0, 150.0])
def test_score_labels_and_fused_linear_cross_entropy_agree(scale: float, rescaled: bool) -> None:
    """Within 1e-6 nat per label of float64, with a vocabulary of 50,257 and small and large weights."""
    family: Family = "granite" if rescaled else "llama"
    options = {"logits_scaling": 8.0} if rescaled else {}
    model, inputs = tiny_model(family, vocab_size=50_257, **options).eval(), batch()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(scale)
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1].double()
        losses, _ = score_labels(model, inputs)
    labels = inputs["labels"][:, 1:]
    exact = torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")
    assert float((losses - exact).abs().max()) < (1e-6 if rescaled else 1e-5)  # the matrix product in tiles
    assert abs(float((losses - exact).mean())) < 1e-6
    if not rescaled:
        assert fused_linear_cross_entropy(model, inputs).item() == pytest.approx(float(exact.sum()), rel=1e-6)

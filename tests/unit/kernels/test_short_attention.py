"""Attention of short documents. Oracle: the definition in float64, and torch's fused attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from neftcli.kernels import document_attention
from neftcli.kernels import short_attention as module
from neftcli.kernels.document_attention import documents_attention
from neftcli.kernels.short_attention import LONGEST, suits
from tests.tiny import FAMILIES, Family, tiny_model


def inputs(time: int, heads: int, key_heads: int, width: int = 16, value_width: int = 16) -> list[Tensor]:
    """Query, key, value, and the gradient of the output, laid out as a model's projections are.

    Queries and keys are large, so that scores are; rounding them would show.
    """
    generator = torch.Generator().manual_seed(time)
    sizes = ((heads, width), (key_heads, width), (key_heads, value_width), (heads, value_width))
    tensors = [torch.randn(1, time, count, size, generator=generator).transpose(1, 2) for count, size in sizes]
    return [(tensor * factor).bfloat16() for tensor, factor in zip(tensors, (3, 3, 1, 1), strict=True)]


def with_gradients(attend: object, tensors: list[Tensor], kind: torch.dtype) -> list[Tensor]:
    """The output, and the gradients of query, key and value."""
    *leaves, outer = (tensor.detach().to(kind) for tensor in tensors)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    output = attend(*leaves)  # type: ignore[operator]
    output.backward(outer)
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1])


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("time", [1, 2, 17, 200, LONGEST])
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(4, 4, 16), (6, 2, 80), (3, 1, 128)])
def test_it_is_as_exact_as_the_fused_one(time: int, heads: int, key_heads: int, width: int) -> None:
    """Of output and gradients: bfloat16 leaves both some thousandths."""
    tensors = inputs(time, heads, key_heads, width, width)
    exact = with_gradients(fused, tensors, torch.float64)
    short = with_gradients(lambda *leaves: module.attention(*leaves, None), tensors, torch.bfloat16)
    other = with_gradients(fused, tensors, torch.bfloat16)
    for found, theirs, wanted in zip(short, other, exact, strict=True):
        assert found.shape == wanted.shape
        if wanted.norm() < 1e-9:  # a single token's query and key change nothing
            assert found.float().norm() < 1e-2
        else:
            assert error(found, wanted) < max(0.004, 1.5 * error(theirs, wanted))


def test_a_scaling_and_values_of_another_width_are_taken() -> None:
    tensors = inputs(9, 4, 2, width=8, value_width=24)
    found = with_gradients(lambda *leaves: module.attention(*leaves, 0.7), tensors, torch.bfloat16)

    def defined(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (tensor.repeat_interleave(2, 1) for tensor in (key, value))
        scores = 0.7 * query @ key.transpose(2, 3)
        return scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf).softmax(-1) @ value

    for one, exact in zip(found, with_gradients(defined, tensors, torch.float64), strict=True):
        assert error(one, exact) < 0.01


def test_only_short_documents_in_bfloat16_without_dropout_are_done_here() -> None:
    query = torch.zeros(1, 2, LONGEST, 8, dtype=torch.bfloat16)
    assert suits(query, 0.0)
    assert not suits(query, 0.1)
    assert not suits(query.float(), 0.0)
    assert not suits(torch.zeros(1, 2, LONGEST + 1, 8, dtype=torch.bfloat16), 0.0)


def test_a_row_of_documents_is_each_of_them_alone() -> None:
    """To the bit, short ones and a long one; so rows end to end equal rows apart."""
    lengths = (5, LONGEST + 8, 1, 40)
    query, key, value, _ = inputs(sum(lengths), 4, 2)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    together, _ = documents_attention(torch.nn.Identity(), query, key, value, None, cu_seq_lens_q=bounds)
    begin = 0
    for length in lengths:
        q, k, v = (tensor[:, :, begin : begin + length] for tensor in (query, key, value))
        alone = module.attention(q, k, v, None) if length <= LONGEST else fused(q, k, v)
        assert torch.equal(together[:, begin : begin + length], alone.transpose(1, 2))
        begin += length


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_under_autocast_comes_here_and_recomputes_to_the_same_bits(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rotary embeddings leave float32, which autocast turns back for torch's own function alone."""
    from tests.unit.kernels.test_document_attention import LENGTHS, row

    came = []
    real = module.attention
    monkeypatch.setattr(module, "attention", lambda *given: came.append(given[0].dtype) or real(*given))
    gradients = []
    for checkpointing in (False, True):
        model, batch = tiny_model(family).train(), row()
        if checkpointing:
            model.activation_checkpointing_enable()
        came.clear()
        with document_attention.attention_by_document(model, batch), torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(**batch, use_cache=False).logits
            assert came == [torch.bfloat16] * len(LENGTHS) * model.config.num_hidden_layers
            logits.float().logsumexp(-1).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))

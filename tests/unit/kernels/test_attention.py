"""Attention within documents.

Oracles: each document alone in transformers' own attention; the definition, in float64 for the blockwise kernel. Which
rows the variable-length kernel supports is tested without a GPU; tests/gpu tests its results.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from neftcli.kernels import attention
from neftcli.kernels.attention import (
    DOCUMENT_ATTENTION,
    MAX_BLOCKWISE_TOKENS,
    SDPA,
    blockwise_attention,
    document_attention_forward,
    supports_blockwise_attention,
    supports_varlen_attention,
    use_document_attention,
)
from tests.tiny import FAMILIES, Family, tiny_model

LENGTHS = (12, 1, 9, 30)


def document_batch() -> dict[str, Tensor]:
    """Four documents in one row."""
    ids = torch.randint(10, 250, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return {"input_ids": ids, "position_ids": positions, "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}


@pytest.mark.parametrize("family", FAMILIES)
def test_use_document_attention_equals_each_document_alone(family: Family) -> None:
    """Logits and gradients."""
    model, batch = tiny_model(family).train(), document_batch()
    with use_document_attention(model, batch):
        logits = model(**batch, use_cache=False).logits[0]
        logits.float().logsumexp(-1).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    documents = batch["input_ids"].split(LENGTHS, dim=1)
    expected = torch.cat([model(input_ids=document, use_cache=False).logits[0] for document in documents])
    expected.float().logsumexp(-1).sum().backward()
    expected_gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients, expected_gradients, atol=1e-4, rtol=1e-3)


def test_use_document_attention_restores_the_models_attention() -> None:
    model, batch = tiny_model("llama"), document_batch()
    with use_document_attention(model, batch):
        assert model.config._attn_implementation == DOCUMENT_ATTENTION
    assert model.config._attn_implementation == SDPA
    with pytest.raises(ZeroDivisionError), use_document_attention(model, batch):
        1 / 0  # noqa: B018
    assert model.config._attn_implementation == SDPA


def test_use_document_attention_leaves_padded_batches_and_other_attention_alone() -> None:
    model, batch = tiny_model("llama"), document_batch()
    with use_document_attention(model, {"input_ids": batch["input_ids"]}):
        assert model.config._attn_implementation == SDPA
    eager = tiny_model("llama")
    eager.config._attn_implementation = "eager"
    with use_document_attention(eager, batch):
        assert eager.config._attn_implementation == "eager"


@pytest.mark.parametrize("window", [1, 4, 12, 64])
def test_document_attention_forward_sliding_window(window: int) -> None:
    """Oracle: the definition. A token attends to itself and the window - 1 tokens before it, in its own document."""
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, heads, sum(LENGTHS), 8, generator=generator) for heads in (4, 2, 2))
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0)
    output, _ = document_attention_forward(
        torch.nn.Identity(), query, key, value, None, sliding_window=window, cu_seq_lens_q=bounds
    )
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    index = torch.arange(sum(LENGTHS))
    distance = index[:, None] - index[None]
    attends = (document[:, None] == document[None]) & (distance >= 0) & (distance < window)
    scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) / 8**0.5
    weights = scores.masked_fill(~attends, -torch.inf).softmax(-1)
    expected = (weights @ value.repeat_interleave(2, 1)).transpose(1, 2)
    torch.testing.assert_close(output, expected, atol=1e-5, rtol=1e-4)


def test_document_attention_forward_is_bit_identical_to_each_document_alone() -> None:
    """Short documents and a long one, so that a padding-free row equals its rows apart."""
    lengths = (5, MAX_BLOCKWISE_TOKENS + 8, 1, 40)
    query, key, value, _ = attention_inputs(sum(lengths), 4, 2)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    output, _ = document_attention_forward(torch.nn.Identity(), query, key, value, None, cu_seq_lens_q=bounds)
    begin = 0
    for length in lengths:
        q, k, v = (tensor[:, :, begin : begin + length] for tensor in (query, key, value))
        alone = blockwise_attention(q, k, v, None) if length <= MAX_BLOCKWISE_TOKENS else torch_attention(q, k, v)
        assert torch.equal(output[:, begin : begin + length], alone.transpose(1, 2))
        begin += length


# One document in blocks of queries


def attention_inputs(time: int, heads: int, key_heads: int, width: int = 16, value_width: int = 16) -> list[Tensor]:
    """Query, key, value, and the gradient of the output, with the memory layout of a model's projections.

    Queries and keys are large, so that scores are, and rounding them would show.
    """
    generator = torch.Generator().manual_seed(time)
    sizes = ((heads, width), (key_heads, width), (key_heads, value_width), (heads, value_width))
    tensors = [torch.randn(1, time, count, size, generator=generator).transpose(1, 2) for count, size in sizes]
    return [(tensor * factor).bfloat16() for tensor, factor in zip(tensors, (3, 3, 1, 1), strict=True)]


def output_and_gradients(function: Callable[..., Tensor], tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The output, and the gradients of query, key and value."""
    *leaves, output_gradient = (tensor.detach().to(dtype) for tensor in tensors)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    output = function(*leaves)
    output.backward(output_gradient)
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def torch_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1])


def relative_error(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).norm() / exact.norm())


@pytest.mark.slow
@pytest.mark.parametrize("time", [1, 2, 17, 200, MAX_BLOCKWISE_TOKENS])
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(4, 4, 16), (6, 2, 80), (3, 1, 128)])
def test_blockwise_attention_is_as_exact_as_torchs(time: int, heads: int, key_heads: int, width: int) -> None:
    """Output and gradients against float64: bfloat16 leaves an error of some thousandths in both."""
    tensors = attention_inputs(time, heads, key_heads, width, width)
    exact = output_and_gradients(torch_attention, tensors, torch.float64)
    blockwise = output_and_gradients(lambda *leaves: blockwise_attention(*leaves, None), tensors, torch.bfloat16)
    torchs = output_and_gradients(torch_attention, tensors, torch.bfloat16)
    for result, other, expected in zip(blockwise, torchs, exact, strict=True):
        assert result.shape == expected.shape
        if expected.norm() < 1e-9:  # with a single token, query and key change nothing
            assert result.float().norm() < 1e-2
        else:
            assert relative_error(result, expected) < max(0.004, 1.5 * relative_error(other, expected))


def test_blockwise_attention_scaling_and_value_width() -> None:
    tensors = attention_inputs(9, 4, 2, width=8, value_width=24)
    results = output_and_gradients(lambda *leaves: blockwise_attention(*leaves, 0.7), tensors, torch.bfloat16)

    def definition(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (tensor.repeat_interleave(2, 1) for tensor in (key, value))
        scores = 0.7 * query @ key.transpose(2, 3)
        return scores.masked_fill(torch.ones(9, 9).triu(1).bool(), -torch.inf).softmax(-1) @ value

    for result, exact in zip(results, output_and_gradients(definition, tensors, torch.float64), strict=True):
        assert relative_error(result, exact) < 0.01


def test_supports_blockwise_attention() -> None:
    query = torch.zeros(1, 2, MAX_BLOCKWISE_TOKENS, 8, dtype=torch.bfloat16)
    assert supports_blockwise_attention(query, 0.0)
    assert not supports_blockwise_attention(query, 0.1)
    assert not supports_blockwise_attention(query.float(), 0.0)
    longer = torch.zeros(1, 2, MAX_BLOCKWISE_TOKENS + 1, 8, dtype=torch.bfloat16)
    assert not supports_blockwise_attention(longer, 0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_blockwise_attention_in_a_model_under_autocast(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary embeddings return float32, which autocast casts for torch's function only.

    Recomputed activations give bit-identical gradients.
    """
    calls = []
    original = blockwise_attention
    monkeypatch.setattr(attention, "blockwise_attention", lambda *args: calls.append(args[0].dtype) or original(*args))
    gradients = []
    for checkpointing in (False, True):
        model, batch = tiny_model(family).train(), document_batch()
        if checkpointing:
            model.activation_checkpointing_enable()
        calls.clear()
        with use_document_attention(model, batch), torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(**batch, use_cache=False).logits
            assert calls == [torch.bfloat16] * len(LENGTHS) * model.config.num_hidden_layers
            logits.float().logsumexp(-1).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert all(torch.equal(stored, recomputed) for stored, recomputed in zip(*gradients, strict=True))


# All documents in one call


def fake_row(width: int = 64, dtype: torch.dtype = torch.bfloat16, device: str = "cuda") -> Any:
    """The attributes of a tensor that `supports_varlen_attention` reads."""
    return SimpleNamespace(shape=(1, 2, 8, width), dtype=dtype, device=torch.device(device))


@pytest.fixture
def ampere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    attention.varlen_options.cache_clear()
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    yield
    attention.varlen_options.cache_clear()


@pytest.mark.usefixtures("ampere")
def test_supports_varlen_attention() -> None:
    assert supports_varlen_attention(fake_row(), fake_row(), 0.0)
    assert supports_varlen_attention(fake_row(128, torch.float16), fake_row(128, torch.float16), 0.0)


@pytest.mark.usefixtures("ampere")
@pytest.mark.parametrize(
    ("query", "value", "dropout"),
    [
        (fake_row(device="cpu"), fake_row(), 0.0),
        (fake_row(dtype=torch.float32), fake_row(), 0.0),
        (fake_row(100), fake_row(100), 0.0),  # not a multiple of 8
        (fake_row(256), fake_row(256), 0.0),
        (fake_row(192), fake_row(128), 0.0),  # values of a different width
        (fake_row(), fake_row(), 0.1),
    ],
)
def test_supports_varlen_attention_rejects(query: Any, value: Any, dropout: float) -> None:
    assert not supports_varlen_attention(query, value, dropout)


@pytest.mark.usefixtures("ampere")
def test_supports_varlen_attention_older_gpu_and_older_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "torch.nn.attention.varlen"
    older = SimpleNamespace(
        varlen_attn=lambda query, key, value, is_causal=False: None, __spec__=ModuleSpec(name, None)
    )
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, name, older)
        assert not supports_varlen_attention(fake_row(), fake_row(), 0.0)
    attention.varlen_options.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert not supports_varlen_attention(fake_row(), fake_row(), 0.0)

"""Attention of a whole row in one call on a GPU. Oracle: the definition in float64, within each document."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from neftcli.kernels import attention
from neftcli.kernels.attention import (
    document_attention_forward,
    supports_varlen_attention,
    use_document_attention,
    varlen_attention,
)
from neftcli.training.packing_check import build_packed_pair
from tests.tiny import FAMILIES, Family, tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LENGTHS = (12, 1, 200, 30)


def definition(query: Tensor, key: Tensor, value: Tensor, window: int, scaling: float) -> Tensor:
    """A token attends to itself and the `window` - 1 tokens before it, in its own document."""
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    index = torch.arange(sum(LENGTHS))
    distance = index[:, None] - index[None]
    attends = ((document[:, None] == document[None]) & (distance >= 0) & (distance < window)).to(query.device)
    key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
    weights = (scaling * query @ key.transpose(2, 3)).masked_fill(~attends, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


def error(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("window", [None, 1, 5, 64])
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(4, 4, 64), (6, 2, 128), (4, 1, 80)])
def test_varlen_attention_equals_the_definition(heads: int, key_heads: int, width: int, window: int | None) -> None:
    generator = torch.Generator("cuda").manual_seed(width)
    shapes = [(1, count, sum(LENGTHS), width) for count in (heads, key_heads, key_heads)]
    tensors = [torch.randn(shape, generator=generator, device="cuda").bfloat16() for shape in shapes]
    bounds = torch.tensor([0, *LENGTHS], device="cuda").cumsum(0).to(torch.int32)
    assert supports_varlen_attention(tensors[0], tensors[2], 0.0)

    def attend(*leaves: Tensor) -> Tensor:
        output, _ = document_attention_forward(
            torch.nn.Identity(),
            *leaves,
            None,
            scaling=0.1,
            sliding_window=window,
            cu_seq_lens_q=bounds,
            max_length_q=max(LENGTHS),
        )
        return output

    results = []
    for dtype, function in (
        (torch.bfloat16, attend),
        (torch.float64, lambda *leaves: definition(*leaves, window or 10**6, 0.1)),
    ):
        leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
        output = function(*leaves)
        output.backward(torch.ones_like(output) * torch.arange(width, device="cuda") / width)
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for result, exact in zip(*results, strict=True):
        if exact.norm() < 1e-6:  # a token that attends to itself only does so with any query
            assert float(result.norm()) < 0.1
        else:
            assert error(result, exact) < 0.02


@pytest.mark.parametrize("family", FAMILIES)
def test_varlen_attention_in_a_model(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = varlen_attention
    monkeypatch.setattr(attention, "varlen_attention", lambda *args: calls.append(args) or original(*args))
    model = tiny_model(family).cuda().eval()
    batch = build_packed_pair(model)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        with use_document_attention(model, batch):
            row = model(**batch, use_cache=False).logits
        with use_document_attention(model, batch, fused=False):
            one_by_one = model(**batch, use_cache=False).logits
    assert len(calls) == model.config.num_hidden_layers
    torch.testing.assert_close(row, one_by_one, atol=0.05, rtol=0.05)

"""Attention of a whole row in one call on a GPU. Oracle: the definition in float64, document by document."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from neftcli.kernels import varlen_attention
from neftcli.kernels.document_attention import attention_by_document, documents_attention
from neftcli.training.packing_check import build_packed_pair
from tests.tiny import FAMILIES, Family, tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
LENGTHS = (12, 1, 200, 30)


def defined(query: Tensor, key: Tensor, value: Tensor, window: int, scaling: float) -> Tensor:
    """A token sees itself and the `window` - 1 before it, in its own document."""
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    place = torch.arange(sum(LENGTHS))
    back = place[:, None] - place[None]
    sees = ((document[:, None] == document[None]) & (back >= 0) & (back < window)).to(query.device)
    key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], 1) for tensor in (key, value))
    weights = (scaling * query @ key.transpose(2, 3)).masked_fill(~sees, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@pytest.mark.parametrize("window", [None, 1, 5, 64])
@pytest.mark.parametrize(("heads", "key_heads", "width"), [(4, 4, 64), (6, 2, 128), (4, 1, 80)])
def test_it_is_the_definition_with_its_gradients(heads: int, key_heads: int, width: int, window: int | None) -> None:
    generator = torch.Generator("cuda").manual_seed(width)
    shapes = [(1, count, sum(LENGTHS), width) for count in (heads, key_heads, key_heads)]
    tensors = [torch.randn(shape, generator=generator, device="cuda").bfloat16() for shape in shapes]
    bounds = torch.tensor([0, *LENGTHS], device="cuda").cumsum(0).to(torch.int32)
    assert varlen_attention.suits(tensors[0], tensors[2], 0.0)

    def attend(*leaves: Tensor) -> Tensor:
        output, _ = documents_attention(
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
    for kind, function in (
        (torch.bfloat16, attend),
        (torch.float64, lambda *leaves: defined(*leaves, window or 10**6, 0.1)),
    ):
        leaves = [tensor.detach().to(kind).requires_grad_() for tensor in tensors]
        output = function(*leaves)
        output.backward(torch.ones_like(output) * torch.arange(width, device="cuda") / width)
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for found, exact in zip(*results, strict=True):
        if exact.norm() < 1e-6:  # a token that sees itself alone does so whatever its query is
            assert float(found.norm()) < 0.1
        else:
            assert error(found, exact) < 0.02


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_takes_a_row_in_one_call(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    came = []
    real = varlen_attention.attention
    monkeypatch.setattr(varlen_attention, "attention", lambda *given: came.append(given) or real(*given))
    model = tiny_model(family).cuda().eval()
    batch = build_packed_pair(model)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        with attention_by_document(model, batch):
            row = model(**batch, use_cache=False).logits
        with attention_by_document(model, batch, fused=False):
            piece_by_piece = model(**batch, use_cache=False).logits
    assert len(came) == model.config.num_hidden_layers
    torch.testing.assert_close(row, piece_by_piece, atol=0.05, rtol=0.05)

"""Attention over documents that lie end to end.

Oracles: each document alone in transformers' own attention; the row with transformers' own mask.
"""

from __future__ import annotations

import pytest
import torch

from neftcli.kernels.document_attention import NAME, attention_by_document
from tests.tiny import FAMILIES, Family, tiny_model

LENGTHS = (12, 1, 9, 30)


def row() -> dict[str, torch.Tensor]:
    """Four documents in one row."""
    ids = torch.randint(10, 250, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32)
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return {"input_ids": ids, "position_ids": positions, "cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_document_gets_the_logits_and_gradients_that_it_gets_alone(family: Family) -> None:
    model, batch = tiny_model(family).train(), row()
    with attention_by_document(model, batch):
        together = model(**batch, use_cache=False).logits[0]
        together.float().logsumexp(-1).sum().backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    pieces = batch["input_ids"].split(LENGTHS, dim=1)
    alone = torch.cat([model(input_ids=piece, use_cache=False).logits[0] for piece in pieces])
    alone.float().logsumexp(-1).sum().backward()
    expected = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gradients, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("window", [1, 4, 12, 64])
def test_a_sliding_window_holds_within_each_document(window: int) -> None:
    """Against the definition: a token sees itself and the window - 1 before it, in its own document."""
    from neftcli.kernels.document_attention import documents_attention

    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(1, heads, sum(LENGTHS), 8, generator=generator) for heads in (4, 2, 2))
    bounds = torch.tensor([0, *LENGTHS]).cumsum(0)
    found, _ = documents_attention(
        torch.nn.Identity(), query, key, value, None, sliding_window=window, cu_seq_lens_q=bounds
    )
    document = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    place = torch.arange(sum(LENGTHS))
    back = place[:, None] - place[None]
    sees = (document[:, None] == document[None]) & (back >= 0) & (back < window)
    scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) / 8**0.5
    weights = scores.masked_fill(~sees, -torch.inf).softmax(-1)
    torch.testing.assert_close(found, (weights @ value.repeat_interleave(2, 1)).transpose(1, 2), atol=1e-5, rtol=1e-4)


def test_the_model_has_its_own_attention_back_and_padded_batches_keep_it() -> None:
    model, batch = tiny_model("llama"), row()
    with attention_by_document(model, batch):
        assert model.config._attn_implementation == NAME
    assert model.config._attn_implementation == "sdpa"
    with pytest.raises(ZeroDivisionError), attention_by_document(model, batch):
        1 / 0  # noqa: B018
    assert model.config._attn_implementation == "sdpa"
    with attention_by_document(model, {"input_ids": batch["input_ids"]}):
        assert model.config._attn_implementation == "sdpa"
    eager = tiny_model("llama")
    eager.config._attn_implementation = "eager"
    with attention_by_document(eager, batch):
        assert eager.config._attn_implementation == "eager"

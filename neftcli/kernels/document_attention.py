"""Attention over documents that lie end to end in one row, each by itself.

With several documents in a row, transformers' `sdpa` builds a mask of the whole row: time and memory grow with the
square of the row, and nearly all of it is masked. Here each document is one causal call, or all are one call with
lengths on a GPU, so nothing is computed that is thrown away, and no document can see another.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from neftcli.kernels import short_attention, varlen_attention

NAME, OF_TORCH_BY_DOCUMENT = "neft_documents", "neft_documents_of_torch"
"""Attention of this module, with `short_attention` and `varlen_attention` where they suit and without them."""
OF_TORCH = "sdpa"


def documents_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    *,
    fused: bool = True,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(Q K^T scaling) V within each document, causal.

    Args:
        module: The attention layer.
        query: (1, heads, time, width).
        key: (1, key heads, time, width).
        value: (1, key heads, time, width).
        attention_mask: None; documents need none.
        dropout: Of the attention's weights.
        scaling: Of the scores; 1 / sqrt(width) if None.
        sliding_window: A token sees so many tokens at most, itself among them.
        cu_seq_lens_q: Where documents begin, and the length of the row.
        max_length_q: Tokens of the longest document.
        fused: By `varlen_attention` or `short_attention` where they suit.
        kwargs: What other kinds of attention take.

    Returns:
        (1, time, heads, width), and None in the place of the weights.
    """
    assert cu_seq_lens_q is not None and attention_mask is None, "only rows of documents come here"  # noqa: S101, PT018
    if torch.is_autocast_enabled(query.device.type):  # rotary embeddings leave float32; the fused one would be cast
        kind = torch.get_autocast_dtype(query.device.type)
        query, key, value = (tensor.to(kind) for tensor in (query, key, value))
    if fused and max_length_q is not None and varlen_attention.suits(query, value, dropout):
        window = sliding_window or 0
        return varlen_attention.attention(query, key, value, cu_seq_lens_q, max_length_q, scaling, window), None
    lengths = [end - begin for begin, end in pairwise(cu_seq_lens_q.tolist())]
    # Split, not sliced: the gradient of a slice is as large as the row.
    documents = zip(*(torch.split(tensor, lengths, dim=2) for tensor in (query, key, value)), strict=True)
    parts = [_one_document(q, k, v, dropout, scaling, sliding_window, fused) for q, k, v in documents]
    return torch.cat(parts, dim=1), None


def _one_document(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float | None, window: int | None, fused: bool
) -> Tensor:
    """The same of one document, (1, its time, heads, width)."""
    band, length = None, q.shape[2]
    if window is not None and length > window:
        ones = torch.ones(length, length, dtype=torch.bool, device=q.device)
        band = ones.tril() & ones.triu(1 - window)
    if fused and band is None and short_attention.suits(q, dropout):
        return short_attention.attention(q, k, v, scaling).transpose(1, 2)
    return nn.functional.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=band,
        dropout_p=dropout,
        scale=scaling,
        is_causal=band is None,
        enable_gqa=q.shape[1] != k.shape[1],
    ).transpose(1, 2)


AttentionInterface.register(NAME, documents_attention)
AttentionInterface.register(OF_TORCH_BY_DOCUMENT, partial(documents_attention, fused=False))


@contextmanager
def attention_by_document(model: Any, batch: Container[str], *, fused: bool = True) -> Iterator[None]:
    """Within the block, a model whose attention is torch's takes each document of a row by itself.

    Args:
        model: With or without adapters; models with another attention, flash attention say, are left as they are.
        batch: What the model is given; where it does not say where documents begin, nothing is changed.
        fused: On a GPU all are attended in one call, on a CPU short ones by `short_attention`, both in 16 bits.
    """
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}
    by_document = "cu_seq_lens_q" in batch
    chosen = [config for config in configs.values() if by_document and config._attn_implementation == OF_TORCH]
    for config in chosen:
        config._attn_implementation_internal = NAME if fused else OF_TORCH_BY_DOCUMENT
    try:
        yield
    finally:
        for config in chosen:
            config._attn_implementation_internal = OF_TORCH

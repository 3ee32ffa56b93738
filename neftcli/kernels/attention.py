"""Causal attention within each document of a row without padding.

If a row holds several documents, transformers' `sdpa` builds a mask of the whole row: time and memory grow with the
square of the row, and most of it is masked. These kernels compute each document on its own, so that nothing is computed
only to be masked, and no document attends to a different one:

- `varlen_attention`: all documents in one call; GPUs, in 16 bits.
- `blockwise_attention`: one document at a time, in blocks of queries; CPUs, in bfloat16, up to `MAX_BLOCKWISE_TOKENS`.
- torch's `scaled_dot_product_attention`, one document at a time: everything else.

For each document and head, with Q, K and V of shape (time, head_dim):

    P = softmax(scaling Q K^T + mask)      O = P V

The key heads may be fewer than the query heads (grouped-query attention).
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface

SDPA = "sdpa"
DOCUMENT_ATTENTION = "neft_document_attention"
"""Name in transformers' registry: documents one by one or in one call, with the fused kernels if they are supported."""
DOCUMENT_SDPA = "neft_document_sdpa"
"""The same with torch's `scaled_dot_product_attention` only."""

MAX_BLOCKWISE_TOKENS = 1024
"""Longest document of `blockwise_attention`, since its memory grows with the square of the document.

At twice this length it still takes three fifths of the time of torch's kernel.
"""
QUERY_BLOCK = 128
"""Queries in a block; a document shorter than two blocks is one block."""
MAX_HEAD_DIM = 192
"""Widest head of `varlen_attention`: not every GPU has the backward pass for wider ones."""
MIN_COMPUTE_CAPABILITY = (8, 0)  # Ampere


@contextmanager
def use_document_attention(model: Any, batch: Container[str], *, fused: bool = True) -> Iterator[None]:
    """Isolate the documents of a batch within the block: a model that uses `sdpa` computes attention per document.

    Args:
        model: A transformers model with or without adapters. If it uses a different attention, such as flash attention,
            nothing changes.
        batch: Keyword arguments of the forward pass. Without `cu_seq_lens_q` nothing changes.
        fused: Use `varlen_attention` and `blockwise_attention` if they are supported.
    """
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}
    has_documents = "cu_seq_lens_q" in batch
    changed = [config for config in configs.values() if has_documents and config._attn_implementation == SDPA]
    for config in changed:
        config._attn_implementation_internal = DOCUMENT_ATTENTION if fused else DOCUMENT_SDPA
    try:
        yield
    finally:
        for config in changed:
            config._attn_implementation_internal = SDPA


def document_attention_forward(
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
    """Compute causal attention within each document; the signature is that of transformers' attention functions.

    Args:
        module: The attention layer.
        query: (1, heads, time, head_dim).
        key: (1, key_heads, time, head_dim).
        value: (1, key_heads, time, head_dim).
        attention_mask: None; the boundaries of the documents replace it.
        dropout: Probability for the attention weights.
        scaling: Factor of the scores; 1 / sqrt(head_dim) if None.
        sliding_window: Number of tokens that a token attends to at most, including itself.
        cu_seq_lens_q: Cumulative lengths of the documents, from 0 to `time`.
        max_length_q: Length of the longest document.
        fused: Use `varlen_attention` or `blockwise_attention` if they are supported.
        kwargs: Arguments of other attention functions; ignored.

    Returns:
        The output (1, time, heads, head_dim), and None for the attention weights.
    """
    assert cu_seq_lens_q is not None and attention_mask is None, "needs cu_seq_lens_q, no mask"  # noqa: S101, PT018
    # Rotary embeddings return float32. Autocast would cast for torch's function, but not for the fused kernels.
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if fused and max_length_q is not None and supports_varlen_attention(query, value, dropout):
        window = sliding_window or 0
        return varlen_attention(query, key, value, cu_seq_lens_q, max_length_q, scaling, window), None
    lengths = [end - begin for begin, end in pairwise(cu_seq_lens_q.tolist())]
    # Split instead of slicing: the gradient of each slice would be as large as the row.
    queries, keys, values = (torch.split(tensor, lengths, dim=2) for tensor in (query, key, value))
    outputs = []
    for q, k, v in zip(queries, keys, values, strict=True):
        outputs.append(_attend_document(q, k, v, dropout, scaling, sliding_window, fused))
    return torch.cat(outputs, dim=1), None


def _attend_document(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, scaling: float | None, window: int | None, fused: bool
) -> Tensor:
    """Compute the output of one document, (1, its time, heads, head_dim)."""
    band, length = None, q.shape[2]
    if window is not None and length > window:
        ones = torch.ones(length, length, dtype=torch.bool, device=q.device)
        band = ones.tril() & ones.triu(1 - window)
    if fused and band is None and supports_blockwise_attention(q, dropout):
        return blockwise_attention(q, k, v, scaling).transpose(1, 2)
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


AttentionInterface.register(DOCUMENT_ATTENTION, document_attention_forward)
AttentionInterface.register(DOCUMENT_SDPA, partial(document_attention_forward, fused=False))


# All documents in one call, on GPUs


def supports_varlen_attention(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Return whether `varlen_attention` can compute a row.

    Args:
        query: (1, heads, time, head_dim).
        value: (1, key_heads, time, head_dim).
        dropout: Probability for the attention weights.
    """
    head_dim = query.shape[-1]
    if query.device.type != "cuda" or query.dtype not in (torch.bfloat16, torch.float16) or dropout:
        return False
    if head_dim > MAX_HEAD_DIM or head_dim % 8 or head_dim != value.shape[-1]:
        return False
    return varlen_options(query.device) is not None


@cache
def varlen_options(device: torch.device) -> dict[str, Any] | None:
    """Return the extra arguments of torch's `varlen_attn`; None if torch or the GPU is too old for it."""
    available = torch.version.hip is None and torch.backends.cuda.is_flash_attention_available()
    if not available or torch.cuda.get_device_capability(device) < MIN_COMPUTE_CAPABILITY:
        return None
    if not find_spec("torch.nn.attention.varlen"):
        return None
    from torch.nn.attention.varlen import varlen_attn

    parameters = signature(varlen_attn).parameters
    if "window_size" not in parameters or "scale" not in parameters:  # before torch 2.11
        return None
    # Versions without this argument always allow fewer key heads than query heads.
    return {"enable_gqa": True} if "enable_gqa" in parameters else {}


def varlen_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_lens: Tensor,
    max_length: int,
    scaling: float | None,
    window: int,
) -> Tensor:
    """Compute causal attention within each document by one call of torch's variable-length flash attention.

    One call per document would start many small kernels, and would read the lengths from the GPU in every layer.

    Args:
        query: (1, heads, time, head_dim).
        key: (1, key_heads, time, head_dim).
        value: (1, key_heads, time, head_dim).
        cu_seq_lens: Cumulative lengths of the documents, from 0 to `time`; int32, on the device.
        max_length: Length of the longest document.
        scaling: Factor of the scores; 1 / sqrt(head_dim) if None.
        window: Number of tokens that a token attends to at most, including itself; 0 for all.

    Returns:
        (1, time, heads, head_dim).
    """
    from torch.nn.attention.varlen import varlen_attn

    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        cu_seq_lens,
        cu_seq_lens,
        max_length,
        max_length,
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        **(varlen_options(query.device) or {}),
    )
    assert isinstance(output, Tensor)  # noqa: S101 - a tuple only if auxiliary outputs are requested
    return output[None]


# One document in blocks of queries, on CPUs


def supports_blockwise_attention(query: Tensor, dropout: float) -> bool:
    """Return whether `blockwise_attention` can compute a document.

    Args:
        query: (1, heads, time, head_dim).
        dropout: Probability for the attention weights.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or dropout:
        return False
    return 1 <= query.shape[2] <= MAX_BLOCKWISE_TOKENS


def blockwise_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """Compute softmax(scaling Q K^T + causal mask) V of one document by products of whole blocks of queries.

    torch's fused kernel multiplies in small tiles on a CPU, above all in the backward pass; blocks of some hundred
    queries take half its time. Each block is multiplied with the keys up to its own last token, so that little of what
    is computed is masked. Scores and softmax are float32, as in torch's kernel. The attention weights P are stored for
    the backward pass in the inputs' type.

        dV = P^T dO      dS = P (dO V^T - rowsum(P dO V^T))      dQ = scaling dS K      dK = scaling dS^T Q

    Args:
        query: (1, heads, time, head_dim).
        key: (1, key_heads, time, head_dim); each key head belongs to heads / key_heads consecutive query heads.
        value: (1, key_heads, time, value_dim).
        scaling: Factor of the scores; 1 / sqrt(head_dim) if None.

    Returns:
        (1, heads, time, value_dim).
    """
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast("cpu", enabled=False):  # the scores are float32
        output: Tensor = _BlockwiseAttention.apply(query, key, value, factor)  # type: ignore[no-untyped-call]
    return output


def num_saved_weights(time: int) -> int:
    """Return how many attention weights a head stores for the backward pass of a document of `time` tokens."""
    return sum((end - begin) * end for begin, end in _query_blocks(time))


class _BlockwiseAttention(torch.autograd.Function):
    """All queries of a key head in a block are multiplied at once: (key_heads, heads / key_heads x block, head_dim)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Compute the output (1, heads, time, value_dim) and store the attention weights."""
        _, heads, time, width = query.shape
        groups = key.shape[1]
        q, k, v = query[0].view(groups, -1, time, width), key[0], value[0]
        q32, k32 = q.float() * scaling, k.float().transpose(1, 2)
        output = query.new_empty(*q.shape[:-1], v.shape[-1])
        weights = []
        for begin, end in _query_blocks(time):
            scores = q32[:, :, begin:end].reshape(groups, -1, width) @ k32[:, :, :end]
            mask = _causal_mask(query.device)[: end - begin, : end - begin]
            scores.view(groups, -1, end - begin, end)[..., begin:] += mask
            weights.append(torch.softmax(scores, -1, out=scores).to(query.dtype))
            output[:, :, begin:end] = (weights[-1] @ v[:, :end]).view(groups, -1, end - begin, v.shape[-1])
        ctx.save_for_backward(q, k, v, *weights)
        ctx.scaling = scaling
        return output.view(1, heads, time, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Compute dQ, dK and dV; contributions of several blocks to one key are summed in float32."""
        q, k, v, *weights = ctx.saved_tensors
        groups, _, time, width = q.shape
        output_grad = gradient[0].view(*q.shape[:-1], -1)
        query_grad = torch.empty_like(q)
        key_grad, value_grad = (torch.zeros(tensor.shape, device=k.device) for tensor in (k, v))
        for (begin, end), p in zip(_query_blocks(time), weights, strict=True):
            block_grad = output_grad[:, :, begin:end].reshape(groups, -1, v.shape[-1])
            value_grad[:, :end] += p.transpose(1, 2) @ block_grad
            scores_grad = torch._softmax_backward_data(block_grad @ v[:, :end].transpose(1, 2), p, -1, p.dtype)
            block_query_grad = (scores_grad @ k[:, :end]).mul_(ctx.scaling)
            query_grad[:, :, begin:end] = block_query_grad.view(groups, -1, end - begin, width)
            key_grad[:, :end] += scores_grad.transpose(1, 2) @ q[:, :, begin:end].reshape(groups, -1, width)
        key_grad *= ctx.scaling
        return query_grad.view(1, -1, time, width), key_grad[None].to(k.dtype), value_grad[None].to(v.dtype), None


def _query_blocks(time: int) -> list[tuple[int, int]]:
    """Return the first and the last token (exclusive) of each block of queries, as equal in length as possible."""
    count = max(1, time // QUERY_BLOCK)
    return [(time * block // count, time * (block + 1) // count) for block in range(count)]


@cache
def _causal_mask(device: torch.device) -> Tensor:
    """Minus infinity above the diagonal, for the largest block."""
    return torch.full((2 * QUERY_BLOCK, 2 * QUERY_BLOCK), -torch.inf, device=device).triu(1)

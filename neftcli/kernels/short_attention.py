"""Causal attention of one document on a CPU in bfloat16, by products of whole blocks of queries.

torch's fused attention multiplies in small tiles there, forward and, above all, backward; blocks of some hundred
queries take half its time. Each meets the keys up to its own last token, so that little is computed that is masked.
Scores and softmax are float32, as in the fused one; the weights are kept, rounded, for the backward pass, so memory
grows with the square of the document.

    P = softmax(scaling Q K^T + mask)      O = P V
    dV = P^T dO      dS = P (dO V^T - rowsum(P dO V^T))      dQ = scaling dS K      dK = scaling dS^T Q
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 1024
"""Tokens up to which few weights are kept; blocks of twice as many still take three fifths of the fused one's time."""
BLOCK = 128
"""Queries multiplied at once, and nearly twice as many in a document that is shorter than two blocks."""


def suits(query: Tensor, dropout: float) -> bool:
    """Whether a document of these queries (1, heads, time, width) is done here."""
    short = 1 <= query.shape[2] <= LONGEST
    return short and query.device.type == "cpu" and query.dtype == torch.bfloat16 and not dropout


def attention(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
    """softmax(scaling Q K^T) V, causal.

    Args:
        query: (1, heads, time, width).
        key: (1, key heads, time, width); each is of heads / key heads queries that stand together.
        value: (1, key heads, time, width of a value).
        scaling: Of the scores; 1 / sqrt(width) if None.

    Returns:
        (1, heads, time, width of a value).
    """
    factor = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast("cpu", enabled=False):  # the scores are float32
        output: Tensor = _ShortAttention.apply(query, key, value, factor)  # type: ignore[no-untyped-call]
    return output


def kept_weights(time: int) -> int:
    """Numbers that are kept of each head for the backward pass of a document of `time` tokens."""
    return sum((end - begin) * end for begin, end in _blocks(time))


class _ShortAttention(torch.autograd.Function):
    """All queries of a key head in a block are multiplied at once: (key heads, queries a key head x block, width)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """As `attention`."""
        _, heads, time, width = query.shape
        groups = key.shape[1]
        q, k, v = query[0].view(groups, -1, time, width), key[0], value[0]
        q32, k32 = q.float() * scaling, k.float().transpose(1, 2)
        output = query.new_empty(*q.shape[:-1], v.shape[-1])
        weights = []
        for begin, end in _blocks(time):
            scores = q32[:, :, begin:end].reshape(groups, -1, width) @ k32[:, :, :end]
            behind = _behind(query.device)[: end - begin, : end - begin]
            scores.view(groups, -1, end - begin, end)[..., begin:] += behind
            weights.append(torch.softmax(scores, -1, out=scores).to(query.dtype))
            output[:, :, begin:end] = (weights[-1] @ v[:, :end]).view(groups, -1, end - begin, v.shape[-1])
        ctx.save_for_backward(q, k, v, *weights)
        ctx.scaling = scaling
        return output.view(1, heads, time, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """As above; the softmax's own backward pass is torch's, and what blocks add to a key is added in float32."""
        q, k, v, *weights = ctx.saved_tensors
        groups, _, time, width = q.shape
        outer = gradient[0].view(*q.shape[:-1], -1)
        of_query = torch.empty_like(q)
        of_key, of_value = (torch.zeros(tensor.shape, device=k.device) for tensor in (k, v))
        for (begin, end), kept in zip(_blocks(time), weights, strict=True):
            above = outer[:, :, begin:end].reshape(groups, -1, v.shape[-1])
            of_value[:, :end] += kept.transpose(1, 2) @ above
            of_scores = torch._softmax_backward_data(above @ v[:, :end].transpose(1, 2), kept, -1, kept.dtype)
            of_query[:, :, begin:end] = (of_scores @ k[:, :end]).mul_(ctx.scaling).view(groups, -1, end - begin, width)
            of_key[:, :end] += of_scores.transpose(1, 2) @ q[:, :, begin:end].reshape(groups, -1, width)
        of_key *= ctx.scaling
        return of_query.view(1, -1, time, width), of_key[None].to(k.dtype), of_value[None].to(v.dtype), None


def _blocks(time: int) -> list[tuple[int, int]]:
    """Where blocks of queries begin and end, as even as they can be."""
    count = max(1, time // BLOCK)
    return [(time * block // count, time * (block + 1) // count) for block in range(count)]


@cache
def _behind(device: torch.device) -> Tensor:
    """Of the largest block: minus infinity where a key comes behind the query."""
    return torch.full((2 * BLOCK, 2 * BLOCK), -torch.inf, device=device).triu(1)

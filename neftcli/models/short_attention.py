"""Causal attention of one short document on a CPU in bfloat16, by whole matrix products.

torch's fused attention multiplies in small tiles there, forward and, above all, backward; up to some hundred tokens
whole products take half its time. Scores and softmax are float32, as in the fused one; the weights are kept, rounded,
for the backward pass, so memory grows with the square of the document.

    P = softmax(scaling Q K^T + mask)      O = P V
    dV = P^T dO      dS = P (dO V^T - rowsum(P dO V^T))      dQ = scaling dS K      dK = scaling dS^T Q
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 512
"""Tokens up to which whole products are faster by a half, and the weights that are kept are few."""


def suits(query: Tensor, dropout: float) -> bool:
    """Whether a document of these queries (1, heads, time, width) is done here."""
    short = 1 <= query.shape[2] <= LONGEST
    return short and query.device.type == "cpu" and query.dtype == torch.bfloat16 and not dropout


def short_attention(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Tensor:
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


class _ShortAttention(torch.autograd.Function):
    """All queries of a key head are multiplied at once: (key heads, queries a key head x time, width)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """As `short_attention`."""
        _, heads, time, width = query.shape
        groups = key.shape[1]
        q, k, v = query[0].reshape(groups, -1, width), key[0], value[0]
        scores = (q.float() * scaling) @ k.float().transpose(1, 2)
        scores.view(groups, heads // groups, time, time).add_(_behind(query.device)[:time, :time])
        weights = torch.softmax(scores, -1, out=scores).to(query.dtype)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scaling = scaling
        return (weights @ v).view(1, heads, time, v.shape[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """As above; the softmax's own backward pass is torch's."""
        q, k, v, weights = ctx.saved_tensors
        outer = gradient[0].reshape(len(v), -1, v.shape[-1])
        of_scores = torch._softmax_backward_data(outer @ v.transpose(1, 2), weights, -1, weights.dtype)
        of_query = (of_scores @ k).mul_(ctx.scaling).view(1, gradient.shape[1], -1, k.shape[-1])
        of_key = (of_scores.transpose(1, 2) @ q).mul_(ctx.scaling)
        return of_query, of_key[None], (weights.transpose(1, 2) @ outer)[None], None


@cache
def _behind(device: torch.device) -> Tensor:
    """(LONGEST, LONGEST): minus infinity where a key comes behind the query."""
    return torch.full((LONGEST, LONGEST), -torch.inf, device=device).triu(1)

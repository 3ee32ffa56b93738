"""Causal attention of all documents of a row in one call on a GPU: flash attention with lengths, as torch has it.

One call for each document would be so many kernels, and the lengths would have to come from the GPU at every layer.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor

WIDEST = 256
"""The widest head that flash attention takes."""
AMPERE = (8, 0)


def suits(query: Tensor, dropout: float) -> bool:
    """Whether a row of these queries (1, heads, time, width) is done here."""
    narrow = query.shape[-1] <= WIDEST and query.dtype in (torch.bfloat16, torch.float16)
    return query.device.type == "cuda" and narrow and not dropout and _is_there(query.device)


@cache
def _is_there(device: torch.device) -> bool:
    """Whether this torch has it (since 2.10) and this GPU is new enough."""
    there = find_spec("torch.nn.attention.varlen") is not None
    return there and torch.version.hip is None and torch.cuda.get_device_capability(device) >= AMPERE


def attention(
    query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scaling: float | None, window: int
) -> Tensor:
    """softmax(scaling Q K^T) V within each document, causal.

    Args:
        query: (1, heads, time, width).
        key: (1, key heads, time, width).
        value: (1, key heads, time, width).
        bounds: Where documents begin, and the length of the row; int32, on the device.
        longest: Tokens of the longest document.
        scaling: Of the scores; 1 / sqrt(width) if None.
        window: A token sees so many tokens at most, itself among them; 0 for all.

    Returns:
        (1, time, heads, width).
    """
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
    output = varlen_attn(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        bounds,
        bounds,
        longest,
        longest,
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
        **options,
    )
    assert isinstance(output, Tensor)  # noqa: S101 - no more was asked for
    return output[None]

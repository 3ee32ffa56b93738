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

WIDEST = 192
"""Of wider heads, not every GPU has the backward pass."""
AMPERE = (8, 0)


def suits(query: Tensor, value: Tensor, dropout: float) -> bool:
    """Whether a row of these queries and values (1, heads, time, width) is done here."""
    width = query.shape[-1]
    fits = width <= WIDEST and width % 8 == 0 and width == value.shape[-1]
    sixteen_bits = query.dtype in (torch.bfloat16, torch.float16)
    return query.device.type == "cuda" and fits and sixteen_bits and not dropout and _options(query.device) is not None


@cache
def _options(device: torch.device) -> dict[str, Any] | None:
    """What torch's function is given on every call; None where torch or the GPU is too old for it."""
    there = torch.version.hip is None and torch.backends.cuda.is_flash_attention_available()
    if not there or torch.cuda.get_device_capability(device) < AMPERE or not find_spec("torch.nn.attention.varlen"):
        return None
    from torch.nn.attention.varlen import varlen_attn

    known = signature(varlen_attn).parameters
    if "window_size" not in known or "scale" not in known:  # before torch 2.11
        return None
    return {"enable_gqa": True} if "enable_gqa" in known else {}  # before it was asked for, it was done unasked


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
        **(_options(query.device) or {}),
    )
    assert isinstance(output, Tensor)  # noqa: S101 - no more was asked for
    return output[None]

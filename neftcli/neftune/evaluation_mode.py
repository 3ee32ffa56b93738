"""Evaluation mode for a while: no dropout and no noise, and every module put back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from neftcli.errors import NeftuneError, Problem

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts all of `model` in evaluation mode within the block, and asserts that no noise is on.

    Raises:
        NeftuneError: The embedding adds noise all the same.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        require_no_noise(model)
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def require_no_noise(model: nn.Module) -> None:
    """Asserts that the embedding, with all that is hooked to it, gives what it gives without: bit for bit.

    Raises:
        NeftuneError: It does not, whoever put the noise there.
    """
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    token_ids = torch.zeros(1, 8, dtype=torch.int64, device=next(embedding.parameters()).device)
    hooked, plain = embedding(token_ids), embedding.forward(token_ids)
    if not torch.allclose(hooked, plain, rtol=0, atol=0, equal_nan=True):  # weights that are NaN are no noise
        raise NeftuneError(
            Problem(
                "an evaluation must be without noise, and this model's embedding adds some in evaluation mode",
                f"hooks on {type(embedding).__name__}: {len(embedding._forward_hooks)}",
                "detach the noise first",
            )
        )

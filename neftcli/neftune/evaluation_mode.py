"""Evaluation mode within a block: without dropout and without noise, and with every module's mode restored."""

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
    """Put all of `model` in evaluation mode within the block, and check that its embedding adds no noise.

    Raises:
        NeftuneError: The embedding adds noise in evaluation mode.
    """
    with restore_modes(model):
        model.eval()
        require_no_noise(model)
        yield


@contextmanager
def restore_modes(model: nn.Module) -> Iterator[None]:
    """Restore the training or evaluation mode of every module after the block."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def require_no_noise(model: nn.Module) -> None:
    """Check that the embedding with all its hooks returns exactly what it returns without them.

    Raises:
        NeftuneError: It doesn't; a hook adds noise, this package's or a different one.
    """
    embedding = model.get_input_embeddings()  # type: ignore[operator]
    token_ids = torch.zeros(1, 8, dtype=torch.int64, device=next(embedding.parameters()).device)
    hooked, plain = embedding(token_ids), embedding.forward(token_ids)
    if not torch.allclose(hooked, plain, rtol=0, atol=0, equal_nan=True):  # weights that are NaN aren't noise
        raise NeftuneError(
            Problem(
                "an evaluation must be without noise, but this model's embedding adds noise in evaluation mode",
                f"{len(embedding._forward_hooks)} forward hooks on {type(embedding).__name__}",
                "remove the hooks that add noise before the evaluation",
            )
        )

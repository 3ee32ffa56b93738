"""The length L of each document of a batch, as NEFTune's formula needs it.

A row of a batch is one padded document, or several packed documents. The batch marks the documents in one of three
ways: the attention mask is 0 at pads, the position ids restart at each document, or cumulative sequence lengths give
the boundaries.
"""

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def document_lengths(
    shape: tuple[int, int],
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    cumulative_lengths: Int[Tensor, " documents_and_one"] | None = None,
    device: torch.device | None = None,
) -> Int[Tensor, "batch time"]:
    """Count the real tokens of the document that each token belongs to; 0 at pads.

    Args:
        shape: (batch, time) of the token ids.
        attention_mask: (batch, time), 0 at pads and any other value at real tokens; None if there are no pads.
        position_ids: (batch, time) or (1, time); a document starts at each position that doesn't increase.
        cumulative_lengths: Document boundaries over the flattened batch, from 0; tokens after the last one are pads.
        device: Device of the result.

    Returns:
        int64, shape (batch, time).
    """
    batch, time = shape
    real = torch.ones(shape, dtype=torch.bool, device=device) if attention_mask is None else attention_mask != 0
    starts: Bool[Tensor, "batch time"] = real & (real.cumsum(1) == 1)
    if cumulative_lengths is not None:
        boundaries = cumulative_lengths.to(real.device, torch.int64)
        index = torch.arange(batch * time, device=real.device).view(shape)
        real = real & (index < boundaries[-1])
        starts = starts | torch.isin(index, boundaries)
    elif position_ids is not None:
        positions = position_ids.expand(shape)
        # A start may be a pad: starts only number the documents, and pads aren't counted.
        starts[:, 1:] |= positions[:, 1:] <= positions[:, :-1]
    # Number the documents through the whole batch, and count the real tokens of each.
    document = (starts.flatten().cumsum(0) - 1).clamp(min=0)
    counts = torch.zeros(batch * time, dtype=torch.int64, device=real.device)
    counts.scatter_add_(0, document, real.flatten().to(torch.int64))
    return (counts[document] * real.flatten()).view(shape)


def padded_lengths(lengths: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """Replace each real length by the width of the batch, pads still 0: the scaling of Hugging Face's hook."""
    return torch.where(lengths > 0, lengths.shape[1], 0)

"""How long each document of a batch is: the L of NEFTune.

A row of a batch is one document with padding beside it, or several documents end to end. The batch says which in one
of three ways: the attention mask is 0 at pads, the position ids start again at each document, or cumulative sequence
lengths give the boundaries.
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
    """The number of real tokens of the document that each token belongs to; 0 at pads.

    Args:
        shape: (batch, time) of the token ids.
        attention_mask: (batch, time), 0 at pads and anything else at real tokens; None where there are no pads.
        position_ids: (batch, time) or (1, time); a document starts where they do not grow.
        cumulative_lengths: Document boundaries over the flattened batch, from 0; tokens behind the last are pads.
        device: Where the result is needed.

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
        # A start only numbers the documents, and may stand on a pad; counting looks at real tokens.
        starts[:, 1:] |= positions[:, 1:] <= positions[:, :-1]
    # Number the documents through the whole batch and count the real tokens of each.
    document = (starts.flatten().cumsum(0) - 1).clamp(min=0)
    counts = torch.zeros(batch * time, dtype=torch.int64, device=real.device)
    counts.scatter_add_(0, document, real.flatten().to(torch.int64))
    return (counts[document] * real.flatten()).view(shape)


def padded_lengths(lengths: Int[Tensor, "batch time"]) -> Int[Tensor, "batch time"]:
    """The width of the batch in place of each real length, pads still 0: the scaling of Hugging Face's hook."""
    return torch.where(lengths > 0, lengths.shape[1], 0)

"""Whether documents that share a row see each other, measured on the model itself.

Most architectures keep packed documents apart when position ids restart and no attention mask is given; some build a
mask of their own and let each document read those before it, silently. So one document is changed and the next one's
logits are compared: they must not move.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from neftcli.errors import Problem, TrainingError
from neftcli.kernels.attention import use_document_attention
from neftcli.neftune import document_lengths
from neftcli.neftune.evaluation_mode import evaluation_mode

TOLERANCE = 1e-4
LENGTH = 8
Batching = Literal["auto", "padded", "bucketed", "padding_free", "packed"]


def resolve_batching(batching: Batching, model: Any, *, fused: bool = True) -> Batching:
    """How rows are laid out: as asked for; end to end for "auto", or padded where the model would mix them.

    Args:
        batching: The recipe's.
        model: The model, with or without adapters.
        fused: Attention is computed as in `use_document_attention`.

    Raises:
        TrainingError: Documents were to share a row and the model would mix them.
    """
    if batching in ("padded", "bucketed"):
        return batching
    try:
        leak = measure_leak(model, build_packed_pair(model), fused=fused)
    except ValueError as error:  # raised by layers that need a package to isolate packed documents, as Qwen3.5's
        found = str(error)
    else:
        if leak <= TOLERANCE:
            return "padding_free" if batching == "auto" else batching
        found = f"a different first document changes the second one's logits by {leak:.2g}"
    if batching == "auto":
        return "padded"
    message = f"{type(model).__name__} does not isolate packed documents, so rows can't be packed"
    raise TrainingError(Problem(message, found, "--set training.batching=padded"))


def build_packed_pair(model: Any) -> dict[str, Any]:
    """A row of two documents, laid out as the collator does it."""
    tokens = torch.arange(2 * LENGTH, device=model.device)[None] % model.config.get_text_config().vocab_size
    bounds = torch.tensor([0, LENGTH, 2 * LENGTH], dtype=torch.int32, device=model.device)
    return {
        "input_ids": tokens,
        "position_ids": torch.arange(LENGTH, device=model.device).repeat(2)[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": LENGTH,
        "max_length_k": LENGTH,
    }


@torch.no_grad()
def measure_leak(model: Any, batch: dict[str, Any], *, fused: bool = True) -> float:
    """Largest change of the second document's logits when the first document's tokens change; 0 where apart."""
    token_ids = batch["input_ids"]
    lengths = document_lengths(tuple(token_ids.shape), None, batch["position_ids"], batch.get("cu_seq_lens_q"))
    first = int(lengths[0, 0])
    if first >= token_ids.shape[1]:
        return 0.0
    end = first + int(lengths[0, first])
    other = token_ids.clone()
    other[0, :first] = other[0, :first].flip(0).roll(1)
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "input_ids")}
    with evaluation_mode(model), use_document_attention(model, batch, fused=fused):
        before, after = (
            model(input_ids=ids, use_cache=False, **inputs).logits[0, first:end].float() for ids in (token_ids, other)
        )
    return float((before - after).abs().max())

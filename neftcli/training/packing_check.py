"""Check that a model isolates packed documents, measured on the model itself.

Most architectures isolate the documents of a row if position ids restart and no attention mask is given; some build
their own mask and silently let each document attend to those before it. So one document is changed: the logits of the
next one must stay the same.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from neftcli.errors import Problem, TrainingError
from neftcli.kernels.attention import use_document_attention
from neftcli.neftune import document_lengths
from neftcli.neftune.evaluation_mode import evaluation_mode

LEAK_TOLERANCE = 1e-4
"""Largest change of a logit that is rounding."""
DOCUMENT_LENGTH = 8
Batching = Literal["auto", "padded", "bucketed", "padding_free", "packed"]


def resolve_batching(batching: Batching, model: Any, *, fused: bool = True) -> Batching:
    """Resolve the batching "auto": padding-free, or padded if the model does not isolate packed documents.

    Args:
        batching: The recipe's; any other value is checked and returned.
        model: The model, with or without adapters.
        fused: Attention is computed as in `use_document_attention`.

    Raises:
        TrainingError: The recipe asks for several documents in a row, and the model does not isolate them.
    """
    if batching in ("padded", "bucketed"):
        return batching
    try:
        leak = measure_leak(model, build_packed_pair(model), fused=fused)
    except ValueError as error:  # raised by layers that need a package to isolate packed documents, as Qwen3.5's
        reason = str(error)
    else:
        if leak <= LEAK_TOLERANCE:
            return "padding_free" if batching == "auto" else batching
        reason = f"a different first document changes the second one's logits by {leak:.2g}"
    if batching == "auto":
        return "padded"
    message = f"{type(model).__name__} does not isolate packed documents, so rows can't be packed"
    raise TrainingError(Problem(message, reason, "--set training.batching=padded"))


def build_packed_pair(model: Any) -> dict[str, Any]:
    """Build a row of two documents as the collator does."""
    tokens = torch.arange(2 * DOCUMENT_LENGTH, device=model.device)[None] % model.config.get_text_config().vocab_size
    bounds = torch.tensor([0, DOCUMENT_LENGTH, 2 * DOCUMENT_LENGTH], dtype=torch.int32, device=model.device)
    return {
        "input_ids": tokens,
        "position_ids": torch.arange(DOCUMENT_LENGTH, device=model.device).repeat(2)[None],
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": DOCUMENT_LENGTH,
        "max_length_k": DOCUMENT_LENGTH,
    }


@torch.no_grad()
def measure_leak(model: Any, batch: dict[str, Any], *, fused: bool = True) -> float:
    """Measure the largest change of the second document's logits when the first one's tokens change; 0 if isolated."""
    token_ids = batch["input_ids"]
    lengths = document_lengths(tuple(token_ids.shape), None, batch["position_ids"], batch.get("cu_seq_lens_q"))
    first = int(lengths[0, 0])
    if first >= token_ids.shape[1]:
        return 0.0
    end = first + int(lengths[0, first])
    changed_ids = token_ids.clone()
    changed_ids[0, :first] = changed_ids[0, :first].flip(0).roll(1)
    inputs = {key: value for key, value in batch.items() if key not in ("labels", "input_ids")}
    with evaluation_mode(model), use_document_attention(model, batch, fused=fused):
        before, after = (
            model(input_ids=ids, use_cache=False, **inputs).logits[0, first:end].float()
            for ids in (token_ids, changed_ids)
        )
    return float((before - after).abs().max())

"""Whether documents that share a row see each other, measured on the model itself.

Most architectures keep packed documents apart when position ids restart and no attention mask is given; some build a
mask of their own and let each document read those before it, silently. So one document is changed and the next one's
logits are compared: they must not move.
"""

from __future__ import annotations

from typing import Any

import torch

from neftcli.errors import Problem, TrainingError
from neftcli.evaluation.mode import evaluation_mode
from neftcli.neftune import document_lengths

TOLERANCE = 1e-4


def require_isolation(model: Any, batch: dict[str, Any], architecture: str) -> None:
    """Checks that a document of `batch` does not depend on the one before it.

    Args:
        model: The model as it will be trained.
        batch: A row of at least two documents, as the collator lays it out: with position ids, without padding.
        architecture: The model's class, for the message.

    Raises:
        TrainingError: The second document's logits change with the first document's tokens.
    """
    leak = leak_between_documents(model, batch)
    if leak > TOLERANCE:
        raise TrainingError(
            Problem(
                f"{architecture} lets documents that share a row see each other, so they can't be packed",
                f"another first document moves the second one's logits by {leak:.2g}",
                "--set training.batching=padded",
            )
        )


@torch.no_grad()
def leak_between_documents(model: Any, batch: dict[str, Any]) -> float:
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
    with evaluation_mode(model):
        before, after = (
            model(input_ids=ids, use_cache=False, **inputs).logits[0, first:end].float() for ids in (token_ids, other)
        )
    return float((before - after).abs().max())

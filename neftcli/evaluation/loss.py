"""Loss of rows without noise: negative log-likelihood in nats, weighted by tokens.

This is the one definition of loss that neft reports: during training, at its end, and in later comparisons. The loss of
a row does not depend on the other rows of its batch, up to the order of floating-point sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt, Lt

from neftcli.data.tokens import IGNORE_INDEX, TokenRow
from neftcli.evaluation.adaptive_batches import iter_batches
from neftcli.kernels.cross_entropy import score_labels
from neftcli.kernels.lora import fusable_lora_layers, fused_lora
from neftcli.neftune.evaluation_mode import evaluation_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from neftcli.events import Observer


@dataclass(frozen=True, slots=True)
class RowLoss:
    """Loss of one row.

    Attributes:
        location: Location of the row in its file.
        negative_log_likelihood: Sum over its tokens with loss, in nats.
        tokens: Number of its tokens with loss.
        correct: Tokens with loss to which the model gives the highest probability.
    """

    location: str
    negative_log_likelihood: Annotated[float, Gt(-math.inf), Lt(math.inf)]
    tokens: Annotated[int, Gt(0)]
    correct: Annotated[int, Ge(0)]


def row_losses(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    batch_size: int,
    autocast: AbstractContextManager[object] | None = None,
    observer: Observer | None = None,
) -> list[RowLoss]:
    """Compute the loss of each row, in order; the arguments are those of `iter_losses`."""
    losses: dict[int, RowLoss] = {}
    for batch in iter_losses(model, rows, batch_size, autocast, observer):
        losses.update(batch)
    return [losses[index] for index in range(len(rows))]


def iter_losses(
    model: PreTrainedModel,
    rows: Sequence[TokenRow],
    batch_size: int,
    autocast: AbstractContextManager[object] | None = None,
    observer: Observer | None = None,
) -> Iterator[list[tuple[int, RowLoss]]]:
    """Yield indices of rows with their losses, batch by batch, the shortest rows first.

    Args:
        model: In any mode; it is evaluated in eval mode, asserted to be without noise, and its mode is restored.
        rows: Tokenised rows.
        batch_size: Rows per batch; rows of similar length share a batch. Halved on OOM.
        autocast: Precision of the forward pass; as loaded if None.
        observer: Receives a notice when the batch size is halved.

    Raises:
        NeftuneError: Noise is on.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))

    def compute(chosen: Sequence[int]) -> list[RowLoss]:
        return _batch_losses(model, [rows[index] for index in chosen], autocast or nullcontext())

    with evaluation_mode(model):
        yield from iter_batches(order, batch_size, compute, observer)


def mean_loss(losses: Sequence[RowLoss]) -> float | None:
    """Return the loss in nats per token with loss, exact in any order of the rows; None without rows."""
    tokens = sum(loss.tokens for loss in losses)
    return math.fsum(loss.negative_log_likelihood for loss in losses) / tokens if tokens else None


@torch.no_grad()
def _batch_losses(
    model: PreTrainedModel, batch: Sequence[TokenRow], autocast: AbstractContextManager[object]
) -> list[RowLoss]:
    width = max(len(row.input_ids) for row in batch)
    input_ids = torch.zeros(len(batch), width, dtype=torch.int64)
    labels = torch.full((len(batch), width), IGNORE_INDEX)
    mask = torch.zeros_like(input_ids)
    for index, row in enumerate(batch):
        input_ids[index, : len(row.input_ids)] = torch.tensor(row.input_ids)
        labels[index, : len(row.labels)] = torch.tensor(row.labels)
        mask[index, : len(row.input_ids)] = 1
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
    with autocast, fused_lora(fusable_lora_layers(model, trained=False)):
        nll, hits = score_labels(causal, {name: tensor.to(model.device) for name, tensor in inputs.items()})
    scored = labels[:, 1:] != IGNORE_INDEX  # (rows, time - 1)
    owner = torch.arange(len(batch))[:, None].expand_as(scored)[scored]
    sums = torch.zeros(len(batch), dtype=torch.float64).index_add_(0, owner, nll)
    correct = torch.zeros(len(batch), dtype=torch.int64).index_add_(0, owner, hits.long())
    tokens = scored.sum(1)
    return [
        RowLoss(row.location, float(sums[index]), int(tokens[index]), int(correct[index]))
        for index, row in enumerate(batch)
    ]

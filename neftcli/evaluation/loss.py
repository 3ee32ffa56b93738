"""The loss of rows without noise: negative log-likelihood in nats, weighted by tokens.

The one definition of loss that this tool reports: while training, at its end, and in later comparisons. A row's value
does not depend on its neighbours in the batch, up to the order of floating-point sums.
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
    """The loss of one row.

    Attributes:
        where: Where the row stands.
        negative_log_likelihood: Sum over its tokens with loss, in nats.
        tokens: Tokens with loss.
        correct: Those that were the likeliest token.
    """

    where: str
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
    """The loss of each row, in the order given; the arguments are those of `iter_losses`."""
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
    """Places of rows with their losses, batch by batch, the shortest rows first.

    Args:
        model: In any mode; it is evaluated in eval mode, asserted to be without noise, and put back as it was.
        rows: Tokenised rows.
        batch_size: Rows computed at once; rows of like length are put together. Halved where memory is short.
        autocast: Arithmetic of the forward pass; as loaded if None.
        observer: Is told of the halving.

    Raises:
        NeftuneError: Noise is on.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))

    def compute(chosen: Sequence[int]) -> list[RowLoss]:
        return _batch_losses(model, [rows[index] for index in chosen], autocast or nullcontext())

    with evaluation_mode(model):
        yield from iter_batches(order, batch_size, compute, observer)


def mean_loss(losses: Sequence[RowLoss]) -> float | None:
    """Nats a token with loss, whatever the order of the rows; None without rows."""
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

"""The vocabulary head where there is a label, and nowhere else.

On a CPU, TRL's head projects every position, pads and prompts as well, computes the logits a second time for the
backward pass and multiplies in float32 there. Here the gradient of a tile of logits is taken while it is at hand.

    loss = sum over labels of logsumexp(W h) - (W h)[label]
    d loss / d W h = softmax(W h) - onehot(label)
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neftcli.neftune.evaluation_mode import evaluation_mode

TILE = 1024
"""Labels whose gradients are held and multiplied at once."""
STRIP = 256
"""Labels whose logits are, in float32."""
_PLAIN: WeakKeyDictionary[torch.nn.Linear, bool] = WeakKeyDictionary()


def _negative_log_likelihoods(scores: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each label, exact up to the rounding of the sum; used by training and evaluation.

        -log p[label] = log(sum exp(scores - top)) + (top - scores[label])

    `torch.nn.functional.cross_entropy` in float32 is not used: with AVX2 its sum of exponentials comes out low, by up
    to 2.6e-5 nat a label. The logarithm and the difference are taken in float64 on the CPU: not every GPU has it.

    Args:
        scores: (labels, vocabulary) in float32; overwritten.
        wanted: (labels, 1), the labels.

    Returns:
        The losses (labels) in float64 on the CPU; exp(scores - top), in the memory of `scores`; its sums (labels, 1).
    """
    top = scores.amax(1, keepdim=True)
    of_label = scores.gather(1, wanted)
    exponentials = scores.sub_(top).exp_()
    sums = exponentials.sum(1, keepdim=True)
    gap = top.cpu().double() - of_label.cpu().double()
    return (sums.cpu().double().log() + gap)[:, 0], exponentials, sums


def _softmax_less_one(logits: Tensor, bias: Tensor | None, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihoods (labels), and their gradient by the logits (labels, vocabulary) in float32."""
    scores = logits.float() if bias is None else logits.float() + bias
    losses, exponentials, sums = _negative_log_likelihoods(scores, wanted)
    gradient = exponentials.div_(sums)
    return losses, gradient.scatter_add_(1, wanted, torch.full_like(sums, -1.0))


class _LabelLoss(torch.autograd.Function):
    """Sum of the negative log-likelihoods of labels, with its gradients taken in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, kind: Any) -> Tensor:
        """`hidden` (labels, width), `weight` (vocabulary, width), `labels` (labels); multiplied in `kind`."""
        total = torch.zeros((), dtype=torch.float64)
        hidden_gradient = torch.zeros_like(hidden)
        weight_gradient = torch.zeros_like(weight) if weight.requires_grad else None
        bias_gradient = torch.zeros_like(bias) if bias is not None and bias.requires_grad else None
        matrix = weight.detach().to(kind)
        for begin in range(0, len(labels), TILE):
            states, wanted = hidden[begin : begin + TILE].to(kind), labels[begin : begin + TILE, None]
            gradient = states.new_empty(len(states), len(matrix))  # (tile, vocabulary)
            for first in range(0, len(states), STRIP):
                strip = slice(first, first + STRIP)
                losses, of_logits = _softmax_less_one(states[strip] @ matrix.T, bias, wanted[strip])
                total += losses.sum()
                if bias_gradient is not None:
                    bias_gradient += of_logits.sum(0)
                gradient[strip] = of_logits
            hidden_gradient[begin : begin + TILE] = gradient @ matrix
            if weight_gradient is not None:
                weight_gradient += gradient.T @ states
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        """Scales the gradients that are there already."""
        return *(None if gradient is None else gradient.mul_(outer) for gradient in ctx.saved_tensors), None, None


def is_plain(model: Any) -> bool:
    """Whether the model's logits are W h + b: no adapter in the head, and nothing before or behind it.

    Architectures cap, scale and cut their logits under many names, so it is measured, once for each head: an adapter
    takes the head's place in a model that was measured before.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or model.base_model is model:
        return False
    if head not in _PLAIN:
        _PLAIN[head] = _measured_plain(model, head)
    return _PLAIN[head]


@torch.no_grad()
def _measured_plain(model: Any, head: torch.nn.Linear) -> bool:
    token_ids = torch.arange(8, device=head.weight.device)[None] % head.out_features
    with evaluation_mode(model), torch.autocast(head.weight.device.type, enabled=False):
        logits = model(input_ids=token_ids, use_cache=False).logits
        hidden = getattr(model.base_model(input_ids=token_ids, use_cache=False), "last_hidden_state", None)
        if hidden is None or hidden.shape[-1] != head.in_features:
            return False
        projected = head(hidden.to(head.weight.dtype))
    # To the bit: a cap of 30 hardly moves the small logits of a model that has yet to learn.
    return torch.equal(projected.nan_to_num(), logits.nan_to_num())


def can_sum_labels(model: Any) -> bool:
    """Whether `sum_of_labels` can train the model: on a CPU, with a plain head. To be asked while no noise is on."""
    return is_plain(model) and model.get_output_embeddings().weight.device.type == "cpu"


def label_scores(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each label in nats, and whether it was the likeliest token; without gradients.

    Args:
        model: A causal language model without a wrapper, on any device.
        inputs: A batch, with labels of -100 where there is no loss.

    Returns:
        Two vectors over the labels, row by row: losses in float64, hits as booleans; on the CPU.
    """
    given = {name: value for name, value in inputs.items() if name != "labels"}
    labels = inputs["labels"][:, 1:]
    scored = labels != -100
    wanted = labels[scored]
    plain = is_plain(model)
    if plain:
        vectors = model.base_model(**given, use_cache=False).last_hidden_state[:, :-1][scored]  # (labels, width)
        head = model.get_output_embeddings()
    else:
        vectors = model(**given, use_cache=False).logits[:, :-1][scored]  # (labels, vocabulary)
    losses, hits = [], []
    for begin in range(0, max(1, len(wanted)), TILE):  # one tile, though it be empty
        tile, labels_of_tile = vectors[begin : begin + TILE], wanted[begin : begin + TILE]
        logits = (head(tile) if plain else tile).float()
        hits.append((logits.argmax(-1) == labels_of_tile).cpu())
        losses.append(_negative_log_likelihoods(logits, labels_of_tile[:, None])[0])
    return torch.cat(losses), torch.cat(hits)


def sum_of_labels(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The summed negative log-likelihood of a batch, in nats.

    Args:
        model: A causal language model without a wrapper; adapters may be in it.
        inputs: The collator's batch, with labels of -100 where there is no loss.
    """
    given = {name: value for name, value in inputs.items() if name != "labels"}
    hidden = model.base_model(**given, use_cache=False).last_hidden_state[:, :-1]  # (rows, time - 1, width)
    labels = inputs["labels"][:, 1:]
    scored = labels != -100
    head = model.get_output_embeddings()
    kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else head.weight.dtype
    bias = getattr(head, "bias", None)
    with torch.autocast("cpu", enabled=False):
        loss: Tensor = _LabelLoss.apply(hidden[scored], head.weight, bias, labels[scored], kind)  # type: ignore[no-untyped-call]
    return loss

"""The output layer and its cross-entropy loss, computed only at the labels.

TRL's loss projects every position, including pads and prompts. On a CPU it also computes the logits a second time for
the backward pass, and multiplies in float32. Here the gradient of a tile of logits is computed while the tile is in
memory. With hidden states h (labels, hidden_size) and the output layer's weight W (vocab_size, hidden_size):

    loss = sum over labels of logsumexp(W h) - (W h)[label]
    d loss / d (W h) = softmax(W h) - onehot(label)
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from neftcli.neftune.evaluation_mode import evaluation_mode

GRADIENT_TILE = 1024
"""Labels whose gradients are stored and multiplied at once, in the type of the product."""
LOGITS_TILE = 256
"""Labels whose logits are stored at once, in float32."""
_HAS_LINEAR_HEAD: WeakKeyDictionary[torch.nn.Linear, bool] = WeakKeyDictionary()


def fused_linear_cross_entropy(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """Compute the summed negative log-likelihood of a batch's labels, in nats.

    Args:
        model: A causal language model without a wrapper, with or without adapters, that
            `supports_fused_cross_entropy`.
        inputs: A batch of the collator, with label -100 at positions without loss.
    """
    arguments = {name: value for name, value in inputs.items() if name != "labels"}
    hidden = model.base_model(**arguments, use_cache=False).last_hidden_state[:, :-1]  # (batch, time - 1, hidden_size)
    labels = inputs["labels"][:, 1:]
    has_label = labels != -100
    head = model.get_output_embeddings()
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else head.weight.dtype
    bias = getattr(head, "bias", None)
    with torch.autocast("cpu", enabled=False):
        loss: Tensor = _FusedLinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden[has_label], head.weight, bias, labels[has_label], dtype
        )
    return loss


def supports_fused_cross_entropy(model: Any) -> bool:
    """Return whether `fused_linear_cross_entropy` can train a model: on a CPU, with a linear head.

    Call it before noise is attached: the head is measured with a forward pass.
    """
    return has_linear_head(model) and model.get_output_embeddings().weight.device.type == "cpu"


def score_labels(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Compute the negative log-likelihood of each label, and whether it was the most likely token.

    No gradients are computed.

    Args:
        model: A causal language model without a wrapper, on any device.
        inputs: A batch, with label -100 at positions without loss.

    Returns:
        Two vectors over the labels, row by row, on the CPU: losses in nats (float64) and hits (bool).
    """
    arguments = {name: value for name, value in inputs.items() if name != "labels"}
    labels = inputs["labels"][:, 1:]
    has_label = labels != -100
    targets = labels[has_label]
    linear = has_linear_head(model)
    if linear:
        output = model.base_model(**arguments, use_cache=False).last_hidden_state  # (batch, time, hidden_size)
        head = model.get_output_embeddings()
    else:
        output = model(**arguments, use_cache=False).logits  # (batch, time, vocab_size)
    vectors = output[:, :-1][has_label]
    losses, hits = [], []
    for begin in range(0, max(1, len(targets)), GRADIENT_TILE):  # at least one tile, which may be empty
        tile, tile_targets = vectors[begin : begin + GRADIENT_TILE], targets[begin : begin + GRADIENT_TILE]
        logits = (head(tile) if linear else tile).float()
        hits.append((logits.argmax(-1) == tile_targets).cpu())
        losses.append(negative_log_likelihoods(logits, tile_targets[:, None])[0])
    return torch.cat(losses), torch.cat(hits)


def has_linear_head(model: Any) -> bool:
    """Return whether the model's logits are W h + b: no adapter in the head, and no operation before or after it.

    Architectures cap, scale and crop their logits under many names, so this is measured, once for each head. An adapter
    replaces the head, so it is checked on every call.
    """
    head = model.get_output_embeddings()
    if type(head) is not torch.nn.Linear or model.base_model is model:
        return False
    if head not in _HAS_LINEAR_HEAD:
        _HAS_LINEAR_HEAD[head] = _measure_linear_head(model, head)
    return _HAS_LINEAR_HEAD[head]


@torch.no_grad()
def _measure_linear_head(model: Any, head: torch.nn.Linear) -> bool:
    """Compare the model's logits of eight tokens with those of its head alone."""
    token_ids = torch.arange(8, device=head.weight.device)[None] % head.out_features
    with evaluation_mode(model), torch.autocast(head.weight.device.type, enabled=False):
        logits = model(input_ids=token_ids, use_cache=False).logits
        hidden = getattr(model.base_model(input_ids=token_ids, use_cache=False), "last_hidden_state", None)
        if hidden is None or hidden.shape[-1] != head.in_features:
            return False
        projected = head(hidden.to(head.weight.dtype))
    # Bit-identical: a soft cap of 30 hardly changes the small logits of an untrained model.
    return torch.equal(projected.nan_to_num(), logits.nan_to_num())


class _FusedLinearCrossEntropy(torch.autograd.Function):
    """Sum of the labels' negative log-likelihoods; its gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, dtype: torch.dtype
    ) -> Tensor:
        """Compute the loss and the gradients of `hidden`, and of `weight` and `bias` if they are trained.

        Args:
            ctx: Context of autograd.
            hidden: (labels, hidden_size).
            weight: (vocab_size, hidden_size).
            bias: (vocab_size), or None.
            labels: (labels).
            dtype: Type in which matrices are multiplied.
        """
        total = torch.zeros((), dtype=torch.float64)
        hidden_grad = torch.zeros_like(hidden)
        weight_grad = torch.zeros_like(weight) if weight.requires_grad else None
        bias_grad = torch.zeros_like(bias) if bias is not None and bias.requires_grad else None
        matrix = weight.detach().to(dtype)
        for begin in range(0, len(labels), GRADIENT_TILE):
            states = hidden[begin : begin + GRADIENT_TILE].to(dtype)
            targets = labels[begin : begin + GRADIENT_TILE, None]
            tile_grad = states.new_empty(len(states), len(matrix))  # (tile, vocab_size)
            for first in range(0, len(states), LOGITS_TILE):
                part = slice(first, first + LOGITS_TILE)
                losses, logits_grad = _losses_and_logits_grad(states[part] @ matrix.T, bias, targets[part])
                total += losses.sum()
                if bias_grad is not None:
                    bias_grad += logits_grad.sum(0)
                tile_grad[part] = logits_grad
            hidden_grad[begin : begin + GRADIENT_TILE] = tile_grad @ matrix
            if weight_grad is not None:
                weight_grad += tile_grad.T @ states
        ctx.save_for_backward(hidden_grad, weight_grad, bias_grad)
        return total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, output_grad: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass computed."""
        gradients = [None if saved is None else saved.mul_(output_grad) for saved in ctx.saved_tensors]
        return *gradients, None, None


def _losses_and_logits_grad(logits: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Compute negative log-likelihoods (labels), and the gradient of the logits (labels, vocab_size) in float32."""
    scores = logits.float() if bias is None else logits.float() + bias
    losses, exponentials, sums = negative_log_likelihoods(scores, targets)
    probabilities = exponentials.div_(sums)
    return losses, probabilities.scatter_add_(1, targets, torch.full_like(sums, -1.0))


def negative_log_likelihoods(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss of each label, exact up to the rounding of the sum; for training and evaluation.

        -log p[label] = log(sum exp(scores - max)) + (max - scores[label])

    `torch.nn.functional.cross_entropy` in float32 is not used: with AVX2 its sum of exponentials is too low, by up
    to 2.6e-5 nat per label. The logarithm and the difference are computed in float64 on the CPU, since not every GPU
    supports float64.

    Args:
        scores: (labels, vocab_size) in float32; overwritten.
        targets: (labels, 1), the labels.

    Returns:
        The losses (labels) in float64 on the CPU; exp(scores - max), in the memory of `scores`; its sums (labels, 1).
    """
    maximum = scores.amax(1, keepdim=True)
    target_scores = scores.gather(1, targets)
    exponentials = scores.sub_(maximum).exp_()
    sums = exponentials.sum(1, keepdim=True)
    margin = maximum.cpu().double() - target_scores.cpu().double()
    return (sums.cpu().double().log() + margin)[:, 0], exponentials, sums

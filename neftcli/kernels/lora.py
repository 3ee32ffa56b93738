"""LoRA's layers, and QLoRA's, with fewer passes over the activations.

peft casts the input, multiplies by A, by B and by the scaling, adds, and has autograd cast and add the two gradients of
the input. Here what the adapter adds is added within the products themselves.

    y = x W^T + b + (x A^T) (s B)^T = [x, x A^T] [W, s B]^T + b
    dx = dy W + (dy s B) A      dA = (dy s B)^T x      dB = s dy^T (x A^T)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from collections.abc import Sequence


class _LowRankLinear(torch.autograd.Function):
    """A frozen linear layer with its adapter, multiplied in `kind`.

    In 16 bits, what a young adapter adds is less than half a step beside what the layer itself gives, and is lost where
    that is rounded before. So both are one product where the layer's weights are copied to be multiplied anyway; where
    that would be one copy more, what the adapter adds is added to what is rounded, as peft does it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Any, a: Tensor, b: Tensor, scaling: float, kind: torch.dtype) -> Tensor:
        """`x` (..., in), `base` with a weight (out, in), `a` (rank, in), `b` (out, rank); returns (..., out)."""
        rows = x.reshape(-1, x.shape[-1])
        down, up, bias = a.to(kind), (b * scaling).to(kind), None if base.bias is None else base.bias.to(kind)
        matrix = base.weight
        if matrix.dtype == kind and not _four_bit(base):
            rows = rows.to(kind)
            inner = rows @ down.T
            y = nn.functional.linear(rows, matrix, bias).addmm_(inner, up.T)
        else:
            rows, inner, matrix, y = _in_one_product(rows, _weights(base), down, up, bias)
        ctx.save_for_backward(rows, inner, down, up, None if _four_bit(base) else matrix)
        ctx.base, ctx.scaling, ctx.kinds = base, scaling, (x.dtype, a.dtype, b.dtype)
        return y.view(*x.shape[:-1], len(up))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """As above."""
        rows, inner, down, up, matrix = ctx.saved_tensors
        outer = gradient.reshape(-1, len(up))
        of_x, of_a, of_b = ctx.kinds
        of_inner = outer @ up
        x_gradient = None
        if ctx.needs_input_grad[0]:
            matrix = _weights(ctx.base).to(rows.dtype) if matrix is None else matrix
            x_gradient = (outer @ matrix).addmm_(of_inner, down).view(*gradient.shape[:-1], rows.shape[1]).to(of_x)
        a_gradient = (of_inner.T @ rows).to(of_a)
        b_gradient = (outer.T @ inner).to(of_b).mul_(ctx.scaling)
        return x_gradient, None, a_gradient, b_gradient, None, None


def _four_bit(base: Any) -> bool:
    """Whether a layer's weights are of four bits, so that the matrix is made anew each time."""
    return hasattr(base.weight, "quant_state")


def _weights(base: Any) -> Tensor:
    """A layer's weights (out, in)."""
    if not _four_bit(base):
        return cast("Tensor", base.weight)
    from bitsandbytes.functional import dequantize_4bit

    return cast("Tensor", dequantize_4bit(base.weight.data, base.weight.quant_state))


def _in_one_product(
    x: Tensor, weights: Tensor, down: Tensor, up: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`x`, `x` A^T and the weights in the type of A, and the layer's output, rounded once."""
    inputs, rank, kind = x.shape[1], len(down), down.dtype
    both = x.new_empty(len(x), inputs + rank, dtype=kind)
    matrices = x.new_empty(len(weights), inputs + rank, dtype=kind)
    (rows, inner), (matrix, beside) = (torch.split(tensor, [inputs, rank], dim=1) for tensor in (both, matrices))
    rows.copy_(x)
    inner.copy_(rows @ down.T)
    matrix.copy_(weights)
    beside.copy_(up)
    return rows, inner, matrix, nn.functional.linear(both, matrices, bias)


def low_rank_layers(model: Any, *, trained: bool = True) -> Sequence[Any]:
    """The layers of `model` that `fused_low_rank` computes: one plain LoRA adapter on a frozen linear layer.

    Left to peft are DoRA, weights of 8 bits, those of 4 on a GPU, and Apple's GPUs, where it was never tried.

    Args:
        model: With or without adapters.
        trained: Layers with dropout are left to peft. Where the model is only measured, weights of 4 bits are: peft
            adds to them in float32, as they are multiplied without an adapter.
    """
    if not hasattr(model, "peft_config"):
        return ()
    from peft.import_utils import is_bnb_4bit_available
    from peft.tuners.lora.layer import Linear

    base_of: dict[type, type] = {Linear: nn.Linear}
    if is_bnb_4bit_available():
        from bitsandbytes.nn import Linear4bit as FourBitLinear
        from peft.tuners.lora.bnb import Linear4bit

        base_of[Linear4bit] = FourBitLinear
    layers = [module for module in model.modules() if type(module) in base_of]
    # Not a kind of it: FP8 and others have a forward pass of their own.
    return [layer for layer in layers if type(layer.base_layer) is base_of[type(layer)] and _is_plain(layer, trained)]


def _is_plain(layer: Any, trained: bool) -> bool:
    names = layer.active_adapters
    if len(names) != 1 or layer.disable_adapters or layer.merged:
        return False
    (name,) = names
    four_bit = _four_bit(layer.base_layer)
    devices = ("cpu", "cuda") if not four_bit else ("cpu",) if trained else ()
    return (
        name in layer.lora_A
        and name not in layer.lora_variant
        and (isinstance(layer.lora_dropout[name], nn.Identity) or not trained)
        and layer.lora_A[name].bias is layer.lora_B[name].bias is None
        and not any(parameter.requires_grad for parameter in layer.base_layer.parameters())
        and layer.base_layer.weight.device.type in devices
    )


@contextmanager
def fused_low_rank(layers: Sequence[Any]) -> Iterator[None]:
    """Within the block, `layers` of `low_rank_layers` are computed here."""
    try:
        for layer in layers:
            layer.forward = partial(_forward, layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _forward(layer: Any, x: Tensor) -> Tensor:
    (name,) = layer.active_adapters
    base, device = layer.base_layer, x.device.type
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    kind = base.compute_dtype if _four_bit(base) else base.weight.dtype
    if torch.is_autocast_enabled(device):
        kind = torch.get_autocast_dtype(device)
    elif not kind == a.dtype == x.dtype:
        plain: Tensor = type(layer).forward(layer, x)  # adapters that are more exact than their layer, say
        return plain
    with torch.autocast(device, enabled=False):
        y: Tensor = _LowRankLinear.apply(x, base, a, b, layer.scaling[name], kind)  # type: ignore[no-untyped-call]
    return y

"""LoRA's layers on a CPU with fewer passes over the activations.

peft casts the input, multiplies by A, by B and by the scaling, adds, and has autograd cast and add the two gradients of
the input. Here what the adapter adds is added within the products themselves, and rounded once.

    y = x W^T + b + (x A^T) (s B)^T
    dx = dy W + (dy s B) A      dA = (dy s B)^T x      dB = s dy^T (x A^T)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

if TYPE_CHECKING:
    from collections.abc import Sequence


class _LowRankLinear(torch.autograd.Function):
    """A frozen linear layer with its adapter, multiplied in `kind`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float, kind: Any
    ) -> Tensor:
        """`x` (..., in), `weight` (out, in), `bias` (out), `a` (rank, in), `b` (out, rank); returns (..., out)."""
        rows = x.to(kind).reshape(-1, x.shape[-1])
        matrix, down, up = weight.to(kind), a.to(kind), (b * scaling).to(kind)
        inner = rows @ down.T
        y = rows @ matrix.T if bias is None else torch.addmm(bias.to(kind), rows, matrix.T)
        y.addmm_(inner, up.T)
        ctx.save_for_backward(rows, inner, matrix, down, up)
        ctx.scaling, ctx.kinds = scaling, (x.dtype, a.dtype, b.dtype)
        return y.view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """As above."""
        rows, inner, matrix, down, up = ctx.saved_tensors
        outer = gradient.reshape(-1, len(matrix))
        of_x, of_a, of_b = ctx.kinds
        of_inner = outer @ up
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = (outer @ matrix).addmm_(of_inner, down).view(*gradient.shape[:-1], rows.shape[1]).to(of_x)
        a_gradient = (of_inner.T @ rows).to(of_a)
        b_gradient = (outer.T @ inner).to(of_b).mul_(ctx.scaling)
        return x_gradient, None, None, a_gradient, b_gradient, None, None


def low_rank_layers(model: Any) -> Sequence[Any]:
    """The layers of `model` that `fused_low_rank` computes: one plain LoRA adapter on a frozen linear layer of a CPU.

    Dropout, DoRA and quantised layers are left to peft.
    """
    if not hasattr(model, "peft_config"):
        return ()
    from peft.tuners.lora.layer import Linear

    return [module for module in model.modules() if type(module) is Linear and _is_plain(module)]


def _is_plain(layer: Any) -> bool:
    base, names = layer.base_layer, layer.active_adapters
    if type(base) is not nn.Linear or len(names) != 1 or layer.disable_adapters or layer.merged:
        return False
    (name,) = names
    return (
        name in layer.lora_A
        and name not in layer.lora_variant
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and layer.lora_A[name].bias is layer.lora_B[name].bias is None
        and not any(parameter.requires_grad for parameter in base.parameters())
        and base.weight.device.type == "cpu"
    )


@contextmanager
def fused_low_rank(layers: Sequence[Any]) -> Iterator[None]:
    """Within the block, `layers` of `low_rank_layers` are computed here."""
    for layer in layers:
        layer.forward = partial(_forward, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _forward(layer: Any, x: Tensor) -> Tensor:
    (name,) = layer.active_adapters
    base, autocast = layer.base_layer, torch.is_autocast_enabled("cpu")
    if not autocast and base.weight.dtype != layer.lora_A[name].weight.dtype:
        plain: Tensor = type(layer).forward(layer, x)  # adapters that are more exact than their layer
        return plain
    kind = torch.get_autocast_dtype("cpu") if autocast else base.weight.dtype
    with torch.autocast("cpu", enabled=False):
        y: Tensor = _LowRankLinear.apply(  # type: ignore[no-untyped-call]
            x, base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name], kind
        )
    return y

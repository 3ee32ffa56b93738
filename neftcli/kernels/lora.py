"""LoRA and QLoRA layers with fewer passes over the activations.

peft casts the input, multiplies by A, by B and by the scaling, adds, and lets autograd cast and add the two gradients
of the input. Here the adapter's part is added within the matrix products themselves. With the frozen weight
W (out, in), the adapter's A (rank, in) and B (out, rank), its scaling s, and an input x (tokens, in):

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


def fusable_lora_layers(model: Any, *, trained: bool = True) -> Sequence[Any]:
    """List the layers of a model that `fused_lora` can compute: one plain LoRA adapter on a frozen linear layer.

    peft computes all other layers: DoRA, 8-bit weights, 4-bit weights on a GPU, and Apple's GPUs, on which this kernel
    is untested.

    Args:
        model: A model with or without adapters.
        trained: The model is trained, so layers with dropout are left to peft. If it is only evaluated, 4-bit layers
            are left to peft, which adds the adapter's part in float32, the type in which those layers are multiplied
            without an adapter.
    """
    if not hasattr(model, "peft_config"):
        return ()
    from peft.import_utils import is_bnb_4bit_available
    from peft.tuners.lora.layer import Linear

    base_types: dict[type, type] = {Linear: nn.Linear}
    if is_bnb_4bit_available():
        from bitsandbytes.nn import Linear4bit as BaseLinear4bit
        from peft.tuners.lora.bnb import Linear4bit

        base_types[Linear4bit] = BaseLinear4bit
    layers = []
    for module in model.modules():
        # Exact types: subclasses of nn.Linear, such as FP8 layers, have a forward pass of their own.
        base_type = base_types.get(type(module))
        if base_type and type(module.base_layer) is base_type and _is_plain_lora(module, trained):
            layers.append(module)
    return layers


def _is_plain_lora(layer: Any, trained: bool) -> bool:
    """Return whether a layer has one active, unmerged LoRA adapter without variants on a frozen base layer."""
    names = layer.active_adapters
    if len(names) != 1 or layer.disable_adapters or layer.merged:
        return False
    (name,) = names
    devices: tuple[str, ...] = ("cpu", "cuda")
    if _is_four_bit(layer.base_layer):
        devices = ("cpu",) if trained else ()
    return (
        name in layer.lora_A
        and name not in layer.lora_variant
        and (isinstance(layer.lora_dropout[name], nn.Identity) or not trained)
        and layer.lora_A[name].bias is layer.lora_B[name].bias is None
        and not any(parameter.requires_grad for parameter in layer.base_layer.parameters())
        and layer.base_layer.weight.device.type in devices
    )


@contextmanager
def fused_lora(layers: Sequence[Any]) -> Iterator[None]:
    """Compute `layers` with this kernel within the block.

    Args:
        layers: Layers that `fusable_lora_layers` returned.
    """
    try:
        for layer in layers:
            layer.forward = partial(fused_lora_forward, layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def fused_lora_forward(layer: Any, x: Tensor) -> Tensor:
    """Compute the output (..., out) of a LoRA layer in the type of autocast or of its weights."""
    (name,) = layer.active_adapters
    base, device = layer.base_layer, x.device.type
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    dtype = base.compute_dtype if _is_four_bit(base) else base.weight.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    elif not dtype == a.dtype == x.dtype:
        plain: Tensor = type(layer).forward(layer, x)  # for example a float32 adapter on a bfloat16 layer
        return plain
    with torch.autocast(device, enabled=False):
        y: Tensor = _FusedLoRALinear.apply(x, base, a, b, layer.scaling[name], dtype)  # type: ignore[no-untyped-call]
    return y


class _FusedLoRALinear(torch.autograd.Function):
    """A frozen linear layer with its LoRA adapter, multiplied in `dtype`.

    Early in training the adapter's part is smaller than half the spacing of 16-bit numbers around the layer's own
    output, and is lost if that output is rounded first. So both are one product if the layer's weights are copied
    anyway (cast or dequantised). If the weights already have `dtype`, a concatenation would cost a copy, and the
    adapter's part is added to the rounded output, as in peft.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, base: Any, a: Tensor, b: Tensor, scaling: float, dtype: torch.dtype) -> Tensor:
        """Compute the output (..., out) of `x` (..., in), with `a` (rank, in) and `b` (out, rank)."""
        rows = x.reshape(-1, x.shape[-1])
        bias = None if base.bias is None else base.bias.to(dtype)
        down, up = a.to(dtype), (b * scaling).to(dtype)
        weight = base.weight
        if weight.dtype == dtype and not _is_four_bit(base):
            rows = rows.to(dtype)
            inner = rows @ down.T
            y = nn.functional.linear(rows, weight, bias).addmm_(inner, up.T)
        else:
            rows, inner, weight, y = _multiply_concatenated(rows, _dense_weight(base), down, up, bias)
        ctx.save_for_backward(rows, inner, down, up, None if _is_four_bit(base) else weight)
        ctx.base, ctx.scaling, ctx.dtypes = base, scaling, (x.dtype, a.dtype, b.dtype)
        return y.view(*x.shape[:-1], len(up))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Compute dx, dA and dB by the formulas of this module; 4-bit weights are dequantised again."""
        rows, inner, down, up, weight = ctx.saved_tensors
        output_grad = gradient.reshape(-1, len(up))
        x_dtype, a_dtype, b_dtype = ctx.dtypes
        inner_grad = output_grad @ up
        x_grad = None
        if ctx.needs_input_grad[0]:
            weight = _dense_weight(ctx.base).to(rows.dtype) if weight is None else weight
            x_grad = (output_grad @ weight).addmm_(inner_grad, down)
            x_grad = x_grad.view(*gradient.shape[:-1], rows.shape[1]).to(x_dtype)
        a_grad = (inner_grad.T @ rows).to(a_dtype)
        b_grad = (output_grad.T @ inner).to(b_dtype).mul_(ctx.scaling)
        return x_grad, None, a_grad, b_grad, None, None


def _multiply_concatenated(
    x: Tensor, base_weight: Tensor, down: Tensor, up: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute [x, x A^T] [W, s B]^T + b, rounded once.

    Returns:
        x, x A^T and W in the type of A, and the output.
    """
    inputs, rank, dtype = x.shape[1], len(down), down.dtype
    left = x.new_empty(len(x), inputs + rank, dtype=dtype)
    right = x.new_empty(len(base_weight), inputs + rank, dtype=dtype)
    rows, inner = torch.split(left, [inputs, rank], dim=1)
    weight, adapter = torch.split(right, [inputs, rank], dim=1)
    rows.copy_(x)
    inner.copy_(rows @ down.T)
    weight.copy_(base_weight)
    adapter.copy_(up)
    return rows, inner, weight, nn.functional.linear(left, right, bias)


def _is_four_bit(base: Any) -> bool:
    """Return whether a layer's weights are stored in 4 bits, and are dequantised for each product."""
    return hasattr(base.weight, "quant_state")


def _dense_weight(base: Any) -> Tensor:
    """Return a layer's weight (out, in), dequantised if it is stored in 4 bits."""
    if not _is_four_bit(base):
        return cast("Tensor", base.weight)
    from bitsandbytes.functional import dequantize_4bit

    return cast("Tensor", dequantize_4bit(base.weight.data, base.weight.quant_state))

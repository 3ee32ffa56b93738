"""Fused LoRA and QLoRA layers. Oracle: peft's layers, in float64 unless the weights have 4 bits."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from neftcli.kernels import lora
from neftcli.kernels.lora import fusable_lora_layers, fused_lora
from neftcli.models.loading import load_model
from neftcli.models.registry import resolve_model
from tests.tiny import FAMILIES, VOCABULARY, Family, save_tiny, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # bitsandbytes 0.50


def adapted(family: Family, seed: int = 0, base: Any = None, **options: Any) -> Any:
    """A tiny model, or `base`, with adapters that are no longer zero."""
    model = get_peft_model(
        base or tiny_model(family, seed),
        LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": "all-linear", **options}),
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 8
    return model.train()


def result(model: Any, dtype: torch.dtype | None, *, fused: bool) -> list[Tensor]:
    """The logits, and the gradients of all adapters; in bfloat16 under autocast, else in the model's type."""
    token_ids = torch.arange(40).view(2, 20) * 7 % VOCABULARY
    model.zero_grad()
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
    with fused_lora(fusable_lora_layers(model) if fused else ()), autocast:
        logits = model(input_ids=token_ids, use_cache=False).logits
        logits.float().logsumexp(-1).sum().backward()
    return [logits.detach(), *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)]


def error(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_lora_equals_peft_in_float32(family: Family) -> None:
    model = adapted(family)
    assert len(fusable_lora_layers(model)) == len(
        [name for name, _ in model.named_modules() if name.endswith("lora_A")]
    )
    found = result(model, None, fused=True)
    exact = result(model.double(), None, fused=False)
    assert len(exact) > 1
    assert max(map(error, found, exact)) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_lora_is_as_exact_as_peft_in_bfloat16(family: Family) -> None:
    """The mean over several models: rounding in one layer reaches the gradients of all layers before it."""
    ours = theirs = 0.0
    for seed in range(6):
        model = adapted(family, seed)
        fused_result, peft_result = (result(model, torch.bfloat16, fused=fused) for fused in (True, False))
        exact = result(model.double(), None, fused=False)
        ours += mean(map(error, fused_result, exact))
        theirs += mean(map(error, peft_result, exact))
    assert 0 < ours < 1.1 * theirs


@pytest.mark.parametrize("four_bit", [False, True])
def test_fused_lora_keeps_the_output_of_a_small_adapter(four_bit: bool, tmp_path: Path) -> None:
    """The adapter adds some hundredths of the spacing of bfloat16 numbers.

    Added before rounding, it is there on average; added after rounding, it is lost. Oracle: the same layer in float32.
    The share that is kept is the slope of the regression on the oracle.
    """
    save_tiny(tmp_path, "llama")
    base = load_model(resolve_model(str(tmp_path)), torch.float32, four_bit=four_bit, compute_dtype=torch.bfloat16)
    layer = fusable_lora_layers(adapted("llama", base=base))[0]
    x = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0)).bfloat16().float()

    def adapter_output(fused: bool) -> Tensor:
        up = layer.lora_B["default"].weight
        outputs = []
        for size in (2e-5, 0.0):
            up.data = torch.ones_like(up) * size
            with torch.no_grad(), fused_lora([layer] if fused else ()), torch.autocast("cpu", torch.bfloat16):
                outputs.append(layer(x).float())
        return outputs[0] - outputs[1]

    exact = 2e-5 * layer.scaling["default"] * (x @ layer.lora_A["default"].weight.T).sum(1, keepdim=True)
    exact = exact.detach().expand(-1, layer.out_features)
    kept = {fused: float((adapter_output(fused) * exact).sum() / exact.square().sum()) for fused in (True, False)}
    assert kept[True] == pytest.approx(1.0, abs=0.3)
    assert four_bit or kept[False] < 0.5  # with 4-bit weights peft adds in float32


@pytest.mark.parametrize("family", ["llama", "opt"])  # opt's layers have biases
def test_fused_lora_four_bit_is_as_exact_as_peft(family: Family, tmp_path: Path) -> None:
    """Oracle: peft on the same 4-bit weights in float32."""
    save_tiny(tmp_path, family)
    reference = resolve_model(str(tmp_path))
    model, other = (
        adapted(family, base=load_model(reference, torch.float32, four_bit=True, compute_dtype=dtype))
        for dtype in (torch.float32, torch.bfloat16)
    )
    exact, found = (result(model, None, fused=fused) for fused in (False, True))
    assert 0 < max(map(error, found, exact)) < 1e-5
    ours, theirs = (mean(map(error, result(other, torch.bfloat16, fused=fused), exact)) for fused in (True, False))
    assert 0 < ours < 1.1 * theirs
    assert ours != theirs


def test_fused_lora_gives_the_base_layer_no_gradient() -> None:
    model = adapted("llama")
    result(model, torch.bfloat16, fused=True)
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)


def test_fused_lora_applies_within_the_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = lora.fused_lora_forward
    monkeypatch.setattr(lora, "fused_lora_forward", lambda layer, x: calls.append(layer) or original(layer, x))
    model = adapted("llama")
    result(model, torch.bfloat16, fused=True)
    assert calls == fusable_lora_layers(model) != []
    calls.clear()
    result(model, torch.bfloat16, fused=False)
    assert calls == []


def test_fused_lora_recomputes_bit_identically() -> None:
    model = adapted("llama")
    stored = result(model, torch.bfloat16, fused=True)
    model.get_base_model().activation_checkpointing_enable()
    model.enable_input_require_grads()
    recomputed = result(model, torch.bfloat16, fused=True)
    assert all(torch.equal(left, right) for left, right in zip(stored, recomputed, strict=True))


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_fusable_lora_layers_other_adapters(options: dict[str, Any]) -> None:
    assert fusable_lora_layers(adapted("opt"))
    assert not fusable_lora_layers(adapted("opt", **options))


def test_fusable_lora_layers_subclass_of_linear() -> None:
    class Scaled(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj = Scaled(64, 64, bias=False)
    model = adapted("llama", base=model)
    assert len(fusable_lora_layers(model)) == 12
    assert all("q_proj" not in name for name, module in model.named_modules() if module in fusable_lora_layers(model))
    ours, theirs = (result(model, None, fused=fused) for fused in (True, False))
    assert max(map(error, ours, theirs)) < 1e-5


def test_fused_lora_four_bit_weights_stored_as_float32(tmp_path: Path) -> None:
    """As in checkpoints for sharded training."""
    save_tiny(tmp_path, "llama")
    base = load_model(resolve_model(str(tmp_path)), torch.float32, four_bit=True, compute_dtype=torch.float32)
    model = adapted("llama", base=base)
    for layer in fusable_lora_layers(model):
        layer.base_layer.weight.data = layer.base_layer.weight.data.flatten().view(torch.float32)[:, None]
    ours, theirs = (result(model, None, fused=fused) for fused in (True, False))
    assert max(map(error, ours, theirs)) < 1e-5


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_row_losses_with_a_zero_adapter_equal_the_base_model(four_bit: bool, dropout: float, tmp_path: Path) -> None:
    from neftcli.data.tokens import TokenRow
    from neftcli.evaluation.loss import row_losses

    save_tiny(tmp_path, "llama")
    base = load_model(resolve_model(str(tmp_path)), torch.float32, four_bit=four_bit, compute_dtype=torch.bfloat16)
    rows = [TokenRow(list(range(5, 25)), list(range(5, 25)), False, False, "row 1")]
    before = row_losses(base, rows, 1, torch.autocast("cpu", torch.bfloat16))
    model = get_peft_model(base, LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear"))
    assert row_losses(model, rows, 1, torch.autocast("cpu", torch.bfloat16)) == before
    assert len(fusable_lora_layers(model, trained=False)) == (0 if four_bit else 14)


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_lora_four_bit_in_a_bfloat16_model_equals_peft(family: Family, tmp_path: Path) -> None:
    save_tiny(tmp_path, family)
    base = load_model(resolve_model(str(tmp_path)), torch.bfloat16, four_bit=True, compute_dtype=torch.float32)
    model = adapted(family, base=base)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    ours, theirs = (result(model, None, fused=fused) for fused in (True, False))
    assert all(torch.equal(left, right) for left, right in zip(ours, theirs, strict=True))


def test_fusable_lora_layers_merged_disabled_and_trained() -> None:
    model = adapted("llama")
    assert fusable_lora_layers(model)
    with model.disable_adapter():
        assert not fusable_lora_layers(model)
    model.merge_adapter()
    assert not fusable_lora_layers(model)
    model.unmerge_adapter()
    model.get_base_model().requires_grad_(True)
    assert not fusable_lora_layers(model)
    assert not fusable_lora_layers(tiny_model("llama"))


@pytest.mark.parametrize("shape", ["transposed", "sliced", "expanded", "empty", "flat"])
def test_fused_lora_inputs_of_any_layout(shape: str) -> None:
    """As in state-space models."""
    layer = next(iter(fusable_lora_layers(adapted("opt"))))
    width = layer.in_features
    x = {
        "transposed": torch.randn(2, width, 5).transpose(1, 2),
        "sliced": torch.randn(2, 9, 2 * width)[:, ::2, :width],
        "expanded": torch.randn(1, 1, width).expand(2, 5, width),
        "empty": torch.randn(2, 0, width),
        "flat": torch.randn(5, width),
    }[shape]
    found, wanted = [], []
    for layers, results in (([layer], found), ([], wanted)):
        leaf = x.detach().requires_grad_()
        layer.zero_grad()
        with fused_lora(layers):
            y = layer(leaf)
        y.square().sum().backward()
        results += [y, leaf.grad, *(parameter.grad for parameter in layer.parameters() if parameter.requires_grad)]
    assert all(torch.allclose(left, right, atol=1e-5) for left, right in zip(found, wanted, strict=True))


def test_fused_lora_float32_adapter_on_a_bfloat16_layer_equals_peft() -> None:
    model = adapted("llama").to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    ours, theirs = (result(model, None, fused=fused) for fused in (True, False))
    assert all(torch.equal(left, right) for left, right in zip(ours, theirs, strict=True))

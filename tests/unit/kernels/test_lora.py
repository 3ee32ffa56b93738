"""LoRA's layers with fewer passes, and QLoRA's. Oracle: peft's own, in float64 where weights are not of 4 bits."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from neftcli.kernels import lora
from neftcli.kernels.lora import fused_low_rank, low_rank_layers
from neftcli.models.loading import load_model
from neftcli.models.registry import resolve
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


def result(model: Any, kind: torch.dtype | None, *, fused: bool) -> list[Tensor]:
    """The logits, and the gradients of all adapters; in bfloat16 under autocast, else in the model's own type."""
    token_ids = torch.arange(40).view(2, 20) * 7 % VOCABULARY
    model.zero_grad()
    autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == torch.bfloat16)
    with fused_low_rank(low_rank_layers(model) if fused else ()), autocast:
        logits = model(input_ids=token_ids, use_cache=False).logits
        logits.float().logsumexp(-1).sum().backward()
    return [logits.detach(), *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)]


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).norm() / exact.double().norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_peft_in_float32(family: Family) -> None:
    model = adapted(family)
    assert len(low_rank_layers(model)) == len([name for name, _ in model.named_modules() if name.endswith("lora_A")])
    found = result(model, None, fused=True)
    exact = result(model.double(), None, fused=False)
    assert len(exact) > 1
    assert max(map(error, found, exact)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_as_exact_as_peft_in_bfloat16(family: Family) -> None:
    """Over several models, since what is rounded in one layer is in the gradients of all that come before."""
    ours = theirs = 0.0
    for seed in range(6):
        model = adapted(family, seed)
        found, peft = (result(model, torch.bfloat16, fused=fused) for fused in (True, False))
        exact = result(model.double(), None, fused=False)
        ours += mean(map(error, found, exact))
        theirs += mean(map(error, peft, exact))
    assert 0 < ours < 1.1 * theirs


@pytest.mark.parametrize("four_bit", [False, True])
def test_what_a_young_adapter_adds_is_not_rounded_away(four_bit: bool, tmp_path: Path) -> None:
    """It is some hundredths of a step of bfloat16: there on average where it is added before rounding, and lost behind.

    Oracle: the same layer in float32. How much of what is added is found is the slope of the one on the other.
    """
    save_tiny(tmp_path, "llama")
    base = load_model(resolve(str(tmp_path)), torch.float32, four_bit=four_bit, compute_dtype=torch.bfloat16)
    layer = low_rank_layers(adapted("llama", base=base))[0]
    x = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0)).bfloat16().float()

    def added(fused: bool) -> Tensor:
        up = layer.lora_B["default"].weight
        outputs = []
        for size in (2e-5, 0.0):
            up.data = torch.ones_like(up) * size
            with torch.no_grad(), fused_low_rank([layer] if fused else ()), torch.autocast("cpu", torch.bfloat16):
                outputs.append(layer(x).float())
        return outputs[0] - outputs[1]

    exact = 2e-5 * layer.scaling["default"] * (x @ layer.lora_A["default"].weight.T).sum(1, keepdim=True)
    exact = exact.detach().expand(-1, layer.out_features)
    found = {fused: float((added(fused) * exact).sum() / exact.square().sum()) for fused in (True, False)}
    assert found[True] == pytest.approx(1.0, abs=0.3)
    assert four_bit or found[False] < 0.5  # peft adds to weights of four bits in float32


@pytest.mark.parametrize("family", ["llama", "opt"])  # opt's layers have biases
def test_weights_of_four_bits_are_multiplied_as_exactly_as_peft_has_it(family: Family, tmp_path: Path) -> None:
    """The oracle in bfloat16 is peft on the same four-bit weights in float32."""
    save_tiny(tmp_path, family)
    reference = resolve(str(tmp_path))
    model, other = (
        adapted(family, base=load_model(reference, torch.float32, four_bit=True, compute_dtype=kind))
        for kind in (torch.float32, torch.bfloat16)
    )
    exact, found = (result(model, None, fused=fused) for fused in (False, True))
    assert 0 < max(map(error, found, exact)) < 1e-5
    ours, theirs = (mean(map(error, result(other, torch.bfloat16, fused=fused), exact)) for fused in (True, False))
    assert 0 < ours < 1.1 * theirs
    assert ours != theirs


def test_the_base_layers_weights_get_no_gradient() -> None:
    model = adapted("llama")
    result(model, torch.bfloat16, fused=True)
    assert all(parameter.grad is None for parameter in model.parameters() if not parameter.requires_grad)


def test_it_is_used_within_the_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    came = []
    real = lora._forward
    monkeypatch.setattr(lora, "_forward", lambda layer, x: came.append(layer) or real(layer, x))
    model = adapted("llama")
    result(model, torch.bfloat16, fused=True)
    assert came == low_rank_layers(model) != []
    came.clear()
    result(model, torch.bfloat16, fused=False)
    assert came == []


def test_recomputed_activations_give_the_same_bits() -> None:
    model = adapted("llama")
    kept = result(model, torch.bfloat16, fused=True)
    model.get_base_model().activation_checkpointing_enable()
    model.enable_input_require_grads()
    recomputed = result(model, torch.bfloat16, fused=True)
    assert all(torch.equal(one, other) for one, other in zip(kept, recomputed, strict=True))


@pytest.mark.parametrize("options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}])
def test_other_kinds_of_adapters_are_left_to_peft(options: dict[str, Any]) -> None:
    assert low_rank_layers(adapted("opt"))
    assert not low_rank_layers(adapted("opt", **options))


def test_layers_with_a_forward_pass_of_their_own_are_left_to_peft() -> None:
    class Scaled(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x)

    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.self_attn.q_proj = Scaled(64, 64, bias=False)
    model = adapted("llama", base=model)
    assert len(low_rank_layers(model)) == 12
    assert all("q_proj" not in name for name, module in model.named_modules() if module in low_rank_layers(model))
    ours, theirs = (result(model, None, fused=fused) for fused in (True, False))
    assert max(map(error, ours, theirs)) < 1e-5


def test_packed_weights_may_be_stored_in_the_type_they_are_multiplied_in(tmp_path: Path) -> None:
    """As those of checkpoints for sharded training are."""
    save_tiny(tmp_path, "llama")
    base = load_model(resolve(str(tmp_path)), torch.float32, four_bit=True, compute_dtype=torch.float32)
    model = adapted("llama", base=base)
    for layer in low_rank_layers(model):
        layer.base_layer.weight.data = layer.base_layer.weight.data.flatten().view(torch.float32)[:, None]
    ours, theirs = (result(model, None, fused=fused) for fused in (True, False))
    assert max(map(error, ours, theirs)) < 1e-5


@pytest.mark.parametrize("four_bit", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_an_adapter_of_zeros_is_measured_as_the_model_without_it(
    four_bit: bool, dropout: float, tmp_path: Path
) -> None:
    from neftcli.data.tokens import TokenRow
    from neftcli.evaluation.loss import row_losses

    save_tiny(tmp_path, "llama")
    base = load_model(resolve(str(tmp_path)), torch.float32, four_bit=four_bit, compute_dtype=torch.bfloat16)
    rows = [TokenRow(list(range(5, 25)), list(range(5, 25)), False, False, "row 1")]
    before = row_losses(base, rows, 1, torch.autocast("cpu", torch.bfloat16))
    model = get_peft_model(base, LoraConfig(r=4, lora_dropout=dropout, target_modules="all-linear"))
    assert row_losses(model, rows, 1, torch.autocast("cpu", torch.bfloat16)) == before
    assert len(low_rank_layers(model, trained=False)) == (0 if four_bit else 14)


@pytest.mark.parametrize("family", FAMILIES)
def test_four_bits_between_weights_of_another_type_are_left_to_peft(family: Family, tmp_path: Path) -> None:
    save_tiny(tmp_path, family)
    base = load_model(resolve(str(tmp_path)), torch.bfloat16, four_bit=True, compute_dtype=torch.float32)
    model = adapted(family, base=base)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    ours, theirs = (result(model, None, fused=fused) for fused in (True, False))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_merged_disabled_and_trained_layers_are_left_to_peft() -> None:
    model = adapted("llama")
    assert low_rank_layers(model)
    with model.disable_adapter():
        assert not low_rank_layers(model)
    model.merge_adapter()
    assert not low_rank_layers(model)
    model.unmerge_adapter()
    model.get_base_model().requires_grad_(True)
    assert not low_rank_layers(model)
    assert not low_rank_layers(tiny_model("llama"))


@pytest.mark.parametrize("shape", ["transposed", "sliced", "expanded", "empty", "flat"])
def test_inputs_of_any_layout_are_taken(shape: str) -> None:
    """As the layers of state-space models give them."""
    layer = next(iter(low_rank_layers(adapted("opt"))))
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
        with fused_low_rank(layers):
            y = layer(leaf)
        y.square().sum().backward()
        results += [y, leaf.grad, *(parameter.grad for parameter in layer.parameters() if parameter.requires_grad)]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, wanted, strict=True))


def test_adapters_that_are_more_exact_than_their_layer_stay_so() -> None:
    model = adapted("llama").to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    ours, theirs = (result(model, None, fused=fused) for fused in (True, False))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))

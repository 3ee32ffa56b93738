"""Fused LoRA layers. Oracle: peft's layers, in float32 on the same GPU."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from neftcli.kernels.lora import fusable_lora_layers, fused_lora
from neftcli.models.loading import load_model
from neftcli.models.registry import resolve_model
from tests.tiny import VOCABULARY, Family, save_tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def adapted(folder: Path, family: Family, weights: torch.dtype) -> Any:
    """A tiny model on the GPU with adapters that are no longer zero."""
    save_tiny(folder, family)
    loaded = load_model(resolve_model(str(folder)), weights)
    model = get_peft_model(loaded.cuda(), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    generator = torch.Generator("cuda").manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator, device="cuda") / 8
    return model.train()


def result(model: Any, layers: Any, *, autocast: bool) -> list[Tensor]:
    """The logits, and the gradients of all adapters."""
    token_ids = torch.arange(40, device="cuda").view(2, 20) * 7 % VOCABULARY
    model.zero_grad()
    with fused_lora(layers), torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        logits = model(input_ids=token_ids, use_cache=False).logits
        logits.float().logsumexp(-1).sum().backward()
    return [logits.detach(), *(parameter.grad for parameter in model.parameters() if parameter.requires_grad)]


def error(result: Tensor, exact: Tensor) -> float:
    return float((result.double() - exact.double()).norm() / exact.double().norm())


def test_fused_lora_equals_peft_in_float32(tmp_path: Path) -> None:
    model = adapted(tmp_path, "llama", torch.float32)
    layers = fusable_lora_layers(model)
    assert len(layers) == 14
    ours, theirs = (result(model, fused, autocast=False) for fused in (layers, ()))
    assert max(map(error, ours, theirs)) < 1e-4


@pytest.mark.parametrize("family", ["llama", "opt"])  # opt's layers have biases
def test_fused_lora_is_as_exact_as_peft_in_bfloat16(family: Family, tmp_path: Path) -> None:
    model = adapted(tmp_path, family, torch.float32)
    exact = result(model, (), autocast=False)
    ours, theirs = (
        mean(map(error, result(model, fused, autocast=True), exact)) for fused in (fusable_lora_layers(model), ())
    )
    assert 0 < ours < 1.2 * theirs

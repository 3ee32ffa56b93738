"""Strength of the noise at the input of the first layer.

Oracle: the same quantities in float64 numpy from the weights themselves. With table E, the embedding returns s E[ids]
(s = sqrt(hidden) for Gemma, else 1), the noise e is added to it, and layer 0 gets m (s E[ids] + e) + p with m Granite's
multiplier (else 1) and p OPT's learned positions (else 0). So

    ratio = rms(m e) / rms(m s E[ids] + p)    embedding_scale = s    layer_gain = m    noise_rms = rms(e)

over the real tokens, where e is the noise that the next forward pass in training adds.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from neftcli.errors import NeftuneError
from neftcli.neftune import Strength, measure_strength, neftune
from neftcli.neftune.strength import USUAL_RATIO
from tests.tiny import FAMILIES, HIDDEN, Family, tiny_model

ALPHA = 5.0
WEAK = 0.5  # in tiny models alpha 5 is stronger than the embeddings
LENGTHS = (12, 5)
# peft 0.21 reads a property that transformers 5.23 has renamed, on every get_peft_model.
PEFT_READS_A_RENAMED_PROPERTY = (
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning:transformers.modeling_utils"
)
EMBEDDING_SCALE = {"opt": 1.0, "llama": 1.0, "gemma": math.sqrt(HIDDEN), "granite": 1.0}
LAYER_GAIN = {"opt": 1.0, "llama": 1.0, "gemma": 1.0, "granite": 12.0}


def padded_batch() -> dict[str, Tensor]:
    mask = torch.tensor([[1] * length + [0] * (max(LENGTHS) - length) for length in LENGTHS])
    token_ids = torch.randint(4, 256, mask.shape, generator=torch.Generator().manual_seed(1))
    return {"input_ids": token_ids, "attention_mask": mask, "labels": token_ids.masked_fill(mask == 0, -100)}


def padding_free_batch() -> dict[str, Tensor]:
    batch = padded_batch()
    real = batch["attention_mask"].bool()
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    return {"input_ids": batch["input_ids"][real][None], "position_ids": positions}


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values))))


def embedded(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The embedding's output in one forward pass, with every hook attached so far."""
    seen: list[Tensor] = []
    handle = model.get_input_embeddings().register_forward_hook(lambda _m, _a, output: seen.append(output.detach()))
    try:
        model(**batch)
    finally:
        handle.remove()
    return seen[0]


def expected(model: nn.Module, family: Family, batch: dict[str, Tensor], noised: Tensor) -> Strength:
    """The oracle, from the weights and from the noised vectors of a training forward pass."""
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    real = mask.bool().numpy()
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    table = next(value for name, value in state.items() if name.endswith("embed_tokens.weight"))
    clean = EMBEDDING_SCALE[family] * table[batch["input_ids"].numpy()]
    noise = noised.double().numpy() - clean
    layer = LAYER_GAIN[family] * clean
    if family == "opt":
        positions = batch.get("position_ids", mask.cumsum(1) - 1).numpy() + 2  # OPT's table begins with two unused rows
        layer = layer + state["model.decoder.embed_positions.weight"][positions]
    return Strength(
        ratio=rms(LAYER_GAIN[family] * noise[real]) / rms(layer[real]),
        embedding_scale=EMBEDDING_SCALE[family],
        layer_gain=LAYER_GAIN[family],
        noise_rms=rms(noise[real]),
        table_rms=rms(table[batch["input_ids"].numpy()][real]),
    )


def assert_close(measured: Strength, oracle: Strength) -> None:
    # float32 differences of vectors around 0.1 are good to 1e-4 of the noise.
    for name in Strength.__slots__:
        assert getattr(measured, name) == pytest.approx(getattr(oracle, name), rel=1e-4), name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [padded_batch(), padding_free_batch()], ids=["padded", "padding-free"])
@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
def test_measure_strength_equals_float64(family: Family, batch: dict[str, Tensor], kind: Any) -> None:
    model = tiny_model(family)
    with neftune(model, ALPHA, noise=kind, seed=2) as noise:
        measured = measure_strength(model, batch, noise)
        noised = embedded(model, batch)
    assert_close(measured, expected(model, family, batch, noised))


def test_measure_strength_noise_rms_of_one_document() -> None:
    token_ids = torch.randint(4, 256, (1, 500), generator=torch.Generator().manual_seed(0))
    model = tiny_model("llama")
    with neftune(model, ALPHA) as noise:
        measured = measure_strength(model, {"input_ids": token_ids}, noise)
    # Five standard errors of a variance from 32,000 uniform draws, halved by the root.
    error = 5 * math.sqrt(0.8 / (500 * HIDDEN)) / 2
    assert measured.noise_rms == pytest.approx(ALPHA / math.sqrt(3 * 500 * HIDDEN), rel=error)


@pytest.mark.parametrize("family", ["opt", "llama"])
def test_strength_warnings_none_if_nothing_is_scaled(family: Family) -> None:
    model = tiny_model(family)
    with neftune(model, WEAK) as noise:
        measured = measure_strength(model, padded_batch(), noise)
    assert measured.embedding_scale == pytest.approx(1.0, rel=1e-4)
    assert measured.layer_gain == pytest.approx(1.0, rel=1e-3)
    assert measured.warnings(WEAK) == []


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (
            "gemma",
            "this architecture multiplies its embeddings by 8 before the noise is added: relative to the embeddings, "
            "the noise is 0.125 times as strong as in a model that passes its embeddings on unscaled, such as LLaMA "
            "(same alpha, length and width); use alpha 4 for the strength of alpha 0.5 there",
        ),
        (
            "granite",
            "this architecture scales or projects its embeddings after the noise is added, which multiplies the noise "
            "by 12: relative to the embeddings, the noise is as strong as in a model that passes its embeddings on "
            "unscaled, such as LLaMA (same alpha, length and width)",
        ),
    ],
)
def test_strength_warnings_of_architectures_that_scale(family: Family, message: str) -> None:
    model = tiny_model(family)
    with neftune(model, WEAK) as noise:
        (warning,) = measure_strength(model, padded_batch(), noise).warnings(WEAK)
    assert warning == message


def test_relative_to_llama_gives_the_alpha_of_equal_strength() -> None:
    """Oracle: rms(noise) / rms(E[ids]) of the same table at alpha 5, as Llama's layer 0 would read it."""
    model, batch = tiny_model("gemma"), padded_batch()
    with neftune(model, ALPHA) as noise:
        measured = measure_strength(model, batch, noise)
    equal_alpha = ALPHA / measured.relative_to_llama
    with neftune(model, equal_alpha) as noise:
        stronger = measure_strength(model, batch, noise)
    assert equal_alpha == pytest.approx(40.0, rel=1e-3)
    real = batch["attention_mask"].bool()
    rows = model.get_input_embeddings().weight.detach()[batch["input_ids"]][real].double().numpy()
    assert stronger.ratio == pytest.approx(measured.noise_rms / rms(rows), rel=1e-3)


@pytest.mark.parametrize("schedule", ["linear_warmup", "linear_decay"])
def test_measure_strength_uses_the_full_alpha(schedule: Any) -> None:
    """A schedule begins or ends at 0; the reported strength is that of the recipe's alpha."""
    model, strengths = tiny_model("granite"), []
    for options in ({}, {"schedule": schedule, "total_steps": 10}):
        with neftune(model, ALPHA, **options) as noise:
            strengths.append(measure_strength(model, padded_batch(), noise))
    assert strengths[0] == strengths[1]


def test_usual_alpha_gives_the_usual_ratio() -> None:
    model, batch = tiny_model("llama"), padded_batch()
    with neftune(model, 50.0) as noise:
        measured = measure_strength(model, batch, noise)
    assert measured.ratio > 1
    alpha = measured.usual_alpha(50.0)
    (warning,) = measured.warnings(50.0)
    assert warning == (
        f"the noise is stronger than the embeddings: {measured.ratio:.3g} times their RMS at the input of layer 0, so "
        f"the model hardly recognises its tokens; alpha {alpha:.2g} gives noise/embedding 0.1, as alpha 5 does in "
        "SmolLM2-135M"
    )
    with neftune(model, alpha) as noise:
        weaker = measure_strength(model, batch, noise)
    assert weaker.ratio == pytest.approx(USUAL_RATIO, rel=1e-3)
    assert weaker.warnings(alpha) == []


def test_measure_strength_alpha_0() -> None:
    model = tiny_model("llama")
    with neftune(model, 0.0) as noise:
        measured = measure_strength(model, padded_batch(), noise)
    assert (measured.ratio, measured.noise_rms, measured.layer_gain) == (0.0, 0.0, 1.0)
    assert measured.warnings(ALPHA) == []


@pytest.mark.filterwarnings(PEFT_READS_A_RENAMED_PROPERTY)
@pytest.mark.parametrize(
    "adapter",
    [
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "modules_to_save": ["embed_tokens"]},
        {"target_modules": ["q_proj", "embed_tokens"]},
    ],
    ids=["lora", "modules_to_save", "lora on embed_tokens"],
)
def test_measure_strength_with_adapters(adapter: dict[str, Any]) -> None:
    batch = padded_batch()
    plain = tiny_model("llama")
    with neftune(plain, ALPHA) as noise:
        without = measure_strength(plain, batch, noise)
    model = get_peft_model(tiny_model("llama"), LoraConfig(r=4, **adapter)).train()
    with neftune(model, ALPHA) as noise:
        assert_close(measure_strength(model, batch, noise), without)


# State after a measurement


def test_measure_strength_does_not_change_the_next_noise() -> None:
    model, batch = tiny_model("llama"), padded_batch()

    def train(measure: bool) -> list[Tensor]:
        outputs = []
        with neftune(model, ALPHA, seed=5) as noise:
            for step in range(2):
                noise.begin_step(step)
                for _micro_batch in range(2):
                    if measure:
                        measure_strength(model, batch, noise)
                    outputs.append(embedded(model, batch))
        return outputs

    assert all(torch.equal(left, right) for left, right in zip(train(False), train(True), strict=True))


def frozen_layer() -> nn.Module:
    """A model in training mode with one layer in evaluation mode, as with frozen dropout or norms."""
    model = tiny_model("llama")
    model.model.layers[0].eval()
    return model


@pytest.mark.parametrize(
    "build",
    [lambda: tiny_model("llama"), lambda: tiny_model("llama").eval(), frozen_layer],
    ids=["train", "eval", "mix"],
)
def test_measure_strength_restores_the_mode_of_every_module(build: Any) -> None:
    model = build()
    before = {name: module.training for name, module in model.named_modules()}
    with neftune(model, ALPHA) as noise:
        measure_strength(model, padded_batch(), noise)
        assert not noise.forced
    assert {name: module.training for name, module in model.named_modules()} == before


def test_measure_strength_leaves_no_gradient_hook_or_global_draw() -> None:
    model = tiny_model("llama", attention_dropout=0.5)
    state = torch.get_rng_state()
    with neftune(model, ALPHA) as noise:
        before = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
        measure_strength(model, padded_batch(), noise)
        after = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    assert after == before
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_measure_strength_restores_everything_after_an_error() -> None:
    model, batch = tiny_model("llama"), padded_batch()
    with neftune(model, ALPHA, seed=1) as noise:
        expected_next = embedded(model, batch)
        noise.begin_step(0)
        with pytest.raises(IndexError):
            measure_strength(model, {"input_ids": torch.tensor([[999_999]])}, noise)
        assert model.training
        assert not noise.forced
        assert torch.equal(embedded(model, batch), expected_next)


def test_measure_strength_rejects_a_model_without_layers() -> None:
    model = tiny_model("llama")
    model.config.num_hidden_layers = 7
    with (
        neftune(model, ALPHA) as noise,
        pytest.raises(NeftuneError, match="LlamaForCausalLM has no module list of 7 layers"),
    ):
        measure_strength(model, padded_batch(), noise)

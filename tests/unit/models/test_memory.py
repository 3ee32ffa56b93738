"""The memory estimate of training.

Oracles: the real tiny models, counted parameter by parameter, with peft's own adapters on them and bitsandbytes' own
4-bit bytes; and the parameter counts that the aliases' models are known by on the hub.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from neftcli.models.freezing import freeze_layers
from neftcli.models.loading import load_model
from neftcli.models.memory import (
    CONSTANT_BITS,
    NF4_BITS,
    STATE_BYTES,
    MemoryEstimate,
    estimate_memory,
    estimate_model_memory,
)
from neftcli.models.registry import ALIASES, ModelReference, resolve_model
from neftcli.recipe.schema import Adapter, Neftune, Quantization, Recipe, Training
from tests.tiny import FAMILIES, Family, save_tiny, tiny_model

NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8  # the QLoRA paper: 0.127 bits a weight for the constants

FULL = Recipe()
LORA = replace(FULL, adapter=Adapter(type="lora", r=8))
QLORA = replace(LORA, quantization=Quantization(type="nf4"))
# Known from the hub's model pages, to the last parameter.
PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-6.7b": 6_658_473_984,
    "llama-1-7b": 6_738_415_616,
    "llama-2-7b": 6_738_415_616,
    "llama-2-7b-chat": 6_738_415_616,
}

# peft 0.21 asks transformers 5.23 for a property by its old name when it wraps a model.
uses_peft = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Family, Path]:
    """A saved tiny model of each family."""
    found = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, folder in found.items():
        save_tiny(folder, family)
    return found


def estimated(folder: Path, recipe: Recipe, tokens: int = 100) -> MemoryEstimate:
    return estimate_memory(recipe, resolve_model(str(folder)), 4, 4, tokens, "cpu")


def counted(model: Any, trained_only: bool = False) -> int:
    """Number of parameters of a real model, tied ones counted once."""
    return sum(item.numel() for item in model.parameters() if item.requires_grad or not trained_only)


def with_adapter(model: Any, adapter: Adapter) -> Any:
    targets = adapter.target_modules
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=adapter.r,
            target_modules=targets if isinstance(targets, str) else list(targets),
            modules_to_save=list(adapter.modules_to_save) or None,
            use_dora=adapter.use_dora,
        ),
    )


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_estimate_memory_full_tuning_trains_every_parameter(family: Family, tied: bool, tmp_path: Path) -> None:
    """Equal to the real model, with a tied output layer counted once."""
    save_tiny(tmp_path, family, tie_word_embeddings=tied)
    found = estimated(tmp_path, FULL)
    assert found.parameters == found.trainable == counted(tiny_model(family, tie_word_embeddings=tied))
    assert found.weights == 4 * found.parameters


@pytest.mark.parametrize("tied", [True, False])
def test_estimate_memory_frozen_layers_have_no_gradients(tied: bool, tmp_path: Path) -> None:
    """As many trained weights as in the real model; gradients and optimiser state are theirs alone."""
    save_tiny(tmp_path, "llama", tie_word_embeddings=tied)
    names = ("embed_tokens", "layers.0")
    found = estimated(tmp_path, replace(FULL, training=replace(FULL.training, freeze=names)))
    model, whole = tiny_model("llama", tie_word_embeddings=tied), estimated(tmp_path, FULL)
    freeze_layers(model, names)
    assert found.trainable == counted(model, trained_only=True) < found.parameters
    assert (found.gradients, found.optimizer) == (4 * found.trainable, 8 * found.trainable)
    assert (found.parameters, found.weights) == (whole.parameters, whole.weights)
    assert len(found.notices) == tied


@uses_peft
@pytest.mark.parametrize("rank", [1, 16])
@pytest.mark.parametrize("family", FAMILIES)
def test_estimate_memory_lora_on_all_linear_layers_equals_peft(
    family: Family, rank: int, folders: dict[Family, Path]
) -> None:
    """The same number of trainable parameters as peft with "all-linear", for every architecture."""
    adapter = Adapter(type="lora", r=rank)
    found = estimated(folders[family], replace(FULL, adapter=adapter))
    assert found.trainable == counted(with_adapter(tiny_model(family), adapter), trained_only=True)
    assert found.parameters == counted(tiny_model(family))
    assert found.weights == 4 * (found.parameters + found.trainable)


@uses_peft
@pytest.mark.parametrize(
    ("targets", "saved"),
    [
        (("q_proj",), ()),
        (("q_proj", "v_proj"), ()),
        (("self_attn.q_proj", "0.mlp.up_proj"), ()),
        (("q_proj", "embed_tokens"), ()),
        (("q_proj",), ("embed_tokens",)),
        (("q_proj",), ("embed_tokens", "lm_head")),
    ],
)
def test_estimate_memory_lora_on_chosen_layers_equals_peft(
    targets: tuple[str, ...], saved: tuple[str, ...], folders: dict[Family, Path]
) -> None:
    """adapter.target_modules and adapter.modules_to_save are counted as in peft."""
    adapter = Adapter(type="lora", r=4, target_modules=targets, modules_to_save=saved)
    found = estimated(folders["llama"], replace(FULL, adapter=adapter))
    assert found.trainable == counted(with_adapter(tiny_model("llama"), adapter), trained_only=True)


@uses_peft
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")
@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "embed_tokens")])
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_estimate_memory_dora_has_a_magnitude_for_each_output(
    family: Family, targets: Any, folders: dict[Family, Path]
) -> None:
    adapter = Adapter(type="lora", r=4, target_modules=targets, use_dora=True)
    found = estimated(folders[family], replace(FULL, adapter=adapter))
    assert found.trainable == counted(with_adapter(tiny_model(family), adapter), trained_only=True)


def test_estimate_memory_pissa_keeps_the_initial_adapter(folders: dict[Family, Path]) -> None:
    pissa = replace(LORA, adapter=replace(LORA.adapter, init_lora_weights="pissa"))
    plain, found = estimated(folders["llama"], LORA), estimated(folders["llama"], pissa)
    assert (found.trainable, found.optimizer) == (plain.trainable, plain.optimizer)
    assert found.weights == plain.weights + 4 * found.trainable


@uses_peft
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_estimate_memory_four_bit_weights_equal_bitsandbytes(family: Family, folders: dict[Family, Path]) -> None:
    """Equal to the bytes of the real quantised model, including its constants."""
    found = estimated(folders[family], QLORA)
    model = load_model(resolve_model(str(folders[family])), torch.float32, four_bit=True, compute_dtype=torch.float32)
    held = 0.0
    for item in model.parameters():
        held += item.numel() * item.element_size()
        if state := getattr(item, "quant_state", None):
            held += state.absmax.numel() * state.absmax.element_size()
            held += item.numel() * 2 / 64 / 256 * 4  # their own constants: these blocks are rarely full in a tiny model
    adapters = with_adapter(tiny_model(family), QLORA.adapter)
    assert found.trainable == counted(adapters, trained_only=True)
    assert estimate_model_memory(QLORA, model, 4, 4, 100, "cpu").trainable == found.trainable
    held_in_adapters = found.weights - held
    assert held_in_adapters / found.trainable in (pytest.approx(2, rel=1e-3), pytest.approx(4, rel=1e-3))
    assert found.weights < estimated(folders[family], LORA).weights


@uses_peft
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_estimate_memory_eight_bit_weights_equal_bitsandbytes(family: Family, folders: dict[Family, Path]) -> None:
    """Equal to the bytes of the real quantised model, including the scale of each output."""
    recipe = replace(LORA, quantization=Quantization(type="int8"))
    found = estimated(folders[family], recipe)
    model = load_model(resolve_model(str(folders[family])), torch.float32, eight_bit=True)
    held = sum(item.numel() * item.element_size() for item in model.parameters())
    held += sum(item.SCB.numel() * item.SCB.element_size() for item in model.parameters() if hasattr(item, "SCB"))
    assert found.weights == held + 4 * found.trainable
    assert estimate_model_memory(recipe, model, 4, 4, 100, "cpu").trainable == found.trainable


def test_four_bit_weights_take_slightly_more_than_half_a_byte() -> None:
    """The QLoRA paper: 0.127 bits per parameter for doubly quantised constants."""
    assert pytest.approx(4.127, abs=1e-3) == NF4_BITS + CONSTANT_BITS[True]
    assert pytest.approx(4.5) == NF4_BITS + CONSTANT_BITS[False]


@pytest.mark.parametrize("name", ALIASES)
def test_estimate_memory_parameters_of_aliases(name: str) -> None:
    """Without the hub: the architecture in the registry gives the known number."""
    alias = ALIASES[name]
    found = estimate_memory(FULL, ModelReference(name, "hub", alias.hub_id, None, alias), 2, 2, 100, "cuda")
    assert found.parameters == PARAMETERS[name]
    assert found.weights == 2 * PARAMETERS[name]


def test_estimate_memory_llama_2_7b_qlora() -> None:
    """A 7B model in 4 bits takes 3.4 to 4 GiB and its LoRA of rank 16 has 40 million parameters, as peft prints."""
    reference = ModelReference("llama-2-7b", "hub", "meta-llama/Llama-2-7b-hf", None, ALIASES["llama-2-7b"])
    found = estimate_memory(replace(QLORA, adapter=Adapter(type="lora", r=16)), reference, 2, 2, 512, "cuda")
    assert found.trainable == 39_976_960
    assert 3.4 < found.weights / 2**30 < 4


# How it grows


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU:UserWarning")
@pytest.mark.parametrize("optim", STATE_BYTES)
def test_state_bytes_are_those_of_the_optimizer(optim: str, tmp_path: Path) -> None:
    """Of the tensors that it keeps after a step; 8-bit states have 2 % more, for the scales of blocks."""
    arguments = TrainingArguments(str(tmp_path), optim=optim, use_cpu=True, report_to="none")
    optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    weight = torch.nn.Parameter(torch.ones(512, 512))
    optimizer = optimizer_class([weight], **settings)
    weight.grad = torch.ones(512, 512)
    optimizer.step()
    state = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
    held = sum(value.numel() * value.element_size() for value in state)
    assert held / weight.numel() == pytest.approx(STATE_BYTES[optim], abs=0.05)


@pytest.mark.parametrize("recipe", [FULL, LORA, QLORA], ids=["full", "lora", "qlora"])
def test_estimate_memory_optimizer_has_two_moments(recipe: Recipe, folders: dict[Family, Path]) -> None:
    """Gradients and moments are counted for trained parameters only."""
    found = estimated(folders["llama"], recipe)
    assert found.optimizer == 2 * found.gradients
    assert found.gradients / found.trainable == 4, "all that is trained is float32 here, adapters on 4 bits too"
    assert found.total() == found.weights + found.gradients + found.optimizer + found.activations


def test_estimate_memory_activations_grow_with_tokens_only(folders: dict[Family, Path]) -> None:
    """Twice the batch or the length doubles the activations; so does symmetric noise."""
    base = estimated(folders["llama"], FULL)
    wider = replace(FULL, training=Training(per_device_train_batch_size=16))
    symmetric = replace(FULL, neftune=Neftune(noise="symmetric"))
    for found in (
        estimated(folders["llama"], wider),
        estimated(folders["llama"], FULL, tokens=200),
        estimated(folders["llama"], symmetric),
    ):
        assert found == replace(base, activations=2 * base.activations)


def test_estimate_memory_gradient_checkpointing_saves_activations_only(folders: dict[Family, Path]) -> None:
    """Other parts don't change."""
    base = estimated(folders["llama"], FULL)
    found = estimated(folders["llama"], replace(FULL, training=Training(gradient_checkpointing=True)))
    assert found.activations < base.activations
    assert replace(found, activations=base.activations) == base


def test_estimate_memory_sixteen_bits_halve_their_parts(folders: dict[Family, Path]) -> None:
    """Activations take half in 16 bits, except for the logits, which are float32."""
    reference = resolve_model(str(folders["llama"]))
    wide, narrow = (estimate_memory(FULL, reference, 4, size, 100, "cuda") for size in (4, 2))
    logits = 8 * 100 * 256 * 4
    assert narrow.activations - logits == (wide.activations - logits) / 2
    assert estimate_memory(FULL, reference, 2, 4, 100, "cuda").weights == wide.weights / 2


def test_estimate_memory_counts_stored_attention_weights(folders: dict[Family, Path]) -> None:
    """Two bytes per layer, head and pair of tokens that attend; none on a GPU or in float32."""
    reference, recipe = (
        resolve_model(str(folders["llama"])),
        replace(FULL, training=Training(per_device_train_batch_size=1)),
    )
    kept, other = (estimate_memory(recipe, reference, 4, 2, 100, device).activations for device in ("cpu", "cuda"))
    config = tiny_model("llama").config
    assert kept - other == 2 * config.num_attention_heads * config.num_hidden_layers * 100 * 100
    assert len({estimate_memory(recipe, reference, 4, 4, 100, device).activations for device in ("cpu", "cuda")}) == 1
    assert len({estimate_memory(recipe, reference, 4, 2, 2000, device).activations for device in ("cpu", "cuda")}) == 1

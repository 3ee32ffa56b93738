"""The laws of NEFTune on tiny models of four families, for all layouts, adapters, weights and precisions.

Oracle: a batch is made from documents, lists of token ids, and remembers which document each token came from. For each
document, in plain Python and float64, with L its number of tokens, d the embedding's width:

    |noised - clean| <= alpha / sqrt(L d), nearly reached, and exactly 0 at pads

Clean vectors come from the same embedding called in evaluation mode before the noise is attached, and noised ones from
a hook behind it. Where the oracle is a run without NEFTune, equality is bit for bit.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

from neftcli.errors import NeftuneError
from neftcli.models.freezing import freeze_layers
from neftcli.models.loading import load_model
from neftcli.models.registry import resolve_model
from neftcli.neftune import neftune
from tests.tiny import FAMILIES, HIDDEN, Family, save_tiny, tiny_model

ALPHA = 5.0
# Dynamo probes the gradient of every tensor that it meets, and torch warns that those of inner tensors aren't kept.
COMPILER_PROBES_GRADIENTS = "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
# bitsandbytes 0.50 and inductor import torch.utils.mkldnn, which uses what torch 2.13 itself deprecates.
TORCH_IMPORTS_ITS_JIT = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning:torch.jit"
DROPOUT: dict[Family, dict[str, float]] = {
    "opt": {"dropout": 0.2},
    "llama": {"attention_dropout": 0.2},
    "gemma": {"attention_dropout": 0.2},
    "granite": {"attention_dropout": 0.2},
}

pytestmark = [
    # peft 0.21 reads a property that transformers 5.23 has renamed, on every get_peft_model.
    pytest.mark.filterwarnings(
        "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning:transformers.modeling_utils"
    ),
    # peft warns that adapting a tied embedding unties it; the noise must be right there nonetheless.
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True` and a tied layer:UserWarning"),
]


# Documents and their layouts


@dataclass
class Batch:
    """The inputs of a model, and the document of each token (-1 at pads)."""

    inputs: dict[str, Tensor]
    owners: np.ndarray
    documents: list[list[int]]

    @property
    def real(self) -> Tensor:
        """Mask of the tokens that aren't pads."""
        return torch.from_numpy(self.owners >= 0)

    def with_labels(self) -> dict[str, Tensor]:
        """The inputs of a training step."""
        return {**self.inputs, "labels": self.inputs["input_ids"].masked_fill(~self.real, -100)}


def documents_of(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Random documents without special tokens."""
    random = np.random.default_rng(seed)
    return [random.integers(4, 256, length).tolist() for length in lengths]


def rows_of(packs: list[list[int]], documents: list[list[int]], side: str) -> Batch:
    """Rows with several documents each, by number, padded to the longest row."""
    time = max(sum(len(documents[number]) for number in pack) for pack in packs)
    token_ids, mask, positions, owners = [], [], [], []
    for pack in packs:
        row = [token for number in pack for token in documents[number]]
        place = [position for number in pack for position in range(len(documents[number]))]
        owner = [number for number in pack for _ in documents[number]]
        pads = time - len(row)
        before, after = (pads, 0) if side == "left" else (0, pads)
        token_ids.append([0] * before + row + [0] * after)
        mask.append([0] * before + [1] * len(row) + [0] * after)
        positions.append([0] * before + place + [0] * after)
        owners.append([-1] * before + owner + [-1] * after)
    names = {"input_ids": token_ids, "attention_mask": mask, "position_ids": positions}
    return Batch({name: torch.tensor(values) for name, values in names.items()}, np.array(owners), documents)


def padded(documents: list[list[int]], side: str) -> Batch:
    """One document per row, with a mask only."""
    batch = rows_of([[number] for number in range(len(documents))], documents, side)
    del batch.inputs["position_ids"]
    return batch


def flattened(documents: list[list[int]], *, mask: bool = False, cumulative: bool = False) -> Batch:
    """All documents packed in one row, with restarting positions."""
    batch = rows_of([list(range(len(documents)))], documents, "right")
    if not mask:
        del batch.inputs["attention_mask"]
    if cumulative:
        boundaries = np.cumsum([0, *map(len, documents)])
        batch.inputs["cu_seq_lens_q"] = batch.inputs["cu_seq_lens_k"] = torch.tensor(boundaries, dtype=torch.int32)
        batch.inputs["max_length_q"] = batch.inputs["max_length_k"] = max(map(len, documents))  # type: ignore[assignment]
    return batch


LAYOUTS: dict[str, Callable[[list[list[int]]], Batch]] = {
    "padded right": lambda documents: padded(documents, "right"),
    "padded left": lambda documents: padded(documents, "left"),
    "padding-free": flattened,
    "padding-free with a mask of ones": lambda documents: flattened(documents, mask=True),
    "padding-free with cumulative lengths": lambda documents: flattened(documents, cumulative=True),
    "packed rows": lambda documents: rows_of([[0, 1], [2, 3]], documents, "right"),
    "packed rows padded left": lambda documents: rows_of([[0, 1], [2, 3]], documents, "left"),
}
DOCUMENTS = documents_of(40, 12, 25, 16)
each_family = pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=pytest.mark.slow if family == "granite" else ()) for family in FAMILIES],
)
"""Granite scales its embeddings, as Gemma does, so it can wait for the slow tests."""
each_layout = pytest.mark.parametrize("layout", LAYOUTS)


# Looking at the embedding


def bound(length: int, width: int = HIDDEN, alpha: float = ALPHA) -> float:
    return float(np.float64(alpha) / np.sqrt(np.float64(length) * np.float64(width)))


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Tensor]]:
    """The embedding's output in each forward pass, after every hook attached so far."""
    outputs: list[Tensor] = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda _module, _args, output: outputs.append(output.detach().clone())
    )
    try:
        yield outputs
    finally:
        handle.remove()


@torch.no_grad()
def clean_vectors(model: nn.Module, token_ids: Tensor) -> Tensor:
    """The embedding's output in evaluation mode."""
    embedding = model.get_input_embeddings()
    training = model.training
    model.eval()
    vectors = embedding(token_ids)
    model.train(training)
    return vectors


def noised_vectors(model: nn.Module, batch: Batch, **options: Any) -> Tensor:
    """The embedding's output in the first training forward pass with NEFTune."""
    with neftune(model, **{"alpha": ALPHA, **options}), recorded(model) as outputs:
        model(**batch.inputs)
    (vectors,) = outputs
    return vectors


def assert_bounds(noise: np.ndarray, batch: Batch, limits: list[float]) -> None:
    """Check that each document stays within its limit and nearly reaches it."""
    for number, limit in enumerate(limits):
        values = np.abs(noise[batch.owners == number])
        assert values.shape[0] == len(batch.documents[number])
        # Subtracting float32 vectors of size 1 leaves an error of 1e-7. The largest of n >= 700 uniform draws is below
        # 0.98 of the limit with probability 0.98^n < 1e-6; their RMS is within five standard errors of limit / sqrt(3).
        assert 0.98 * limit < values.max() <= limit * (1 + 1e-6) + 1e-7
        error = 5 * np.sqrt(0.8 / values.size) / 2
        assert np.sqrt(np.mean(values**2)) == pytest.approx(limit / np.sqrt(3), rel=error)


def assert_noised(model: nn.Module, batch: Batch, **options: Any) -> Tensor:
    """Check the formula above for one training forward pass, and return its noised vectors."""
    clean = clean_vectors(model, batch.inputs["input_ids"])
    noised = noised_vectors(model, batch, **options)
    assert torch.equal(noised[~batch.real], clean[~batch.real]), "pads are bit-clean"
    width = clean.shape[-1]
    limits = [bound(len(document), width) for document in batch.documents]
    assert_bounds((noised.double() - clean.double()).numpy(), batch, limits)
    return noised


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    assert found
    return found


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


# Alpha 0


@dataclass
class Trained:
    """The results of training steps."""

    losses: list[Tensor]
    gradients: list[dict[str, Tensor]]
    random_states: list[Tensor]
    weights: dict[str, Tensor]


def train(model: nn.Module, batch: Batch, alpha: float | None, **options: Any) -> Trained:
    """Three steps of plain gradient descent; without NEFTune if `alpha` is None."""
    torch.manual_seed(11)
    trained = Trained([], [], [], {})
    with nullcontext() if alpha is None else neftune(model, alpha, **options) as noise:
        for step in range(3):
            if noise is not None:
                noise.begin_step(step)
            model.zero_grad()
            loss = model(**batch.with_labels()).loss
            loss.backward()
            trained.losses.append(loss.detach())
            trained.gradients.append(gradients(model))
            trained.random_states.append(torch.get_rng_state())
            with torch.no_grad():
                for value in model.parameters():
                    if value.grad is not None:
                        value -= 0.1 * value.grad
    trained.weights = {name: value.detach().clone() for name, value in model.named_parameters()}
    return trained


@each_family
@pytest.mark.parametrize("options", [{}, {"noise": "gaussian"}, {"length": "padded"}], ids=str)
def test_alpha_zero_is_bit_identical_to_no_neftune(family: Family, options: dict[str, Any]) -> None:
    batch = padded(DOCUMENTS, "right")
    plain = train(tiny_model(family, **DROPOUT[family]), batch, None)
    zero = train(tiny_model(family, **DROPOUT[family]), batch, 0.0, **options)
    assert [loss.item() for loss in zero.losses] == [loss.item() for loss in plain.losses]
    for left, right in zip(zero.gradients, plain.gradients, strict=True):
        assert_same(left, right)
    assert all(map(torch.equal, zero.random_states, plain.random_states))
    assert_same(zero.weights, plain.weights)


@each_family
@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
def test_neftune_leaves_the_global_random_state_unchanged(family: Family, kind: str) -> None:
    # So the arms of a sweep share dropout and the order of the data.
    batch = padded(DOCUMENTS, "right")
    zero = train(tiny_model(family, **DROPOUT[family]), batch, 0.0)
    five = train(tiny_model(family, **DROPOUT[family]), batch, ALPHA, noise=kind)
    assert all(map(torch.equal, zero.random_states, five.random_states))
    assert not torch.equal(zero.random_states[0], zero.random_states[1]), "dropout drew"
    assert all(left != right for left, right in zip(zero.losses, five.losses, strict=True)), "noise was on"


# The bound of each document, and where the noise falls


@each_family
@each_layout
def test_noise_of_each_document_has_the_bound_of_its_length(family: Family, layout: str) -> None:
    assert_noised(tiny_model(family), LAYOUTS[layout](DOCUMENTS))


@each_family
def test_noise_of_a_document_is_the_same_in_every_layout(family: Family) -> None:
    model = tiny_model(family)
    vectors: dict[str, Tensor] = {}
    for layout, lay_out in LAYOUTS.items():
        batch = lay_out(DOCUMENTS)
        vectors[layout] = noised_vectors(model, batch)[batch.real]
    alone = padded(DOCUMENTS[:1], "right")
    first = noised_vectors(model, alone)[alone.real]
    for layout, noised in vectors.items():
        assert torch.equal(noised, vectors["padded right"]), layout
        assert torch.equal(noised[: len(first)], first), layout


@each_family
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["uniform", "gaussian", "symmetric"])
def test_noise_is_zero_at_pads(family: Family, side: str, kind: str) -> None:
    model = tiny_model(family)
    batch = padded([*DOCUMENTS, *DOCUMENTS], side)  # twice, for symmetric noise
    # A pad's embedding need not be zero.
    batch.inputs["input_ids"] = batch.inputs["input_ids"].masked_fill(~batch.real, 9)
    clean = clean_vectors(model, batch.inputs["input_ids"])
    noised = noised_vectors(model, batch, noise=kind)
    assert clean[~batch.real].any()
    assert torch.equal(noised[~batch.real], clean[~batch.real])
    assert (noised != clean)[batch.real].double().mean() > 0.99


def test_noise_width_is_that_of_the_embedding() -> None:
    # OPT-350m embeds in 512 and projects to 1,024.
    model = tiny_model("opt", word_embed_proj_dim=32)
    batch = padded(DOCUMENTS, "right")
    assert clean_vectors(model, batch.inputs["input_ids"]).shape[-1] == 32
    assert_noised(model, padded(documents_of(40, 60, seed=1), "right"))


@each_family
def test_noise_gradient_is_that_of_a_constant(family: Family) -> None:
    model, batch = tiny_model(family, tie_word_embeddings=False), padded(DOCUMENTS, "right")
    clean = clean_vectors(model, batch.inputs["input_ids"])
    with neftune(model, ALPHA), recorded(model) as outputs:
        loss = model(**batch.with_labels()).loss
        loss.backward()
    noised_gradients = gradients(model)
    model.zero_grad()
    inputs = batch.with_labels()
    vectors = model.get_input_embeddings()(inputs.pop("input_ids"))
    expected = model(**inputs, inputs_embeds=vectors + (outputs[0] - clean)).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(noised_gradients[name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("names", [["embed_tokens"], ["embed_tokens", "layers.0"]], ids=str)
@each_family
def test_noise_with_frozen_layers_is_the_same(family: Family, names: list[str]) -> None:
    """The other weights have the gradients of a model in which all are trained."""
    batch = padded(DOCUMENTS, "right")
    model, whole = tiny_model(family, tie_word_embeddings=False), tiny_model(family, tie_word_embeddings=False)
    freeze_layers(model, names)
    assert torch.equal(assert_noised(model, batch), noised_vectors(whole, batch))
    frozen, all_trained = train(model, batch, ALPHA), train(whole, batch, ALPHA)
    assert torch.equal(frozen.losses[0], all_trained.losses[0])
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert_same(frozen.gradients[0], {name: all_trained.gradients[0][name] for name in sorted(trained)})
    plain = train_frozen(family, names, batch, None)
    assert_same(train_frozen(family, names, batch, 0.0).weights, plain.weights)
    for name, weight in tiny_model(family, tie_word_embeddings=False).named_parameters():
        assert torch.equal(frozen.weights[name], weight) is (name not in trained), name


def train_frozen(family: Family, names: list[str], batch: Batch, alpha: float | None) -> Trained:
    model = tiny_model(family, tie_word_embeddings=False)
    freeze_layers(model, names)
    return train(model, batch, alpha)


# Evaluation and generation


@each_family
def test_evaluation_is_bit_identical_to_no_neftune(family: Family) -> None:
    model, batch = tiny_model(family).eval(), padded(DOCUMENTS, "right")
    with torch.no_grad():
        plain = model(**batch.with_labels())
    with neftune(model, ALPHA):
        with torch.no_grad():
            without_gradient = model(**batch.with_labels())
        with_gradient = model(**batch.with_labels())
    for output in (without_gradient, with_gradient):
        assert torch.equal(output.logits, plain.logits)
        assert torch.equal(output.loss, plain.loss)


@each_family
@pytest.mark.parametrize("sample", [False, True], ids=["greedy", "sampling"])
def test_generation_is_bit_identical_to_no_neftune(family: Family, sample: bool) -> None:
    model, batch = tiny_model(family).eval(), padded(DOCUMENTS, "left")

    def generate() -> Any:
        torch.manual_seed(5)
        options = {"return_dict_in_generate": True, "output_scores": True, "use_cache": True}
        return model.generate(**batch.inputs, max_new_tokens=4, do_sample=sample, **options)

    plain = generate()
    with neftune(model, ALPHA):
        model.train()
        model(**batch.inputs)  # a training step came before
        model.eval()
        attached = generate()
    assert torch.equal(attached.sequences, plain.sequences)
    assert all(map(torch.equal, attached.scores, plain.scores))


# Adapters, tied embeddings, 4-bit weights


ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"target_modules": "all-linear"},
    "lora with modules_to_save": {"target_modules": "all-linear", "modules_to_save": ["embed_tokens"]},
    "lora on embed_tokens": {"target_modules": ["q_proj", "embed_tokens"]},
    "dora, rslora": {"target_modules": "all-linear", "use_dora": True, "use_rslora": True},
    "new and trained tokens": {"target_modules": "all-linear", "trainable_token_indices": [11, 99, 256, 257]},
    "pissa": {"target_modules": "all-linear", "init_lora_weights": "pissa"},
}
SLOW_ADAPTERS = ("dora, rslora", "new and trained tokens", "pissa")
each_adapter = pytest.mark.parametrize(
    "adapter",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW_ADAPTERS else ()) for name in ADAPTERS],
)


def adapted(family: Family, adapter: str, **overrides: Any) -> nn.Module:
    """A model with an adapter whose factors aren't zero."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        base = tiny_model(family, **overrides)
        if "new" in adapter:
            base.resize_token_embeddings(258, mean_resizing=True)
        model = get_peft_model(base, LoraConfig(r=4, **ADAPTERS[adapter])).train()
        for value in model.parameters():
            if value.requires_grad:
                value += 0.02 * torch.randn_like(value)
    return model


@each_family
@each_adapter
@pytest.mark.parametrize("layout", ["padded right", "padding-free"])
def test_noise_with_adapters_has_the_same_bounds(family: Family, adapter: str, layout: str) -> None:
    assert_noised(adapted(family, adapter), LAYOUTS[layout](DOCUMENTS))


@each_family
@each_adapter
def test_alpha_zero_with_adapters_is_bit_identical(family: Family, adapter: str) -> None:
    batch = padded(DOCUMENTS, "right")
    plain = train(adapted(family, adapter), batch, None)
    zero = train(adapted(family, adapter), batch, 0.0)
    five = train(adapted(family, adapter), batch, ALPHA)
    assert_same(zero.gradients[-1], plain.gradients[-1])
    assert_same(zero.weights, plain.weights)
    assert five.gradients[0].keys() == plain.gradients[0].keys()
    assert any("embed_tokens" in name for name in five.gradients[0]) == ("token" in str(ADAPTERS[adapter]))


@pytest.mark.slow
@each_family
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_noise_on_new_tokens_is_a_constant_after_their_trained_rows(family: Family, tied: bool) -> None:
    """Trained rows replace those of the matrix; the noise comes after that, once, with the gradient of a constant."""
    tokens = [[token if token % 3 else 257 for token in document] for document in DOCUMENTS]
    batch = padded([[token if token % 5 else 99 for token in document] for document in tokens], "right")
    model: Any = adapted(family, "new and trained tokens", tie_word_embeddings=tied)
    embedding = model.get_input_embeddings()
    rows = embedding.token_adapter.trainable_tokens_delta["default"]
    clean = clean_vectors(model, batch.inputs["input_ids"])
    scale = HIDDEN**0.5 if family == "gemma" else 1.0
    torch.testing.assert_close(
        clean[batch.inputs["input_ids"] == 257], (scale * rows[3]).expand_as(clean[batch.inputs["input_ids"] == 257])
    )
    with neftune(model, ALPHA), recorded(model) as outputs:
        loss = model(**batch.with_labels()).loss
        loss.backward()
    assert_bounds((outputs[0] - clean).double().numpy(), batch, [bound(len(each)) for each in batch.documents])
    noised_gradients = gradients(model)
    model.zero_grad()
    inputs = batch.with_labels()
    vectors = embedding(inputs.pop("input_ids"))
    expected = model(**inputs, inputs_embeds=vectors + (outputs[0] - clean)).loss
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(noised_gradients[name], gradient, rtol=1e-4, atol=1e-6)
    assert any("trainable_tokens_delta" in name for name in noised_gradients)


@each_adapter
def test_neftune_attaches_once_with_any_wrapper(adapter: str) -> None:
    model = adapted("llama", adapter)
    inner = model.get_base_model()
    with neftune(model, ALPHA), pytest.raises(NeftuneError, match="exactly once"), neftune(inner, ALPHA):
        pytest.fail("attached twice")
    handle = activate_neftune(model, 5.0)
    with pytest.raises(NeftuneError, match="Hugging Face"), neftune(model, ALPHA):
        pytest.fail("attached beside Hugging Face's hook")
    deactivate_neftune(model, handle)
    with neftune(model, ALPHA):
        model(**padded(DOCUMENTS, "right").inputs)
        handle = activate_neftune(model, 5.0)
        with pytest.raises(NeftuneError, match="Hugging Face"):
            model(**padded(DOCUMENTS, "right").inputs)


@each_family
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_noise_does_not_change_the_output_layer(family: Family, tied: bool) -> None:
    model, batch = tiny_model(family, tie_word_embeddings=tied), padded(DOCUMENTS, "right")
    table, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    before = head.weight.detach().clone()
    assert (table.data_ptr() == head.weight.data_ptr()) is tied
    seen: list[tuple[Tensor, Tensor]] = []
    handle = head.register_forward_hook(lambda _module, args, output: seen.append((args[0], output)))
    assert_noised(model, batch)
    handle.remove()
    ((hidden, logits),) = seen
    assert torch.equal(logits, nn.functional.linear(hidden, before))
    assert torch.equal(head.weight, before)
    assert (table.data_ptr() == head.weight.data_ptr()) is tied


@pytest.mark.filterwarnings(TORCH_IMPORTS_ITS_JIT)
@each_family
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_noise_with_four_bit_weights_has_the_same_bounds(family: Family, compute: torch.dtype, tmp_path: Path) -> None:
    save_tiny(tmp_path, family)
    quantized = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        dtype=torch.float32,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
        ),
    )
    assert any(type(module).__name__ == "Linear4bit" for module in quantized.modules())
    model = get_peft_model(quantized, LoraConfig(r=4, target_modules="all-linear")).train()
    for layout in ("padded right", "padding-free"):
        assert_noised(model, LAYOUTS[layout](DOCUMENTS))
    trained = train(model, padded(DOCUMENTS, "right"), ALPHA)
    assert all("lora" in name for name in trained.gradients[0])


@pytest.mark.slow
@pytest.mark.filterwarnings(TORCH_IMPORTS_ITS_JIT)
@each_family
def test_noise_with_eight_bit_weights_has_the_same_bounds(family: Family, tmp_path: Path) -> None:
    save_tiny(tmp_path, family)

    def quantized() -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            base = load_model(resolve_model(str(tmp_path)), torch.float32, eight_bit=True)
            return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear")).train()

    model = quantized()
    assert any(type(module).__name__ == "Linear8bitLt" for module in model.modules())
    for layout in ("padded right", "padding-free"):
        assert_noised(model, LAYOUTS[layout](DOCUMENTS))
    batch = padded(DOCUMENTS, "right")
    zero, plain = train(quantized(), batch, 0.0), train(quantized(), batch, None)
    assert_same(zero.gradients[-1], plain.gradients[-1])
    assert all("lora" in name for name in zero.gradients[-1])


# Checkpointed activations


def micro_batch_gradients(model: nn.Module, forward: Callable[..., Tensor], together: bool) -> dict[str, Tensor]:
    """Gradients of two micro-batches, each with its own backward pass, or one for their sum."""
    first, second = padded(DOCUMENTS, "right"), padded(documents_of(30, 9, seed=4), "right")
    with neftune(model, ALPHA):
        if together:
            (forward(model, first) + forward(model, second)).backward()
        else:
            forward(model, first).backward()
            forward(model, second).backward()
    return gradients(model)


def plainly(model: nn.Module, batch: Batch) -> Tensor:
    return model(**batch.with_labels()).loss


@each_family
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("adapter", [None, "lora", "lora on embed_tokens"])
def test_noise_with_activation_checkpointing_gives_the_same_gradients(
    family: Family, reentrant: bool, adapter: str | None
) -> None:
    def build() -> nn.Module:
        torch.manual_seed(1)
        return tiny_model(family, **DROPOUT[family]) if adapter is None else adapted(family, adapter, **DROPOUT[family])

    expected = micro_batch_gradients(build(), plainly, together=False)
    model = build()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": reentrant})
    if adapter is not None:
        model.enable_input_require_grads()
    assert_same(micro_batch_gradients(model, plainly, together=False), expected)


class Recomputed:
    """A forward pass of the whole model under torch's checkpointing, embedding included."""

    def __init__(self, reentrant: bool) -> None:
        self.reentrant = reentrant
        self.embedded = 0

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss."""

        def forward(one: Tensor) -> Tensor:
            self.embedded += 1
            return plainly(model, batch) * one

        # Reentrant checkpointing needs an input that requires a gradient.
        return checkpoint(forward, torch.ones((), requires_grad=True), use_reentrant=self.reentrant)


each_checkpoint = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])


def assert_recomputation_changes_nothing(family: Family, reentrant: bool, together: bool) -> None:
    torch.manual_seed(1)
    expected = micro_batch_gradients(tiny_model(family, **DROPOUT[family]), plainly, together)
    torch.manual_seed(1)
    recomputed = Recomputed(reentrant)
    actual = micro_batch_gradients(tiny_model(family, **DROPOUT[family]), recomputed, together)
    assert recomputed.embedded == 4, "two micro-batches, each run twice"
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=0, atol=1e-6)


@each_family
@each_checkpoint
def test_noise_of_a_recomputed_embedding_is_the_same(family: Family, reentrant: bool) -> None:
    assert_recomputation_changes_nothing(family, reentrant, together=False)


@each_checkpoint
def test_noise_of_two_recomputed_forward_passes_is_the_same(reentrant: bool) -> None:
    """For example in a preference loss over two batches."""
    assert_recomputation_changes_nothing("llama", reentrant, together=True)


# Compiled models


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILER_PROBES_GRADIENTS)
@pytest.mark.filterwarnings(TORCH_IMPORTS_ITS_JIT)
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_noise_in_a_compiled_model_is_the_same(backend: str) -> None:
    model = tiny_model("llama")
    compiled = torch.compile(model, backend=backend)
    batches = [padded(DOCUMENTS, "right"), padded(documents_of(40, 30, 9, 20, seed=4), "left")]
    for number, batch in enumerate(batches):
        plain = noised_vectors(model, batch, seed=number)
        clean = clean_vectors(model, batch.inputs["input_ids"])
        with neftune(compiled, ALPHA, seed=number), recorded(model) as outputs:
            loss = compiled(**batch.with_labels()).loss
            loss.backward()
        torch.testing.assert_close(outputs[0], plain, rtol=0, atol=1e-6)
        assert_bounds((outputs[0] - clean).double().numpy(), batch, [bound(len(each)) for each in batch.documents])
        with neftune(model, ALPHA, seed=number):
            assert loss.item() == pytest.approx(model(**batch.with_labels()).loss.item(), abs=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILER_PROBES_GRADIENTS)
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("before", ["nothing", "a training step without noise", "a training step with noise"])
def test_neftune_resets_a_compiled_model(before: str) -> None:
    """The compiler doesn't check hooks when it reuses compiled code."""
    model, inputs = tiny_model("llama"), padded(DOCUMENTS, "right").with_labels()
    clean = model(**inputs).loss.item()
    with neftune(model, ALPHA, seed=1):
        noised = model(**inputs).loss.item()
    assert abs(clean - noised) > 1e-3
    compiled = torch.compile(model, backend="eager")
    if before == "a training step without noise":
        compiled(**inputs)
    if before == "a training step with noise":
        with neftune(compiled, ALPHA, seed=2):
            compiled(**inputs)
    with neftune(compiled, ALPHA, seed=1):
        assert compiled(**inputs).loss.item() == pytest.approx(noised, abs=1e-5)
    assert compiled(**inputs).loss.item() == pytest.approx(clean, abs=1e-5)


# Precision


def silent(model: nn.Module) -> nn.Module:
    """The model with a table of zeros: the embedding's output is the noise, without rounding."""
    nn.init.zeros_(model.get_input_embeddings().weight)
    return model


@each_family
@pytest.mark.parametrize("lengths", [(257, 300), (513, 259), (1_023, 255)])
def test_noise_in_bfloat16_uses_exact_lengths(family: Family, lengths: tuple[int, ...]) -> None:
    batch = padded(documents_of(*lengths), "right")
    noise = noised_vectors(silent(tiny_model(family, tie_word_embeddings=False)), batch)
    assert_bounds(noise.double().numpy(), batch, [bound(length) for length in lengths])
    model = tiny_model(family).to(torch.bfloat16)
    clean = clean_vectors(model, batch.inputs["input_ids"])
    noised = noised_vectors(model, batch)
    assert noised.dtype == torch.bfloat16
    assert torch.equal(noised, (clean.float() + noise).to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_noise_is_zero_at_pads_in_every_precision(dtype: torch.dtype) -> None:
    model, batch = tiny_model("llama").to(dtype), padded(DOCUMENTS, "left")
    nn.init.uniform_(model.get_input_embeddings().weight, -0.02, 0.02)  # values that need every bit of their type
    clean = clean_vectors(model, batch.inputs["input_ids"])
    noised = noised_vectors(model, batch)
    assert noised.dtype == dtype
    assert clean[~batch.real].any()
    assert torch.equal(noised[~batch.real], clean[~batch.real])


# Hugging Face's scaling, under its name


def hugging_face_noise(model: nn.Module, batch: Batch) -> np.ndarray:
    """The noise of transformers' hook on a table of zeros."""
    handle = activate_neftune(model, ALPHA)
    try:
        with recorded(model) as outputs:
            model(**batch.inputs)
    finally:
        deactivate_neftune(model, handle)
    return outputs[0].double().numpy()


@each_family
@each_layout
def test_length_padded_equals_hugging_faces_scaling(family: Family, layout: str) -> None:
    batch = LAYOUTS[layout](DOCUMENTS)
    model = silent(tiny_model(family, tie_word_embeddings=False))
    limits = [bound(batch.owners.shape[1])] * len(DOCUMENTS)  # the width of the batch, for every document in it
    assert_bounds(noised_vectors(model, batch, length="padded").double().numpy(), batch, limits)
    assert_bounds(hugging_face_noise(model, batch), batch, limits)


def test_hugging_faces_hook_adds_noise_at_pads() -> None:
    batch = padded(DOCUMENTS, "right")
    model = silent(tiny_model("llama"))
    pads = batch.owners < 0
    assert np.abs(hugging_face_noise(model, batch)[pads]).min(axis=1).all()
    for length in ("tokens", "padded"):
        assert not noised_vectors(model, batch, length=length)[torch.from_numpy(pads)].any()
